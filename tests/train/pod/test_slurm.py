"""The line that docs/pods.md shows for SLURM, under a SLURM of one node."""

import contextlib
import json
import os
import pwd
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from children import free_address

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun")
LACKING = [name for name in PROGRAMS if shutil.which(name) is None]
PAGE = Path(__file__).parents[3] / "docs" / "pods.md"


def shown_line() -> list[str]:
    """The words of the line."""
    text = PAGE.read_text().replace("\\\n", " ")
    line = re.search(r"^srun .*--coordinator auto.*$", text, re.MULTILINE)
    return shlex.split(line[0])


def configuration(folder: Path) -> str:
    """A cluster of this machine, on ports of its own and with nothing outside."""
    host = socket.gethostname().partition(".")[0]
    user = pwd.getpwuid(os.getuid()).pw_name
    ports = [free_address().rpartition(":")[2] for _ in range(2)]
    return f"""ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
"""


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Runs SLURM's programs; gives the environment of its commands."""
    (folder / "slurm.conf").write_text(configuration(folder))
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o600)
    env = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    places = ("socket=munge", "key-file=key", "pid-file=pid", "log-file=log")
    words = [
        f"--{name}={folder}/{file}"
        for name, file in (place.split("=") for place in (*places, "seed-file=seed"))
    ]
    commands = [["munged", "--foreground", "--force", *words]]
    commands += [["slurmctld", "-D"], ["slurmd", "-D"]]
    with (folder / "programs.log").open("w") as log, contextlib.ExitStack() as stack:
        for command in commands:
            child = subprocess.Popen(
                command, env=env, stdout=log, stderr=subprocess.STDOUT
            )
            stack.callback(child.wait)
            stack.callback(child.terminate)
            while command[0] == "munged" and not (folder / "munge").exists():
                assert child.poll() is None, (folder / "programs.log").read_text()
        yield env


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(bool(LACKING), reason=f"{', '.join(LACKING)}: not installed")
def test_the_shown_line_runs(tmp_path):
    model = tiny.write_model(tmp_path / "model", layers=1)
    data = tiny.write_data(tmp_path / "data", train=16, evaluation=12)
    out = tmp_path / "out"
    here = {
        "--nodes": "1",
        "--ntasks-per-node": "2",
        "--gres": None,
        "--gpu-bind": None,
        "--mesh": "data=2",
        "--model": str(model),
        "--task": "custom",
        "--batch-size": "4",
        "--out": str(out),
    }
    words, rest = [], iter(shown_line())
    for word in rest:
        value = here.pop(word, word)
        if value is word:
            words.append(word)
            continue
        next(rest)  # the shown value
        words += [word, value] if value is not None else []
    assert here == {}  # the line still has all of them
    at = words.index("ivon-jax")
    words[at : at + 1] = [sys.executable, "-m", "ivon_jax.train.cli"]
    words += ["--prompt", tiny.PROMPT, "--labels", *tiny.LABELS, "--steps", "3"]
    words += ["--train-file", str(data / "train.jsonl")]
    words += ["--eval-file", str(data / "eval.jsonl")]
    with cluster(tmp_path) as env:
        done = subprocess.run(
            words,
            env=env | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"wrote {out}") == 1  # of two tasks
    status = json.loads((out / "status.json").read_text())
    assert status == {"step": 3, "of": 3, "state": "trained"}
