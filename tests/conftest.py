"""Strict settings for every test: they turn silent numerical slips into errors."""

import gc
import os
import signal
import tempfile
from importlib.metadata import version
from pathlib import Path

flags = [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
if version("jaxlib").startswith("0.10."):  # a newer one ends at a flag it has not
    flags.append("--xla_cpu_use_fusion_emitters=false")  # compiles in half the time
    # In one piece: the cores are busy with tests, and each piece has its own cost.
    flags.append("--xla_cpu_parallel_codegen_split_count=1")
os.environ["XLA_FLAGS"] = " ".join(flags)
# Devices may begin collectives in different orders, and each that waits takes a thread.
# XLA has one for each device: all may wait for a collective that gets none, and after
# 40 seconds XLA aborts the process.
os.environ.setdefault("PJRT_NPROC", "32")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's, which would wait by spinning
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each child compiles all modules
# Compiling takes most of the suite's time: programs are optimised little, and what one
# test compiled is there for the next. Nothing is left in the user's cache.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # else: a worker, or a child
    cache = tempfile.TemporaryDirectory(prefix="ivon-jax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# A shell ignores Ctrl-C for what it runs in the background; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

from jaxtyping import install_import_hook

# Every annotated call of the package is checked at run time, shapes included.
install_import_hook("ivon_jax", "typecheck.check")

import jax
import pytest
from hypothesis import settings

# The same cases in every run, so that what fails is what was changed. `make test-slow`
# tries new ones, and more of them.
settings.register_profile("same", derandomize=True, max_examples=25, deadline=None)
settings.load_profile("same")

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).parent.parent


def pytest_collection_finish():
    """Leaves the imported modules out of garbage collection, a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Drops a file's compiled programs when it is done.

    Each holds memory maps, of which a process may have 65,530: beyond them XLA crashes.
    """
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The paper's data sets in the hub's fields, where the machine has them."""
    default = ROOT.parent / "shared" / "data"
    folder = Path(os.environ.get("IVON_JAX_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"IVON_JAX_DATA: no data folder at {folder}")
    return folder
