"""The flow of a fit as pure functions of positions in Å, which JAX can differentiate, map and compile."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from cryotrans_jax.core.flow import FieldMotion, Scalar
from cryotrans_jax.core.grid import Frame
from cryotrans_jax.motion.partition import Partition


def position(
    field: FieldMotion,
    params: PyTree,
    frame: Frame,
    x: Float[Array, "*points 3"],
    t: Scalar,
    partition: Partition | None = None,
) -> Float[Array, "*points 3"]:
    """Positions to which the flow carries points by a time; straight between two Euler steps.

    Args:
        field: the motion by one velocity field.
        params: its parameters, with a leading axis of parts if there is a partition.
        frame: the unit box.
        x: positions at the start, Å.
        t: time, from 0 to 1.
        partition: the parts, which are looked up at the start; None: one field.
    """
    start = frame.to_unit(x.reshape(-1, 3))
    visited = by_part(lambda params: jnp.moveaxis(field.path(params, start), 0, 1), params, x, partition)
    steps = visited.shape[1] - 1
    whole = jnp.clip(jnp.floor(jnp.asarray(t) * steps).astype(int), 0, steps - 1)
    before, after = visited[:, whole], visited[:, whole + 1]
    moved = before + (t * steps - whole) * (after - before)
    return x + (moved - start).reshape(x.shape) * frame.edge


def velocity(
    field: FieldMotion,
    params: PyTree,
    frame: Frame,
    x: Float[Array, "*points 3"],
    t: Scalar,
    partition: Partition | None = None,
) -> Float[Array, "*points 3"]:
    """Velocity field at positions and a time, in Å per unit time; arguments are as for `position`.

    With parts, the field of the part in which the position is.
    """
    at = field.inputs(frame.to_unit(x.reshape(-1, 3)), t)
    found = by_part(lambda params: field.velocity(params)(at)[..., :3], params, x, partition)
    return found.reshape(x.shape) * frame.edge


def by_part(
    function, params: PyTree, x: Float[Array, "*points 3"], partition: Partition | None
) -> Float[Array, "n *values"]:
    """function(params) for each of the positions x (Å), with the parameters of its part."""
    if partition is None:
        return function(params)
    owner = part_at(partition, x.reshape(-1, 3))
    return jax.vmap(function)(params)[owner, jnp.arange(len(owner))]


def part_at(partition: Partition, x: Float[Array, "n 3"]) -> Int[Array, "n"]:
    """Part, counted from 0, of each position (Å): that of the nearest voxel."""
    labels = jnp.asarray(partition.labels)
    voxel = jnp.rint((x - partition.origin) / partition.voxel_size).astype(int)
    at = jnp.clip(voxel, 0, jnp.array(labels.shape) - 1)
    return labels[at[:, 0], at[:, 1], at[:, 2]].astype(int) - 1
