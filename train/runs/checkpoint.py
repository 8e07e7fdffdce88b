"""Checkpoints of a run, written in the background and verified before use.

Orbax writes one folder per checkpoint. A committed checkpoint is read back, then sealed
with a digest of every file, so that one that is truncated or altered on the disk is
recognised; restoring takes the newest that is good.
"""

import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from ivon_jax.errors import one_line
from ivon_jax.files import write_bytes
from ivon_jax.train.runs.progress import say

SEAL = "sha256.json"
# The folder of the arrays in Orbax's folder of a checkpoint.
ARRAYS = "state"
READ_BYTES = 2**30


class Saved(NamedTuple):
    """The contents of a checkpoint.

    Attributes:
        step: number of steps taken.
        state: arrays.
        metadata: everything else, as JSON.
        score: finite score of the state, lower is better; None if unknown.
    """

    step: int
    state: PyTree
    metadata: dict[str, Any]
    score: float | None = None


class Checkpoints:
    """The checkpoints in a folder; a context that ends when all are on the disk.

    Several processes all make the same calls, on a shared file system.

    Args:
        folder: created if needed. Damaged checkpoints in it are removed, with a
            message.
        steps: save every `steps` steps; None: only by time.
        minutes: save if the last checkpoint is older than `minutes` minutes.
        keep: number of newest checkpoints to keep, besides the one of lowest score.

    Raises:
        ValueError: Orbax does not support the folder's path.
    """

    def __init__(
        self, folder: Path, steps: int | None, minutes: float, keep: int
    ) -> None:
        from orbax.checkpoint.experimental.v1 import training

        check_path(folder)
        if jax.process_index() == 0:
            _remove_damaged(folder)
        multihost_utils.sync_global_devices("checkpoints are checked")
        when = training.save_decision_policies
        policies: list[Any] = [
            when.ContinuousCheckpointingPolicy(minimum_interval_secs=int(60 * minutes))
        ]
        if steps is not None:
            policies.insert(0, when.FixedIntervalPolicy(steps))
        self._folder, self._keep = folder, keep
        self._pending: tuple[int, PyTree, Any] | None = None  # a step, and its shapes
        with _orbax_errors(folder, "the checkpoints cannot be read"):
            self._orbax = training.Checkpointer(
                folder.absolute(),
                save_decision_policy=when.AnySavePolicy(policies),
                # Orbax would remove old ones before the new one is sealed.
                preservation_policy=training.preservation_policies.PreserveAll(),
                cleanup_tmp_directories=True,
            )

    def __enter__(self) -> "Checkpoints":
        """Returns itself."""
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Waits for the save in progress, if any."""
        try:
            self._finish()
            self._orbax.close()
        except (OSError, ValueError):
            if error is None:  # else the first error is raised
                raise

    def restore(
        self, like: PyTree, check: Callable[[dict[str, Any]], None]
    ) -> Saved | None:
        """Reads the newest checkpoint.

        Args:
            like: arrays of the shapes, dtypes and shardings to restore; the saved ones
                may have been split over other devices.
            check: raises an error if the checkpoint's metadata are of another run.

        Returns:
            The checkpoint, or None if there is none.

        Raises:
            OSError: it cannot be read.
        """
        latest = self._orbax.latest
        if latest is None:
            return None
        check(self._metadata(latest))
        return self._load(latest, like)

    def restore_best(self, like: PyTree) -> Saved | None:
        """Reads the checkpoint of lowest score, of ties the newest.

        Args:
            like: see `restore`.

        Returns:
            The checkpoint, or None if none has a score.

        Raises:
            OSError: it cannot be read.
        """
        self._finish()
        best = self._best()
        return None if best is None else self._load(best, like)

    def _best(self) -> Any:
        scored = [found for found in self._orbax.checkpoints if found.metrics]
        return min(scored, key=lambda x: (x.metrics["score"], -x.step), default=None)

    def _load(self, found: Any, like: PyTree) -> Saved:
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        with self._reading(found):
            state = self._orbax.load(found.step, shapes)
        return Saved(found.step, state, self._metadata(found))

    def _metadata(self, found: Any) -> dict[str, Any]:
        with self._reading(found):
            metadata: Any = self._orbax.metadata(found.step).custom_metadata
            return dict(metadata)

    def _reading(self, found: Any) -> AbstractContextManager[None]:
        return _orbax_errors(
            self._folder / str(found.step),
            "the checkpoint cannot be read",
            "; without it, --resume takes the previous one",
        )

    def due(self, step: int) -> bool:
        """Returns whether it is time to save; to be called after every step.

        Raises:
            OSError: the previous checkpoint could not be written.
        """
        if self._pending is not None and not self._orbax.is_saving_in_progress():
            self._finish()
        return self._orbax.should_save(step)

    def save(self, saved: Saved) -> None:
        """Saves in the background, unless this step is already saved.

        Raises:
            OSError: this checkpoint, or the previous one, could not be written.
        """
        self._finish()
        latest = self._orbax.latest
        if latest is not None and latest.step == saved.step:
            return
        # A copy, because the next step reuses the state's buffers.
        state = jax.tree.map(jnp.copy, saved.state)
        with self._writing():
            saving = self._orbax.save_async(
                saved.step,
                state,
                force=True,
                metrics=None if saved.score is None else {"score": saved.score},
                custom_metadata=saved.metadata,
            )
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        self._pending = (saved.step, shapes, saving)

    def _finish(self) -> None:
        """Waits for the save in progress, and seals it."""
        if self._pending is None:
            return
        (step, shapes, saving), self._pending = self._pending, None
        with self._writing():
            saving.result()  # which also ends the thread that Orbax keeps for it
            if jax.process_index() == 0:
                _verify(self._folder / str(step), shapes)
                _seal(self._folder / str(step))
                self._remove_old()

    def _writing(self) -> AbstractContextManager[None]:
        return _orbax_errors(
            self._folder,
            "the checkpoint cannot be written",
            "; the last good one is kept",
        )

    def _remove_old(self) -> None:
        """Removes all but the newest and the best; Orbax still lists the others."""
        best = self._best()
        for path in _by_step(self._folder)[: -self._keep]:
            if best is None or path.name != str(best.step):
                shutil.rmtree(path)


@contextmanager
def _orbax_errors(where: Path, problem: str, then: str = "") -> Iterator[None]:
    """Turns Orbax's errors into an error of one line that names the path."""
    try:
        yield
    except Exception as error:
        raise OSError(f"{where}: {problem} ({one_line(error)}){then}") from error


def check_path(folder: Path) -> None:
    """Checks that Orbax can read the files that it writes to a folder.

    It globs for them with patterns that begin with the folder's path, and treats some
    paths as URLs.

    Raises:
        ValueError: the path is no literal path to Orbax.
    """
    path = folder.absolute()
    bad = [character for character in "*?[\\" if character in str(path)]
    bad += [part for part in path.parts if re.fullmatch(r"[a-z][a-z0-9+.-]+:", part)]
    bad += [ascii(c)[1:-1] for c in str(path) if "\ud800" <= c <= "\udfff"]
    if bad:
        raise ValueError(
            f"{path}: no checkpoints can be kept in a path with {bad[0]};"
            " choose another folder"
        )


def _verify(folder: Path, shapes: PyTree) -> None:
    """Reads all arrays of a checkpoint, about a gigabyte at a time.

    This process reads them without the others, even if it holds only parts of them.

    Raises:
        ValueError: they are not those that were saved.
    """
    import orbax.checkpoint as ocp

    leaves, tree = jax.tree.leaves(shapes), jax.tree.structure(shapes)
    ends = itertools.accumulate(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    parts = [end // READ_BYTES for end in ends]
    handler, place = ocp.PyTreeCheckpointHandler(), folder.absolute() / ARRAYS
    for part in sorted(set(parts)):
        wanted = [
            leaf if of == part else ocp.PLACEHOLDER
            for leaf, of in zip(leaves, parts, strict=True)
        ]
        item = jax.tree.unflatten(tree, wanted)
        plain = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        args = ocp.args.PyTreeRestore(item=item, restore_args=plain)
        found = jax.tree.leaves(handler.restore(place, args=args))
        for leaf, of, array in zip(leaves, parts, found, strict=True):
            if of == part and (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
                raise ValueError(f"an array of {leaf.shape} became {array.shape}")


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != SEAL
    }


def _seal(folder: Path) -> None:
    write_bytes(folder / SEAL, json.dumps(_digests(folder)).encode())


def _damage(folder: Path) -> str | None:
    """Returns the damage to a checkpoint, or None."""
    try:
        sealed = json.loads((folder / SEAL).read_text())
    except (OSError, ValueError):
        return "was not completed"
    found = _digests(folder)
    if not isinstance(sealed, dict) or found.keys() != sealed.keys():
        return "has missing or foreign files"
    altered = [name for name in found if found[name] != sealed[name]]
    return f"was altered in {altered[0]}" if altered else None


def _by_step(folder: Path) -> list[Path]:
    steps = (path for path in folder.glob("*") if path.name.isdecimal())
    return sorted(steps, key=lambda path: int(path.name))


def _remove_damaged(folder: Path) -> None:
    for path in _by_step(folder):
        if (why := _damage(path)) is not None:
            say(f"checkpoint {path} {why}: removed")
            shutil.rmtree(path)
