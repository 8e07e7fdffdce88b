"""The posterior's file: exact, and refused when anything about it is wrong."""

import hashlib
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save as save_tensors
from test_posterior import assert_equal, draw

from ivon_jax import Posterior
from ivon_jax.kinds import load_posterior


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("posterior") / "p.safetensors"
    posterior = draw(0).prune(0.3)
    posterior.save(path)
    return path, posterior, path.read_bytes()


def test_round_trip_is_exact(saved, tmp_path):
    path, posterior, _ = saved
    assert_equal(Posterior.load(path), posterior)
    mixed = Posterior(
        {"w": jnp.ones((2, 3), jnp.bfloat16), "h": jnp.ones(2, jnp.float16)},
        {"w": jnp.full((2, 3), 7.0), "h": jnp.array([1e-30, 1e30])},
        {"w": jnp.asarray(3.0)},
    )
    for other in (mixed, Posterior.point({"w": jnp.ones(1)}), Posterior.point({})):
        other.save(tmp_path / "other")
        assert_equal(Posterior.load(str(tmp_path / "other")), other)


def test_facts_travel_beside_a_posterior(saved, tmp_path):
    path, posterior, content = saved
    assert load_posterior(path)[1] == {}
    facts = {"step": 2**40 + 1, "ess": 0.1}
    posterior.save(tmp_path / "p", **facts)
    found = load_posterior(str(tmp_path / "p"))[1]
    assert (found, {k: type(v) for k, v in found.items()}) == (
        facts,
        {"step": int, "ess": float},
    )
    assert_equal(Posterior.load(tmp_path / "p"), posterior)
    posterior.save(tmp_path / "p")
    assert (tmp_path / "p").read_bytes() == content


def load_error(path):
    with pytest.raises(ValueError) as error:
        Posterior.load(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


def test_missing_file(tmp_path):
    assert load_error(tmp_path / "absent").endswith("absent: no such file")
    assert load_error(tmp_path).endswith(": not a file")  # but a folder


def digest(tensors):
    """The checksum as the file format defines it, written down a second time."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        shape = list(tensor.shape)
        state.update(json.dumps([name, str(tensor.dtype), shape]).encode())
        state.update(tensor.tobytes())
    return state.hexdigest()


def forge(path, changes=(), header=(), drop=()):
    """A file whose checksum is right, but whose content is not."""
    one = np.ones((2, 2), np.float32)
    tensors = {"mean:w": one, "precision:w": one, "prior_precision:w": one[:1, :1]}
    tensors = {k: v for k, v in (tensors | dict(changes)).items() if k not in drop}
    good = {"format": "ivon-jax posterior", "version": "1", "sha256": digest(tensors)}
    path.write_bytes(save_tensors(tensors, good | dict(header)))
    return path


def test_forged_file_is_otherwise_good(tmp_path):
    posterior = Posterior.load(forge(tmp_path / "p"))
    np.testing.assert_array_equal(posterior.mean["w"], np.ones((2, 2)))


NAN = np.full((2, 2), np.nan, np.float32)
ONES = np.ones((2, 2), np.float32)
FORGED = {
    "format": ("not an ivon-jax posterior file", {"header": {"format": "pt"}}),
    "version": ("version '2', this release reads '1'", {"header": {"version": "2"}}),
    "checksum": ("checksum differs", {"header": {"sha256": "0" * 64}}),
    "group": ("unknown tensor 'other:w'", {"changes": {"other:w": ONES}}),
    "no mean": ("precision of 'w' has no mean of its shape", {"drop": ["mean:w"]}),
    "shape": (
        "precision of 'w' has no mean of its shape",
        {"changes": {"mean:w": ONES[:1]}},
    ),
    "NaN mean": ("mean of 'w' is not finite", {"changes": {"mean:w": NAN}}),
    "infinite point": (
        "mean of 'x' is not finite", {"changes": {"mean:x": np.inf * ONES}}
    ),
    "NaN": ("precision of 'w' is not positive", {"changes": {"precision:w": NAN}}),
    "zero": (
        "precision of 'w' is not positive", {"changes": {"precision:w": 0 * ONES}}
    ),
    "negative": (
        "precision of 'w' is not positive", {"changes": {"precision:w": -ONES}}
    ),
    "prior's shape": (
        "prior_precision of 'w' has no mean of its shape",
        {"changes": {"prior_precision:w": np.ones((3, 1), np.float32)}},
    ),
    "prior of nothing": (
        "prior_precision of 'x' has no mean of its shape",
        {"changes": {"prior_precision:x": ONES}},
    ),
    "NaN prior": (
        "prior_precision of 'w' is negative or NaN",
        {"changes": {"prior_precision:w": NAN[:1, :1]}},
    ),
    "fact of a shape": (
        "fact 'step' is not a finite number", {"changes": {"fact:step": ONES}}
    ),
    "NaN fact": (
        "fact 'ess' is not a finite number", {"changes": {"fact:ess": np.array(np.nan)}}
    ),
    "leaf in a leaf": (
        "'w/x' lies inside another tensor", {"changes": {"mean:w/x": ONES}}
    ),
}  # fmt: skip


@pytest.mark.parametrize(("message", "forgery"), FORGED.values(), ids=FORGED)
def test_forged_files_are_refused(message, forgery, tmp_path):
    assert message in load_error(forge(tmp_path / "p", **forgery))


@pytest.mark.parametrize(
    "other",
    [ONES.reshape(4), ONES.view(np.int32)],
    ids=["the same bytes of another shape", "the same bytes of another type"],
)
def test_checksum_covers_more_than_bytes(other, tmp_path):
    with safe_open(forge(tmp_path / "good"), framework="numpy") as file:
        header = file.metadata()
    changes = {"mean:w": other, "precision:w": other}
    message = load_error(forge(tmp_path / "p", changes, header))
    assert "checksum differs" in message


def test_only_nested_dicts_are_saved(tmp_path):
    message = "^mean: only trees of nested dicts .*, whose keys are text without '/'$"
    for mean in ([jnp.ones(1)], {0: jnp.ones(1)}, {"a/b": jnp.ones(1)}):
        with pytest.raises(ValueError, match=message):
            Posterior.point(mean).save(tmp_path / "p")
    assert not list(tmp_path.iterdir())


def test_failed_save_leaves_the_old_file(saved, tmp_path, monkeypatch):
    path = tmp_path / "p"
    path.write_bytes(saved[2])

    def full_disk(handle):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match=rf"^{path}: cannot be written \(no space left"):
        draw(1).save(path)
    assert path.read_bytes() == saved[2]
    assert list(tmp_path.iterdir()) == [path]


def test_saved_file_is_plain_safetensors_readable_by_all(saved):
    path, posterior, _ = saved
    with safe_open(path, framework="numpy") as file:
        names = set(file.keys())
        head = file.get_tensor("mean:head")
    assert {"mean:deep/a", "precision:bias", "prior_precision:head"} <= names
    np.testing.assert_array_equal(head, posterior.mean["head"])
    plain = path.with_name("plain")
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode  # as the umask says
