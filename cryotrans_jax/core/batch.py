"""One value for each of several targets, as one value whose arrays have a leading axis where the targets differ."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import struct
from jaxtyping import PyTree


@struct.dataclass
class Batch:
    """Values of one structure, one for each target; arrays that all of them share are kept once.

    Attributes:
        shared: arrays that are the same for all.
        own: arrays that differ, stacked along a leading axis.
        differs: for each array of a value, whether it differs.
        structure: of a value.
    """

    shared: list[Any]
    own: list[Any]
    differs: tuple[bool, ...] = struct.field(pytree_node=False)
    structure: Any = struct.field(pytree_node=False)

    @classmethod
    def of(cls, values: Sequence[PyTree]) -> "Batch":
        """Batch values of one structure: an array is shared where all of them hold the same object."""
        structure = jax.tree.structure(values[0])
        each = [*zip(*(jax.tree.leaves(value) for value in values), strict=True)]
        differs = tuple(any(leaf is not leaves[0] for leaf in leaves) for leaves in each)
        own = [np.stack(leaves) for leaves, apart in zip(each, differs, strict=True) if apart]
        shared = [np.asarray(leaves[0]) for leaves, apart in zip(each, differs, strict=True) if not apart]
        return cls(jax.device_put(shared), jax.device_put(own), differs, structure)

    def join(self, shared: list[Any], own: list[Any]) -> PyTree:
        """One target's value from the shared arrays and its own ones."""
        shared_leaves, own_leaves = iter(shared), iter(own)
        leaves = [next(own_leaves) if apart else next(shared_leaves) for apart in self.differs]
        return jax.tree.unflatten(self.structure, leaves)

    def of_target(self, target: int) -> PyTree:
        """One target's value."""
        return self.join(self.shared, [np.asarray(leaf)[target] for leaf in self.own])  # no program for each shape
