"""Motion of a rigid body that may bend: a screw, and a velocity field beside it.

Any rigid motion is a screw: a rotation about an axis and a shift along it (Chasles). Its velocity field is V(x) =
ω × (x − c) + u, but Euler steps of that would make the body grow. Here each Euler step is a screw itself, by the
fraction of the time that it takes, so that a body that moves by its screw alone keeps its shape on all of its way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree
from scipy.linalg import expm
from scipy.spatial.transform import Rotation

from cryotrans_jax.core.flow import FieldMotion, Points, VelocityField
from cryotrans_jax.motion.network import rotate_network, silence_network
from cryotrans_jax.motion.wrapped import Wrapped

SMALL = 1e-2  # radians²: below this the series of the third coefficient is exact in single precision


@jax.tree_util.register_static
@dataclass(frozen=True)
class Screw(Wrapped):
    """Motion by a screw, and by the velocity field of a network beside it.

    Attributes:
        field: the motion by the network.
        times: between 0 and 1, rising, at which another screw begins; the field has to know the time then (`Timed`).
        rate: of the screw's learning, relative to the network's: a step of the optimiser moves a whole body.
    """

    times: tuple[float, ...] = ()
    rate: float = 0.25

    def init_for(self, key: Array, x: Float[Array, "points coordinates"]) -> PyTree:
        """Initial parameters: the network's, and screws that do not move."""
        return {**super().init_for(key, x), "screws": jnp.zeros((len(self.times) + 1, 6))}

    def velocity(self, params: PyTree) -> VelocityField:
        """Sum of both velocity fields."""
        other, centre, steps = self.field.velocity({"params": params["params"]}), self.net.centre, self.euler_steps
        turns, shifts = jax.vmap(lambda screw: exponential(self.rate / steps * screw))(params["screws"])
        slopes, shifts = steps * (turns - jnp.eye(3)), steps * shifts

        def both(x: Points) -> Float[Array, "points 3"]:
            middle = x[0, 3] + 0.5 / steps if self.times else 0.5  # of the step
            now = jnp.searchsorted(jnp.array(self.times), middle) if self.times else 0
            along = jnp.einsum("ij,nj->ni", slopes[now], x[:, :3] - centre, precision="highest") + shifts[now]
            return along + other(x)

        return both

    def rigid(self, params: PyTree, motions: Sequence[Float[np.ndarray, "4 4"]]) -> PyTree:
        """Parameters by which everything moves as one rigid body.

        Args:
            params: parameters of the same shape.
            motions: from the start to the time at which the second screw begins, and so on, and to the end: matrices on
                columns (x, y, z, 1), unit box.
        """
        before, screws = np.eye(4), []
        borders = np.diff([0.0, *self.times, 1.0])
        for motion, taken in zip(motions, borders, strict=True):
            screws.append(logarithm(motion @ np.linalg.inv(before), self.net.centre) / (taken * self.rate))
            before = motion
        return {**silence_network(params), "screws": np.array(screws, np.float32)}

    def rotated(self, params: PyTree, rotation: Float[np.ndarray, "3 3"], shift: Float[np.ndarray, "3"]) -> PyTree:
        """Parameters whose flow does at R x + s what that of `params` does at x.

        Args:
            params: the parameters.
            rotation: R.
            shift: s, in unit boxes.
        """
        turns, shifts = np.split(np.asarray(params["screws"], np.float64) @ np.kron(np.eye(2), rotation.T), 2, axis=1)
        offset = self.net.centre - rotation @ np.full(3, self.net.centre) - shift
        screws = np.concatenate([turns, shifts + np.cross(turns, offset)], axis=1)
        return {**rotate_network(params, rotation, shift, self.net.centre), "screws": screws.astype(np.float32)}


def screw_of(field: FieldMotion) -> Screw:
    """The screw in a motion.

    Raises:
        TypeError: there is none, so that the motion has no parameters for rigid bodies.
    """
    while not isinstance(field, Screw):
        if not isinstance(field, Wrapped):
            raise TypeError(f"{type(field).__name__} cannot move rigid bodies: wrap it in `motion.screw.Screw`")
        field = field.field
    return field


def exponential(screw: Float[Array, "6"]) -> tuple[Float[Array, "3 3"], Float[Array, "3"]]:
    """Rotation and shift of the screw (ω, u): where dx/dt = ω × x + u takes points in one unit of time.

    By Rodrigues' formula; exact in single precision for any angle, with its derivatives.
    """
    turn, along = screw[:3], screw[3:]
    squared = turn @ turn
    angle = jnp.sqrt(squared + 1e-24)  # whose derivative is finite at 0
    first, second = jnp.sinc(angle / jnp.pi), 0.5 * jnp.sinc(angle / (2 * jnp.pi)) ** 2
    series = 1 / 6 - squared / 120 + squared**2 / 5040
    third = jnp.where(squared < SMALL, series, (1 - first) / jnp.maximum(squared, SMALL))
    cross = jnp.array([[0, -turn[2], turn[1]], [turn[2], 0, -turn[0]], [-turn[1], turn[0], 0]])
    twice = jnp.einsum("ij,jk->ik", cross, cross, precision="highest")
    rotation = jnp.eye(3) + first * cross + second * twice
    mean = jnp.eye(3) + second * cross + third * twice
    return rotation, jnp.einsum("ij,j->i", mean, along, precision="highest")


def logarithm(motion: Float[np.ndarray, "4 4"], centre: float) -> Float[np.ndarray, "6"]:
    """The screw (ω, u) of a rigid motion, about the point (centre, centre, centre); it turns by 180° at most."""
    turn = Rotation.from_matrix(motion[:3, :3]).as_rotvec()
    shift = motion[:3, 3] + motion[:3, :3] @ np.full(3, centre) - centre
    by_axis = [expm(np.block([[cross_matrix(turn), axis[:, None]], [np.zeros((1, 4))]]))[:3, 3] for axis in np.eye(3)]
    return np.concatenate([turn, np.linalg.solve(np.stack(by_axis, axis=1), shift)])


def cross_matrix(turn: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """The matrix that takes x to turn × x."""
    return np.cross(np.eye(3), turn)
