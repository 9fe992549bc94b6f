"""The flow of a velocity field: dΦ/dt = V(Φ), Φ(x, 0) = x, by forward Euler (paper, eq. 1 and 5).

A velocity field is any callable `x -> v` on points of shape (n, 3). It does not depend on time, so one Euler map E(x) =
x + τ V(x) with τ = 1/steps is applied again and again. Positions are in the unit box.

`Motion` is what all ways to move points have in common; `Field` is the paper's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from cryotrans_jax.core.velocity import Velocity

Points = Float[Array, "points axes"]
Scalar = float | Float[Array, ""]
VelocityField = Callable[[Points], Points]


def flow(velocity: VelocityField, x: Points, steps: int) -> Points:
    """Φ(x, 1), the end points of the flow after `steps` Euler steps."""
    return euler(velocity, x, steps)[0]


def path(velocity: VelocityField, x: Points, steps: int) -> Float[Array, "{steps}+1 points axes"]:
    """Φ(x, k/steps) for k = 0, ..., steps; the first entry is x itself."""
    return jnp.concatenate([x[None], euler(velocity, x, steps)[1]])


def euler(velocity: VelocityField, x: Points, steps: int) -> tuple[Points, Float[Array, "steps points axes"]]:
    """Integrate the flow from time 0 to 1 by forward Euler (paper, eq. 5).

    Args:
        velocity: the field.
        x: points at the start, unit box.
        steps: number of steps.

    Returns:
        The end points, and the points after each step.
    """
    tau = 1.0 / steps

    def step(x, _):
        x = x + tau * velocity(x)
        return x, x

    return jax.lax.scan(step, x, length=steps)


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


@runtime_checkable
class Motion(Protocol):
    """How points move, given parameters: by the flow of one velocity field, or by a motion that wraps others."""

    def __call__(self, params: PyTree, x: Float[Array, "*parts points 3"]) -> "Moved":
        """Move points from time 0 to the end, or to several times along a leading axis; all in the unit box."""


class Moved(NamedTuple):
    """Result of a motion, in the unit box.

    Attributes:
        x: all points after the motion.
        nodes: the points at which the flow was integrated, on which the rigidity depends.
    """

    x: Float[Array, "*times points 3"]
    nodes: Float[Array, "*times nodes 3"]


class FieldMotion:
    """Motion by the flow of one velocity field: `Field`, and what wraps one.

    Subclasses are frozen dataclasses without arrays, so that compiled programs are found again by them. They have a
    network, a number of Euler steps, and the field that the two make with parameters.
    """

    @property
    def net(self) -> Velocity:
        """The network of the velocity field."""
        raise NotImplementedError

    @property
    def euler_steps(self) -> int:
        """Number of Euler steps, M of eq. 5."""
        raise NotImplementedError

    @property
    def evaluations(self) -> int:
        """How often the network is evaluated for each point and step."""
        return 1

    def velocity(self, params: PyTree) -> VelocityField:
        """Velocity field with these parameters, on points from `inputs`."""
        raise NotImplementedError

    def inputs(self, x: Points, t: Scalar) -> Float[Array, "points coordinates"]:
        """Points (n, 3) at time t as the velocity field takes them."""
        return x

    def init(self, key: Array) -> PyTree:
        """Initial parameters."""
        return self.net.init(key, self.inputs(jnp.zeros((1, 3)), 0.0))

    def ends(self, params: PyTree, x: Float[Array, "points 3"]) -> Float[Array, "*times points 3"]:
        """Points after the flow (paper, eq. 5)."""
        return flow(self.velocity(params), x, self.euler_steps)

    def __call__(self, params: PyTree, x: Float[Array, "points 3"]) -> Moved:
        """Move points by the flow, which is integrated at each of them."""
        ends = self.ends(params, x)
        return Moved(ends, ends)

    def path(self, params: PyTree, x: Float[Array, "points 3"]) -> Float[Array, "visits points 3"]:
        """Points after each Euler step of the flow, x first."""
        return path(self.velocity(params), self.inputs(x, 0.0), self.euler_steps)[..., :3]


@jax.tree_util.register_static
@dataclass(frozen=True)
class Field(FieldMotion):
    """Motion by the flow of one velocity field (paper, eq. 1, 2 and 5).

    Attributes:
        network: the network of the velocity field.
        steps: number of Euler steps, M of eq. 5.
    """

    network: Velocity = Velocity()
    steps: int = 10

    @property
    def net(self) -> Velocity:
        """The network of the velocity field."""
        return self.network

    @property
    def euler_steps(self) -> int:
        """Number of Euler steps."""
        return self.steps

    def velocity(self, params: PyTree) -> VelocityField:
        """Velocity field with these parameters."""
        return lambda x: jnp.asarray(self.network.apply(params, x))
