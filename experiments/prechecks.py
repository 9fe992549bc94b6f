"""Checks of the inputs before a fit: errors for maps that cannot be fitted, warnings of what is doubtful."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import gemmi
import jax
import numpy as np

from cryotrans_jax.density import checks, spectrum, thresholds
from cryotrans_jax.density.contour import CLEAR, DUST
from cryotrans_jax.density.outliers import Outliers, without_outliers
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map

from . import log
from .case import Case, Doubt
from .inputs import finest_detail

NEAR = 0.9  # of the Nyquist limit: good maps are deposited with resolutions down to this
FEWEST = 27  # voxels of the smallest molecule: a cube with sides of 3
THIN = 1 / 3  # of the molecular volume: a threshold that encloses less is doubtful


class Input(NamedTuple):
    """A map as it was read: its kind, "initial" or "target" (for waypoints too), and the name of its file."""

    kind: str
    name: str
    map: Map


def initial_first(names: Sequence[str], maps: Sequence[Map]) -> list[Input]:
    """Inputs from maps and their files, of which the first is the initial map."""
    kinds = ["initial"] + ["target"] * (len(maps) - 1)
    return [Input(kind, Path(name).name, map_) for kind, name, map_ in zip(kinds, names, maps, strict=True)]


def sound(given: Sequence[Input], invert: str | None) -> tuple[list[Map], list[Doubt]]:
    """Negate maps as --invert says, replace outlying voxels, and check contrast and units.

    Args:
        given: the maps as they were read; the initial map comes first, if it is among them.
        invert: value of --invert; the contrast is checked only if it is None.

    Raises:
        InputError: the contrast of a map is inverted, or its voxel size is in nm.
    """
    repaired = [without_outliers(one.map) for one in given]
    maps = [
        map_ if one.kind not in inverted(invert) else checks.invert_contrast(map_)
        for one, (map_, _) in zip(given, repaired, strict=True)
    ]
    surveys = [checks.survey(map_) for map_ in maps]
    dark = [one for one, found in zip(given, surveys, strict=True) if found.inverted] if invert is None else []
    if dark:
        kinds = {one.kind for one in dark}
        flag = kinds.pop() if len(kinds) == 1 else "both"
        raise InputError(
            f"in {' and '.join(one.name for one in dark)} the molecule is darker than the solvent: the contrast seems "
            f"inverted, add --invert={flag} to negate the map, or --invert=none to take all as they are"
        )
    for one, found in zip(given, surveys, strict=True):
        check_units(one, found.kda)
    first = sum(one.kind == "initial" for one in given)
    numbers = [None if one.kind == "initial" else number - first for number, one in enumerate(given)]
    return maps, [
        outlier_doubt(one.name, found, number)
        for one, (_, found), number in zip(given, repaired, numbers, strict=True)
        if found
    ]


def inverted(invert: str | None) -> tuple[str, ...]:
    """Kinds of maps that this value of --invert negates."""
    return ("initial", "target") if invert == "both" else (invert,) if invert in ("initial", "target") else ()


def as_fitted(map_: Map, kind: str, invert: str | None) -> Map:
    """Negate a map as --invert says and replace outliers, as `sound` does, without its checks."""
    repaired, _ = without_outliers(map_)
    return checks.invert_contrast(repaired) if kind in inverted(invert) else repaired


def check_resolutions(
    names: Sequence[str], maps: Sequence[Map], resolutions: Sequence[float | None], given: frozenset[str]
) -> None:
    """Check the resolutions (Å) of maps by name; the initial map comes first.

    Args:
        resolutions: of each; None if unknown.
        given: those of "initial_resolution" and "target_resolution" that the user gave.
    """
    for number, (name, map_, resolution) in enumerate(zip(names, maps, resolutions, strict=True)):
        flag = "target_resolution" if number else "initial_resolution"
        check_resolution(map_, resolution, name, f"--{flag}" if flag in given else "")


def check_resolution(map_: Map, resolution: float | None, name: str, flag: str) -> None:
    """Check the resolution of a map against its voxels and its box.

    Args:
        resolution: in Å; None if unknown.
        name: of the map, for the message.
        flag: by which the user gave the resolution; empty where it is from an archive, a publication or the file's
            name, which a flag overrides.

    Raises:
        InputError: the user gave a resolution that no map on this grid can have; of others there is a warning.
    """
    if resolution is None:
        return
    size, edge = float(map_.voxel_size.min()), float((map_.voxel_size * map_.density.shape).max())
    message, impossible = "", resolution < finest_detail(size) or resolution > edge
    if resolution > edge:
        message = f"is coarser than its box of {edge:.4g} Å"
    elif resolution < NEAR * 2 * size:
        message = f"is finer than {2 * size:.3g} Å, the Nyquist limit of its voxels of {size:.3g} Å"
    if message and impossible and flag:
        raise InputError(f"{flag}={resolution:g} of {Path(name).name} {message}: give it in Å (1 nm is 10 Å)")
    if message and not jax.process_index():
        which = flag or "--initial_resolution or --target_resolution"
        log.resolution_doubtful(Path(name).name, resolution, message, which)


def check_mass(mass_kda: float | None, initial: Map) -> None:
    """Raise InputError where a molecule of this weight would fill fewer than FEWEST voxels, or more than the box."""
    if mass_kda is None:
        return
    filled, there = 1e3 * mass_kda * thresholds.DALTON / float(np.prod(initial.voxel_size)), initial.density.size
    if not FEWEST <= filled <= there:
        raise InputError(
            f"--mass_kda={mass_kda:g} would fill {filled:.3g} of the initial map's {there} voxels: give the molecular "
            "weight in kDa, of all that the map shows"
        )


def check_units(one: Input, kda: float) -> None:
    """Raise InputError where the voxel size of a map, whose molecule would weigh `kda`, seems to be in nm."""
    if not checks.in_nanometres(one.map, kda):
        return
    size = float(one.map.voxel_size.max())
    flag = "--voxel_size" if one.kind == "initial" else "--target_voxel_size"
    raise InputError(
        f"with voxels of {size:.3g} Å the molecule in {one.name} would weigh {kda:.2g} kDa: the voxel size seems to be "
        f"in nm, set it to 10 times as much in the header or by {flag}={10 * size:.4g}"
    )


def outlier_doubt(name: str, found: Outliers, target: int | None) -> Doubt:
    """Warning of a map in which voxels were replaced."""
    advice = "Each was set to the median of the voxels around it: repair the map if that is not right."
    return Doubt(f"In {name} {found}.", advice, target)


def doubts(case: Case, target_names: Sequence[str], model_name: str | None) -> list[Doubt]:
    """Find what is doubtful about a case's maps, as they will be fitted, and about its model.

    Args:
        model_name: name of the model's file; None where no file was given, so that the model is not checked.
    """
    initial = Path(next(iter(case.files))).name
    targets = [Path(name).name for name in target_names]
    mass = checks.survey(case.initial).kda
    found = [*case.doubts]
    for number, (name, target) in enumerate(zip(targets, case.targets, strict=True)):
        found += pair_doubts(case, number, initial, name)
        found += mass_doubts(mass, checks.survey(target).kda, initial, name, number)
    if model_name and case.model is not None:
        found += model_doubts(case.initial, case.model, initial, Path(model_name).name)
    return found


def pair_doubts(case: Case, number: int, initial: str, target: str) -> Iterator[Doubt]:
    """Warning of maps that are identical, or that seem to be swapped."""
    goal, known = case.targets[number], (case.initial_resolution, case.target_resolutions[number])
    if checks.same_density(case.initial, goal):
        yield Doubt(
            f"{target} holds the same density as the initial map {initial}.",
            "Name the map of another state with --target.",
            number,
        )
    elif (variance := spectrum.blur_between(case.initial, goal, *known)) < checks.BLURRIER:
        yield Doubt(
            f"The initial map {initial} is blurrier than {target}, by a Gaussian of {(-variance) ** 0.5:.1f} Å.",
            f"The initial map should be the sharp one: sharpen it, or swap the two, --initial={target} "
            f"--target={initial}.",
            number,
        )


def mass_doubts(initial: float, target: float, first: str, second: str, number: int) -> Iterator[Doubt]:
    """Warning of maps that show very different masses (kDa)."""
    if 0 < min(initial, target) < checks.UNLIKE * max(initial, target):
        large, small = (first, second) if initial > target else (second, first)
        times = max(initial, target) / min(initial, target)
        yield Doubt(
            f"The molecule in {large} fills {times:.1f} times the volume of that in {small}.",
            "Mask what only one of them shows with --mask or --target_mask, or correct the voxel sizes.",
            number,
        )


def model_doubts(map_: Map, model: gemmi.Structure, initial: str, name: str) -> Iterator[Doubt]:
    """Warning of a model that does not fit its map."""
    if checks.fit_of_model(map_, model) < checks.FITS:
        yield Doubt(
            f"The model {name} fits {initial} hardly better than in random poses.",
            "Fit it into that map (in ChimeraX: fitmap #1 inMap #2) and save it in the map's frame, or give the model "
            "of the map's state with --model.",
        )


def warn(found: Sequence[Doubt]) -> None:
    """Print warnings, once for all processes."""
    if not jax.process_index():
        for doubt in found:
            log.warning(f"{doubt.what} {doubt.advice}")


def threshold_doubts(used: dict, volume: float | None, outlined: bool = False) -> list[str]:
    """Find what is doubtful about the density that is carried.

    A threshold that is chosen by rule in a noisy map has dust above it, which is no fault of the map.

    Args:
        used: the threshold and what it encloses, as from `thresholds.apply_threshold`.
        volume: molecular volume (Å³); None where noise hides it.
        outlined: whether a model shows where the molecule is, whatever the threshold encloses of it.
    """
    found = []
    if volume is None and not outlined:
        found.append("noise is as strong as the molecule at its surface, so its volume cannot be estimated")
    if used["clear"] is not None and used["clear"] < CLEAR:
        found.append(
            f"solvent is carried along, as the threshold is only {used['clear']:.1f} standard deviations of its noise "
            "above it"
        )
    if used["specks"] > DUST and used["threshold_chosen"] != "by rule":
        found.append(f"{100 * used['specks']:.0f} % of the voxels above the threshold are dust, which is left out")
    if volume and used["volume"] < THIN * volume and not outlined:
        share = 100 * used["volume"] / volume
        found.append(f"the threshold encloses {share:.0f} % of the molecular volume, the rest is lost in noise")
    return found
