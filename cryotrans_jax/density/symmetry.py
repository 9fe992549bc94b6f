"""Point groups: their operators, the asymmetric unit of a map, and copies of maps and models.

A flow commutes with a group if its velocity field does (`motion.symmetric`); then the points of one asymmetric unit are
enough to fit it, since all others are their copies.
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

from cryotrans_jax.core.grid import binned
from cryotrans_jax.density import similarity
from cryotrans_jax.density.boxes import bounding_box
from cryotrans_jax.density.transform import Transform, resampled
from cryotrans_jax.io import structures
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map

NAME = re.compile(r"[CD][1-9]\d{0,2}|[TOI]")
LIKE = 0.9  # least correlation of a symmetric map with itself rotated by an operator
SAME_TURN, SAME_SHIFT = 1e-2, 0.1  # largest difference (matrix, Å) of equal operators: files round them
WORKING = 4.0  # Å: voxels of the first search for axes
LARGE = 128  # voxels: larger boxes are binned for the search for axes
GOOD, CLEARER = 0.97, 0.01  # self-correlation at which the usual axes are kept, and least gain of other axes
EMPTY = 0.01  # of the largest density: weaker density needs no room on the grid of all copies
SLIGHT = 0.01  # of the largest weight of a voxel in any unit: smaller weights are set to 0

Vector = Sequence[int | float] | Float[np.ndarray, "3"]
Points = Float[np.ndarray, "points 3"]


@dataclass(frozen=True)
class Symmetry:
    """The operators that generate an assembly from one unit.

    Attributes:
        name: of the group, or of the file.
        operators: motions in Å; the identity is the first, if it is one of them.
    """

    name: str
    operators: tuple[Transform, ...]

    @property
    def centre(self) -> Float[np.ndarray, "3"]:
        """A fixed point of a point group, Å: the mean of the copies of any point."""
        return np.mean([operator.shift for operator in self.operators], axis=0)

    @property
    def is_group(self) -> bool:
        """Whether the product of any two operators is an operator."""
        every = np.stack([operator.matrix for operator in self.operators])
        return all(contains_each(one @ every, every).all() for one in every)

    @property
    def generators(self) -> tuple[Transform, ...]:
        """A small set of operators whose products are the whole group, smaller rotations first."""
        found, made = [], [np.eye(3)]
        for operator in sorted(self.operators, key=lambda operator: round(operator.angle, 3)):
            if not contains(operator.rotation, made):
                found.append(operator)
                made = closure([one.rotation for one in found])
        return tuple(found)

    @classmethod
    def named(cls, name: str, centre: Vector = (0, 0, 0), axis: Vector = (0, 0, 1), across: float = 0.0) -> "Symmetry":
        """The group C1, C2, ..., D1, D2, ..., T, O or I.

        T, O and I have axes of order 2 (O: 4) along x, y and z, and I has one of order 5 along (0, 1, 1.618).

        Args:
            name: the group, in Schoenflies notation.
            centre: fixed point, Å.
            axis: direction of the axis of highest order of Cn and Dn; the twofold axes of Dn are perpendicular to it.
            across: angle of a twofold axis of Dn from x where the axis is z, degrees.

        Raises:
            InputError: there is no such group, or the axis has no direction.
        """
        group = name.strip().upper()
        if not NAME.fullmatch(group):
            raise InputError(
                f"there is no symmetry {name!r}: give C2, C3, ..., D2, D3, ..., T, O, I, or a file with an assembly"
            )
        turns = Rotation.create_group(group).as_matrix()
        turns = turns[np.argsort(~contains_each(turns, np.eye(3)[None]), kind="stable")]  # the identity first
        if group not in "TOI":
            onto = rotation_onto(np.asarray(axis, float)) @ Rotation.from_euler("z", across, degrees=True).as_matrix()
            turns = onto @ turns @ onto.T
        centre = np.asarray(centre, float)
        return cls(group, tuple(Transform(turn, centre - turn @ centre) for turn in turns))

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "Symmetry":
        """Read the first assembly that has operators from an mmCIF or PDB file of a model.

        Raises:
            InputError: the file has no assembly, none of its assemblies has an operator, or an operator is not a
                rigid-body motion.
        """
        assemblies = structures.read(path).assemblies
        if not assemblies:
            raise InputError(
                f"{path} has no biological assembly: give a file whose header has one, or C2, D3 and so on"
            )
        operators = (
            [operator for generator in assembly.generators for operator in generator.operators]
            for assembly in assemblies
        )
        found: list[Transform] = []
        for operator in next(filter(None, operators), []):
            turn, shift = (np.array(part.tolist()) for part in (operator.transform.mat, operator.transform.vec))
            if not (np.allclose(turn @ turn.T, np.eye(3), rtol=0, atol=SAME_TURN) and np.linalg.det(turn) > 0):
                raise InputError(f"{path} has an assembly operator that is not a rotation: correct its header")
            one = Transform(turn, shift)
            if not found or not contains(one.matrix, [other.matrix for other in found]):
                found.append(one)
        if not found:
            raise InputError(
                f"{path} has an assembly without operators (BIOMT in REMARK 350, _pdbx_struct_oper_list): "
                "give a file that has them, or C2, D3 and so on"
            )
        found.sort(key=lambda one: not contains(one.matrix, [np.eye(4)]))
        return cls(Path(path).name, tuple(found))

    @classmethod
    def of(cls, given: "Symmetry | str", map_: Map, mass: Map | None = None, axis: Vector = (0, 0, 1)) -> "Symmetry":
        """The symmetry of a map, from a symmetry, the name of a group, or a file.

        Args:
            given: a symmetry, which is returned unchanged; the name of a group; or the path of a model's file with an
                assembly.
            map_: the map.
            mass: the map's density without the solvent. It decides which of three centres a group has, by
                self-correlation: the box's middle, the voxel after it where programs that reconstruct maps have their
                axis, and the centre of mass; and where the twofold axes of Dn are (`search_twofold_axes`), if those
                along x do not fit. None for that voxel, and a twofold axis along x.
            axis: direction of the axis of highest order of Cn and Dn.
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
        usual = max((cls.named(given, one, axis) for one in centres), key=lambda one: one.self_correlation(mass))
        if not usual.name.startswith("D") or (like := usual.self_correlation(mass)) > GOOD:
            return usual
        other = cls.search_twofold_axes(given, centres, axis, mass)
        return other if other.self_correlation(mass) > like + CLEARER else usual

    @classmethod
    def search_twofold_axes(cls, name: str, centres: Sequence[Vector], axis: Vector, mass: Map) -> "Symmetry":
        """Search the centre and the twofold axes of Dn about which the mass is most symmetric.

        Args:
            name: the group, Dn.
            centres: candidates for its centre, Å.
            axis: direction of the axis of order n.
            mass: the map's density without the solvent.
        """

        def unlike(across: float, centre: Vector, map_: Map) -> float:
            return -cls(name, cls.named(name, centre, axis, across).generators[-1:]).self_correlation(map_)

        coarse = bin_map(mass, max(int(WORKING // mass.voxel_size.min()), 1))
        fine = bin_map(mass, -(-max(mass.density.shape) // LARGE))
        radius = np.linalg.norm(np.array(mass.density.shape) * mass.voxel_size) / 4
        spacing = 180 / int(name.strip()[1:])  # degrees between axes of order 2
        step = spacing / np.ceil(spacing / np.degrees(WORKING / 2 / radius))
        tried = itertools.product(np.arange(0, spacing, step), centres)
        first, centre = min(tried, key=lambda one: unlike(one[0], one[1], coarse))
        near = (first - step, first + step)
        found = optimize.minimize_scalar(unlike, near, near, (centre, fine), "bounded", options={"xatol": 0.05})
        return cls.named(name, centre, axis, float(found.x))

    def self_correlation(self, map_: Map) -> float:
        """Lowest correlation of a map with itself rotated by a generator; 1 for the identity alone."""
        density = map_.density
        rotated = (resampled(map_, map_, operator).density for operator in self.generators)
        return min((similarity.correlation(density, other) for other in rotated), default=1.0)

    def check(self, mass: Map, name: str) -> None:
        """Check that the operators are a point group and that a map has the symmetry.

        Args:
            mass: the map's density without the solvent.
            name: name of the map in messages.

        Raises:
            InputError: the operators are not a point group, or the map does not have the symmetry.
        """
        if not self.is_group:
            raise InputError(
                f"the {len(self.operators)} operators of {self.name} are not a point group, which a symmetric flow "
                "needs: morph one unit alone, and copy the result by the operators"
            )
        if (found := self.self_correlation(mass)) < LIKE:
            about = ", ".join(f"{c:.1f}" for c in self.centre.round(1) + 0.0)  # + 0.0 removes the sign of zero
            raise InputError(
                f"the {name} does not have the symmetry {self.name}: its correlation with itself rotated about "
                f"({about}) Å is {found:.2f}, where at least {LIKE:g} is expected: "
                "give another symmetry, axis or centre, or none"
            )

    def unit_weights(self, xyz: Points, width: float) -> Float[np.ndarray, "points"]:
        """Weights of positions in one asymmetric unit; over all copies they add up to one.

        The unit is the region nearer to one point than to its copies, with soft borders: a sharp border would cut
        voxels, and the copies would leave gaps or overlap there.

        Args:
            xyz: positions, Å.
            width: width of the borders, Å.

        Returns:
            Weights from 0 to 1.
        """
        if len(self.operators) == 1:
            return np.ones(len(xyz))
        arms = np.random.default_rng(0).standard_normal((256, 3))  # the one farthest from its copies is used
        arms /= np.linalg.norm(arms, axis=1, keepdims=True)
        turns = np.stack([one.rotation for one in self.operators if not contains(one.rotation, [np.eye(3)])])
        apart = np.linalg.norm(arms @ turns.transpose(0, 2, 1) - arms, axis=-1).min(0)
        arm = arms[apart.argmax()] / (apart.max() * width)
        x = xyz - self.centre
        others = np.exp(np.clip(np.stack([x @ (turn.T @ arm - arm) for turn in turns]), None, 50.0))  # own counts as 1
        least = SLIGHT * np.maximum(others.max(0), 1)
        return np.where(least < 1, 1 / (1 + np.where(others > least, others, 0).sum(0)), 0.0)

    def unit_mask(self, map_: Map) -> Float[np.ndarray, "x y z"]:
        """Weights (`unit_weights`) in one asymmetric unit of a map's voxels with positive density, zero elsewhere."""
        inside = map_.density > 0
        share, size = np.zeros(inside.shape, np.float32), map_.voxel_size
        share[inside] = self.unit_weights(map_.origin + np.argwhere(inside) * size, float(size.max()))
        return share

    def enclosing_grid(self, maps: Iterable[Map]) -> Map:
        """Extend the grid that maps share to hold all copies of their density; an empty map."""
        ends = []
        for map_ in maps:
            low, high = bounding_box(np.abs(map_.density) > EMPTY * np.abs(map_.density).max())
            corners = map_.origin + map_.voxel_size * np.stack(np.meshgrid(*zip(low, high - 1, strict=True)), -1)
            for operator in self.operators:
                indices = (operator(corners.reshape(-1, 3)) - map_.origin) / map_.voxel_size
                ends += [indices.min(0) - 1, indices.max(0) + 2]
        first = np.minimum(np.floor(np.min(ends, 0)), 0).astype(int)
        shape = np.maximum(np.ceil(np.max(ends, 0)), map_.density.shape).astype(int) - first
        return Map(np.zeros(shape, np.float32), map_.voxel_size, map_.origin + first * map_.voxel_size)

    def copy_map(self, map_: Map, room: Map | None = None) -> Map:
        """Sum a map's copies under all operators, which makes the biological assembly from its asymmetric unit.

        Args:
            map_: map of one unit.
            room: map whose grid is used; None for a grid that holds all copies.
        """
        room = self.enclosing_grid([map_]) if room is None else room
        whole = np.zeros_like(room.density)
        for operator in self.operators:
            whole += resampled(map_, room, operator).density
        return replace(room, density=whole)

    def copy_model(self, model: gemmi.Structure) -> gemmi.Structure:
        """Copy a model by all operators into one model; the first copy keeps its chain names."""
        whole = model.clone()
        unused = structures.unused_names({chain.name for chain in model[0]})
        for operator in self.operators:
            if contains(operator.matrix, [np.eye(4)]):
                continue
            copy = operator.move(model)
            for chain in copy[0]:
                chain.name = unused("")
                whole[0].add_chain(chain)
        whole.setup_entities()
        return whole


def bin_map(map_: Map, factor: int) -> Map:
    """Bin a map to voxels `factor` times as wide."""
    origin = map_.origin + (factor - 1) / 2 * map_.voxel_size
    return Map(binned(map_.density, factor), map_.voxel_size * factor, origin)


def rotation_onto(axis: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """A rotation that takes z to the axis. Raises InputError where the axis has no direction."""
    if not (np.isfinite(axis).all() and np.linalg.norm(axis) > 0):
        raise InputError(f"the symmetry's axis {axis.tolist()} has no direction: give one such as 0,0,1")
    return Rotation.align_vectors(axis[None] / np.linalg.norm(axis), [[0.0, 0.0, 1.0]])[0].as_matrix()


def closure(generators: Sequence[Float[np.ndarray, "3 3"]]) -> list[Float[np.ndarray, "3 3"]]:
    """All products of rotations, the identity first."""
    found = [np.eye(3)]
    for turn in found:  # the list grows in the loop
        for generator in generators:
            if not contains(product := generator @ turn, found):
                found.append(product)
    return found


def contains(one: np.ndarray, others: Sequence[np.ndarray]) -> bool:
    """Whether a rotation (3, 3) or an operator (4, 4) is among others."""
    return bool(contains_each(one[None], np.stack(others))[0])


def contains_each(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each rotation (m, 3, 3) or operator (m, 4, 4), whether it is among others (n, ...)."""
    off = np.abs(ones[:, None] - others)
    same = off[..., :3, :3].max((-1, -2)) < SAME_TURN
    return (same & (off[..., :3, 3:].max((-1, -2), initial=0) < SAME_SHIFT)).any(1)
