"""The pseudo-trajectory of a fit: maps and atomic models at any times between 0 and 1 (paper, eq. 7)."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree
from scipy import ndimage

from cryotrans_jax.core.flow import FieldMotion, interpolate_path
from cryotrans_jax.core.grid import Frame
from cryotrans_jax.core.splat import splat
from cryotrans_jax.density.boxes import box_slices
from cryotrans_jax.density.mask import soft_edge
from cryotrans_jax.density.slabs import distance_within
from cryotrans_jax.density.thresholds import carried_mass
from cryotrans_jax.fit.target_flow import Flow
from cryotrans_jax.io import cores
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map
from cryotrans_jax.io.programs import program
from cryotrans_jax.motion.displacement import Carry
from cryotrans_jax.motion.inverse import invert, nodes_about, origins_of_voxels
from cryotrans_jax.motion.partition import LocalMask
from cryotrans_jax.motion.still import StillBody

Times = Sequence[float] | Float[np.ndarray, "times"]
SPLINE_MARGIN = 12  # voxels from the end of a density to where its spline coefficients are 1e-7 of it
PAD_MULTIPLE = 4096  # numbers of points are padded to multiples of this, so that similar systems share a program
CONSISTENCY_SAMPLE = 4 * PAD_MULTIPLE  # voxels that are carried to the end and back by `consistency`
CORRECTIONS = 3  # of the inverse by `consistency`, for what the interpolation between nodes leaves
CHUNK = 64 * PAD_MULTIPLE  # points that are moved at once, so that each of the network's layers takes 0.1 GiB at most


@dataclass(frozen=True)
class PullBack:
    """How frames are made by `pull_back`.

    Attributes:
        skin: Å around the thresholded density that move with it in full, and as much again over which they fade out.
        seam: Å on either side of a border over which the frames pass from one part's flow to the other's.
        spacing: Å between the nodes at which the flow and its inverse are computed, or a voxel if that is wider.
    """

    skin: float = 4.0
    seam: float = 2.0
    spacing: float = 2.5


def frame_times(frames: int) -> np.ndarray:
    """Times of equally spaced frames from 0 to 1; a single frame is the last one."""
    return np.linspace(0.0, 1.0, frames) if frames > 1 else np.ones(1)


def as_times(given: int | np.integer | Times) -> np.ndarray:
    """The given times as an array, or those of a number of equally spaced frames.

    Raises:
        InputError: times are not from 0 to 1, or there are no frames.
    """
    if isinstance(given, int | np.integer):
        if given < 1:
            raise InputError(f"{given} frames are asked for: give a number from 1 on, or times from 0 to 1")
        return frame_times(int(given))
    times = np.asarray(given, float)
    if times.ndim != 1 or not ((times >= 0) & (times <= 1)).all():
        raise InputError(f"the times {given} are not numbers from 0 (the initial map) to 1 (the end), in a list")
    return times


@program(static_argnames="field")
def forward(field: FieldMotion, params: PyTree, x: Float[Array, "n 3"]):
    """Points after each Euler step of the flow, x first; unit box."""
    return field.path(params, x)


def pad_points(x: np.ndarray) -> Float[np.ndarray, "n 3"]:
    """Pad points with copies of the first one to a multiple of PAD_MULTIPLE."""
    extra = -len(x) % PAD_MULTIPLE
    return np.concatenate([x, np.repeat(x[:1], extra, axis=0)]).astype(np.float32)


def move(flow: Flow, xyz: np.ndarray, times: Times, part: np.ndarray | None = None) -> np.ndarray:
    """Carry positions by the flow.

    Between two Euler steps the path is straight, which is the Euler scheme's own continuation, in the frame of the
    alignment; a still body's motion is then taken from it.

    Args:
        flow: the flow.
        xyz: positions (n, 3), Å.
        times: from 0 to 1.
        part: the part, counted from 0, by whose field each position moves; None: the one in which it is.

    Returns:
        Positions (times, n, 3), Å.
    """
    if flow.partition is not None:
        moved = np.empty((len(times), *xyz.shape))
        for own, one in flow.by_part(flow.part_at(xyz) if part is None else part):
            moved[:, own] = move(one, xyz[own], times)
        return moved
    visited = visit(flow, xyz)
    return np.stack([position_at(flow, xyz, visited, t) for t in times])


def visit(flow: Flow, xyz: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "visits n 3"]:
    """Displacements (Å) of positions after each Euler step of a flow by one field, in the frame of the alignment."""
    field, frame = flow.field, flow.frame
    chunk = max(CHUNK // field.evaluations, PAD_MULTIPLE)  # the field is evaluated at every copy of a point
    parts = np.split(xyz, range(chunk, len(xyz), chunk))
    visited = [np.asarray(forward(field, flow.params, pad_points(frame.to_unit(p))))[:, : len(p)] for p in parts]
    return np.concatenate([(each - each[:1]) * np.float32(frame.edge) for each in visited], axis=1)


def position_at(
    flow: Flow, xyz: Float[np.ndarray, "n 3"], visited: Float[np.ndarray, "visits n 3"], t: float
) -> Float[np.ndarray, "n 3"]:
    """Positions (Å) at time t, from their displacements after each Euler step as `visit` has them."""
    # float32 resolves the displacement well, but not a position far from the origin: keep the latter in float64.
    at = xyz + interpolate_path(visited, t).astype(np.float64)
    return flow.still.express(at[None], [t])[0]


def follow(flow: Flow, xyz: np.ndarray, mass: np.ndarray, text: str, part: np.ndarray | None = None) -> StillBody:
    """Follow points of a body along a flow, in the frame of the alignment, so that the body can be kept still.

    Args:
        flow: the flow.
        xyz: points of the body (n, 3), Å.
        mass: of the points.
        text: what stays still, as a clause.
        part: as for `move`.
    """
    steps = flow.field.euler_steps
    return StillBody(text, move(flow.aligned, xyz, np.arange(steps + 1) / steps, part), np.asarray(mass, float))


def soft_support(
    density: np.ndarray, threshold: float, voxel_size: np.ndarray, skin: float = PullBack.skin
) -> np.ndarray:
    """Mask (0 to 1) of what the flow carries: density above the threshold, a skin around it, and a soft edge."""
    carried = carried_mass(density, threshold) > 0
    return soft_edge(distance_within(2 * skin, carried, voxel_size) - skin, skin)


def carried_density(initial: Map, threshold: float) -> Map:
    """Density of the initial map that the flow carries: the frame at time 0."""
    mask = soft_support(initial.density, threshold, initial.voxel_size)
    return Map(initial.density * mask, initial.voxel_size, initial.origin)


def pull_back(flow: Flow, initial: Map, threshold: float, times: Times, rules: PullBack = PullBack()) -> Iterator[Map]:
    """Carry the initial map by the inverse flow: f0(Φ⁻¹(y, t)), on the initial map's grid and in its units.

    The flow carries nodes around the density. From these the inverse flow is found at nodes around the place that the
    density then has (`inverse.invert`), and interpolated to the voxels between them; f0 is interpolated by cubic
    splines. This keeps detail and peak heights, where the splat (`push_forward`) keeps mass. Each part is pulled back
    by its own flow, in masks that add up to one, and the results are added.

    Args:
        flow: the flow.
        initial: the initial map.
        threshold: the initial map's.
        times: from 0 to 1.
        rules: widths and spacings.

    Yields:
        A map for each time.
    """
    mask, flows = soft_support(initial.density, threshold, initial.voxel_size, rules.skin), [flow]
    near = box_slices(mask > 0)
    shares = [LocalMask(near, mask[near])]
    if flow.partition is not None:
        masks = flow.partition.soft_masks(mask > 0, rules.seam)
        shares = [LocalMask(box, mask[box] * values) for box, values in masks]
        flows = [flow.of_part(number) for number in range(len(shares))]
    pairs = zip(flows, shares, strict=True)
    each = [pull_back_part(own, initial, share, times, rules.spacing) for own, share in pairs if share.values.any()]
    del mask, shares  # each part keeps what it needs
    with ThreadPoolExecutor(cores.usable()) as pool:  # one part alone leaves cores idle
        for _ in times:
            density = np.zeros(initial.density.shape, np.float32)
            for voxels, values in pool.map(next, each):
                density.ravel()[voxels] += values
            yield Map(density, initial.voxel_size, initial.origin)


def pull_back_part(
    flow: Flow, initial: Map, part: LocalMask, times: Times, spacing: float
) -> Iterator[tuple[Int[np.ndarray, "n"], Float[np.ndarray, "n"]]]:
    """`pull_back` of a fraction (0 to 1) of the initial map's density, by one field.

    Yields:
        For each time the values of the voxels around the carried density, after their indices in the flattened grid.
    """
    nodes = nodes_about(np.argwhere(part.values > 0) + first_voxel(part.box).T, initial, spacing)
    share = part.on_grid(initial.density.shape)
    near = box_slices(share > 0, SPLINE_MARGIN)
    spline = ndimage.spline_filter(initial.density[near] * share[near], order=3, output=np.float32, mode="constant")
    del share, part
    start = nodes.places.reshape(-1, 3)
    visited, first = visit(flow, start), first_voxel(near)
    for t in times:
        moved = position_at(flow, start, visited, t).reshape(nodes.places.shape)
        voxels, places = origins_of_voxels(nodes, moved, initial, spacing)
        values = evaluate_spline(spline, places - first)
        yield np.ravel_multi_index(tuple(voxels), initial.density.shape), values


def first_voxel(box: tuple[slice, ...]) -> Int[np.ndarray, "3 1"]:
    """Index of the first voxel in a box of a grid."""
    return np.array([[along.start] for along in box])


def evaluate_spline(spline: np.ndarray, at: Float[np.ndarray, "3 n"]) -> Float[np.ndarray, "n"]:
    """Values of a map at places (voxels) from its cubic spline coefficients, zero outside; on all cores."""
    read = partial(ndimage.map_coordinates, spline, order=3, prefilter=False, mode="constant")
    workers = cores.usable()
    with ThreadPoolExecutor(workers) as pool:
        return np.concatenate(list(pool.map(read, np.array_split(at, workers, axis=1))))


def consistency(flow: Flow, initial: Map, threshold: float) -> float:
    """RMS distance (Å) of density from its start after the flow carried it to the end and the inverse flow back.

    It is nearly zero where the flow is one to one. Where the flow folds, it carries several places to one, and the
    inverse finds only one of them. Measured on about CONSISTENCY_SAMPLE voxels above the threshold. Arguments are as
    for `pull_back`.
    """
    voxels, flow = np.argwhere(carried_mass(initial.density, threshold) > 0), flow.aligned
    every = -(-len(voxels) // CONSISTENCY_SAMPLE)
    parts = flow.by_part(flow.part_at(initial.origin + voxels * initial.voxel_size))
    misses = [there_and_back(one, initial, voxels[own], every) for own, one in parts]
    return float(np.sqrt((np.concatenate(misses) ** 2).sum(-1).mean()))


def there_and_back(flow: Flow, initial: Map, voxels: Int[np.ndarray, "n 3"], every: int) -> Float[np.ndarray, "some 3"]:
    """By how much (Å) one in `every` voxels misses its start after the flow by one field and its inverse."""
    nodes = nodes_about(voxels, initial, PullBack.spacing)
    start = initial.origin + voxels[::every] * initial.voxel_size
    moved, end = (move(flow, x, [1.0])[0] for x in (nodes.places.reshape(-1, 3), start))
    inverse, aim = invert(nodes, moved.reshape(nodes.places.shape)), end
    for _ in range(CORRECTIONS):
        aim = aim + end - move(flow, inverse(aim)[0], [1.0])[0]
    return inverse(aim)[0] - start


compiled_splat = program(splat, static_argnames="shape")


def push_forward(flow: Flow, initial: Map, threshold: float, times: Times) -> Iterator[Map]:
    """Splat the carried mass at each time (paper, eq. 6), on the initial map's grid.

    This keeps mass, where `pull_back` keeps detail. Arguments are as for `pull_back`.
    """
    inside = carried_mass(initial.density, threshold) > 0
    xyz = initial.origin + np.argwhere(inside) * initial.voxel_size
    voxel = initial.voxel_size / flow.frame.edge
    corner = flow.frame.to_unit(initial.origin - 0.5 * initial.voxel_size)
    for moved in move(flow, xyz, times):
        x = jnp.asarray(flow.frame.to_unit(moved), jnp.float32)
        density = compiled_splat(x, jnp.asarray(initial.density[inside]), initial.density.shape, corner, voxel)
        yield Map(np.asarray(density), initial.voxel_size, initial.origin)


def spread(
    carries: Sequence[Carry], frame: Frame, initial: Map, threshold: float
) -> tuple[Map, Float[np.ndarray, "points"]]:
    """How far apart several fits of one target, from different seeds, carry the same density.

    The spread shows what the target does not determine; it does not show errors that all fits have in common.

    Args:
        carries: for each fit the function that carries positions (n, 3) in Å to some times.
        frame: the unit box.
        initial: the initial map.
        threshold: the initial map's.

    Returns:
        A map of the rms distances (Å) of carried positions from their mean, on the voxels to which the first fit
        carries them, averaged by mass, and zero elsewhere; and the distance for each voxel of the initial map above the
        threshold.
    """
    inside = carried_mass(initial.density, threshold) > 0
    xyz = initial.origin + np.argwhere(inside) * initial.voxel_size
    ends = np.concatenate([carry(xyz, [1.0]) for carry in carries])
    distance = np.sqrt(((ends - ends.mean(0)) ** 2).sum(-1).mean(0))
    mass, voxel = initial.density[inside], initial.voxel_size / frame.edge
    x, corner = jnp.asarray(frame.to_unit(ends[0]), jnp.float32), frame.to_unit(initial.origin - initial.voxel_size / 2)
    weighted, total = (
        np.asarray(splat(x, jnp.asarray(m, jnp.float32), initial.density.shape, corner, voxel))
        for m in (mass * distance, mass)
    )
    averaged = np.where(total > 0.01 * mass.min(), weighted / np.maximum(total, 1e-30), 0).astype(np.float32)
    return Map(averaged, initial.voxel_size, initial.origin), distance
