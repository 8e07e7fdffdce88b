"""What can be loaded, told by the code that loads it."""

from ivon_jax.models.config import MODEL_TYPES
from ivon_jax.models.gguf_io import ARCHITECTURES
from ivon_jax.models.known import KNOWN
from ivon_jax.models.rope_config import KINDS
from ivon_jax.models.safetensors_io import DTYPES


def table() -> str:
    """The supported models and formats, as a Markdown table."""
    rows = {
        "known by name": KNOWN,
        "`model_type` of config.json": MODEL_TYPES,
        "rotary scaling": ("default", *KINDS),
        "tensors in safetensors files": DTYPES,
        "architectures in GGUF files": ARCHITECTURES,
    }
    lines = [f"| {name} | {', '.join(values)} |" for name, values in rows.items()]
    return "\n".join(["| | supported |", "|---|---|", *lines])
