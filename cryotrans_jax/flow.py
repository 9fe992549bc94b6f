"""The flow of a velocity field: dΦ/dt = V(Φ), Φ(x, 0) = x, by forward Euler (paper, eq. 1 and 5).

A velocity field is any callable `x -> v` on points of shape (n, 3); it does not depend on time, so one
Euler map E(x) = x + τ V(x) with τ = 1/steps is applied again and again. Positions are in the unit box.
A field that does depend on time is one on points (x, t) of shape (n, 4): see `timed`.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Points = Float[Array, "points axes"]
Scalar = float | Float[Array, ""]
VelocityField = Callable[[Points], Points]
SMALL = 8  # steps into which one is divided where it cannot be undone


def flow(velocity: VelocityField, x: Points, steps: int) -> Points:
    """Φ(x, 1), the end points of the flow after `steps` Euler steps."""
    return euler(velocity, x, 1.0 / steps, steps)[0]


def path(velocity: VelocityField, x: Points, steps: int) -> Float[Array, "{steps}+1 points axes"]:
    """Φ(x, k/steps) for k = 0, ..., steps; the first entry is x itself."""
    _, visited = euler(velocity, x, 1.0 / steps, steps)
    return jnp.concatenate([x[None], visited])


def euler(
    velocity: VelocityField, x: Points, tau: Scalar, steps: int
) -> tuple[Points, Float[Array, "steps points axes"]]:
    """End points after `steps` Euler steps of length `tau`, and the points after each step."""

    def step(x, _):
        x = x + tau * velocity(x)
        return x, x

    return jax.lax.scan(step, x, length=steps)


def inverse(velocity: VelocityField, y: Points, steps: int, tolerance: float = 1e-6, most: int = 30) -> Points:
    """Φ⁻¹(y, 1), the points that the `steps` Euler steps of `flow` carry to y."""
    return inverse_euler(velocity, y, 1.0 / steps, steps, tolerance, most)[0]


def inverse_euler(
    velocity: VelocityField, y: Points, tau: Scalar, steps: int, tolerance: float = 1e-6, most: int = 30
) -> tuple[Points, Float[Array, "steps points axes"]]:
    """Points that `steps` Euler steps of length `tau` carry to y, and those after each step undone.

    Each step x + τ V(x) = y is solved for x by fixed-point iteration x ← y − τ V(x), which converges like
    (τ Lip V)^iterations wherever τ Lip V < 1, and there the Euler map is one to one. It ends when no point moves by
    more than `tolerance` (unit boxes), or after `most` iterations. Points that still move then, where the map may fold,
    go against V instead, in SMALL steps. Not differentiable in reverse.
    """

    def again(at):
        _, change, count = at
        return jnp.any(change > tolerance) & (count < most)

    def undo(y, _):
        def closer(at):
            x, _, count = at
            new = y - tau * velocity(x)
            return new, jnp.max(jnp.abs(new - x), axis=-1, keepdims=True), count + 1

        x, change, _ = jax.lax.while_loop(again, closer, (y, jnp.full_like(y[:, :1], jnp.inf), 0))
        lost = change > tolerance
        against = jax.lax.cond(jnp.any(lost), lambda: euler(velocity, y, -tau / SMALL, SMALL)[0], lambda: x)
        x = jnp.where(lost, against, x)
        return x, x

    return jax.lax.scan(undo, y, length=steps)


def timed(velocity: VelocityField) -> VelocityField:
    """The field (v(x, t), 1) on points (x, t): time is a fourth coordinate, in which all points go at speed one.

    Its flow is that of a field v that depends on time, and so is the inverse of its flow.
    """
    return lambda xt: jnp.concatenate([velocity(xt), jnp.ones_like(xt[:, 3:])], axis=-1)


def symmetric(
    velocity: VelocityField, turns: Float[Array | np.ndarray, "n 3 3"], shifts: Float[Array | np.ndarray, "n 3"]
) -> VelocityField:
    """The mean over a group's operators R x + s of Rᵀ v(R x + s): a field that commutes with all of them.

    And so do each Euler step of its flow, which is continuous wherever v is, and the inverse of that. It takes as many
    evaluations of v as there are operators. Time, where points have one, is left alone.
    """

    exact = partial(jnp.einsum, precision="highest")  # accelerators would keep three digits of positions

    def mean(x: Points) -> Float[Array, "points 3"]:
        at = exact("gij,nj->gni", turns, x[:, :3]) + shifts[:, None]
        late = jnp.broadcast_to(x[:, 3:], (len(turns), len(x), x.shape[1] - 3))
        v = velocity(jnp.concatenate([at, late], -1).reshape(-1, x.shape[1])).reshape(at.shape)
        return exact("gij,gni->nj", turns, v) / len(turns)

    return mean


def at_time(x: Float[Array, "points 3"], t: Scalar) -> Float[Array, "points 4"]:
    """Points (x, t), for a `timed` field."""
    return jnp.concatenate([x, jnp.full_like(x[:, :1], t)], axis=-1)


def split_time(t: float, steps: int) -> tuple[int, float]:
    """Whole Euler steps before time t, and the part of the next one, in [0, 1), to six decimals."""
    whole, part = divmod(round(t * steps, 6), 1)
    return int(whole), round(part, 6)


def between(
    visited: Float[Array | np.ndarray, "visits points axes"], t: float
) -> Float[Array | np.ndarray, "points axes"]:
    """Points at time t of a path; between two Euler steps it is straight, which is the scheme's own continuation."""
    steps = len(visited) - 1
    whole, part = split_time(t, steps)
    return visited[whole] + part * (visited[min(whole + 1, steps)] - visited[whole])
