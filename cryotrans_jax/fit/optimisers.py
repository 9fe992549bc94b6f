"""Optimisers, as the configuration of a fit holds them.

A further optimiser is a class like `Adam`: a frozen dataclass of plain values (text, numbers, tuples) with a method
`make`.
"""

from dataclasses import dataclass

import jax
import optax
from flax import struct
from jaxtyping import Array, Float, PyTree


class OptimiserSettings:
    """Settings of an optimiser."""

    def make(self) -> optax.GradientTransformation:
        """Make the transformation from gradients to updates.

        A step moves the parameters by minus the learning rate, which the stage sets, times the update.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Adam(OptimiserSettings):
    """Adam (Kingma and Ba, 2015), with the published values.

    Attributes:
        b1: decay of the mean of the gradients, per step.
        b2: decay of the mean of their squares.
        eps: added to the root of that mean.
    """

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def make(self) -> optax.GradientTransformation:
        """Make the transformation."""
        return optax.scale_by_adam(self.b1, self.b2, self.eps)


@struct.dataclass
class Optimiser:
    """An optimiser with its state.

    Attributes:
        settings: the settings, which are part of the compiled program.
        state: what the optimiser keeps from step to step.
    """

    settings: OptimiserSettings = struct.field(pytree_node=False)
    state: PyTree

    @classmethod
    def begin(cls, settings: OptimiserSettings, params: PyTree) -> "Optimiser":
        """The optimiser before its first step."""
        return cls(settings, settings.make().init(params))

    def step(self, params: PyTree, gradient: PyTree, rate: Float[Array, ""]) -> tuple[PyTree, "Optimiser"]:
        """Parameters and optimiser after a step at this learning rate."""
        updates, state = self.settings.make().update(gradient, self.state, params)
        return jax.tree.map(lambda p, u: p - rate * u, params, updates), Optimiser(self.settings, state)
