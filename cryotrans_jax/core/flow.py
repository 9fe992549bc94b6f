"""The flow of a velocity field: dΦ/dt = V(Φ), Φ(x, 0) = x, by forward Euler (paper, eq. 1 and 5).

A velocity field is any callable `x -> v` on points of shape (n, 3). It does not depend on time, so one Euler map E(x) =
x + τ V(x) with τ = 1/steps is applied again and again. Positions are in the unit box. A field that depends on time
takes points (x, t) of shape (n, 4): see `with_time`.
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
SUBSTEPS = 8  # Euler steps that replace the inverse of one step where the fixed-point iteration does not converge


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
    """Integrate the flow by forward Euler (paper, eq. 5).

    Args:
        velocity: the field.
        x: points at the start, unit box.
        tau: length of a step.
        steps: number of steps.

    Returns:
        The end points, and the points after each step.
    """

    def step(x, _):
        x = x + tau * velocity(x)
        return x, x

    return jax.lax.scan(step, x, length=steps)


def inverse(
    velocity: VelocityField, y: Points, steps: int, tolerance: float = 1e-6, max_iterations: int = 30
) -> Points:
    """Φ⁻¹(y, 1), the points that the `steps` Euler steps of `flow` carry to y; see `inverse_euler`."""
    return inverse_euler(velocity, y, 1.0 / steps, steps, tolerance, max_iterations)[0]


def inverse_euler(
    velocity: VelocityField, y: Points, tau: Scalar, steps: int, tolerance: float = 1e-6, max_iterations: int = 30
) -> tuple[Points, Float[Array, "steps points axes"]]:
    """Invert Euler steps: the points that `steps` steps of length `tau` carry to y.

    Each step x + τ V(x) = y is solved for x by fixed-point iteration x ← y − τ V(x). This converges like (τ Lip
    V)^iterations wherever τ Lip V < 1, and there the Euler map is one to one. Points that have not converged, where the
    map may fold, are integrated along −V in SUBSTEPS steps instead. Not differentiable in reverse mode.

    Args:
        velocity: the field.
        y: points at the end, unit box.
        tau: length of a step.
        steps: number of steps to invert.
        tolerance: the iteration stops when no point moves by more than this, in unit boxes.
        max_iterations: iterations in each step at most.

    Returns:
        The start points, and the points after each inverted step.
    """

    def unconverged(at):
        _, change, count = at
        return jnp.any(change > tolerance) & (count < max_iterations)

    def undo(y, _):
        def iterate(at):
            x, _, count = at
            new = y - tau * velocity(x)
            return new, jnp.max(jnp.abs(new - x), axis=-1, keepdims=True), count + 1

        x, change, _ = jax.lax.while_loop(unconverged, iterate, (y, jnp.full_like(y[:, :1], jnp.inf), 0))
        diverged = change > tolerance
        against = jax.lax.cond(jnp.any(diverged), lambda: euler(velocity, y, -tau / SUBSTEPS, SUBSTEPS)[0], lambda: x)
        x = jnp.where(diverged, against, x)
        return x, x

    return jax.lax.scan(undo, y, length=steps)


def with_time(velocity: VelocityField) -> VelocityField:
    """Make a time-dependent field autonomous: (v(x, t), 1) on points (x, t).

    Time becomes a fourth coordinate that grows at speed one. The flow of the result is that of v(x, t), and so is the
    inverse of its flow.
    """
    return lambda xt: jnp.concatenate([velocity(xt), jnp.ones_like(xt[:, 3:])], axis=-1)


def symmetrize(
    velocity: VelocityField, rotations: Float[Array | np.ndarray, "n 3 3"], shifts: Float[Array | np.ndarray, "n 3"]
) -> VelocityField:
    """Average a field over a group: the mean of Rᵀ v(R x + s) over its operators R x + s.

    The result commutes with all operators, and so do each Euler step of its flow and the inverse of that. It is
    continuous wherever v is. It evaluates v once per operator. Time, where points have one, is left unchanged.

    Args:
        velocity: the field v.
        rotations: the operators' R.
        shifts: the operators' s, in unit boxes.
    """

    exact = partial(jnp.einsum, precision="highest")  # accelerators would keep three digits of positions

    def mean(x: Points) -> Float[Array, "points 3"]:
        images = exact("gij,nj->gni", rotations, x[:, :3]) + shifts[:, None]
        time = jnp.broadcast_to(x[:, 3:], (len(rotations), len(x), x.shape[1] - 3))
        v = velocity(jnp.concatenate([images, time], -1).reshape(-1, x.shape[1])).reshape(images.shape)
        return exact("gij,gni->nj", rotations, v) / len(rotations)

    return mean


def append_time(x: Float[Array, "points 3"], t: Scalar) -> Float[Array, "points 4"]:
    """Points (x, t), for a field from `with_time`."""
    return jnp.concatenate([x, jnp.full_like(x[:, :1], t)], axis=-1)


def split_time(t: float, steps: int) -> tuple[int, float]:
    """Whole Euler steps before time t, and the fraction of the next one, in [0, 1), to six decimals."""
    whole, fraction = divmod(round(t * steps, 6), 1)
    return int(whole), round(fraction, 6)


def interpolate_path(
    visited: Float[Array | np.ndarray, "visits points axes"], t: float
) -> Float[Array | np.ndarray, "points axes"]:
    """Points at time t of a path; straight between two Euler steps, which is the scheme's own continuation."""
    steps = len(visited) - 1
    whole, fraction = split_time(t, steps)
    return visited[whole] + fraction * (visited[min(whole + 1, steps)] - visited[whole])
