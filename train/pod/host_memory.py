"""How a process on CPUs treats the memory of its large intermediate values."""

import ctypes
import platform

import jax

# From glibc's malloc.h; they are part of its binary interface.
_MMAP_MAX, _TRIM_THRESHOLD = -4, -1


def keep_freed_memory() -> None:
    """Makes the process keep what it frees for its next step; call it before JAX runs.

    On CPUs XLA allocates a step's intermediate values anew in every step, in one
    block. glibc maps a block of that size when it is asked for and unmaps it when it
    is freed, so the kernel clears all of its pages in every step, which took a tenth
    of a step's time or more. Here blocks of any size come from the main thread's heap,
    which only grows: the process holds on to the most memory it ever needed. For that
    JAX must run programs of one CPU in the main thread, as it does if it does not
    dispatch them ahead. Other C libraries and devices are left as they are.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)):
            libc.mallopt(option, value)
