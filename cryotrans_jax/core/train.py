"""The training step: Adam on the sum of the terms, many steps in one compiled loop, for one target.

Every function is for one target and one motion. To fit many targets, map it: `jax.vmap(adam_steps, ...)`.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from cryotrans_jax.core.flow import Motion
from cryotrans_jax.core.losses import Carried, Term, total, weighed

ADAM = optax.scale_by_adam()


class Scene(NamedTuple):
    """Points of mass and how they move.

    Attributes:
        motion: the motion.
        x: the points as the motion takes them, unit box.
        rho: mass of the points that the motion makes of them.
    """

    motion: Motion
    x: Float[Array | np.ndarray, "*parts points 3"]
    rho: Float[Array | np.ndarray, "points"]


def carry(params: PyTree, scene: Scene) -> Carried:
    """Carry the points of mass by the motion (paper, eq. 5)."""
    moved = scene.motion(params, jnp.asarray(scene.x))
    return Carried(moved.x, jnp.asarray(scene.rho), moved.nodes)


def objective(params: PyTree, scene: Scene, terms: Sequence[Term]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The sum of the terms for the carried points.

    Args:
        params: parameters of the motion.
        scene: points of mass and how they move.
        terms: the terms.

    Returns:
        The loss, and the largest error that an approximation in a term may have caused.
    """
    return total(terms, carry(params, scene))


def adam_steps(
    count: Int[Array, ""],
    rates: Float[Array, "most"],
    left: Float[Array, ""],
    params: PyTree,
    optimiser_state: PyTree,
    scene: Scene,
    terms: Sequence[Term],
) -> tuple[PyTree, PyTree, Float[Array, "most"], Float[Array, ""]]:
    """Run Adam steps for one target.

    Args:
        count: number of steps, at most that of `rates`.
        rates: learning rate of each step.
        left: fraction of the stage's annealing that is left, for `Term.weigh`, which is called before the first step.
        params: parameters of the motion.
        optimiser_state: Adam's state.
        scene: points of mass and how they move.
        terms: the terms of the loss.

    Returns:
        Parameters, Adam's state, the loss of each step, and the largest error of `objective`.
    """
    scene = scene._replace(rho=weighed(terms, carry(params, scene), left).rho)
    differentiated = jax.value_and_grad(partial(objective, scene=scene, terms=terms), has_aux=True)

    def step(i, at):
        params, state, history, worst = at
        (loss, error), gradient = differentiated(params)
        updates, state = ADAM.update(gradient, state)
        params = jax.tree.map(lambda p, u: p - rates[i] * u, params, updates)
        return params, state, history.at[i].set(loss), jnp.maximum(worst, error)

    dtype = scene.x.dtype
    start = params, optimiser_state, jnp.zeros(rates.shape, dtype), jnp.zeros((), dtype)
    return jax.lax.fori_loop(0, count, step, start)
