"""Motion that commutes with a point group: one velocity field, averaged over the group's operators."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, PyTree

from cryotrans_jax.core.flow import FieldMotion, Moved, Points, VelocityField
from cryotrans_jax.motion.screw import screw_of
from cryotrans_jax.motion.wrapped import Wrapped


@jax.tree_util.register_static
@dataclass(frozen=True)
class Symmetric(Wrapped):
    """Motion by a velocity field that commutes with the operators of a point group.

    Attributes:
        field: the motion whose field is averaged over the group.
        operators: 12 numbers each: the three rows of the rotation, and the shift in unit boxes.
    """

    operators: tuple[tuple[float, ...], ...]

    @property
    def evaluations(self) -> int:
        """Number of operators, for each of which the network is evaluated."""
        return len(self.operators) * super().evaluations

    def velocity(self, params: PyTree) -> VelocityField:
        """Velocity field averaged over the group."""
        rows = np.array(self.operators, np.float32)
        return symmetrize(self.field.velocity(params), rows[:, :9].reshape(-1, 3, 3), rows[:, 9:])


def without_symmetry(field: FieldMotion) -> FieldMotion:
    """The motion without the average over a group, if it has one."""
    if isinstance(field, Symmetric):
        return field.field
    return replace(field, field=without_symmetry(field.field)) if isinstance(field, Wrapped) else field


@struct.dataclass
class Copies:
    """Motion of an asymmetric unit, and the copies that the operators of a point group make of it.

    Attributes:
        unit: motion of the asymmetric unit.
        rotations: of the operators (copies, 3, 3).
        shifts: of the operators (copies, 3), in unit boxes.
    """

    unit: Any
    rotations: Any
    shifts: Any

    @property
    def field(self) -> FieldMotion:
        """The motion of a point."""
        return self.unit.field

    @property
    def divided(self) -> bool:
        """Whether parameters have a leading axis of parts."""
        return self.unit.divided

    def by_part(self, x: np.ndarray, rho: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points of the unit and the masses of its first copy, with a leading axis of parts."""
        return self.unit.by_part(x, rho[: len(rho) // len(self.rotations)])

    def __call__(self, params: PyTree, x: Float[Array, "*parts points 3"]) -> Moved:
        """Move the points of the unit; return those of all copies, copy after copy, and the nodes of the unit."""
        moved = self.unit(params, x)
        return moved._replace(x=all_copies(moved.x, self.rotations, self.shifts))


def all_copies(
    x: Float[Array | np.ndarray, "*times points 3"],
    rotations: Float[Array | np.ndarray, "copies 3 3"],
    shifts: Float[Array | np.ndarray, "copies 3"],
) -> Float[Array, "*times all 3"]:
    """Points of the asymmetric unit and of all its copies, copy after copy."""
    every = jnp.einsum("gij,...nj->...gni", rotations, x, precision="highest") + shifts[:, None]
    return every.reshape(*x.shape[:-2], -1, 3)


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


def replicate_fields(
    field: FieldMotion, params: PyTree, operators: Sequence[tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]]
) -> PyTree:
    """Parameters of the fields (targets, parts) of bodies and of their copies by all operators, each beside its body.

    Args:
        field: the motion by the field of a body.
        params: parameters of the bodies' fields.
        operators: rotation and shift (unit boxes) of each operator; none: the fields stay as they are.
    """
    if not operators:
        return params
    screw = screw_of(field)
    targets, bodies = jax.tree.leaves(params)[0].shape[:2]
    one = jax.device_get(params)
    each = [
        screw.rotated(jax.tree.map(lambda p, t=target, k=body: p[t, k], one), *operator)
        for target in range(targets)
        for body in range(bodies)
        for operator in operators
    ]
    return jax.tree.map(lambda *p: np.stack(p).reshape(targets, -1, *p[0].shape), *each)
