"""The pseudo-trajectory of a fit: maps and atomic models at any times between 0 and 1 (paper, eq. 7)."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree
from scipy import ndimage

from cryotrans_jax.core.flow import FieldMotion, Scalar, interpolate_path, inverse_euler, split_time
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
from cryotrans_jax.motion import lattice as lattices
from cryotrans_jax.motion.displacement import Carry
from cryotrans_jax.motion.partition import LocalMask
from cryotrans_jax.motion.still import Pose, StillBody

Times = Sequence[float] | Float[np.ndarray, "times"]
INVERSE_TOLERANCE = 1e-5  # unit boxes: accuracy of the inverse flow, a thousandth of an Å in a box of 100 Å
SPLINE_MARGIN = 12  # voxels from the end of a density to where its spline coefficients are 1e-7 of it
PAD_MULTIPLE = 4096  # numbers of points are padded to multiples of this, so that similar systems share a program
CONSISTENCY_SAMPLE = 4 * PAD_MULTIPLE  # voxels that are carried to the end and back by `consistency`
INDEX = np.int16  # of a voxel along an axis: a grid has fewer than 32768
CHUNK = 64 * PAD_MULTIPLE  # points that are moved at once, so that each of the network's layers takes 0.1 GiB at most


@dataclass(frozen=True)
class PullBack:
    """How frames are made by `pull_back`.

    Attributes:
        skin: Å around the thresholded density that move with it in full, and as much again over which they fade out.
        seam: Å on either side of a border over which the frames pass from one part's flow to the other's.
        spacing: Å between the nodes at which the inverse flow is computed, or a voxel if that is wider.
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


@program(static_argnames=("field", "steps"))
def backward(field: FieldMotion, params: PyTree, y: Float[Array, "n 3"], tau: Scalar, steps: int, t: Scalar = 1.0):
    """Invert Euler steps of the flow.

    The points are processed PAD_MULTIPLE at once, so that a few that need many iterations do not delay all.

    Args:
        field: the motion by one velocity field.
        params: parameters of one field.
        y: points after the steps, unit box.
        tau: length of a step.
        steps: number of steps.
        t: time at which the points are at y; it matters only if V depends on time.

    Returns:
        y, and the points after each inverted step.
    """

    def invert(y):
        undone = inverse_euler(field.velocity(params), field.inputs(y, t), tau, steps, INVERSE_TOLERANCE)[1]
        return jnp.concatenate([y[None], undone[..., :3]])

    filled = jnp.concatenate([y, jnp.repeat(y[:1], -len(y) % PAD_MULTIPLE, axis=0)])
    each = jax.lax.map(invert, filled.reshape(-1, PAD_MULTIPLE, 3))
    return jnp.moveaxis(each, 0, 1).reshape(steps + 1, -1, 3)[:, : len(y)]


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
    field, frame = flow.field, flow.frame
    chunk = max(CHUNK // field.evaluations, PAD_MULTIPLE)  # the field is evaluated at every copy of a point
    parts = np.split(xyz, range(chunk, len(xyz), chunk))
    visited = np.concatenate(
        [np.asarray(forward(field, flow.params, pad_points(frame.to_unit(p))))[:, : len(p)] for p in parts], axis=1
    )
    each = np.stack([np.asarray(interpolate_path(visited, t)) for t in times])
    # float32 resolves the displacement well, but not a position far from the origin: keep the latter in float64.
    return flow.still.express(xyz + (each - visited[0]).astype(np.float64) * frame.edge, times)


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

    The inverse flow is computed at nodes around all that the flow visits, and interpolated to the voxels; where a body
    stays still, to the places in the frame of the alignment that the voxels' centres have at the time. f0 is
    interpolated there by cubic splines. This keeps detail and peak heights, where the splat (`push_forward`)
    keeps mass. Each part is pulled back by its own flow, in masks that add up to one, and the results are added.

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
    with ThreadPoolExecutor(cores.usable()) as pool:  # one part's compilation and inverse flow leave cores idle
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
        For each time the voxels around all that is ever carried, as numbers in the flattened grid, and their values.
    """
    shape, size, frame = initial.density.shape, initial.voxel_size, flow.frame
    share = part.on_grid(shape)
    wanted = visited_voxels(flow.aligned, initial, share > 0)
    shown = np.argwhere(visited_voxels(flow, initial, share > 0)).astype(INDEX) if flow.still.present else None
    reached = box_slices(wanted)
    corner = frame.to_unit(initial.origin + (first_voxel(reached)[:, 0] - 0.5) * size)
    spacing = max(spacing, size.min())
    lattice = lattices.make_lattice(wanted[reached], corner, size / frame.edge, spacing / size.min())
    near = box_slices(share > 0, SPLINE_MARGIN)
    spline = ndimage.spline_filter(initial.density[near] * share[near], order=3, output=np.float32, mode="constant")
    nodes, count = pad_points(np.asarray(lattice.nodes)), len(lattice.nodes)
    at = np.stack(np.unravel_index(lattice.voxels, wanted[reached].shape)) + first_voxel(reached)
    at = at.astype(INDEX)
    del share, part, wanted
    for t, origin in zip(times, preimages(flow.aligned, nodes, times), strict=True):
        back = (origin - nodes)[:count] * (frame.edge / size).astype(np.float32)
        moved = lattices.interpolate_numpy(lattice, back).T
        seen, places = at, at
        if shown is not None:
            seen, places, moved = seen_from(flow.still.poses([t])[0], initial, shown, at, moved)
        values = evaluate_spline(spline, places - first_voxel(near).astype(np.float32) + moved)
        yield np.ravel_multi_index(seen, shape), values


def seen_from(
    pose: Pose,
    initial: Map,
    shown: Int[np.ndarray, "m 3"],
    at: Int[np.ndarray, "3 n"],
    moved: Float[np.ndarray, "3 n"],
) -> tuple[Int[np.ndarray, "3 seen"], Float[np.ndarray, "3 seen"], Float[np.ndarray, "3 seen"]]:
    """See voxels in the frame of a still body, where displacements are known at voxels in that of the alignment.

    Args:
        pose: of the still body.
        initial: the initial map.
        shown: voxels in the body's frame.
        at: voxels in the frame of the alignment.
        moved: displacement (voxels) at each of them, which is interpolated linearly.

    Returns:
        Those of the shown voxels that lie among the others; their places (voxels) in the frame of the alignment; and
        the displacements there.
    """
    low, high = at.min(1, keepdims=True), at.max(1)
    known = np.full((3, *(high - low[:, 0] + 1)), np.nan, np.float32)
    known[:, *(at - low)] = moved
    read = partial(ndimage.map_coordinates, order=1, mode="constant", cval=np.nan)

    def see(shown: Int[np.ndarray, "some 3"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        there = ((pose(initial.origin + shown * initial.voxel_size) - initial.origin) / initial.voxel_size).T
        found = np.stack([read(component, there - low) for component in known])
        among = np.isfinite(found).all(0)
        return shown[among].T, there[:, among].astype(np.float32), found[:, among]

    chunks = np.split(shown, range(CHUNK, len(shown), CHUNK))
    seen, places, displacements = (np.concatenate(each, 1) for each in zip(*map(see, chunks), strict=True))
    return seen, places, displacements


def first_voxel(box: tuple[slice, ...]) -> Int[np.ndarray, "3 1"]:
    """Index of the first voxel in a box of a grid."""
    return np.array([[along.start] for along in box])


def evaluate_spline(spline: np.ndarray, at: Float[np.ndarray, "3 n"]) -> Float[np.ndarray, "n"]:
    """Values of a map at places (voxels) from its cubic spline coefficients, zero outside; on all cores."""
    read = partial(ndimage.map_coordinates, spline, order=3, prefilter=False, mode="constant")
    workers = cores.usable()
    with ThreadPoolExecutor(workers) as pool:
        return np.concatenate(list(pool.map(read, np.array_split(at, workers, axis=1))))


def preimages(flow: Flow, y: Float[np.ndarray, "n 3"], times: Times) -> Iterator[Float[np.ndarray, "n 3"]]:
    """For each time, the points that a flow by one field has carried to y by then; all in the unit box."""
    field, params = flow.field, flow.params
    tau, kept = 1.0 / field.euler_steps, {}

    def invert(part: float, steps: int, t: float):
        at = np.asarray(backward(field, params, y, part * tau, 1, t))[1] if part else y
        return np.asarray(backward(field, params, at, tau, steps, t - part * tau))

    for t in times:
        whole, part = split_time(t, field.euler_steps)
        if not field.autonomous:
            yield invert(part, whole, t)[whole]
            continue
        if part not in kept:  # V does not depend on time: one inverse path serves many frames
            kept[part] = invert(part, field.euler_steps, t)
        yield kept[part][whole]


def consistency(flow: Flow, initial: Map, threshold: float) -> float:
    """RMS distance (Å) of density from its start after the flow carried it to the end and the inverse flow back.

    It is nearly zero where the flow is one to one. Where the flow folds, it carries several places to one, and the
    inverse finds only one of them. Measured on about CONSISTENCY_SAMPLE voxels above the threshold. Arguments are as
    for `pull_back`.
    """
    inside = np.argwhere(carried_mass(initial.density, threshold) > 0)
    xyz = initial.origin + inside[:: -(-len(inside) // CONSISTENCY_SAMPLE)] * initial.voxel_size
    flow, back = flow.aligned, np.empty_like(xyz)
    for own, one in flow.by_part(flow.part_at(xyz)):
        end = flow.frame.to_unit(move(one, xyz[own], [1.0])[0])
        back[own] = flow.frame.to_angstrom(next(preimages(one, pad_points(end), [1.0]))[: len(end)])
    return float(np.sqrt(((back - xyz) ** 2).sum(-1).mean()))


compiled_splat = program(splat, static_argnames="shape")


def visited_voxels(flow: Flow, initial: Map, support: np.ndarray) -> np.ndarray:
    """Voxels (bool, x, y, z) within reach of what the flow carries at any time between 0 and 1."""
    cell = np.maximum(np.round(2.0 / initial.voxel_size), 1).astype(int)
    start = np.argwhere(support[tuple(slice(c // 2, None, c) for c in cell)]) * cell + cell // 2
    times = np.arange(flow.field.euler_steps + 1) / flow.field.euler_steps
    xyz = move(flow, initial.origin + start * initial.voxel_size, times)
    cells = (xyz - initial.origin) / (initial.voxel_size * cell)
    coarse = np.zeros(-(-np.array(support.shape) // cell), bool)
    hit = np.floor(cells.reshape(-1, 3)).astype(int)
    coarse[tuple(hit[((hit >= 0) & (hit < coarse.shape)).all(1)].T)] = True
    coarse = ndimage.binary_dilation(coarse, np.ones((3, 3, 3)), iterations=2)
    fine = coarse
    for axis, c in enumerate(cell):
        fine = np.repeat(fine, c, axis)
    return fine[tuple(slice(0, n) for n in support.shape)]


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
