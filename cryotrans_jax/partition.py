"""Partitions: the initial map cut into parts, each moved by a velocity field of its own (paper, eq. 8-15).

They come from a map of labels, from masks, from an atomic model's chains and residues, or from a flow, as the bodies
that it moves nearly rigidly.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import gemmi
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage, sparse, spatial

from cryotrans_jax import atoms
from cryotrans_jax.files import InputError
from cryotrans_jax.maps import Map, same_grid
from cryotrans_jax.prepare import block_points, box_of, carried_mass

SEAM = 2.0  # Å on either side of a border over which the frames pass from one part's flow to the other's
NEAR = 8.0  # Å about a model within which a voxel's nearest atom is looked for; beyond, the nearest such voxel
SPACING = 5.0  # Å between the points that are sorted into bodies, more where there would be more than POINTS of them
POINTS = 4000
WIDTH = 1.0  # spacings: width of the neighbourhood that votes on the body of a point
SEED = 12.0  # Å: radius of the neighbourhood from whose motion a further body is tried
SEEDS = 12  # places at which one is tried
MOST = 24  # bodies
GAIN = 0.75  # a further body has to bring the rms distance from rigid motions down to this part of what it was
APART, HALF = 2.0, 0.6  # Å, and what part of it: or it has to have a motion of its own
CROWD = 6.0  # bodies, if all were as large as the largest: about what their fields cost
FAR = 3.0  # Å: or the rms distance is so large that there are more to come
STILL = 0.5  # Å: an rms distance that is no motion
GAP = 1.2  # Å from density to where it still holds together with the next
FADE, SLIGHT = 0.7, 0.01  # voxels: width of the borders of a unit of bodies, and shares that count for nothing
SMALLEST, DOMAIN = 0.02, 12e3  # of the mass, or Å³ (10 kDa) of a large molecule's: a body holds more
SELECTION = re.compile(r"(?P<chain>[^:\x00-\x1f]*)(:(?P<first>-?[0-9]{1,9})(-(?P<last>-?[0-9]{1,9}))?)?")

Points = Float[np.ndarray, "points 3"]
Motion = tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]  # x → x R + t, of rows x in Å
Motions = list[Motion]


@dataclass(frozen=True)
class Partition:
    """The parts of a map: `labels` (1, 2, ...) say of every voxel of its grid to which of them it belongs."""

    labels: Int[np.ndarray, "x y z"]
    voxel_size: Float[np.ndarray, "3"]
    origin: Float[np.ndarray, "3"]

    @property
    def count(self) -> int:
        """Number of parts."""
        return int(self.labels.max())

    def at(self, xyz: Points) -> Int[np.ndarray, "points"]:
        """The part, counted from 0, of each position (Å): that of the nearest voxel."""
        voxel = np.rint((xyz - self.origin) / self.voxel_size).astype(int)
        return self.labels[tuple(voxel.clip(0, np.array(self.labels.shape) - 1).T)] - 1

    def of_atoms(self, model: gemmi.Structure) -> Int[np.ndarray, "atoms"]:
        """The part of each atom: that in which most atoms of its residue lie, so that no residue is torn."""
        each = self.at(atoms.positions(model))
        residue = np.array([number for number, r in enumerate(residues(model)) for _ in r])
        votes = np.zeros((residue[-1] + 1, self.count), int)
        np.add.at(votes, (residue, each), 1)
        return votes.argmax(1)[residue]

    def shares(self, support: Bool[np.ndarray, "x y z"]) -> list["Share"]:
        """For each part a mask from 0 to 1 that passes into the others' over SEAM on either side of its borders.

        They add up to one wherever `support` (on the labels' grid) holds, and are zero elsewhere.
        """
        reach = np.ceil(SEAM / self.voxel_size).astype(int)
        near = box_of(support)
        inside, labels, found = support[near], self.labels[near], []
        total = np.zeros(inside.shape, np.float32)
        for own in (labels == label for label in range(1, self.count + 1)):
            box = box_of(own, reach) if own.any() else (slice(0, 0),) * 3
            distance = ndimage.distance_transform_edt(~own[box], sampling=self.voxel_size)
            ramp = (0.5 + 0.5 * np.cos(np.pi * np.clip(distance / SEAM, 0, 1))).astype(np.float32) * inside[box]
            total[box] += ramp
            found.append((box, ramp))
        first = [along.start for along in near]
        whole = [tuple(slice(a.start + n, a.stop + n) for a, n in zip(box, first, strict=True)) for box, _ in found]
        shares = (np.divide(ramp, total[box], out=ramp, where=ramp > 0) for box, ramp in found)
        return [Share(*each) for each in zip(whole, shares, strict=True)]

    def shown(self, support: np.ndarray) -> Map:
        """The labels as a map of whole numbers, zero where `support` (bool) does not hold."""
        return Map(np.where(support, self.labels, 0).astype(np.float32), self.voxel_size, self.origin)


class Share(NamedTuple):
    """Values in a box of a grid, given as slices of it; they are zero elsewhere."""

    box: tuple[slice, ...]
    values: Float[np.ndarray, "x y z"]

    def on(self, shape: tuple[int, ...]) -> Float[np.ndarray, "x y z"]:
        """The values on the whole grid of this shape."""
        whole = np.zeros(shape, np.float32)
        whole[self.box] = self.values
        return whole


def residues(model: gemmi.Structure) -> list[gemmi.Residue]:
    """All residues of the first model, in the order of `atoms.positions`."""
    return [residue for chain in model[0] for residue in chain]


def completed(labels: np.ndarray, like: Map | Partition) -> Partition:
    """The partition with these labels on the grid of `like`; voxels labelled 0 belong to the nearest labelled one.

    Raises InputError where no voxel is labelled.
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
    """The partition by a map of whole numbers on the initial map's grid, parts in the order of these numbers.

    Voxels labelled 0 belong to the nearest labelled one. Raises InputError where the grids differ, or values are no
    labels.
    """
    check_grid(labels, initial, name)
    whole = np.rint(labels.density)
    if np.abs(labels.density - whole).max() > 1e-3 or whole.min() < 0:
        raise InputError(f"{name} holds values that are no labels: give whole numbers, 0 where there is no part")
    values, numbers = np.unique(whole, return_inverse=True)
    numbers = numbers.reshape(whole.shape) + (values[0] > 0)
    if len(values) > np.iinfo(np.int16).max or not numbers.any():
        raise InputError(f"{name} holds {len(values)} different labels: give at least one part, and not so many")
    return completed(numbers, initial)


def from_masks(masks: Sequence[Map], initial: Map, names: Sequence[str] | None = None) -> Partition:
    """The partition by a mask for each part, on the initial map's grid: a voxel belongs to the largest one there.

    Voxels where all are 0 belong to the nearest others. Raises InputError where the grids differ, or a mask is below
    the others everywhere.
    """
    names = names or [f"mask {number + 1}" for number in range(len(masks))]
    for mask, name in zip(masks, names, strict=True):
        check_grid(mask, initial, name)
    values = np.stack([mask.density for mask in masks])
    labels = np.where(values.max(0) > 0, values.argmax(0) + 1, 0)
    for number, name in enumerate(names):
        if not (labels == number + 1).any():
            raise InputError(f"{name} is nowhere the largest of the masks: give one for each part, 0 outside of it")
    return completed(labels, initial)


def check_grid(map_: Map, initial: Map, name: str) -> None:
    """Nothing; raises InputError where the map, of that name, lies on another grid than the initial one."""
    if difference := same_grid(initial, map_):
        raise InputError(f"{name} lies on another grid than the initial map ({difference}): resample it there")


def from_model(model: gemmi.Structure, parts: str, initial: Map) -> Partition:
    """The partition by an atomic model in the initial map: a voxel belongs to the part of the nearest selected atom.

    `parts` are separated by semicolons, and selections of one part by commas: A:1-320;A:321-650,B. A selection is a
    chain, or residues of it by number; a chain without a name is written so too (:1-320). Atoms in no selection are not
    asked, so that what is about them goes with the nearest part. Raises InputError where a selection is not of that
    form, selects nothing, or what another part has.
    """
    sites = residues(model)
    owner = np.zeros(len(sites), int)
    for number, part in enumerate(parts.split(";")):
        for text in part.split(","):
            chosen = selected(model, text.strip())
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
    near = np.argwhere(ndimage.distance_transform_edt(~seen, sampling=initial.voxel_size) < NEAR)
    _, nearest = tree.query(initial.origin + near * initial.voxel_size, workers=-1)
    labels = np.zeros(shape, int)
    labels[tuple(near.T)] = each[each > 0][nearest]
    return completed(labels, initial)


def selected(model: gemmi.Structure, text: str) -> Int[np.ndarray, "chosen"]:
    """The numbers, in the order of `residues`, of the residues that CHAIN, CHAIN:NUMBER or CHAIN:FIRST-LAST selects."""
    if not text or not (match := SELECTION.fullmatch(text)):
        raise InputError(f"{text!r} in --parts is no selection: give CHAIN, CHAIN:NUMBER or CHAIN:FIRST-LAST")
    names = [chain.name.strip() for chain in model[0] for _ in chain]
    first = int(match["first"]) if match["first"] else None
    last = int(match["last"]) if match["last"] else first
    chosen = [
        number
        for number, (residue, name) in enumerate(zip(residues(model), names, strict=True))
        if name == match["chain"].strip() and (first is None or last is None or numbered(residue, first, last))
    ]
    if not chosen:
        known = ", ".join(name or "(no name, as in :1-320)" for name in dict.fromkeys(names))
        raise InputError(f"{text} in --parts selects no residue: the model has the chains {known}")
    return np.array(chosen)


def numbered(residue: gemmi.Residue, first: int, last: int) -> bool:
    """Whether the residue has a number, from the first to the last."""
    return residue.seqid.num is not None and first <= residue.seqid.num <= last


class PartMotion(NamedTuple):
    """How a part moves: its share of the mass, the angle (degrees) and the shift of its middle (Å) of the rigid motion
    next to its own, and how far (Å, rms) its own is from that; all 0 for a part without mass.
    """

    share_of_mass: float
    turn: float
    shift: float
    from_rigid: float


def part_motions(partition: Partition, carry: Callable, initial: Map, threshold: float) -> list[PartMotion]:
    """The motion of each part to the end of a flow, `carry` as for `from_flow`."""
    x, mass, *_ = cloud(carried_mass(initial.density, threshold), initial)
    y, owner = carry(x, [1.0])[0], partition.at(x)
    found = []
    for part in range(partition.count):
        a, b, m = (v[owner == part] for v in (x, y, mass))
        if not len(a):  # smaller than the distance between the points
            found.append(PartMotion(0.0, 0.0, 0.0, 0.0))
            continue
        motion = rigid(a, b, m)
        turn = np.degrees(np.arccos(np.clip((np.trace(motion[0]) - 1) / 2, -1, 1)))
        shift, off = np.linalg.norm(m @ (b - a)) / m.sum(), np.sqrt(m @ squares(a, b, [motion])[:, 0] / m.sum())
        found.append(PartMotion(*map(float, (m.sum() / mass.sum(), turn, shift, off))))
    return found


class Unit(NamedTuple):
    """One unit of a symmetric map: its mass on the map's grid, and the group's rotations about a centre (Å).

    Bodies of it are parts in so many copies: with n operators parts 1 to n are the first body's copies by the first
    operator, the second and so on, and the next n are the second's. The first operator is the identity.
    """

    mass: Float[np.ndarray, "x y z"]
    turns: Float[np.ndarray, "copies 3 3"]
    centre: Float[np.ndarray, "3"]

    def copies(self, x: Points) -> Float[np.ndarray, "copies points 3"]:
        """Where the group's operators take positions."""
        return (x - self.centre) @ self.turns.transpose(0, 2, 1) + self.centre

    @property
    def products(self) -> Int[np.ndarray, "copies copies"]:
        """The number of the operator that first the second and then the first of two operators make."""
        both = self.turns[:, None] @ self.turns
        return np.abs(both[:, :, None] - self.turns).sum((-1, -2)).argmin(-1)

    def commutes(self, motion: "Motion", x: Points, within: float) -> bool:
        """Whether a rigid motion is that of all copies of the positions as well, to an rms distance (Å)."""
        (turn, shift), x = motion, x - self.centre
        ends = [((x @ one) @ turn + shift) @ one.T for one in self.turns]
        return bool(max(((end - x @ turn - shift) ** 2).sum(1).mean() for end in ends) < within**2)

    def repeated(
        self, labels: Int[np.ndarray, "x y z"], inside: Bool[np.ndarray, "x y z"], like: Map
    ) -> Int[np.ndarray, "x y z"]:
        """The labels of some voxels, and of all their copies: each voxel inside has that of the nearest copy."""
        own, places = np.argwhere(labels > 0), np.argwhere(inside)
        every = self.copies(like.origin + own * like.voxel_size).reshape(-1, 3)
        _, nearest = spatial.cKDTree(every).query(like.origin + places * like.voxel_size, workers=-1)
        by, which = np.divmod(nearest, len(own))
        body, copy = np.divmod(labels[tuple(own[which].T)] - 1, len(self.turns))
        whole = np.zeros_like(labels)
        whole[tuple(places.T)] = body * len(self.turns) + self.products[by, copy] + 1
        return whole

    def bodies(self, partition: "Partition") -> Int[np.ndarray, "x y z"]:
        """The number (1, 2, ...) of the nearest body of one unit, everywhere, of a partition into all copies."""
        body, copy = np.divmod(partition.labels - 1, len(self.turns))
        own = np.where(copy == 0, body + 1, 0)
        return completed(own, partition).labels

    def share(self, partition: "Partition", inside: Bool[np.ndarray, "x y z"]) -> Float[np.ndarray, "x y z"]:
        """The shares (0 to 1) that one unit of bodies has of the voxels inside; over all copies they add up to one.

        Its borders fade out over a voxel or so, as those of `Symmetry.unit_weights` do.
        """
        own = ndimage.gaussian_filter(((partition.labels - 1) % len(self.turns) == 0).astype(np.float32), FADE)
        found, near = np.zeros_like(own), inside & (own > SLIGHT)
        places = np.argwhere(near)
        every = self.copies(partition.origin + places * partition.voxel_size)  # by the inverse of each operator as well
        at = ((every - partition.origin) / partition.voxel_size).reshape(-1, 3).T
        held = ndimage.map_coordinates(own, at, order=1, mode="nearest").reshape(len(every), -1)
        found[near] = own[near] / np.where(held > SLIGHT, held, 0).sum(0)
        return found


class Bodies(NamedTuple):
    """Points sorted into bodies: each one's number, and copy of the body, the squared distance (Å²) from its motion;
    the bodies' motions, of the copies that come first; and the rms distance (Å) from them.
    """

    owner: Int[np.ndarray, "points"]
    copy: Int[np.ndarray, "points"]
    off: Float[np.ndarray, "points"]
    motions: Motions
    rms: float


def from_flow(
    carry: Callable, initial: Map, threshold: float, unit: Unit | None = None
) -> tuple[Partition, list[float]]:
    """The partition by the bodies that a flow moves nearly rigidly, and the rms distances (Å) from rigid motions with
    one body, with two and so on, of which the last was one too many.

    `carry(xyz, times)` says where positions (n, 3) in Å have come to. Of a symmetric flow, each copy of a body of one
    unit is a part, as `Unit` says; all is one part where it moves as one body.
    """
    everywhere = carried_mass(initial.density, threshold)
    if not everywhere.any():
        raise InputError(f"no density of the initial map is above {threshold:g}: give a lower threshold")
    carried = everywhere if unit is None else unit.mass
    inside = np.argwhere(carried > 0)
    volume = len(inside) * np.prod(initial.voxel_size)
    spacing = max(SPACING, float((volume / POINTS) ** (1 / 3)))
    x, mass, *_ = cloud(carried, initial, spacing)
    found, tried = bodies(x, carry(x, [1.0])[0], mass, spacing, smallest(volume), unit)
    _, nearest = spatial.cKDTree(x).query(initial.origin + inside * initial.voxel_size, workers=-1)
    labels = np.zeros(initial.density.shape, int)
    copies = 1 if unit is None else len(unit.turns)
    labels[tuple(inside.T)] = (found.owner * copies + found.copy)[nearest] + 1
    if unit is None:
        return completed(whole_pieces(labels, initial.voxel_size), initial), tried
    within = max(STILL, found.rms)
    if len(found.motions) == 1 and unit.commutes(found.motions[0], x, within):
        return completed(np.ones_like(labels), initial), tried
    return in_copies(labels, everywhere > 0, initial, unit), tried


def in_copies(labels: Int[np.ndarray, "x y z"], inside: Bool[np.ndarray, "x y z"], like: Map, unit: Unit) -> Partition:
    """The partition into a unit's bodies and all their copies, of the labels of some voxels, which tell of one unit."""
    whole = unit.repeated(labels, inside, like)
    return completed(whole_pieces(whole, like.voxel_size, len(unit.turns)), like)


def smallest(volume: float, copies: int = 1) -> float:
    """The share of a molecule of this volume (Å³), and so many units, that a body, or a piece of one, has to hold."""
    return min(SMALLEST, DOMAIN / volume * copies) / copies if volume > 0 else SMALLEST / copies


def whole_pieces(labels: Int[np.ndarray, "x y z"], voxel_size: np.ndarray, copies: int = 1) -> Int[np.ndarray, "x y z"]:
    """The labels without those of pieces, apart from the rest of their part, that are less than `smallest` of all.

    A chip of one body within another is held by nothing, and could be carried anywhere. Pieces are apart where more
    than twice GAP or another part is between them. The largest piece of each part stays.
    """
    labelled = labels > 0
    away, nearest = ndimage.distance_transform_edt(~labelled, sampling=voxel_size, return_indices=True)
    spread, kept = np.where(away < GAP, labels[tuple(nearest)], 0), np.zeros_like(labels)
    least = smallest(labelled.sum() * np.prod(voxel_size), copies) * labelled.sum()
    for part in range(1, labels.max() + 1):
        pieces, count = ndimage.label(spread == part)
        held = np.bincount(pieces[labelled], minlength=count + 1)
        held[0] = 0
        whole = (held >= least) | (held == held.max())
        kept[whole[pieces] & (pieces > 0) & labelled] = part
    return kept


def cloud(
    mass: Float[np.ndarray, "x y z"], initial: Map, spacing: float = SPACING
) -> tuple[Points, Float[np.ndarray, "points"], Bool[np.ndarray, "bx by bz"], Int[np.ndarray, "3"]]:
    """Points (Å) about so far apart and their masses, of the mass that the flow carries of the initial map.

    And which of the blocks of voxels that they stand for are filled, in order, and the voxels along a block's sides.
    """
    factor = np.maximum(np.rint(spacing / initial.voxel_size), 1).astype(int)
    mass = np.pad(mass, [(0, -n % f) for n, f in zip(mass.shape, factor, strict=True)])
    place, rho, filled = block_points(mass, factor)
    return initial.origin + (place - 0.5) * initial.voxel_size, rho, filled, factor


def bodies(
    x: Points,
    y: Points,
    mass: np.ndarray,
    spacing: float = SPACING,
    least: float = SMALLEST,
    unit: Unit | None = None,
) -> tuple[Bodies, list[float]]:
    """As few bodies as will do, and the rms distances (Å) from rigid motions that were found with 1, 2, ... of them.

    Bodies are added one by one as long as that distance is FAR, or a further one brings it down to GAIN of what it was
    or goes its own way: of an assembly's many, each is too small to bring down the whole much. And until there is no
    motion left, or no body of the `least` share of the mass, or their fields would cost too much (CROWD). Points are
    about `spacing` Å apart. Those of a symmetric map's unit may belong to any copy of a body.
    """
    before, after = (a[None] if unit is None else (a - unit.centre) @ unit.turns for a in (x, y))
    tree = spatial.cKDTree(before[0])
    cast = Cast(before, after, mass, tree, neighbourhood(tree, mass, WIDTH * spacing))
    found = settled(cast, [rigid(cast.x[0], cast.y[0], mass)], least)
    assert found is not None  # one body is all of it
    tried = [found.rms]
    while found.rms > STILL and len(found.motions) < MOST:
        further = one_more(cast, found, least)
        if further is None:
            break
        tried.append(further.rms)
        largest = np.bincount(further.owner, mass).max() / mass.sum()
        if len(further.motions) * largest > CROWD:
            break
        worth = found.rms > FAR or further.rms <= GAIN * found.rms
        if not (worth or goes_its_own_way(mass, found, further)):
            break
        found = further
    return found, tried


class Cast(NamedTuple):
    """What is sorted into bodies: the points before and after, as each copy of a body sees them, that is turned back by
    the operator that makes the copy; their masses; a tree of them; and the weights of the mean over each one's
    neighbourhood.
    """

    x: Float[np.ndarray, "copies points 3"]
    y: Float[np.ndarray, "copies points 3"]
    mass: Float[np.ndarray, "points"]
    tree: spatial.cKDTree
    vote: sparse.csr_matrix


def goes_its_own_way(mass: np.ndarray, found: Bodies, further: Bodies) -> bool:
    """Whether the last body's points are off by more than APART without it, and by less than HALF as much with it."""
    own = further.owner == len(further.motions) - 1
    before, after = (np.sqrt(mass[own] @ by.off[own] / mass[own].sum()) for by in (found, further))
    return bool(before > APART and after < HALF * before)


def one_more(cast: Cast, found: Bodies, least: float) -> Bodies | None:
    """The best with one body more, of those that begin with the motion about one of the points that fit worst."""
    x, y, off, best = cast.x[0], cast.y[0], cast.vote @ found.off, None
    for _ in range(SEEDS):
        near = cast.tree.query_ball_point(x[off.argmax()], SEED)
        off[near] = 0
        further = settled(cast, [*found.motions, rigid(x[near], y[near], cast.mass[near])], least)
        if further is not None and (best is None or further.rms < best.rms):
            best = further
    return best


def settled(cast: Cast, motions: Motions, least: float, rounds: int = 100) -> Bodies | None:
    """Bodies from these motions on: points go to the one that suits their neighbourhood, and motions are fitted anew.

    Until no point changes any more. None where a body becomes smaller than the `least` share of the mass.
    """
    copies, points, _ = cast.x.shape
    every, whose = np.arange(points), np.full(points, -1)
    for _ in range(rounds):
        off = np.concatenate([squares(*seen, motions) for seen in zip(cast.x, cast.y, strict=True)], axis=1)
        before, whose = whose, (cast.vote @ off).argmin(1)
        copy, owner = np.divmod(whose, len(motions))
        if np.bincount(owner, cast.mass, len(motions)).min() < least * cast.mass.sum():
            return None
        if (whose == before).all():
            break
        x, y = cast.x[copy, every], cast.y[copy, every]
        motions = [rigid(*(a[owner == body] for a in (x, y, cast.mass))) for body in range(len(motions))]
    off = squares(cast.x[copy, every], cast.y[copy, every], motions)[every, owner]
    return Bodies(owner, copy, off, motions, float(np.sqrt(cast.mass @ off / cast.mass.sum())))


def neighbourhood(tree: spatial.cKDTree, mass: np.ndarray, width: float) -> sparse.csr_matrix:
    """Weights (points, points) of the mean over each point's neighbourhood of this width (Å), itself included."""
    pairs = tree.sparse_distance_matrix(tree, 2.5 * width, output_type="coo_matrix")
    weights = sparse.csr_matrix((np.exp(-0.5 * (pairs.data / width) ** 2) * mass[pairs.col], (pairs.row, pairs.col)))
    weights = weights + sparse.diags(mass - weights.diagonal())
    return sparse.csr_matrix(sparse.diags(1 / np.asarray(weights.sum(1)).ravel()) @ weights)


def squares(x: Points, y: Points, motions: Motions) -> Float[np.ndarray, "points bodies"]:
    """Squared distances (Å²) between where each motion takes the points and where they go."""
    return np.stack([((x @ turn + shift - y) ** 2).sum(1) for turn, shift in motions], axis=1)


def rigid(x: Points, y: Points, mass: np.ndarray) -> Motion:
    """The rigid motion that takes x nearest to y (Kabsch 1976)."""
    share = mass / mass.sum()
    a, b = share @ x, share @ y
    u, _, vt = np.linalg.svd((x - a).T @ ((y - b) * share[:, None]))
    turn = (u * [1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
    return turn, b - a @ turn
