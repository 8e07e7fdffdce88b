"""Memory of large intermediate values on CPUs."""

import ctypes
import platform

import jax

# From glibc's malloc.h; they are part of its binary interface.
_MMAP_MAX, _TRIM_THRESHOLD = -4, -1


def keep_freed_memory() -> None:
    """Keeps freed memory in the process for its next step; call it before JAX runs.

    On CPUs XLA allocates the intermediate values of every step in one block. glibc
    maps a block of that size and unmaps it when it is freed, so the kernel clears all
    of its pages in every step, which took a tenth of a step's time or more. Here all
    blocks come from the main thread's heap, which only grows. For that JAX must run
    programs of one CPU in the main thread, as it does without asynchronous dispatch.
    Other C libraries and devices are not affected.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)):
            libc.mallopt(option, value)
