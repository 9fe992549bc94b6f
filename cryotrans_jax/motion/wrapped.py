"""What motions that wrap the motion by another velocity field have in common."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from cryotrans_jax.core.flow import FieldMotion, Points, Scalar
from cryotrans_jax.core.velocity import Velocity


@dataclass(frozen=True)
class Wrapped(FieldMotion):
    """Motion by a velocity field that is made of another one.

    Attributes:
        field: the motion by the other field.
    """

    field: FieldMotion

    @property
    def net(self) -> Velocity:
        """The network of the other field."""
        return self.field.net

    @property
    def euler_steps(self) -> int:
        """Number of Euler steps."""
        return self.field.euler_steps

    @property
    def evaluations(self) -> int:
        """How often the network is evaluated for each point and step."""
        return self.field.evaluations

    def init(self, key: Array) -> PyTree:
        """Initial parameters."""
        return self.init_for(key, self.inputs(jnp.zeros((1, 3)), 0.0))

    def init_for(self, key: Array, x: Float[Array, "points coordinates"]) -> PyTree:
        """Initial parameters of a velocity field that is called with points like x."""
        return self.field.init_for(key, x) if isinstance(self.field, Wrapped) else self.net.init(key, x)

    def inputs(self, x: Points, t: Scalar) -> Float[Array, "points coordinates"]:
        """Points as the other field takes them."""
        return self.field.inputs(x, t)
