"""Loading of a run or an adapter for prediction."""

import dataclasses
from pathlib import Path

from ivon_jax.train.config import BaseName, DataConfig
from ivon_jax.train.inference.model import Model
from ivon_jax.train.pod.processes import check_alone
from ivon_jax.train.runs import run
from ivon_jax.train.sources import AdapterSource, read_adapter, read_run


def load(
    folder: str | Path,
    *,
    best: bool = False,
    mesh: str = "data=1",
    chunk_size: int | None = 1,
    model: str | None = None,
    data: DataConfig | None = None,
    base: BaseName = "f32",
) -> Model:
    """Loads a run, or a PEFT adapter, to predict new rows.

    Args:
        folder: folder of a run, or of an adapter.
        best: of a run, load the posterior of lowest NLL.
        mesh: devices to split the base over.
        chunk_size: draws at a time; None for all.
        model: of an adapter: its base model.
        data: of an adapter: its task; a custom one needs only `prompt` and `labels`.
        base: of an adapter: number format of the base.

    Returns:
        The model; its `predict` takes texts or rows.

    Raises:
        ValueError: the folder is neither, its model is missing or has changed, or there
            are several processes.
    """
    check_alone()
    folder = Path(folder)
    if model is None:
        if (folder / "adapter_config.json").exists() and not (
            folder / run.CONFIG
        ).exists():
            raise ValueError(
                f"model: {folder} is an adapter, whose base model it needs"
            )
        return Model(read_run(folder, mesh, (), best=best), folder, chunk_size)
    source = AdapterSource((folder,), model, without_files(data or DataConfig()), base)
    return Model(read_adapter(source, mesh, ()), folder, chunk_size)


def without_files(data: DataConfig) -> DataConfig:
    """Fills in the files that a custom task requires, and that are not read."""
    if data.task != "custom":
        return data
    return dataclasses.replace(
        data,
        train_file=Path("-"),
        eval_file=Path("-"),
        dataset=None,
        streaming=False,
    )
