"""The authors' own optimizer on a small network, given our noise."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivon_jax._tree import by_path
from ivon_jax.noise import standard_normal

torch = pytest.importorskip("torch")
peer = pytest.importorskip("ivon")
torch.set_num_threads(1)


def draw_params(rng):
    return {
        "first": {"bias": rng.normal(size=4), "kernel": rng.normal(size=(3, 4))},
        "last": rng.normal(size=(4, 2)),
        "scale": np.asarray(rng.normal()),
    }


def loss(xp, params, x, y):
    """The mean loss of a small network, in either library."""
    hidden = xp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"][None])
    out = params["scale"] * (hidden @ params["last"])
    return ((out - y) ** 2).mean()


def replay(noise):
    """A torch.randn that returns the given vectors in turn."""

    def randn(numel, device=None, dtype=None):
        z = torch.from_numpy(next(noise))
        assert z.shape == (numel,) and z.dtype == dtype
        return z

    return randn


def flat_noise(keys, params, mc_samples):
    """The noise of every step and sample as one vector in parameter order."""

    @jax.jit
    def draw(key, index):
        leaves = [
            standard_normal(key, name, leaf, index)
            for name, leaf in by_path(params).items()
        ]
        return jnp.concatenate([jnp.ravel(z) for z in leaves])

    for key, index in itertools.product(keys, range(mc_samples)):
        yield np.array(draw(key, index))


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def run_torch(start, batches, keys, rates, mc_samples, settings, monkeypatch):
    leaves, treedef = jax.tree.flatten(start)
    tensors = [torch.nn.Parameter(torch.tensor(leaf)) for leaf in leaves]
    optimizer = peer.IVON(tensors, lr=1.0, mc_samples=mc_samples, **settings)
    noise = flat_noise(keys, jax.tree.map(jnp.asarray, start), mc_samples)
    monkeypatch.setattr(torch, "randn", replay(noise))
    for (x, y), rate in zip(batches, rates, strict=True):
        (group,) = optimizer.param_groups
        group["lr"] = rate
        for _ in range(mc_samples):
            with optimizer.sampled_params(train=True):
                optimizer.zero_grad()
                params = jax.tree.unflatten(treedef, tensors)
                loss(torch, params, torch.tensor(x), torch.tensor(y)).backward()
        optimizer.step()
        mean = np.concatenate([p.detach().numpy().ravel() for p in tensors])
        yield mean, group["momentum"].numpy(), group["hess"].numpy()
