"""An exported folder goes to the hub in one commit, or the reason is one line."""

import os
import subprocess
import sys

import hub_server
import pytest

from ivon_jax.train.export.push import Repository

# The hub's library reads its settings when it is imported, so another process does it.
CODE = """
import sys
from pathlib import Path
from ivon_jax.train.export.push import Repository
try:
    print(Repository.named(sys.argv[1]).upload(Path(sys.argv[2])))
except ValueError as error:
    sys.exit(str(error))
"""
FILES = {
    "README.md": b"---\nlibrary_name: peft\n---\n# Card\n",
    "adapter_config.json": b"{}",
    "adapter_model.safetensors": bytes(range(256)),
    "sample-0/adapter_model.safetensors": b"sample",
}


@pytest.fixture
def folder(tmp_path):
    for name, data in FILES.items():
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "out"


def push(folder, endpoint, name="some/model", token="hf_secret"):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HOME": str(folder.parent / "home"),
    }
    if token:
        environment["HF_TOKEN"] = token
    return subprocess.run(
        [sys.executable, "-c", CODE, name, str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )


def test_the_folder_arrives_in_a_new_private_repository(folder):
    with hub_server.hub() as hub:
        done = push(folder, hub.address)
    assert (done.returncode, done.stdout) == (0, f"{hub.address}/some/model\n"), done
    assert hub.repositories == {"some/model": FILES}
    assert hub.private == {"some/model": True}
    assert sum("/commit/" in path for _, path in hub.requests) == 1


@pytest.mark.parametrize(
    "refuses, words",
    [
        ({"repos/create": (401, "Invalid credentials")}, "Invalid credentials"),
        ({"repos/create": (403, "no write rights")}, "no write rights"),
        ({"/commit/": (403, "pushes are closed")}, "pushes are closed"),
        ({"validate-yaml": (400, "bad")}, "Invalid metadata in README.md"),
    ],
    ids=["token", "rights", "commit", "card"],
)
def test_a_refusal_is_one_line_and_the_folder_stays(folder, refuses, words):
    with hub_server.hub() as hub:
        hub.refuses = refuses
        done = push(folder, hub.address)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"push: some/model, from {folder}: ")
    assert words in line
    assert "hf_secret" not in line
    assert not any(hub.repositories.values())
    assert {
        str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()
    } == set(FILES)


def test_a_hub_that_is_not_there_is_one_line(folder):
    with hub_server.hub() as hub:
        address = hub.address
    done = push(folder, address)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"push: some/model, from {folder}: ")


@pytest.mark.parametrize("name", ["model", "a/b/c", "a//b", "a/b c", "", "a/-b"])
def test_a_name_that_the_hub_has_not_is_refused(name, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(ValueError, match="^push: "):
        Repository.named(name)


def test_without_a_token_nothing_is_asked(folder):
    with hub_server.hub() as hub:
        done = push(folder, hub.address, token=None)
    assert done.stderr == "push: no token; set HF_TOKEN or run `hf auth login`\n"
    assert hub.requests == []
