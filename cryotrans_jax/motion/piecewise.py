"""Motion of several parts, each by a velocity field of its own (paper, eq. 8-15)."""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, PyTree

from cryotrans_jax.core.flow import FieldMotion, Moved
from cryotrans_jax.motion.lattice import interpolate

MAX_ROWS = 64  # rows into which the points of the largest part are divided
ROW_COST = 32  # points: cost of a row besides that of the points in it


class Rows(NamedTuple):
    """Points of several parts in rows of one part each, to evaluate fields of parts of any size in one batch.

    Attributes:
        points: numbers of each row's points among those of all parts, padded to the width.
        owner: part of each row.
        place: where each part's points are among those of all rows.
    """

    points: Int[Array | np.ndarray, "rows width"]
    owner: Int[Array | np.ndarray, "rows"]
    place: Int[Array | np.ndarray, "parts most"]


class OneField:
    """What motions by one velocity field have in common.

    Attributes:
        field: the motion of a point.
        divided: whether parameters have a leading axis of parts.
    """

    field: FieldMotion
    divided: ClassVar[bool] = False

    def start(self, x: Float[Array, "points 3"]) -> Float[Array, "nodes 3"]:
        """Where the flow is integrated."""
        raise NotImplementedError

    def end(
        self, x: Float[Array, "points 3"], nodes: Float[Array, "*times nodes 3"]
    ) -> Float[Array, "*times points 3"]:
        """Points after the flow that carried the nodes to `nodes`."""
        raise NotImplementedError

    def __call__(self, params: PyTree, x: Float[Array, "points 3"]) -> Moved:
        """Move points with the nodes around them."""
        nodes = self.field.ends(params, self.start(x))
        return Moved(self.end(x, nodes), nodes)

    def by_part(
        self, x: Float[np.ndarray, "points 3"], rho: Float[np.ndarray, "points"]
    ) -> tuple[Float[np.ndarray, "1 points 3"], Float[np.ndarray, "1 points"]]:
        """Points and their masses, with a leading axis of parts."""
        return x[None], rho[None]


@struct.dataclass
class AtPoints(OneField):
    """Motion that is integrated at every point.

    Attributes:
        field: the motion of a point.
    """

    field: FieldMotion = struct.field(pytree_node=False)

    def start(self, x: Float[Array, "points 3"]) -> Float[Array, "points 3"]:
        """Where the flow is integrated: the points."""
        return x

    def end(
        self, x: Float[Array, "points 3"], nodes: Float[Array, "*times points 3"]
    ) -> Float[Array, "*times points 3"]:
        """Points after the flow that carried them to `nodes`."""
        return nodes


@struct.dataclass
class OnLattice(OneField):
    """Motion that is integrated at the nodes of a lattice and interpolated to the points.

    Attributes:
        field: the motion of the nodes.
        lattice: controls the points.
    """

    field: FieldMotion = struct.field(pytree_node=False)
    lattice: Any  # a Lattice

    def start(self, x: Float[Array, "points 3"]) -> Float[Array, "nodes 3"]:
        """Where the flow is integrated: the nodes."""
        return self.lattice.nodes

    def end(
        self, x: Float[Array, "points 3"], nodes: Float[Array, "*times nodes 3"]
    ) -> Float[Array, "*times points 3"]:
        """Points after the flow that carried the nodes to `nodes`."""
        return x + interpolate(self.lattice, nodes - self.lattice.nodes)


@struct.dataclass
class Piecewise:
    """Motion of each part of the points by its own field; parameters have a leading axis of parts.

    Points come as (parts, points, 3), padded to the largest part.

    Attributes:
        each: the motions of the parts, alike but for the arrays, which have a leading axis of parts.
        rows: the points at which the flow is integrated, with little padding.
        valid: numbers, among the points of all parts, of those that are no padding.
    """

    each: Any
    rows: Any
    valid: Any
    divided: ClassVar[bool] = True

    @property
    def field(self) -> FieldMotion:
        """The motion of a point, given its part's parameters."""
        return self.each.field

    def __call__(self, params: PyTree, x: Float[Array, "parts points 3"]) -> Moved:
        """Move the points of all parts.

        Returns:
            The points, one part after the other without padding; and the nodes of all parts, with padding.
        """
        start = jax.vmap(lambda motion, x: motion.start(x))(self.each, x)
        rows = jax.tree.map(lambda p: p[self.rows.owner], params), start.reshape(-1, 3)[self.rows.points]
        arrived = jax.vmap(self.each.field.ends, out_axes=-3)(*rows)
        nodes = arrived.reshape(*arrived.shape[:-3], -1, 3)[..., self.rows.place, :]
        moved = jax.vmap(lambda motion, x, nodes: motion.end(x, nodes), (0, 0, -3), -3)(self.each, x, nodes)
        moved, nodes = (a.reshape(*a.shape[:-3], -1, 3) for a in (moved, nodes))
        return Moved(moved[..., self.valid, :], nodes)

    def by_part(
        self, x: Float[np.ndarray, "parts points 3"], rho: Float[np.ndarray, "all"]
    ) -> tuple[Float[np.ndarray, "parts points 3"], Float[np.ndarray, "parts points"]]:
        """Points and their masses, with a leading axis of parts; padding has no mass."""
        valid = np.asarray(self.valid)
        held = np.zeros(x[..., 0].size, rho.dtype)
        np.add.at(held, valid, rho[: len(valid)])  # the first copy's, where there is a symmetry
        return x, held.reshape(x.shape[:-1])


def arrange_rows(sizes: Sequence[Sequence[int]]) -> list[Rows]:
    """Arrange parts of these numbers of points in rows, for each target, of the width that costs least."""
    most = max(map(max, sizes))
    widths = {-(-most // parts // 16) * 16 for parts in range(1, MAX_ROWS + 1)}

    def needed(width: int) -> int:
        return max(sum(-(-n // width) for n in own) for own in sizes)

    width = min(widths, key=lambda width: needed(width) * (width + ROW_COST))
    return [rows_of_width(own, width, needed(width), most) for own in sizes]


def rows_of_width(sizes: Sequence[int], width: int, count: int, most: int) -> Rows:
    """Arrange parts of these numbers of points in `count` rows; `most` is the number that each part is padded to."""
    points, owner = np.zeros((count, width), int), np.zeros(count, int)
    place, row = np.zeros((len(sizes), most), int), 0
    for part, size in enumerate(sizes):
        taken, each = -(-size // width), np.arange(size)
        points[row : row + taken].flat[:size] = part * most + each
        owner[row : row + taken] = part
        place[part, :size] = row * width + each
        row += taken
    return Rows(points, owner, place)
