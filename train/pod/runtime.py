"""JAX's runtime: the settings that a run depends on, and errors in one line."""

import contextlib
import os
import re
from collections.abc import Iterator

import jax

from ivon_jax.errors import first_line
from ivon_jax.models.cache import cache_folder

# A run does not depend on the environment's values of these: it is in float32, and its
# noise does not depend on how arrays are split. The training loop guards transfers.
SETTINGS = {
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_transfer_guard": "allow",
}

KEPT_FROM = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def settle() -> None:
    """Sets JAX's configuration to the values that runs rely on.

    Raises:
        ValueError: JAX_DISABLE_JIT or JAX_DEBUG_INFS is set.
    """
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        raise ValueError(
            "JAX_DISABLE_JIT: is set, but a run that is not compiled rounds differently"
            " and cannot be split over devices; unset it"
        )
    if jax.config.jax_debug_infs:  # type: ignore[attr-defined]
        raise ValueError(
            "JAX_DEBUG_INFS: is set, but infinities are legal here, as the precision"
            " of a pruned entry; unset it (JAX_DEBUG_NANS may stay)"
        )
    for name, value in SETTINGS.items():
        jax.config.update(name, value)


def keep_compilations() -> None:
    """Enables JAX's persistent compilation cache, if its folder can be written to.

    JAX's own variables, as JAX_COMPILATION_CACHE_DIR, take precedence.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    try:
        folder = cache_folder() / "compiled"
        there = next(path for path in (folder, *folder.parents) if path.exists())
    except (ValueError, OSError):  # no home, or one that cannot be read
        return
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        if KEPT_FROM not in os.environ:
            # By default only what compiles for a second is kept, but a run has ten
            # smaller programs.
            jax.config.update(KEPT_FROM.lower(), 0.0)


def check_devices() -> None:
    """Starts the devices, after several processes have been connected.

    Raises:
        ValueError: there are none of the selected platform, or they do not start.
    """
    try:
        jax.devices()
    except Exception as error:  # a plugin may raise anything, and does
        asked = jax.config.jax_platforms  # type: ignore[attr-defined]
        name = f"JAX_PLATFORMS: no device of {asked!r}" if asked else "no device"
        reason = first_line(error) or "JAX does not say why"
        raise ValueError(f"{name} can be used ({reason})") from None


@contextlib.contextmanager
def naming_memory(what: str, advice: str) -> Iterator[None]:
    """Names the computation if a device's memory is exhausted.

    Args:
        what: the computation.
        advice: the options to change.

    Raises:
        ValueError: memory is exhausted.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not _is_memory(error):
            raise
        raise ValueError(f"out of memory: {what} {_sizes(error)}; {advice}") from None


def explain(error: Exception) -> str | None:
    """Describes an error of the machine or JAX's runtime in one line.

    Args:
        error: any error.

    Returns:
        The line; None if the error is a bug of this program.
    """
    if isinstance(error, MemoryError):
        return f"out of memory on the host ({first_line(error) or 'no details'})"
    if not isinstance(error, jax.errors.JaxRuntimeError):
        return None
    if _is_memory(error):
        return (
            f"out of memory: a device {_sizes(error)}; --base int8 or nf4, or more"
            " devices in --mesh, leave more room"
        )
    if str(error).startswith("INVALID_ARGUMENT"):
        return None
    return f"JAX's runtime on {jax.default_backend()} failed: {first_line(error)}"


def annotate(error: Exception) -> None:
    """Adds a note to a traceback: what to do about it."""
    if isinstance(error, FloatingPointError):
        error.add_note("JAX_DEBUG_NANS is set: without it, such a step is skipped")
    else:
        error.add_note(
            "This is a bug in ivon-jax: please report it, with the command and all of"
            " these lines, in the project's issue tracker"
        )


def _is_memory(error: Exception) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error)


def _sizes(error: Exception) -> str:
    """Returns the size that was requested, if the platform's message has it."""
    size = re.search(r"allocat\w+ (\d[\d.]*\s?\w*)", str(error))
    return f"needs {size[1]} more than there is" if size else "does not fit"
