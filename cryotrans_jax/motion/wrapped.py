"""What motions that wrap the motion by another velocity field have in common."""

from dataclasses import dataclass

from jaxtyping import Array, Float

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

    def inputs(self, x: Points, t: Scalar) -> Float[Array, "points coordinates"]:
        """Points as the other field takes them."""
        return self.field.inputs(x, t)
