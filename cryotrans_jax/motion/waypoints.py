"""Motion through waypoints: a velocity field that depends on time, and terms that hold at several times."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, PyTree

from cryotrans_jax.core.batch import Batch
from cryotrans_jax.core.flow import Points, Scalar, VelocityField, interpolate_path
from cryotrans_jax.core.losses import Carried, Term, total, weighed
from cryotrans_jax.motion.wrapped import Wrapped


@jax.tree_util.register_static
@dataclass(frozen=True)
class Timed(Wrapped):
    """Motion by a velocity field v(x, t), to the time of each waypoint and to the end.

    Attributes:
        field: the motion whose network is given the time as well.
        times: of the waypoints, rising, between 0 and 1.
    """

    times: tuple[float, ...]

    def inputs(self, x: Points, t: Scalar) -> Float[Array, "points 4"]:
        """Points (x, t)."""
        return append_time(x, t)

    def velocity(self, params: PyTree) -> VelocityField:
        """Velocity field (v(x, t), 1) on points (x, t)."""
        return with_time(self.field.velocity(params))

    def ends(self, params: PyTree, x: Float[Array, "points 3"]) -> Float[Array, "times points 3"]:
        """Points at the time of each waypoint and at the end."""
        visited = self.path(params, x)
        return jnp.stack([interpolate_path(visited, t) for t in (*self.times, 1.0)])


def with_time(velocity: VelocityField) -> VelocityField:
    """Make a time-dependent field autonomous: (v(x, t), 1) on points (x, t).

    Time becomes a fourth coordinate that grows at speed one. The flow of the result is that of v(x, t), and so is the
    inverse of its flow.
    """
    return lambda xt: jnp.concatenate([velocity(xt), jnp.ones_like(xt[:, 3:])], axis=-1)


def append_time(x: Float[Array, "points 3"], t: Scalar) -> Float[Array, "points 4"]:
    """Points (x, t), for a field from `with_time`."""
    return jnp.concatenate([x, jnp.full_like(x[:, :1], t)], axis=-1)


@struct.dataclass
class AtEachTime(Term):
    """Mean over times of the sum of terms, with terms of its own for each time.

    Attributes:
        terms: tuples of terms, one for each time, batched.
    """

    terms: Batch

    def with_error(self, carried: Carried) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The loss, and the largest of the terms' errors."""

        def at_one_time(terms: tuple[Term, ...], carried: Carried) -> tuple[Array, Array]:
            return total(terms, carried)

        losses, errors = self.map(at_one_time, carried)
        return jnp.mean(losses), jnp.max(errors)

    def weigh(self, carried: Carried, left: Float[Array, ""]) -> Float[Array, "times points"]:
        """Mass of each point at each time."""

        def at_one_time(terms: tuple[Term, ...], carried: Carried) -> Array:
            return weighed(terms, carried, left).rho

        return self.map(at_one_time, carried)

    def misplaced(self, carried: Carried, distance: float) -> Float[Array, ""]:
        """Largest fraction, over the times, of mass further from its ends than this many times the reach."""
        return jnp.max(self.map(lambda terms, carried: terms[0].misplaced(carried, distance), carried))

    def map(self, function: Callable, carried: Carried) -> PyTree:
        """function(terms, carried) for each time, one after the other."""
        shape = carried.x.shape[:-1]
        each = carried._replace(rho=jnp.broadcast_to(carried.rho, shape))
        return jax.lax.map(
            lambda at: function(self.terms.join(self.terms.shared, at[0]), at[1]), (self.terms.own, each)
        )
