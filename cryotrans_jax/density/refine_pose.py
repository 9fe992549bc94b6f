"""Refine poses of rigid bodies in a filtered density, in one compiled program."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.spatial.transform import Rotation
from jaxtyping import Array, Float, Int

from cryotrans_jax.density.boxes import padded_size
from cryotrans_jax.io.programs import mapped, program

LARGE = 1e4  # Å: a reach beyond every map
MOST, LINE = 50, 15  # iterations of a refinement, and places at most that one of them looks at
BODIES, POINTS = 64, 4096  # to which numbers are padded at least; what pads costs no time
CHUNK = 128  # points that are looked up at once


class Splines(NamedTuple):
    """A density as cubic B-splines.

    Attributes:
        coefficients: on a grid of this shape, in one row, padded.
        shape: number of coefficients along each axis.
        first: position of the first coefficient, Å.
        size: distance of the coefficients along each axis, Å.
    """

    coefficients: Float[Array | np.ndarray, "padded"]
    shape: Int[np.ndarray, "3"]
    first: Float[np.ndarray, "3"]
    size: Float[np.ndarray, "3"]


class Placed(NamedTuple):
    """Bodies in poses from which they are refined; the last bodies, and the last points of each, are padding.

    Attributes:
        sizes: number of points of each.
        x: points from the centre of mass, Å.
        mass: of the points.
        rotation: about the centre of mass.
        shift: of the centre of mass, Å.
        radius: of gyration, Å.
    """

    sizes: Int[np.ndarray, "bodies"]
    x: Float[np.ndarray, "bodies points 3"]
    mass: Float[np.ndarray, "bodies points"]
    rotation: Float[np.ndarray, "bodies 3 3"]
    shift: Float[np.ndarray, "bodies 3"]
    radius: Float[np.ndarray, "bodies"]

    @classmethod
    def empty(cls, bodies: int, points: int) -> "Placed":
        """As many bodies as are padded to, of no points, with room for this number of them."""
        count, most = padded_size(bodies, BODIES), padded_size(points, POINTS)
        return cls(
            sizes=np.zeros(count, np.int32),
            x=np.zeros((count, most, 3), np.float32),
            mass=np.zeros((count, most), np.float32),
            rotation=np.zeros((count, 3, 3), np.float32),
            shift=np.zeros((count, 3), np.float32),
            radius=np.ones(count, np.float32),
        )


def turned(change: Float[Array, "6"], body: Placed) -> tuple[Float[Array, "3 3"], Float[Array, "3"]]:
    """Rotation and shift (Å) of a body after a change of its pose: a turn of `change[:3]` / radius, and a shift, Å."""
    half = change[:3] / (2 * body.radius)
    turn = Rotation.from_quat(jnp.append(half, 1.0)).as_matrix()  # 2 tan(angle / 2) about the axis
    return turn @ body.rotation, jnp.asarray(body.shift) + change[3:]


def correlation(change: Float[Array, "6"], body: Placed, target: Splines) -> Float[Array, ""]:
    """Sum of a body's masses times the target's density where they are after a change of the pose, Å; 0 outside."""
    return density_sum(*turned(change, body), body, target)


@jax.custom_vjp
def density_sum(
    rotation: Float[Array, "3 3"], shift: Float[Array, "3"], body: Placed, target: Splines
) -> Float[Array, ""]:
    """Sum of a body's masses times the target's density in a pose."""
    return sum_and_slopes(rotation, shift, body, target)[0]


def sum_and_slopes(
    rotation: Float[Array, "3 3"], shift: Float[Array, "3"], body: Placed, target: Splines
) -> tuple[Float[Array, ""], tuple[Float[Array, "3 3"], Float[Array, "3"]]]:
    """`density_sum`, and its derivatives by the rotation and by the shift."""

    def add_chunk(number, at):
        points = number * CHUNK + jnp.arange(CHUNK)
        x, mass = jnp.asarray(body.x)[points], jnp.asarray(body.mass)[points]
        value, slope = look_up(target, x @ rotation.T + shift)
        pull = mass[:, None] * slope
        return at[0] + jnp.sum(mass * value), at[1] + pull.T @ x, at[2] + jnp.sum(pull, axis=0)

    chunks = -(-jnp.asarray(body.sizes) // CHUNK)
    value, *slopes = jax.lax.fori_loop(0, chunks, add_chunk, (jnp.zeros(()), jnp.zeros((3, 3)), jnp.zeros(3)))
    return value, tuple(slopes)


def by_pose(slopes, change):
    """Derivatives of a loss by rotation and shift, from those of `density_sum` and that of the loss by it."""
    turn, shift = slopes
    return change * turn, change * shift, None, None


density_sum.defvjp(sum_and_slopes, by_pose)


def look_up(target: Splines, x: Float[Array, "n 3"]) -> tuple[Float[Array, "n"], Float[Array, "n 3"]]:
    """Density and its gradient (1/Å) at positions, Å; 0 outside."""
    at = (x - target.first) / target.size
    low = jnp.floor(at)
    weights, slopes = cubic_weights(at - low)
    steps = low[..., None].astype(jnp.int32) + jnp.arange(-1, 3)
    i, j, k = jnp.moveaxis(jnp.clip(steps, 0, target.shape[:, None] - 1), 1, 0)
    rows = (i[:, :, None] * target.shape[1] + j[:, None, :]) * target.shape[2]
    taps = jnp.asarray(target.coefficients)[rows[..., None] + k[:, None, None, :]]
    along_z, by_z = (jnp.einsum("nabc,nc->nab", taps, w[:, 2]) for w in (weights, slopes))
    pairs = (along_z, weights), (along_z, slopes), (by_z, weights)
    plain, by_y, by_z = (jnp.einsum("nab,nb->na", values, w[:, 1]) for values, w in pairs)
    both = (plain, weights), (plain, slopes), (by_y, weights), (by_z, weights)
    value, *slope = (jnp.einsum("na,na->n", values, w[:, 0]) for values, w in both)
    inside = jnp.all((at >= 0) & (at <= target.shape - 1), axis=-1)
    return jnp.where(inside, value, 0), jnp.where(inside[:, None], jnp.stack(slope, -1) / target.size, 0)


def cubic_weights(part: Float[Array, "*some"]) -> tuple[Float[Array, "*some 4"], Float[Array, "*some 4"]]:
    """Weights of the four cubic B-splines about a place, and their slopes, by its distance from the second (0 to 1)."""
    rest = 1 - part
    weights = rest**3 / 6, 2 / 3 - part**2 + part**3 / 2, 2 / 3 - rest**2 + rest**3 / 2, part**3 / 6
    slopes = -(rest**2) / 2, 1.5 * part**2 - 2 * part, 2 * rest - 1.5 * rest**2, part**2 / 2
    return jnp.stack(weights, -1), jnp.stack(slopes, -1)


@program
def correlations(bodies: Placed, target: Splines) -> tuple[Float[Array, "bodies"], Float[Array, "bodies 6"]]:
    """Correlation of each body with the target, and its gradient by a change of the pose, 1/Å."""
    with jax.default_matmul_precision("float32"):  # accelerators would keep three digits
        return mapped(lambda body: jax.value_and_grad(correlation)(jnp.zeros(6), body, target), bodies)


@program
def best_poses(
    bodies: Placed, target: Splines, scale: Float[Array, ""], close: Float[Array, ""], reach: Float[Array, ""]
) -> tuple[Float[Array, "bodies 3 3"], Float[Array, "bodies 3"], Float[Array, "bodies"]]:
    """Refine each body's pose to the nearest maximum of its correlation with the target, by L-BFGS.

    Args:
        bodies: the bodies.
        target: the target.
        scale: Å, by which a pose changes for the correlation to change much.
        close: gain of the correlation that is none.
        reach: Å by which a pose may change at most along each axis, and by turning.

    Returns:
        Rotations, shifts (Å), and correlations.
    """

    def within(change):
        return reach * jnp.tanh(change / reach)

    def refined(body: Placed):
        def loss(change):  # of a curvature about 1, whatever the unit
            return -(scale**2) * correlation(within(change), body, target)

        small = scale * jnp.sqrt(2 * close / 6)  # each slope where the gain that is left is `close`
        best, least = minimised(loss, jnp.zeros(6), small)
        return *turned(within(best), body), -least / scale**2

    with jax.default_matmul_precision("float32"):
        return mapped(refined, bodies)


def minimised(
    loss: Callable[[Float[Array, "n"]], Float[Array, ""]], start: Float[Array, "n"], small: Float[Array, ""]
) -> tuple[Float[Array, "n"], Float[Array, ""]]:
    """The place of the nearest minimum of a loss, where no slope exceeds `small`, and the loss there."""
    search = optax.scale_by_zoom_linesearch(max_linesearch_steps=LINE, initial_guess_strategy="one")
    optimiser, slopes_of = optax.lbfgs(linesearch=search), optax.value_and_grad_from_state(loss)

    def step(at):
        x, state = at
        value, slopes = slopes_of(x, state=state)
        change, state = optimiser.update(slopes, state, x, value=value, grad=slopes, value_fn=loss)
        return optax.apply_updates(x, change), state

    def goes_on(at):
        count, slopes = (optax.tree.get(at[1], name) for name in ("count", "grad"))
        return (count == 0) | (count < MOST) & (jnp.abs(slopes).max() > small)

    x, state = jax.lax.while_loop(goes_on, step, (start, optimiser.init(start)))
    return x, optax.tree.get(state, "value")
