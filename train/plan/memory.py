"""Memory of a compiled program."""

from typing import Any


def peak_bytes(compiled: Any) -> int:
    """Returns the memory that a compiled program takes on one device."""
    sizes = compiled.memory_analysis()
    return int(
        sizes.argument_size_in_bytes
        + sizes.temp_size_in_bytes
        + sizes.output_size_in_bytes
        - sizes.alias_size_in_bytes  # donated
    )
