"""Rigid bodies: found in a flow, as a partition of the initial map, and the motion of each part."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse, spatial
from scipy.spatial.transform import Rotation

from cryotrans_jax.density.boxes import points_of_blocks
from cryotrans_jax.density.thresholds import carried_mass
from cryotrans_jax.density.transform import Transform, superposing_rotations
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion.displacement import mass_points
from cryotrans_jax.motion.partition import (
    AsymmetricUnit,
    Partition,
    Points,
    RigidMotion,
    SmallestPart,
    complete_labels,
    remove_fragments,
    replicate_bodies,
)

Motions = list[RigidMotion]


@dataclass(frozen=True)
class BodySearch:
    """How rigid bodies are searched for.

    A further body is accepted if it reduces the RMS deviation from rigid-body motion by enough (`gain`), if its own
    points move independently (`independent_rms`, `independent_ratio`), or while the deviation is still large
    (`far_rms`), as more bodies will follow.

    Attributes:
        spacing: Å between the points that are sorted, wider if there would be more than `max_points`.
        max_points: about as many points at most.
        vote_width: width of the neighbourhood that votes on the body of a point, in spacings.
        seed_radius: radius of the neighbourhood whose motion starts a further body, Å.
        seeds: places at which a further body is tried.
        max_bodies: number of bodies at most.
        gain: largest ratio of the RMS deviation with a further body to that without it.
        independent_rms: Å; a body's points move independently if they have more than this without it,
        independent_ratio: and less than this ratio of that with it.
        far_rms: Å: RMS deviation above which further bodies are always tried.
        max_cost: largest number of bodies times the mass fraction of the largest: about the cost of their fields.
        still_rms: Å: an RMS deviation that is no motion.
        smallest: how small a body may be.
    """

    spacing: float = 5.0
    max_points: int = 4000
    vote_width: float = 1.0
    seed_radius: float = 12.0
    seeds: int = 12
    max_bodies: int = 24
    gain: float = 0.75
    independent_rms: float = 2.0
    independent_ratio: float = 0.6
    far_rms: float = 3.0
    max_cost: float = 6.0
    still_rms: float = 0.5
    smallest: SmallestPart = SmallestPart()


class PartMotion(NamedTuple):
    """Motion of a part, as the nearest rigid-body motion; all 0 for a part without mass.

    Attributes:
        share_of_mass: fraction of the mass.
        turn: angle of the rotation, degrees.
        shift: displacement of the part's centre of mass, Å.
        from_rigid: RMS deviation from rigid-body motion, Å.
    """

    share_of_mass: float
    turn: float
    shift: float
    from_rigid: float


def part_motions(partition: Partition, carry: Callable, initial: Map, threshold: float) -> list[PartMotion]:
    """Motion of each part to the end of a flow; `carry` is as for `from_flow`."""
    x, mass = mass_points(initial, threshold, BodySearch.spacing)
    y, owner = carry(x, [1.0])[0], partition.part_at(x)
    found = []
    for part in range(partition.count):
        a, b, m = (v[owner == part] for v in (x, y, mass))
        if not len(a):  # smaller than the distance between the points
            found.append(PartMotion(0.0, 0.0, 0.0, 0.0))
            continue
        motion = fit_rigid_motion(a, b, m)
        turn = np.degrees(Rotation.from_matrix(motion[0]).magnitude())
        shift = np.linalg.norm(m @ (b - a)) / m.sum()
        off = np.sqrt(m @ squared_residuals(a, b, [motion])[:, 0] / m.sum())
        found.append(PartMotion(*map(float, (m.sum() / mass.sum(), turn, shift, off))))
    return found


def rigid_motions(
    partition: Partition, carry: Callable, times: Sequence[float], initial: Map, threshold: float
) -> list[list[Transform]]:
    """For each part the rigid motions nearest to a flow, from the start to each of some times.

    Args:
        partition: the parts.
        carry: as for `from_flow`.
        times: the times.
        initial: the initial map.
        threshold: the initial map's.
    """
    x, mass = mass_points(initial, threshold, BodySearch.spacing)
    owner, found = partition.part_at(x), []
    own = [np.flatnonzero(owner == part) for part in range(partition.count)]
    for y in carry(x, times):
        each = [fit_rigid_motion(x[k], y[k], mass[k]) if len(k) else (np.eye(3), np.zeros(3)) for k in own]
        found.append([Transform(turn.T, shift) for turn, shift in each])
    return [[*of_part] for of_part in zip(*found, strict=True)]


class Bodies(NamedTuple):
    """Points sorted into rigid bodies.

    Attributes:
        owner: body of each point.
        copy: copy of the body, where there is a symmetry.
        squared_deviation: squared distance (Å²) of each point from the body's motion.
        motions: of each body's first copy.
        rms: RMS deviation from rigid-body motion, Å.
    """

    owner: Int[np.ndarray, "points"]
    copy: Int[np.ndarray, "points"]
    squared_deviation: Float[np.ndarray, "points"]
    motions: Motions
    rms: float


def from_flow(
    carry: Callable,
    initial: Map,
    threshold: float,
    unit: AsymmetricUnit | None = None,
    search: BodySearch = BodySearch(),
) -> tuple[Partition, list[float]]:
    """Find the rigid bodies that a flow moves.

    Args:
        carry: function that carries positions (n, 3) in Å to some times.
        initial: the initial map.
        threshold: the initial map's.
        unit: the asymmetric unit, of a symmetric flow: each copy of a body is then a part. Everything is one part if it
            moves as one body.
        search: how bodies are searched for.

    Returns:
        The partition, and the RMS deviations (Å) from rigid-body motion with one body, two and so on; the last one was
        not accepted.
    """
    everywhere = carried_mass(initial.density, threshold)
    if not everywhere.any():
        raise InputError(f"no density of the initial map is above {threshold:g}: give a lower threshold")
    carried = everywhere if unit is None else unit.mass
    volume = np.count_nonzero(carried) * np.prod(initial.voxel_size)
    spacing = max(search.spacing, float((volume / search.max_points) ** (1 / 3)))
    x, mass, *_ = points_of_blocks(carried, initial.origin, initial.voxel_size, spacing)
    found, tried = find_bodies(x, carry(x, [1.0])[0], mass, spacing, search.smallest.fraction(volume), unit, search)
    copies = 1 if unit is None else len(unit.rotations)
    if unit is not None and len(found.motions) == 1:
        if unit.commutes(found.motions[0], x, max(search.still_rms, found.rms)):
            return complete_labels(np.ones(initial.density.shape, int), initial), tried
    return sort_voxels(x, found.owner * copies + found.copy + 1, initial, threshold, unit, search.smallest), tried


def sort_voxels(
    x: Points,
    labels: Int[np.ndarray, "points"],
    initial: Map,
    threshold: float,
    unit: AsymmetricUnit | None = None,
    smallest: SmallestPart = BodySearch.smallest,
) -> Partition:
    """The partition of the initial map in which each voxel of density joins the nearest point.

    Args:
        x: points, Å; those of the asymmetric unit where there is one.
        labels: part of each, from 1; with a unit the copies of a body one after the other.
        initial: the initial map.
        threshold: the initial map's.
        unit: the asymmetric unit.
        smallest: how small a fragment may be.
    """
    everywhere = carried_mass(initial.density, threshold)
    inside = np.argwhere((everywhere if unit is None else unit.mass) > 0)
    _, nearest = spatial.cKDTree(x).query(initial.origin + inside * initial.voxel_size, workers=-1)
    whole = np.zeros(initial.density.shape, np.int16)
    whole[tuple(inside.T)] = labels[nearest]
    if unit is not None:
        return replicate_bodies(whole, everywhere > 0, initial, unit, smallest)
    return complete_labels(remove_fragments(whole, initial.voxel_size, smallest=smallest), initial)


def find_bodies(
    x: Points,
    y: Points,
    mass: np.ndarray,
    spacing: float = BodySearch.spacing,
    least: float = SmallestPart.mass,
    unit: AsymmetricUnit | None = None,
    search: BodySearch = BodySearch(),
) -> tuple[Bodies, list[float]]:
    """Find as few rigid bodies as explain a motion.

    Bodies are added one by one, as long as each is accepted (`is_accepted`). In an assembly with many bodies, each is
    too small to reduce the rms distance of the whole by much, hence the criterion for a body's own points. The search
    also ends when no motion is left, or when a body would have less than the `least` mass.

    Args:
        x: positions before the motion, Å.
        y: positions after it, Å.
        mass: of the points.
        spacing: about the distance between the points, Å.
        least: fraction of the mass that a body has at least.
        unit: the asymmetric unit; its points may belong to any copy of a body.
        search: how bodies are searched for.

    Returns:
        The bodies, and the RMS deviations (Å) from rigid-body motion with 1, 2, ... of them.
    """
    before, after = (a[None] if unit is None else (a - unit.centre) @ unit.rotations for a in (x, y))
    tree = spatial.cKDTree(before[0])
    points = PointSet(before, after, mass, tree, neighbourhood(tree, mass, search.vote_width * spacing))
    found = assign_points(points, [fit_rigid_motion(points.x[0], points.y[0], mass)], least)
    assert found is not None  # one body has all the mass
    tried = [found.rms]
    while found.rms > search.still_rms and len(found.motions) < search.max_bodies:
        further = add_body(points, found, least, search)
        if further is None:
            break
        tried.append(further.rms)
        if not is_accepted(mass, found, further, search):
            break
        found = further
    return found, tried


class PointSet(NamedTuple):
    """Points to be sorted into rigid bodies.

    Attributes:
        x: positions before the motion as each copy of a body sees them, rotated back by the operator that makes the
            copy.
        y: positions after it, likewise.
        mass: of the points.
        tree: of the positions before the motion.
        vote: weights of the mean over each point's neighbourhood.
    """

    x: Float[np.ndarray, "copies points 3"]
    y: Float[np.ndarray, "copies points 3"]
    mass: Float[np.ndarray, "points"]
    tree: spatial.cKDTree
    vote: sparse.csr_matrix


def is_accepted(mass: np.ndarray, found: Bodies, further: Bodies, search: BodySearch) -> bool:
    """Whether a further body is worth its field; see `BodySearch`."""
    largest = np.bincount(further.owner, mass).max() / mass.sum()
    if len(further.motions) * largest > search.max_cost:
        return False
    if found.rms > search.far_rms or further.rms <= search.gain * found.rms:
        return True
    own = further.owner == len(further.motions) - 1
    before, after = (np.sqrt(mass[own] @ by.squared_deviation[own] / mass[own].sum()) for by in (found, further))
    return bool(before > search.independent_rms and after < search.independent_ratio * before)


def add_body(points: PointSet, found: Bodies, least: float, search: BodySearch) -> Bodies | None:
    """The best fit with one body more, started from the motion around each of the points that fit worst."""
    x, y, off, best = points.x[0], points.y[0], points.vote @ found.squared_deviation, None
    for _ in range(search.seeds):
        near = points.tree.query_ball_point(x[off.argmax()], search.seed_radius)
        off[near] = 0
        further = assign_points(points, [*found.motions, fit_rigid_motion(x[near], y[near], points.mass[near])], least)
        if further is not None and (best is None or further.rms < best.rms):
            best = further
    return best


def assign_points(points: PointSet, motions: Motions, least: float, rounds: int = 100) -> Bodies | None:
    """Assign points to bodies and fit the bodies' motions in turn, until no point changes.

    Each point joins the body that suits its neighbourhood. None if a body gets less than the `least` fraction of the
    mass.
    """
    copies, count, _ = points.x.shape
    every, choice = np.arange(count), np.full(count, -1)
    for _ in range(rounds):
        off = np.concatenate(
            [squared_residuals(*seen, motions) for seen in zip(points.x, points.y, strict=True)], axis=1
        )
        before, choice = choice, (points.vote @ off).argmin(1)
        copy, owner = np.divmod(choice, len(motions))
        if np.bincount(owner, points.mass, len(motions)).min() < least * points.mass.sum():
            return None
        if (choice == before).all():
            break
        x, y = points.x[copy, every], points.y[copy, every]
        motions = [fit_rigid_motion(*(a[owner == body] for a in (x, y, points.mass))) for body in range(len(motions))]
    off = squared_residuals(points.x[copy, every], points.y[copy, every], motions)[every, owner]
    return Bodies(owner, copy, off, motions, float(np.sqrt(points.mass @ off / points.mass.sum())))


def neighbourhood(tree: spatial.cKDTree, mass: np.ndarray, width: float) -> sparse.csr_matrix:
    """Weights (points, points) of the mean over each point's neighbourhood of this width (Å), itself included."""
    pairs = tree.sparse_distance_matrix(tree, 2.5 * width, output_type="coo_matrix")
    weights = sparse.csr_matrix((np.exp(-0.5 * (pairs.data / width) ** 2) * mass[pairs.col], (pairs.row, pairs.col)))
    weights = weights + sparse.diags(mass - weights.diagonal())
    return sparse.csr_matrix(sparse.diags(1 / np.asarray(weights.sum(1)).ravel()) @ weights)


def squared_residuals(x: Points, y: Points, motions: Motions) -> Float[np.ndarray, "points bodies"]:
    """Squared distances (Å²) between the end of each point and where each motion takes it."""
    return np.stack([((x @ turn + shift - y) ** 2).sum(1) for turn, shift in motions], axis=1)


def fit_rigid_motion(x: Points, y: Points, mass: np.ndarray) -> RigidMotion:
    """Rigid-body motion that takes x nearest to y."""
    share = mass / mass.sum()
    a, b = share @ x, share @ y
    rotation = superposing_rotations((x - a).T @ ((y - b) * share[:, None]))
    return rotation, b - a @ rotation
