"""The training step: an optimiser on the sum of the terms, many steps in one compiled loop, for one target.

Every function is for one target and one motion. To fit many targets, map it: `jax.vmap(optimise, ...)`.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from cryotrans_jax.core.flow import Motion
from cryotrans_jax.core.losses import Carried, Term, total, weighed


@runtime_checkable
class Optimiser(Protocol):
    """An optimiser with its state, as a pytree."""

    def step(self, params: PyTree, gradient: PyTree, rate: Float[Array, ""]) -> tuple[PyTree, "Optimiser"]:
        """Parameters and optimiser after a step at this learning rate."""


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


def optimise(
    count: Int[Array, ""],
    rates: Float[Array, "most"],
    left: Float[Array, ""],
    params: PyTree,
    optimiser: Optimiser,
    scene: Scene,
    terms: Sequence[Term],
) -> tuple[PyTree, Optimiser, Float[Array, "most"], Float[Array, ""]]:
    """Run steps of the optimiser for one target.

    Args:
        count: number of steps, at most that of `rates`.
        rates: learning rate of each step.
        left: fraction of the stage's annealing that is left, for `Term.weigh`, which is called before the first step.
        params: parameters of the motion.
        optimiser: the optimiser with its state.
        scene: points of mass and how they move.
        terms: the terms of the loss.

    Returns:
        Parameters, the optimiser, the loss of each step, and the largest error of `objective`.
    """
    scene = scene._replace(rho=weighed(terms, carry(params, scene), left).rho)
    differentiated = jax.value_and_grad(partial(objective, scene=scene, terms=terms), has_aux=True)

    def step(i, at):
        params, optimiser, history, worst = at
        (loss, error), gradient = differentiated(params)
        params, optimiser = optimiser.step(params, gradient, rates[i])
        return params, optimiser, history.at[i].set(loss), jnp.maximum(worst, error)

    dtype = scene.x.dtype
    start = params, optimiser, jnp.zeros(rates.shape, dtype), jnp.zeros((), dtype)
    return jax.lax.fori_loop(0, count, step, start)
