"""The flow of a fit to one target, in Å, as pure functions that JAX can differentiate, map and compile."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from cryotrans_jax.core.flow import FieldMotion, Scalar
from cryotrans_jax.core.grid import Frame
from cryotrans_jax.motion.partition import Partition
from cryotrans_jax.motion.still import ALIGNED, StillBody, path_at, rotate

Positions = Float[Array, "*points 3"]


@dataclass(frozen=True)
class Flow:
    """The flow that carries the initial map onto one target.

    Attributes:
        field: the motion by one velocity field.
        params: its parameters, with a leading axis of parts if there is a partition.
        frame: the unit box.
        partition: the parts, each of which moves by its own field; None: one field.
        still: the body in whose frame positions at times after 0 are given. The field is that of the fit, in the frame
            of the alignment.
    """

    field: FieldMotion
    params: PyTree
    frame: Frame
    partition: Partition | None = None
    still: StillBody = ALIGNED

    @property
    def aligned(self) -> "Flow":
        """The same flow in the frame of the alignment, in which it was fitted."""
        return replace(self, still=ALIGNED)

    def part_at(self, xyz: np.ndarray) -> np.ndarray | None:
        """Part, counted from 0, of each position (n, 3) in Å; None where the flow is one field."""
        return None if self.partition is None else np.asarray(self.partition.part_at(xyz))

    def of_part(self, part: int) -> "Flow":
        """The flow of one part, by its field alone."""
        return replace(self, params=jax.tree.map(lambda p: p[part], self.params), partition=None)

    def by_part(self, part: np.ndarray | None) -> Iterator[tuple[np.ndarray | slice, "Flow"]]:
        """For each of these parts its places in `part` and its flow; for None all places and the flow itself."""
        if part is None:
            yield slice(None), self
            return
        for number in np.unique(part):
            yield part == number, self.of_part(int(number))

    def position(self, x: Positions, t: Scalar) -> Positions:
        """Positions (Å) to which the flow carries x (Å) by time t, from 0 to 1; straight between two Euler steps.

        Parts are looked up at x.
        """
        start = self.frame.to_unit(x.reshape(-1, 3))
        visited = self.with_params(lambda params: jnp.moveaxis(self.field.path(params, start), 0, 1), x)
        moved = path_at(jnp.moveaxis(visited, 1, 0), t)
        aligned = x + (moved - start).reshape(x.shape) * self.frame.edge
        return self.still.pose(t).undo(aligned) if self.still.present else aligned

    def velocity(self, x: Positions, t: Scalar) -> Positions:
        """Velocity at positions x (Å) and time t, in Å per unit time: that of the part in which x is.

        It is the velocity field, less the velocity that the still body's rigid-body motion has there.
        """
        if not self.still.present:
            return self.field_at(x, t)
        pose, rate = jax.jvp(self.still.pose, (jnp.asarray(t, jnp.float32),), (jnp.float32(1),))
        carried = self.field_at(pose(x), t) - rotate(x - pose.centre, rate.rotation) - rate.shift
        return rotate(carried, pose.rotation.T)

    def field_at(self, x: Positions, t: Scalar) -> Positions:
        """Velocity field of the fit at positions x (Å) in the frame of the alignment, in Å per unit time."""
        at = self.field.inputs(self.frame.to_unit(x.reshape(-1, 3)), t)
        found = self.with_params(lambda params: self.field.velocity(params)(at)[..., :3], x)
        return found.reshape(x.shape) * self.frame.edge

    def with_params(self, function: Callable[[PyTree], Array], x: Positions) -> Float[Array, "n *values"]:
        """function(params) for each of the positions x (Å), with the parameters of its part."""
        if self.partition is None:
            return function(self.params)
        part = self.partition.part_at(x.reshape(-1, 3))
        return jax.vmap(function)(self.params)[part, jnp.arange(len(part))]
