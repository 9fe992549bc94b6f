"""Point groups: how a symmetric assembly repeats one unit, whether a map does, and what one unit of it is.

A flow commutes with a group where its velocity field does (`flow.symmetrize`); then the points of one unit are enough
to fit it, since all others are their copies.
"""

import itertools
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import gemmi
import numpy as np
from jaxtyping import Float
from scipy import ndimage, optimize
from scipy.spatial.transform import Rotation

from cryotrans_jax import metrics, structures
from cryotrans_jax.align import Transform, resampled
from cryotrans_jax.files import InputError
from cryotrans_jax.maps import Map
from cryotrans_jax.prepare import binned, bounding_box

NAME = re.compile(r"(?P<kind>[CD])(?P<fold>[1-9]\d{0,2})|(?P<solid>[TOI])", re.IGNORECASE)
GOLDEN = (1 + np.sqrt(5)) / 2
DIAGONAL, FIVEFOLD = (1.0, 1.0, 1.0), (0.0, 1.0, GOLDEN)  # axes of order 3, and of order 5 of an icosahedron
LIKE = 0.9  # correlation of a map with itself turned by an operator, from which on it has the symmetry
SAME_TURN, SAME_SHIFT = 1e-2, 0.1  # by which operators may differ (Å) that are one: files round them
WORKING = 4.0  # Å: of the voxels on which axes are looked for at first
LARGE = 128  # voxels: of larger boxes axes are looked for on wider voxels
GOOD, CLEARER = 0.97, 0.01  # likeness with which a map keeps the usual axes, and by which others have to be better
SLIGHT = 0.01  # of the largest share of a voxel that a unit has: less of it is left out

Vector = Sequence[int | float] | Float[np.ndarray, "3"]
Points = Float[np.ndarray, "points 3"]


@dataclass(frozen=True)
class Symmetry:
    """The operators, in Å, by which a unit is repeated; the first one is the identity, or none is."""

    name: str
    operators: tuple[Transform, ...]

    @property
    def centre(self) -> Float[np.ndarray, "3"]:
        """A point (Å) that all operators leave where it is, if they are a point group: the mean of any one's copies."""
        return np.mean([operator.shift for operator in self.operators], axis=0)

    @property
    def is_group(self) -> bool:
        """Whether any two operators, one after the other, are again one of them."""
        every = np.stack([operator.matrix for operator in self.operators])
        return all(among(one @ every, every).all() for one in every)

    @property
    def generators(self) -> tuple[Transform, ...]:
        """Operators, as few as were found, whose products are all of the group."""
        found, made = [], [np.eye(3)]
        for operator in self.operators:
            if not known(operator.rotation, made):
                found.append(operator)
                made = closed([one.rotation for one in found])
        return tuple(found)

    @classmethod
    def named(cls, name: str, centre: Vector = (0, 0, 0), axis: Vector = (0, 0, 1), across: float = 0.0) -> "Symmetry":
        """The group C1, C2, ..., D1, D2, ..., T, O or I about a centre (Å).

        `axis` is that of highest order of Cn and Dn; the others of Dn are across it, one of them `across` degrees from
        x where the axis is z. T, O and I have axes of order 2 (O: 4) along x, y and z, and I has one of order 5 along
        (0, 1, 1.618). Raises InputError where there is no such group.
        """
        match = NAME.fullmatch(name.strip())
        if not match:
            raise InputError(
                f"there is no symmetry {name!r}: give C2, C3, ..., D2, D3, ..., T, O, I, or a file with an assembly"
            )
        turns = closed(generators_of(match))
        if match["kind"]:
            onto = turn_onto(np.asarray(axis, float)) @ Rotation.from_euler("z", across, degrees=True).as_matrix()
            turns = [onto @ turn @ onto.T for turn in turns]
        centre = np.asarray(centre, float)
        return cls(name.strip().upper(), tuple(Transform(turn, centre - turn @ centre) for turn in turns))

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "Symmetry":
        """Read the operators of the first assembly that has some from an mmCIF or PDB file of a model.

        Raises:
            InputError: the file has no assembly, none of its assemblies has an operator, or an operator is no motion
                of a rigid body.
        """
        assemblies = structures.read(path).assemblies
        if not assemblies:
            raise InputError(f"{path} tells of no assembly: give a file whose header has one, or C2, D3 and so on")
        operators = (
            [operator for generator in assembly.generators for operator in generator.operators]
            for assembly in assemblies
        )
        found: list[Transform] = []
        for operator in next(filter(None, operators), []):
            turn, shift = (np.array(part.tolist()) for part in (operator.transform.mat, operator.transform.vec))
            if not (np.allclose(turn @ turn.T, np.eye(3), rtol=0, atol=SAME_TURN) and np.linalg.det(turn) > 0):
                raise InputError(f"{path} has an operator of its assembly that is no rotation: mend its header")
            one = Transform(turn, shift)
            if not found or not known(one.matrix, [other.matrix for other in found]):
                found.append(one)
        if not found:
            raise InputError(
                f"{path} names an assembly and has no operators for it (BIOMT in REMARK 350, _pdbx_struct_oper_list): "
                "give a file that has them, or C2, D3 and so on"
            )
        found.sort(key=lambda one: not known(one.matrix, [np.eye(4)]))
        return cls(Path(path).name, tuple(found))

    @classmethod
    def of(cls, given: "Symmetry | str", map_: Map, mass: Map | None = None, axis: Vector = (0, 0, 1)) -> "Symmetry":
        """The symmetry that is given; or the group, or the file, of that name, for a map.

        A group lies about the axis, through that of three centres about which `mass`, the map's density without
        the solvent, is most symmetric: the box's middle, the voxel after it where programs that reconstruct maps have
        their axis, and the centre of mass. Without `mass`, through that voxel. One of the other axes of Dn is along x,
        or where `mass` says so (`turned_about`).
        """
        if isinstance(given, Symmetry):
            return given
        if Path(given).is_file():
            return cls.from_file(given)
        shape = np.array(map_.density.shape)
        voxel = map_.origin + (shape // 2) * map_.voxel_size
        if mass is None:
            return cls.named(given, voxel, axis)
        middle = map_.origin + (shape - 1) / 2 * map_.voxel_size
        heavy = mass.origin + np.array(ndimage.center_of_mass(mass.density)) * mass.voxel_size
        centres = voxel, middle, heavy
        usual = max((cls.named(given, one, axis) for one in centres), key=lambda one: one.likeness(mass))
        match = NAME.fullmatch(given.strip())
        if not (match and (match["kind"] or "").upper() == "D") or (like := usual.likeness(mass)) > GOOD:
            return usual
        other = cls.turned_about(given, centres, axis, mass)
        return other if other.likeness(mass) > like + CLEARER else usual

    @classmethod
    def turned_about(cls, name: str, centres: Sequence[Vector], axis: Vector, mass: Map) -> "Symmetry":
        """The group Dn about an axis, through that of the centres, and with the others turned about it, where the mass
        is most symmetric about one of these."""

        def unlike(across: float, centre: Vector, map_: Map) -> float:
            return -cls(name, cls.named(name, centre, axis, across).generators[-1:]).likeness(map_)

        coarse = on_wider_voxels(mass, max(int(WORKING // mass.voxel_size.min()), 1))
        fine = on_wider_voxels(mass, -(-max(mass.density.shape) // LARGE))
        radius = np.linalg.norm(np.array(mass.density.shape) * mass.voxel_size) / 4
        apart = 180 / int(name.strip()[1:])  # degrees between axes of order 2
        step = apart / np.ceil(apart / np.degrees(WORKING / 2 / radius))
        tried = itertools.product(np.arange(0, apart, step), centres)
        first, centre = min(tried, key=lambda one: unlike(one[0], one[1], coarse))
        near = (first - step, first + step)
        found = optimize.minimize_scalar(unlike, near, near, (centre, fine), "bounded", options={"xatol": 0.05})
        return cls.named(name, centre, axis, float(found.x))

    def likeness(self, map_: Map) -> float:
        """The least correlation of a map with itself turned by an operator, 1 where there is but the identity."""
        density = map_.density
        turned = (resampled(map_, map_, operator).density for operator in self.generators)
        return min((metrics.correlation(density, other) for other in turned), default=1.0)

    def check(self, mass: Map, name: str) -> None:
        """Nothing; raises InputError where the operators are no point group, or a map does not have the symmetry.

        `mass` is its density without the solvent.
        """
        if not self.is_group:
            raise InputError(
                f"the {len(self.operators)} operators of {self.name} are not a point group, by which a flow could be "
                "made symmetric: morph one unit alone, and repeat that by them"
            )
        if (found := self.likeness(mass)) < LIKE:
            about = ", ".join(f"{c:.1f}" for c in self.centre.round(1) + 0.0)  # no zero with a sign
            raise InputError(
                f"the {name} does not have the symmetry {self.name}: turned by it about "
                f"({about}) Å it correlates with itself by {found:.2f}, where at least {LIKE:g} is expected: "
                "give another symmetry, axis or centre, or none"
            )

    def shares(self, xyz: Points, width: float) -> Float[np.ndarray, "points"]:
        """Shares (0 to 1) that one unit of the group has of the positions (Å); over all copies they add up to one.

        The unit is what lies nearer to one point than to its copies, with borders that fade out over `width` (Å): a
        sharp one would cut voxels that lie across it, and its copies leave gaps or overlap there.
        """
        if len(self.operators) == 1:
            return np.ones(len(xyz))
        arms = np.random.default_rng(0).standard_normal((256, 3))  # any will do that is far from its copies
        arms /= np.linalg.norm(arms, axis=1, keepdims=True)
        turns = np.stack([one.rotation for one in self.operators if not known(one.rotation, [np.eye(3)])])
        apart = np.linalg.norm(arms @ turns.transpose(0, 2, 1) - arms, axis=-1).min(0)
        arm = arms[apart.argmax()] / (apart.max() * width)
        x = xyz - self.centre
        others = np.exp(np.clip(np.stack([x @ (turn.T @ arm - arm) for turn in turns]), None, 50.0))  # own counts as 1
        least = SLIGHT * np.maximum(others.max(0), 1)
        return np.where(least < 1, 1 / (1 + np.where(others > least, others, 0).sum(0)), 0.0)

    def unit(self, map_: Map) -> Float[np.ndarray, "x y z"]:
        """The shares that one unit has of a map's voxels which hold density, zero at the others."""
        inside = map_.density > 0
        share, size = np.zeros(inside.shape, np.float32), map_.voxel_size
        share[inside] = self.shares(map_.origin + np.argwhere(inside) * size, float(size.max()))
        return share

    def room(self, maps: Iterable[Map]) -> Map:
        """An empty map on the grid of maps that share one, continued as far as copies of their density reach."""
        ends = []
        for map_ in maps:
            low, high = bounding_box(np.abs(map_.density) > SLIGHT * np.abs(map_.density).max())
            corners = map_.origin + map_.voxel_size * np.stack(np.meshgrid(*zip(low, high - 1, strict=True)), -1)
            for operator in self.operators:
                indices = (operator(corners.reshape(-1, 3)) - map_.origin) / map_.voxel_size
                ends += [indices.min(0) - 1, indices.max(0) + 2]
        first = np.minimum(np.floor(np.min(ends, 0)), 0).astype(int)
        shape = np.maximum(np.ceil(np.max(ends, 0)), map_.density.shape).astype(int) - first
        return Map(np.zeros(shape, np.float32), map_.voxel_size, map_.origin + first * map_.voxel_size)

    def repeated(self, map_: Map, room: Map | None = None) -> Map:
        """The sum of a map's copies by all operators: the assembly of which it shows one unit.

        On the grid of `room`, by default of the room that all copies take.
        """
        room = self.room([map_]) if room is None else room
        whole = np.zeros_like(room.density)
        for operator in self.operators:
            whole += resampled(map_, room, operator).density
        return replace(room, density=whole)

    def assembled(self, model: gemmi.Structure) -> gemmi.Structure:
        """The model's copies by all operators, one after the other; the first keep their chains' names."""
        whole = model.clone()
        unused = structures.unused_names({chain.name for chain in model[0]})
        for operator in self.operators:
            if known(operator.matrix, [np.eye(4)]):
                continue
            copy = operator.moved(model)
            for chain in copy[0]:
                chain.name = unused("")
                whole[0].add_chain(chain)
        whole.setup_entities()
        return whole


def on_wider_voxels(map_: Map, factor: int) -> Map:
    """The map on voxels that many times as wide."""
    origin = map_.origin + (factor - 1) / 2 * map_.voxel_size
    return Map(binned(map_.density, factor), map_.voxel_size * factor, origin)


def generators_of(match: re.Match) -> list[Float[np.ndarray, "3 3"]]:
    """Rotations whose products are the group that NAME matched."""
    if match["kind"]:
        first = turned((0, 0, 1), int(match["fold"]))
        return [first, turned((1, 0, 0), 2)] if match["kind"].upper() == "D" else [first]
    solid = match["solid"].upper()
    some = [turned((0, 0, 1), 4 if solid == "O" else 2), turned(DIAGONAL, 3)]
    return [*some, turned(FIVEFOLD, 5)] if solid == "I" else some


def turned(axis: Vector, fold: int) -> Float[np.ndarray, "3 3"]:
    """The rotation about an axis by so many parts of a full turn."""
    along = np.asarray(axis, float)
    return Rotation.from_rotvec(2 * np.pi / fold * along / np.linalg.norm(along)).as_matrix()


def turn_onto(axis: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """A rotation that takes z to the axis. Raises InputError where that has no direction."""
    if not (np.isfinite(axis).all() and np.linalg.norm(axis) > 0):
        raise InputError(f"the symmetry's axis {axis.tolist()} has no direction: give one such as 0,0,1")
    return Rotation.align_vectors(axis[None] / np.linalg.norm(axis), [[0.0, 0.0, 1.0]])[0].as_matrix()


def closed(generators: Sequence[Float[np.ndarray, "3 3"]]) -> list[Float[np.ndarray, "3 3"]]:
    """All products of rotations, the identity first."""
    found = [np.eye(3)]
    for turn in found:  # which grows meanwhile
        for generator in generators:
            if not known(product := generator @ turn, found):
                found.append(product)
    return found


def known(one: np.ndarray, others: Sequence[np.ndarray]) -> bool:
    """Whether a rotation (3, 3) or an operator (4, 4) is one of some."""
    return bool(among(one[None], np.stack(others))[0])


def among(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of some rotations (m, 3, 3) or operators (m, 4, 4) are among others (n, ...)."""
    off = np.abs(ones[:, None] - others)
    same = off[..., :3, :3].max((-1, -2)) < SAME_TURN
    return (same & (off[..., :3, 3:].max((-1, -2), initial=0) < SAME_SHIFT)).any(1)
