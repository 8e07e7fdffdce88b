"""IVON in an optax chain, on a model that is no language model.

A sum of bumps fits a noisy sine between -2 and 2. The posterior is narrow where there
are data, and as wide as the prior where there are none.

    python examples/optax_chain.py
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

import ivon_jax

EXAMPLES, STEPS, NOISE = 100, 3000, 0.1
CENTERS = jnp.linspace(-6, 6, 25)


def predict(params: PyTree, x: Float[Array, " n"]) -> Float[Array, " n"]:
    """Computes the sum of Gaussian bumps with the given heights."""
    bumps = jnp.exp(-2 * jnp.square(x[:, None] - CENTERS[None]))
    return bumps @ params["heights"]


def main() -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """Returns mean and standard deviation of the prediction at -6, -3, 0, 3 and 6."""
    x = jnp.linspace(-2, 2, EXAMPLES)
    y = jnp.sin(2 * x) + NOISE * jax.random.normal(jax.random.key(0), x.shape)

    def loss(params: PyTree) -> Float[Array, ""]:
        # The mean negative log-likelihood, up to a constant.
        return jnp.mean(jnp.square(predict(params, x) - y)) / (2 * NOISE**2)

    # The prior of every height is N(0, 1): ess * weight_decay = 1.
    tx = optax.chain(
        optax.clip_by_global_norm(100.0),
        ivon_jax.ivon(
            optax.cosine_decay_schedule(0.1, STEPS),
            ess=EXAMPLES,
            beta2=0.995,
            weight_decay=1 / EXAMPLES,
        ),
    )
    params = {"heights": jnp.zeros(len(CENTERS))}

    def step(carry: PyTree, key: Array) -> tuple[PyTree, Array]:
        params, state = carry
        theta = ivon_jax.sample(key, params, state)
        value, grads = jax.value_and_grad(loss)(theta)
        updates, state = tx.update(grads, state, params, key=key)
        return (optax.apply_updates(params, updates), state), value

    keys = jax.random.split(jax.random.key(1), STEPS)
    (params, state), losses = jax.lax.scan(step, (params, tx.init(params)), keys)
    print(f"loss {losses[0]:.2f} at first, {losses[-100:].mean():.2f} at last")

    posterior = ivon_jax.Posterior.from_state(params, state)
    thetas = posterior.sample(jax.random.key(2), 200)
    places = jnp.linspace(-6, 6, 5)
    curves = jax.vmap(predict, in_axes=(0, None))(thetas, places)
    print("    x    mean     std")
    for place, mean, std in zip(places, curves.mean(0), curves.std(0), strict=True):
        print(f"{place:5.1f}  {mean:6.2f}  {std:6.2f}")
    return curves.mean(0), curves.std(0)


if __name__ == "__main__":
    main()
