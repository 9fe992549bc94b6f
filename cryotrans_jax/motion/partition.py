"""Partitions: the initial map cut into parts, each moved by its own velocity field (paper, eq. 8-15).

Parts come from a label map, from masks, or from an atomic model's chains and residues; `rigid_bodies` finds them in a
flow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gemmi
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy import ndimage, spatial

from cryotrans_jax.density.boxes import box_slices
from cryotrans_jax.density.mask import soft_edge
from cryotrans_jax.density.slabs import distance_within
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, same_grid
from cryotrans_jax.io.selections import residues, select_residues

NEAR = 8.0  # Å around a model within which a voxel's nearest atom is searched; beyond, it joins the nearest such voxel
BORDER_FADE = 0.7  # voxels: width of the borders of an asymmetric unit made of bodies
MIN_FRACTION = 0.01  # fractions of a voxel below this are set to 0

Points = Float[np.ndarray, "points 3"]
RigidMotion = tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]  # x → x R + t, of rows x in Å


@dataclass(frozen=True)
class SmallestPart:
    """How small a rigid body, or a fragment of one, may be.

    Attributes:
        mass: least fraction of the mass,
        volume: or, in a large molecule, the least volume in Å³ (10 kDa).
        gap: Å around density within which it is connected to other density.
    """

    mass: float = 0.02
    volume: float = 12e3
    gap: float = 1.2

    def fraction(self, volume: float, copies: int = 1) -> float:
        """Least fraction of the mass in a molecule of this volume (Å³) with this number of asymmetric units."""
        return min(self.mass, self.volume / volume * copies) / copies if volume > 0 else self.mass / copies


@dataclass(frozen=True)
class Partition:
    """The parts of a map.

    Attributes:
        labels: the part (1, 2, ...) of each voxel.
        voxel_size: Å.
        origin: position of the first voxel, Å.
    """

    labels: Int[np.ndarray, "x y z"]
    voxel_size: Float[np.ndarray, "3"]
    origin: Float[np.ndarray, "3"]

    @property
    def count(self) -> int:
        """Number of parts."""
        return int(self.labels.max())

    def part_at(self, xyz: Float[Array | np.ndarray, "points 3"]) -> Any:
        """Part, counted from 0, of each position (Å): that of the nearest voxel; an array of JAX for one of JAX."""
        numpy = jnp if isinstance(xyz, jax.Array) else np
        voxel = numpy.rint((xyz - self.origin) / self.voxel_size).astype(int)
        return numpy.asarray(self.labels)[tuple(voxel.clip(0, np.array(self.labels.shape) - 1).T)] - 1

    def of_atoms(self, model: gemmi.Structure) -> Int[np.ndarray, "atoms"]:
        """Part of each atom: the one that contains most atoms of its residue, so that no residue is torn."""
        each = self.part_at(atoms.positions(model))
        residue = np.array([number for number, r in enumerate(residues(model)) for _ in r])
        votes = np.zeros((residue[-1] + 1, self.count), int)
        np.add.at(votes, (residue, each), 1)
        return votes.argmax(1)[residue]

    def soft_masks(self, support: Bool[np.ndarray, "x y z"], seam: float) -> list["LocalMask"]:
        """For each part a mask from 0 to 1 that fades into the others over `seam` Å on either side of its borders.

        The masks add up to one inside `support` (on the labels' grid), and are zero elsewhere.
        """
        reach = np.ceil(seam / self.voxel_size).astype(int)
        near = box_slices(support)
        inside, labels, found = support[near], self.labels[near], []
        total = np.zeros(inside.shape, np.float32)
        for own in (labels == label for label in range(1, self.count + 1)):
            box = box_slices(own, reach) if own.any() else (slice(0, 0),) * 3
            ramp = soft_edge(distance_within(seam, own[box], self.voxel_size), seam) * inside[box]
            total[box] += ramp
            found.append((box, ramp))
        first = [along.start for along in near]
        whole = [tuple(slice(a.start + n, a.stop + n) for a, n in zip(box, first, strict=True)) for box, _ in found]
        shares = (np.divide(ramp, total[box], out=ramp, where=ramp > 0) for box, ramp in found)
        return [LocalMask(*each) for each in zip(whole, shares, strict=True)]

    def to_map(self, support: np.ndarray) -> Map:
        """The labels as a map of whole numbers, zero outside of `support` (bool)."""
        return Map(np.where(support, self.labels, 0).astype(np.float32), self.voxel_size, self.origin)


class LocalMask(NamedTuple):
    """Values in a box of a grid, given as slices of it; they are zero elsewhere."""

    box: tuple[slice, ...]
    values: Float[np.ndarray, "x y z"]

    def on_grid(self, shape: tuple[int, ...]) -> Float[np.ndarray, "x y z"]:
        """The values on the whole grid of this shape."""
        whole = np.zeros(shape, np.float32)
        whole[self.box] = self.values
        return whole


def complete_labels(labels: np.ndarray, like: Map | Partition) -> Partition:
    """Make a partition on the grid of `like`; voxels labelled 0 join the nearest labelled one.

    Raises:
        InputError: no voxel is labelled.
    """
    if not labels.any():
        raise InputError("no voxel of the map belongs to any part: give labels of parts within the map")
    if not (labels > 0).all():
        nearest = ndimage.distance_transform_edt(
            labels == 0, sampling=like.voxel_size, return_distances=False, return_indices=True
        )
        labels = labels[tuple(nearest)]
    return Partition(labels.astype(np.int16), like.voxel_size, like.origin)


def from_labels(labels: Map, initial: Map, name: str = "the label map") -> Partition:
    """Make a partition from a label map on the initial map's grid, with parts in the order of the labels.

    Args:
        labels: map of whole numbers; voxels labelled 0 join the nearest labelled one.
        initial: the initial map.
        name: of the label map, for messages.

    Raises:
        InputError: the grids differ, or values are no labels.
    """
    check_grid(labels, initial, name)
    whole = np.rint(labels.density)
    if np.abs(labels.density - whole).max() > 1e-3 or whole.min() < 0:
        raise InputError(f"{name} contains values that are not labels: give whole numbers, 0 where there is no part")
    values, numbers = np.unique(whole, return_inverse=True)
    numbers = numbers.reshape(whole.shape) + (values[0] > 0)
    if len(values) > np.iinfo(np.int16).max or not numbers.any():
        raise InputError(
            f"{name} contains {len(values)} different labels: give at least one part, and fewer than 32768"
        )
    return complete_labels(numbers, initial)


def from_masks(masks: Sequence[Map], initial: Map, names: Sequence[str] | None = None) -> Partition:
    """Make a partition from one mask for each part, on the initial map's grid.

    Args:
        masks: a voxel belongs to the part with the largest value; voxels where all are 0 join the nearest others.
        initial: the initial map.
        names: of the masks, for messages.

    Raises:
        InputError: the grids differ, or a mask is nowhere the largest.
    """
    names = names or [f"mask {number + 1}" for number in range(len(masks))]
    for mask, name in zip(masks, names, strict=True):
        check_grid(mask, initial, name)
    values = np.stack([mask.density for mask in masks])
    labels = np.where(values.max(0) > 0, values.argmax(0) + 1, 0)
    for number, name in enumerate(names):
        if not (labels == number + 1).any():
            raise InputError(f"{name} is nowhere the largest of the masks: give one for each part, 0 outside of it")
    return complete_labels(labels, initial)


def check_grid(map_: Map, initial: Map, name: str) -> None:
    """Raise InputError if the map `name` is on another grid than the initial map."""
    if difference := same_grid(initial, map_):
        raise InputError(f"{name} lies on another grid than the initial map ({difference}): resample it there")


def from_model(model: gemmi.Structure, parts: str, initial: Map) -> Partition:
    """Make a partition from an atomic model in the initial map: each voxel joins the part of the nearest selected atom.

    Args:
        model: the model.
        parts: the selections. Parts are separated by semicolons, selections of one part by commas: A:1-320;A:321-650,B.
            A selection is a chain, or residues of it by number; a chain without a name is written :1-320. Atoms in no
            selection are ignored, so the density around them joins the nearest part.
        initial: the initial map.

    Raises:
        InputError: a selection does not have that form, selects nothing, or overlaps another part.
    """
    sites = residues(model)
    owner = np.zeros(len(sites), int)
    for number, part in enumerate(parts.split(";")):
        for text in part.split(","):
            chosen = select_residues(model, text.strip(), "--parts")
            if (owner[chosen] > 0).any() and (owner[chosen] != number + 1).any():
                raise InputError(
                    f"{text} in --parts selects residues of an earlier part as well: give each to one part"
                )
            owner[chosen] = number + 1
    each = np.repeat(owner, [len(residue) for residue in sites])
    tree = spatial.cKDTree(atoms.positions(model)[each > 0])
    shape = initial.density.shape
    seen = np.zeros(shape, bool)
    place = np.rint((tree.data - initial.origin) / initial.voxel_size).astype(int).clip(0, np.array(shape) - 1)
    seen[tuple(place.T)] = True
    near = np.argwhere(distance_within(NEAR, seen, initial.voxel_size) < np.inf)
    _, nearest = tree.query(initial.origin + near * initial.voxel_size, workers=-1)
    labels = np.zeros(shape, int)
    labels[tuple(near.T)] = each[each > 0][nearest]
    return complete_labels(labels, initial)


class AsymmetricUnit(NamedTuple):
    """The asymmetric unit of a symmetric map, and the operators of the point group.

    Each rigid body in it is as many parts as there are operators: with n of them, parts 1 to n are the copies
    of the first body by the first operator, the second and so on, and the next n those of the second body. The first
    operator is the identity.

    Attributes:
        mass: of the unit, on the map's grid.
        rotations: of the operators.
        centre: point on all axes, Å.
    """

    mass: Float[np.ndarray, "x y z"]
    rotations: Float[np.ndarray, "copies 3 3"]
    centre: Float[np.ndarray, "3"]

    def copies(self, x: Points) -> Float[np.ndarray, "copies points 3"]:
        """Positions to which the operators take `x`, Å."""
        return (x - self.centre) @ self.rotations.transpose(0, 2, 1) + self.centre

    @property
    def products(self) -> Int[np.ndarray, "copies copies"]:
        """Multiplication table: number of the operator that results from the second operator followed by the first."""
        both = self.rotations[:, None] @ self.rotations
        return np.abs(both[:, :, None] - self.rotations).sum((-1, -2)).argmin(-1)

    def commutes(self, motion: RigidMotion, x: Points, within: float) -> bool:
        """Whether a rigid-body motion of `x` is also that of all copies of `x`, to an rms distance `within` (Å)."""
        (turn, shift), x = motion, x - self.centre
        ends = [((x @ one) @ turn + shift) @ one.T for one in self.rotations]
        return bool(max(((end - x @ turn - shift) ** 2).sum(1).mean() for end in ends) < within**2)

    def replicate(
        self, labels: Int[np.ndarray, "x y z"], inside: Bool[np.ndarray, "x y z"], like: Map
    ) -> Int[np.ndarray, "x y z"]:
        """Extend the labels of some voxels to all copies: each voxel inside takes the label of the nearest copy."""
        own, places = np.argwhere(labels > 0), np.argwhere(inside)
        every = self.copies(like.origin + own * like.voxel_size).reshape(-1, 3)
        _, nearest = spatial.cKDTree(every).query(like.origin + places * like.voxel_size, workers=-1)
        by, which = np.divmod(nearest, len(own))
        body, copy = np.divmod(labels[tuple(own[which].T)] - 1, len(self.rotations))
        whole = np.zeros_like(labels)
        whole[tuple(places.T)] = body * len(self.rotations) + self.products[by, copy] + 1
        return whole

    def bodies(self, partition: Partition) -> Int[np.ndarray, "x y z"]:
        """Number (1, 2, ...) of the nearest body of the asymmetric unit for each voxel of a partition into copies."""
        body, copy = np.divmod(partition.labels - 1, len(self.rotations))
        own = np.where(copy == 0, body + 1, 0)
        return complete_labels(own, partition).labels

    def soft_mask(self, partition: Partition, inside: Bool[np.ndarray, "x y z"]) -> Float[np.ndarray, "x y z"]:
        """Fraction (0 to 1) of each voxel inside that belongs to the asymmetric unit, one in sum over all copies.

        The borders fade out over about a voxel, like those of `Symmetry.unit_weights`.
        """
        own = ndimage.gaussian_filter(
            ((partition.labels - 1) % len(self.rotations) == 0).astype(np.float32), BORDER_FADE
        )
        found, near = np.zeros_like(own), inside & (own > MIN_FRACTION)
        places = np.argwhere(near)
        every = self.copies(partition.origin + places * partition.voxel_size)  # includes the inverse of each operator
        at = ((every - partition.origin) / partition.voxel_size).reshape(-1, 3).T
        held = ndimage.map_coordinates(own, at, order=1, mode="nearest").reshape(len(every), -1)
        found[near] = own[near] / np.where(held > MIN_FRACTION, held, 0).sum(0)
        return found


def replicate_bodies(
    labels: Int[np.ndarray, "x y z"],
    inside: Bool[np.ndarray, "x y z"],
    like: Map,
    unit: AsymmetricUnit,
    smallest: SmallestPart = SmallestPart(),
) -> Partition:
    """The partition into an asymmetric unit's bodies and all their copies, from labels of the unit's voxels."""
    whole = unit.replicate(labels, inside, like)
    return complete_labels(remove_fragments(whole, like.voxel_size, len(unit.rotations), smallest), like)


def remove_fragments(
    labels: Int[np.ndarray, "x y z"],
    voxel_size: np.ndarray,
    copies: int = 1,
    smallest: SmallestPart = SmallestPart(),
) -> Int[np.ndarray, "x y z"]:
    """Remove labels from fragments, apart from the rest of their part, that are too small.

    A fragment of one body within another is held by nothing and could be carried anywhere. Fragments are apart if more
    than twice the gap or another part is between them. The largest fragment of each part stays.
    """
    labelled, kept = labels > 0, np.zeros_like(labels)
    if not labelled.any():
        return kept
    box = box_slices(labelled, np.ceil(smallest.gap / voxel_size).astype(int) + 1)
    own, inside, left = labels[box], labelled[box], kept[box]
    away, nearest = ndimage.distance_transform_edt(~inside, sampling=voxel_size, return_indices=True)
    spread = np.where(away < smallest.gap, own[tuple(nearest)], 0)
    least = smallest.fraction(labelled.sum() * np.prod(voxel_size), copies) * labelled.sum()
    for part, place in enumerate(ndimage.find_objects(spread), 1):
        if place is None:
            continue
        pieces, count = ndimage.label(spread[place] == part)
        held = np.bincount(pieces[inside[place]], minlength=count + 1)
        held[0] = 0
        whole = (held >= least) | (held == held.max())
        left[place][whole[pieces] & (pieces > 0) & inside[place]] = part
    return kept
