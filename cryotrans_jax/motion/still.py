"""The frame in which one body stays still: the body's rigid-body motion, taken from everything that a flow carries."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cryotrans_jax.core.flow import Scalar, interpolate_path
from cryotrans_jax.density.transform import Transform, superposing_rotations

Values = Any  # arrays of NumPy, or of JAX where JAX differentiates


class Pose(NamedTuple):
    """The rigid-body motion x -> (x - centre) R + centre + shift of rows x, in Å; of NumPy or of JAX.

    Attributes:
        rotation: R.
        shift: displacement of the centre.
        centre: about which R rotates.
    """

    rotation: Values
    shift: Values
    centre: Values

    def __call__(self, x: Values) -> Values:
        """Move positions (..., 3)."""
        return rotate(x - self.centre, self.rotation) + (self.centre + self.shift)

    def undo(self, x: Values) -> Values:
        """Move positions (..., 3) by the inverse motion."""
        return rotate(x - (self.centre + self.shift), self.rotation.T) + self.centre

    @property
    def transform(self) -> Transform:
        """The same motion as a transform."""
        rotation = np.asarray(self.rotation, float).T
        return Transform(rotation, self.centre + self.shift - rotation @ self.centre)


def rotate(x: Values, rotation: Values) -> Values:
    """x R for rows x (..., 3), element by element: accelerators round matrix products to three digits."""
    return x[..., :1] * rotation[0] + x[..., 1:2] * rotation[1] + x[..., 2:] * rotation[2]


@dataclass(frozen=True, eq=False)
class StillBody:
    """A body that stays still in a result, as points of mass on their way in the frame of the alignment.

    A flow is fitted in the frame in which the target was aligned to the initial map, and there every body may move. The
    body's pose at a time is the rigid-body motion that takes its points nearest to where the flow has carried them by
    then (least squares, weighted by mass). The inverse of that motion expresses positions in the frame in which the
    body stays still. A `StillBody` without points leaves everything in the frame of the alignment.

    Attributes:
        text: what stays still, or why the frame is the alignment's, as a clause.
        path: positions of the points after each Euler step of the flow, Å.
        mass: of the points.
    """

    text: str
    path: Float[np.ndarray, "visits points 3"]
    mass: Float[np.ndarray, "points"]

    @property
    def present(self) -> bool:
        """Whether there is a body, so that the frame differs from the alignment's."""
        return len(self.mass) > 0

    @property
    def centre(self) -> Float[np.ndarray, "3"]:
        """Centre of mass of the points at time 0, Å."""
        return self.mass @ self.path[0] / self.mass.sum()

    def poses(self, times: Sequence[float] | Float[np.ndarray, "times"]) -> list[Pose]:
        """The body's poses at these times, in double precision."""
        found = []
        for t in times:
            shift, covariance = self.superposition(interpolate_path(self.path - self.centre, t))
            found.append(Pose(superposing_rotations(covariance), shift, self.centre))
        return found

    def pose(self, t: Scalar) -> Pose:
        """The body's pose at time t, as a function that JAX can differentiate and compile."""
        path = jnp.asarray(self.path - self.centre, jnp.float32)
        shift, covariance = self.superposition(path_at(path, t))
        return Pose(nearest_rotation(covariance), shift, jnp.asarray(self.centre, jnp.float32))

    def superposition(self, at: Values) -> tuple[Values, Values]:
        """Shift of the centre of mass, and covariance with the start, of points (n, 3) relative to `centre`."""
        share = (self.mass / self.mass.sum())[:, None]
        start, shift = self.path[0] - self.centre, (share * at).sum(0)
        return shift, ((share * start)[:, :, None] * (at - shift)[:, None, :]).sum(0)

    def express(
        self, x: Float[np.ndarray, "times points 3"], times: Sequence[float] | Float[np.ndarray, "times"]
    ) -> Float[np.ndarray, "times points 3"]:
        """Positions at these times in the frame of the alignment, expressed in the body's frame."""
        if not self.present:
            return x
        return np.stack([pose.undo(at) for pose, at in zip(self.poses(times), x, strict=True)])

    @property
    def end(self) -> Transform:
        """Motion from the frame of the alignment to the body's, at the end of the flow."""
        return self.poses([1.0])[0].transform.inverse


def in_alignment(text: str = "that of the alignment") -> StillBody:
    """No still body: the frame of the alignment, and why."""
    return StillBody(text, np.zeros((2, 0, 3)), np.zeros(0))


ALIGNED = in_alignment()


def path_at(visited: Float[Array, "visits points 3"], t: Scalar) -> Float[Array, "points 3"]:
    """Points at time t of a path, as `interpolate_path` has them, for a time that JAX traces."""
    steps = len(visited) - 1
    whole = jnp.clip(jnp.floor(jnp.asarray(t) * steps).astype(int), 0, steps - 1)
    before, after = visited[whole], visited[whole + 1]
    return before + (t * steps - whole) * (after - before)


@jax.custom_jvp
def nearest_rotation(covariance: Float[Array, "3 3"]) -> Float[Array, "3 3"]:
    """Rotation R that takes points nearest to others, x -> x R, from their covariance xᵀ y; see below for its slope."""
    u, _, vt = jnp.linalg.svd(covariance)
    return multiply(u.at[:, 2].multiply(jnp.sign(jnp.linalg.det(multiply(u, vt)))), vt)


@nearest_rotation.defjvp
def slope_of_nearest_rotation(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """R, and dR = [ω]ₓ R with (tr P - P) ω the axial vector of K - Kᵀ, where P = C Rᵀ and K = dC Rᵀ.

    It holds as well where singular values of the covariance C are equal, at which the derivative of an SVD fails.
    """
    (covariance,), (change,) = primals, tangents
    rotation = nearest_rotation(covariance)
    p, k = multiply(covariance, rotation.T), multiply(change, rotation.T)
    axial = jnp.stack([k[2, 1] - k[1, 2], k[0, 2] - k[2, 0], k[1, 0] - k[0, 1]])
    rate = jnp.linalg.solve(jnp.trace(p) * jnp.eye(3) - p, axial)
    return rotation, jnp.cross(rate, rotation.T).T


def multiply(a: Float[Array, "3 3"], b: Float[Array, "3 3"]) -> Float[Array, "3 3"]:
    """Product of two matrices in full precision."""
    return jnp.matmul(a, b, precision="highest")
