"""The frame of a fit's result, in which the largest rigid body or the atoms that were chosen stay still."""

from dataclasses import dataclass, replace
from functools import partial

import gemmi
import jax
import numpy as np
from jaxtyping import Float

from cryotrans_jax.density.align import Alignment
from cryotrans_jax.fit import trajectory
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.fit.target_flow import Flow
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion.displacement import mass_points
from cryotrans_jax.motion.partition import Partition
from cryotrans_jax.motion.rigid_bodies import BodySearch, from_flow
from cryotrans_jax.motion.still import StillBody, in_alignment

Still = str | gemmi.Structure  # "auto", "largest", "none", or the atoms that stay still
CHOICES = "auto", "largest", "none"


@dataclass(frozen=True)
class FrameRules:
    """How the body that stays still is chosen.

    Attributes:
        least_mass: fraction of the mass that it has at least. Where no body has so much, none is the molecule's core,
            and the whole molecule is superposed instead.
        points: about as many points of it are followed at most.
        outside: further fraction of the mass that may leave the initial map's box in the new frame; with more the
            frame of the alignment is kept, in which less of the result is cut off.
        times: at which that is checked.
        extent: Å; atoms that stay still have at least this RMS extent in two directions, as those on a line define no
            frame.
    """

    least_mass: float = 0.2
    points: int = 1000
    outside: float = 1e-3
    times: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    extent: float = 0.5


DEFAULT = FrameRules()


def check_still(still: Still, symmetric: bool, initial: Map, rules: FrameRules = DEFAULT) -> None:
    """Raise InputError if nothing can stay still as asked.

    Args:
        still: what stays still, as for `express`.
        symmetric: whether the flow keeps a symmetry.
        initial: the initial map.
        rules: how the body is chosen.
    """
    if isinstance(still, str) and still not in CHOICES:
        raise InputError(f"nothing can stay still as {still!r}: give {', '.join(CHOICES)}, or a model of the atoms")
    if symmetric and still not in ("auto", "none"):
        raise InputError("a symmetric assembly keeps its axes, and no part of it can stay still: leave one of them out")
    if isinstance(still, str):
        return
    xyz = atoms.positions(still)
    if len(xyz) < 3 or np.linalg.svd(xyz - xyz.mean(0), compute_uv=False)[1] < rules.extent * np.sqrt(len(xyz)):
        raise InputError(
            f"{len(xyz)} atoms that stay still define no frame, as they are too few or on a line: give more"
        )
    if (outside := outside_box(xyz, initial)).any():
        raise InputError(
            f"{outside.sum()} of {len(xyz)} atoms that stay still lie outside the initial map: give atoms within it"
        )


def outside_box(xyz: Float[np.ndarray, "*points 3"], map_: Map) -> np.ndarray:
    """Which positions (Å) lie outside of a map's box."""
    at = (xyz - map_.origin) / map_.voxel_size
    return ((at < -0.5) | (at > np.array(map_.density.shape) - 0.5)).any(-1)


def express(fit: Fit, still: Still, shared: bool = False, rules: FrameRules = DEFAULT) -> Fit:
    """Express a fit in the frame in which a body stays still; its flow stays as it was fitted.

    Args:
        fit: the fit, in the frame of the alignment.
        still: "auto": the largest rigid body of each target, unless the assembly is symmetric or the maps share a
            frame; "largest": also where they share one; "none": the frame of the alignment; or the atoms that stay
            still.
        shared: whether the maps came in one frame, and were not aligned.
        rules: how the body is chosen.
    """
    count = len(jax.tree.leaves(fit.params)[0])
    bodies = tuple(choose_still(fit, target, still, shared, rules) for target in range(count))
    moved = replace(fit, still=bodies)
    each = enumerate(fit.alignments)
    return replace(moved, alignments=tuple(place_target(found, moved, target) for target, found in each))


def choose_still(fit: Fit, target: int, still: Still, shared: bool, rules: FrameRules) -> StillBody:
    """What stays still in the result for a target, or why the frame of the alignment is kept."""
    if fit.failed and fit.failed[target]:
        return in_alignment("that of the alignment, as the fit failed")
    if isinstance(still, gemmi.Structure):
        partition, xyz = fit.partition(target), atoms.positions(still)
        part = None if partition is None else partition.of_atoms(still)
        text = f"the {len(xyz)} atoms that were chosen stay still"
        return trajectory.follow(fit.flow(target), xyz, np.ones(len(xyz)), text, part)
    if still == "none":
        return in_alignment("that of the alignment, as asked")
    if (fit.report or {}).get("symmetry"):
        return in_alignment("that of the alignment, as a symmetric assembly keeps its axes")
    if still == "auto" and shared:
        return in_alignment("that of the maps, which were given in one frame")
    return largest_body(fit, target, rules)


def largest_body(fit: Fit, target: int, rules: FrameRules) -> StillBody:
    """The rigid body with the most mass, or the whole molecule."""
    flow, initial = fit.flow(target), fit.require_initial()
    partition, kind = bodies_of(fit, target)
    x, mass = mass_points(initial, fit.threshold, BodySearch.spacing)
    owner = partition.part_at(x)
    shares = np.bincount(owner, mass, partition.count) / mass.sum()
    largest = int(shares.argmax())
    if partition.count == 1:
        own, text = np.ones(len(x), bool), "the whole molecule, which has no smaller rigid body, stays where it is"
    elif shares[largest] < rules.least_mass:
        share = f"{100 * rules.least_mass:.0f} % of the mass"
        own, text = np.ones(len(x), bool), f"the whole molecule stays where it is, as no {kind} has {share}"
    else:
        own = owner == largest
        text = f"{kind} {largest + 1} ({100 * shares[largest]:.0f} % of the mass) stays still"
    every = -(-own.sum() // rules.points)
    body = trajectory.follow(flow, x[own][::every], mass[own][::every], text)
    lost = leaving(replace(flow, still=body), initial, x, mass, rules)
    if lost - leaving(flow, initial, x, mass, rules) > rules.outside:
        return in_alignment(f"that of the alignment, as {100 * lost:.1f} % of the mass would leave the box in another")
    return body


def bodies_of(fit: Fit, target: int) -> tuple[Partition, str]:
    """The parts of a target's flow, or the rigid bodies found in it; and what they are called."""
    initial, own = fit.require_initial(), fit.partition(target)
    searched = "bodies_rms" in (fit.report or {})
    if own is not None:
        return own, "rigid body" if searched else "part"
    if searched:
        return Partition(np.ones(initial.density.shape, np.int16), initial.voxel_size, initial.origin), "rigid body"
    return from_flow(partial(fit.carry, target=target), initial, fit.threshold)[0], "rigid body"


def leaving(flow: Flow, initial: Map, x: np.ndarray, mass: np.ndarray, rules: FrameRules) -> float:
    """Largest fraction of the mass at points x that a flow carries out of the initial map's box at any of the times."""
    out = outside_box(trajectory.move(flow, x, rules.times), initial)
    return float((out @ mass).max() / mass.sum())


def place_target(found: Alignment, fit: Fit, target: int = 0) -> Alignment:
    """The alignment of a target, followed by the motion into the frame of the fit's result.

    Overlap and correlations remain those of the pose in which the target was aligned.
    """
    flow, initial = fit.flow(target), fit.require_initial()
    if not flow.still.present:
        return found
    x, mass = mass_points(initial, fit.threshold, BodySearch.spacing)
    centre = (mass @ trajectory.move(flow.aligned, x, [1.0])[0] / mass.sum())[None]
    moved = np.linalg.norm(flow.still.end(centre) - found.transform.inverse(centre))
    return found._replace(
        transform=flow.still.end.after(found.transform),
        status=f"{found.status}, then moved with the frame in which {flow.still.text}",
        moved=float(moved),
    )
