"""Freed memory is kept: the kernel is asked for a large block once."""

import platform
import subprocess
import sys

import pytest

# Prints the page faults of a typical call. What else the process allocates can land in
# the freed block, and the heap grows once more: so not the faults of one certain call.
PROGRAM = """
import resource, statistics, sys
import jax, jax.numpy as jnp
from ivon_jax.train.pod.host_memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
f = jax.jit(lambda x: jnp.sum((x[:, None] * x) @ x))
x = jnp.ones(4096)  # 64 MiB in between
faults = [resource.getrusage(resource.RUSAGE_SELF).ru_minflt]
for _ in range(40):
    f(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(int(statistics.median(b - a for a, b in zip(faults, faults[1:]))))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_a_steps_temporaries_reuse_the_last_ones_memory():
    def faults(how):
        command = [sys.executable, "-c", PROGRAM, how]
        return int(subprocess.run(command, capture_output=True, check=True).stdout)

    assert faults("keep") < faults("leave") / 4
