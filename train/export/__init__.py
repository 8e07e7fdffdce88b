"""A run's result in the files of other programs, and on the hub."""

from ivon_jax.train.export.files import export_hf, export_peft

__all__ = ["export_hf", "export_peft"]
