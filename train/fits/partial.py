"""The state of an unfinished fit, in one file."""

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ivon_jax import _posterior_file
from ivon_jax.errors import prefixed
from ivon_jax.train.pod.processes import on_first_process

PARTIAL = "partial.safetensors"


class Partial:
    """The state of an unfinished fit, from which it is resumed.

    Args:
        folder: that of the run to be.
        identity: everything that the result depends on, as JSON values.
        resume: whether to continue from a state in the folder.

    Attributes:
        path: the file.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], *, resume: bool = False
    ) -> None:
        text = json.dumps(identity, sort_keys=True, default=str)
        self.path = folder / PARTIAL
        self._kind = "partial " + hashlib.sha256(text.encode()).hexdigest()
        self._resume, self._before, self._start = resume, 0.0, time.monotonic()

    @property
    def seconds(self) -> float:
        """Time of fitting so far, with that before an interruption."""
        return self._before + time.monotonic() - self._start

    def save(self, step: int, state: PyTree) -> None:
        """Replaces the state on the first process; the file is always whole.

        The others do not wait: by their clocks it may not be time to save.

        Args:
            step: number of units done.
            state: a tree of arrays.

        Raises:
            OSError: the file cannot be written.
        """
        if jax.process_index() > 0:
            return
        leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(state))}
        metadata: _posterior_file.Metadata = {"step": step, "seconds": self.seconds}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _posterior_file.write(self.path, self._kind, {"state": leaves}, metadata)

    def load(self, like: PyTree) -> tuple[int, PyTree] | None:
        """Reads the state.

        Args:
            like: a tree of arrays of the same structure and shapes.

        Returns:
            The number of units done and the state; None if there is none to resume.

        Raises:
            ValueError: the file is damaged, or of another fit.
        """
        if not (self._resume and self.path.exists()):
            return None
        with prefixed(self.path):
            kind, groups, metadata = _posterior_file.read(self.path)
            leaves, tree = jax.tree.flatten(like)
            found = groups.get("state", {})
            shapes = {str(i): leaf.shape for i, leaf in enumerate(leaves)}
            if (kind, {k: v.shape for k, v in found.items()}) != (self._kind, shapes):
                raise ValueError("is of a fit with other options, sources or examples")
        self._before = metadata["seconds"]
        state = jax.tree.unflatten(tree, [jnp.asarray(found[k]) for k in shapes])
        return int(metadata["step"]), state

    def remove(self) -> None:
        """Removes the file, if there is one."""
        on_first_process(lambda: self.path.unlink(missing_ok=True))
