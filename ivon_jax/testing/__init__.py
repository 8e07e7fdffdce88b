"""For tests and examples: a tiny language model, its data, and a check of methods."""

from ivon_jax.testing.methods import check_method as check_method
from ivon_jax.testing.tiny import LABELS as LABELS
from ivon_jax.testing.tiny import PROMPT as PROMPT
from ivon_jax.testing.tiny import rows as rows
from ivon_jax.testing.tiny import write_data as write_data
from ivon_jax.testing.tiny import write_model as write_model
