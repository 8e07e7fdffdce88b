"""Several processes, one run: who writes, and how an error reaches all of them."""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils


def on_first_process(act: Callable[[], None]) -> None:
    """Lets the first process alone touch the file system; the others wait for it.

    Args:
        act: what to do.

    Raises:
        ValueError: another process failed.
        Exception: what `act` raised, on the first process.
    """
    error = None
    if jax.process_index() == 0:
        try:
            act()
        except Exception as caught:
            error = caught
    if jax.process_count() > 1:
        failed = multihost_utils.broadcast_one_to_all(np.array(error is not None))
        if failed and error is None:
            raise ValueError("process 0 could not go on; its own message says why")
    if error is not None:
        raise error
