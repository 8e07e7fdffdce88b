"""The supported models and formats, from the tables of the code that loads them."""

from ivon_jax.models.families import FAMILIES
from ivon_jax.models.gguf_io import ARCHITECTURES
from ivon_jax.models.gguf_tokenizer import CUTS
from ivon_jax.models.known import KNOWN
from ivon_jax.models.rope_config import ROPE_TYPES
from ivon_jax.models.safetensors_io import DTYPES


def table() -> str:
    """Returns the supported models and formats as a Markdown table."""
    types = [name for family in FAMILIES for name in family.model_types]
    rows = {
        "known by name": KNOWN,
        "`model_type` of config.json": types,
        "rotary scaling": ("default", *ROPE_TYPES),
        "tensors in safetensors files": DTYPES,
        "architectures in GGUF files": ARCHITECTURES,
        "`tokenizer.ggml.pre` of GGUF files": ("sentencepiece", *CUTS),
    }
    lines = [f"| {name} | {', '.join(values)} |" for name, values in rows.items()]
    return "\n".join(["| | supported |", "|---|---|", *lines])
