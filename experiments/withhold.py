"""Test of bias: a region of the target is hidden from a fit, which is then asked where it is.

The answer is compared with that of the fit to the whole target, and with the error that was predicted for it.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import cKDTree

from cryotrans_jax.density.mask import soft_edge
from cryotrans_jax.density.slabs import distance_within
from cryotrans_jax.density.transform import resampled
from cryotrans_jax.fit.errors import predict_errors, target_quality
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.io import atoms, selections
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, read_map
from cryotrans_jax.motion.displacement import mass_points
from cryotrans_jax.scores import metrics
from cryotrans_jax.scores.confidence import ErrorModel

from . import log, results
from .case import MAP_SUFFIXES, Case
from .settings import FitSettings

RANDOM = 2  # regions of --check
SHARE = 0.1  # of the mass in each of them
NEAR, FADE = 3.0, 3.0  # Å around what the region carries that are hidden, and over which the density comes back
INSIDE = 0.5  # value of a mask above which it hides


class Region(NamedTuple):
    """What is hidden: its name, and which points of the initial map's mass are carried there."""

    name: str
    points: Bool[np.ndarray, "n"]


def check_flags(given: Sequence[str], check: bool, case: Case) -> None:
    """Raise InputError where flags ask for what this case does not allow; add masks to the files of the case."""
    if (given or check) and len(case.targets) > 1:
        raise InputError(
            f"--withhold and --check are for one target, and there are {len(case.targets)}: fit each alone"
        )
    for text in given:
        if text.lower().endswith(MAP_SUFFIXES):
            read_map(text)  # now, and not after the fit
            case.files[text] = Path(text)
        elif case.model is None:
            raise InputError(
                f"--withhold={text} selects residues: give the model with --model, or a mask of the target"
            )
        else:
            selections.only(case.model, text, "--withhold")


def regions(given: Sequence[str], check: bool, fit: Fit, case: Case) -> list[Region]:
    """The regions that flags name: selections of the model's residues, masks of the target, and two at random.

    Raises:
        InputError: a region has nothing of the molecule, or all of it.
    """
    points, _ = mass_points(case.initial, fit.threshold)
    ends = replace(fit, still=()).carry(points, [1.0])[0]
    found = [Region(text, chosen(text, case, points, ends)) for text in given]
    if check:
        rng = np.random.default_rng(fit.config.seed)
        for number, centre in enumerate(rng.choice(len(points), RANDOM, replace=False), 1):
            nearest = cKDTree(points).query(points[centre], max(round(SHARE * len(points)), 1))[1]
            found.append(Region(f"random region {number}", np.isin(np.arange(len(points)), nearest)))
    for region in found:
        if not region.points.any() or region.points.all():
            raise InputError(f"--withhold={region.name} hides nothing of the molecule, or all of it: name a part of it")
    return found


def chosen(
    text: str, case: Case, points: Float[np.ndarray, "n 3"], ends: Float[np.ndarray, "n 3"]
) -> Bool[np.ndarray, "n"]:
    """Which points of mass one of --withhold hides: residues of the model, or where a mask of the target is."""
    if text.lower().endswith(MAP_SUFFIXES):
        mask = read_map(text)
        if case.alignments:
            mask = resampled(mask, case.initial, case.alignments[0].transform)
        return mask.interpolate(ends) > INSIDE
    assert case.model is not None  # as was checked
    every = atoms.positions(case.model)
    own = atoms.positions(selections.only(case.model, text, "--withhold"))
    nearest = every[cKDTree(every).query(points)[1]]
    return cKDTree(own).query(nearest)[0] < 1e-3


def hidden(case: Case, ends: Float[np.ndarray, "some 3"]) -> tuple[Case, Float[np.ndarray, "x y z"]]:
    """Hide the density of the target near some positions (Å); return the case and the mask (0 to 1) that was hidden."""
    target = case.targets[0]
    at = np.rint((ends - target.origin) / target.voxel_size).astype(int)
    at = at[((at >= 0) & (at < target.density.shape)).all(1)]
    hides = np.zeros(target.density.shape, bool)
    hides[tuple(at.T)] = True
    weight = soft_edge(distance_within(NEAR + FADE, hides, target.voxel_size) - NEAR, FADE)

    def without(map_: Map) -> Map:
        return replace(map_, density=map_.density * (1 - weight))

    halves = [(without(first), without(second)) for first, second in case.halves]
    return replace(case, targets=[without(target)], halves=halves), weight


def test(given: Sequence[str], check: bool, fit: Fit, case: Case, settings: FitSettings) -> list[dict[str, Any]]:
    """Fit once more without each of the regions that flags name; see `compare`."""
    every, found = regions(given, check, fit, case), []
    for number, region in enumerate(every, 1):
        log.withholding(region.name, number, len(every))
        found.append(compare(region, fit, case, settings))
    return found


def compare(region: Region, fit: Fit, case: Case, settings: FitSettings) -> dict[str, Any]:
    """Fit without a region of the target, and compare the result there with the fit to the whole target.

    Returns:
        The region's name; the median of the errors that are predicted for it (Å); the median distance (Å) between
        where the two fits carry it; the share within the bound of 90 % of the predicted errors; and the correlation
        with the target that was hidden, of the initial map, of the map generated without it, and of that with it.
    """
    whole = replace(fit, still=())
    points, _ = mass_points(case.initial, fit.threshold)
    ends = whole.carry(points, [1.0])[0]
    blind, weight = hidden(case, ends[region.points])
    other = replace(results.fit_case(blind, settings), still=())
    halves = blind.halves[0] if blind.halves else None
    quality = target_quality(other, blind.targets[0], 0, case.target_resolutions[0], halves)
    errors = predict_errors(other, blind.targets[0], quality)
    claimed = errors.at(points[region.points])
    apart = np.linalg.norm(other.carry(points[region.points], [1.0])[0] - ends[region.points], axis=-1)
    variance = (fit.report or {})["blur_variance"][0]
    found = {}
    for name, map_ in (("before", case.initial), ("without", other.generated()), ("with", whole.generated())):
        here, goal = metrics.matched(map_, case.targets[0], variance)
        found[f"correlation_{name}"] = float(np.corrcoef(here[weight > INSIDE], goal[weight > INSIDE])[0, 1])
    return {
        "region": region.name,
        "predicted_error": float(np.median(claimed)),
        "apart": float(np.median(apart)),
        "within_90": float(np.mean(apart <= ErrorModel().within(0.9) * claimed)),
        **found,
    }
