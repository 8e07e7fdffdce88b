"""Damaged weight files load with the right shapes or give one line, nothing else."""

import tracemalloc

import jax
import pytest
import tiny_models as tiny
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ivon_jax.models import load

damaging = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
# Positions count from the start; most damage goes to the header.
flips = st.lists(
    st.tuples(st.integers(0, 1 << 12), st.integers(1, 255)), min_size=1, max_size=4
)
cuts = st.integers(0, 1 << 16)


def shapes(path):
    return jax.tree.map(
        lambda leaf: leaf.shape, load(str(path), tokenizer=False).params
    )


def flipped(content, changes):
    damaged = bytearray(content)
    for position, mask in changes:
        damaged[position % len(damaged)] ^= mask
    return bytes(damaged)


def check(path, expected):
    """Load what may be damaged, within 64 MB."""
    tracemalloc.start()
    try:
        assert shapes(path) == expected
    except ValueError as error:
        assert str(error).startswith(str(path))
        assert "\n" not in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 64e6


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    return tiny.write_gguf(path, tiny.tensors())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write_folder(tmp_path_factory.mktemp("hf") / "m", tiny.tensors())


@damaging
@given(changes=flips)
@example(changes=[(15, 255)])  # 2**63 tensors
@example(changes=[(23, 255)])  # 2**63 fields
@example(changes=[(31, 255)])  # a name of 2**63 bytes
def test_altered_gguf(gguf, tmp_path, changes):
    path = tmp_path / "m.gguf"
    path.write_bytes(flipped(gguf.read_bytes(), changes))
    check(path, shapes(gguf))


@damaging
@given(length=cuts)
def test_cut_gguf(gguf, tmp_path, length):
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"m\.gguf: .*$"):
        load(str(path), tokenizer=False)


@damaging
@given(content=st.binary(max_size=200), magic=st.booleans())
def test_no_gguf_at_all(tmp_path, content, magic):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0" * magic + content)
    with pytest.raises(ValueError, match=r"m\.gguf: .*$"):
        load(str(path), tokenizer=False)


@damaging
@given(name=st.sampled_from(["model.safetensors", "config.json"]), changes=flips)
def test_altered_folder(folder, tmp_path_factory, name, changes):
    copy = tmp_path_factory.mktemp("hf")
    for file in folder.iterdir():
        content = file.read_bytes()
        damaged = flipped(content, changes) if file.name == name else content
        (copy / file.name).write_bytes(damaged)
    check(copy, shapes(folder))


@damaging
@given(name=st.sampled_from(["model.safetensors", "config.json"]), length=cuts)
def test_cut_folder(folder, tmp_path_factory, name, length):
    copy = tmp_path_factory.mktemp("hf")
    for file in folder.iterdir():
        content = file.read_bytes()
        length = min(length, len(content) - 1)
        (copy / file.name).write_bytes(content[: length if file.name == name else None])
    with pytest.raises(ValueError, match=r": .*(json|safetensors)"):
        load(str(copy), tokenizer=False)
