"""The error of a fit in each place: the evidence for it, and its prediction."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import gemmi
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from scipy.spatial import cKDTree

from cryotrans_jax.density.noise import Noise, measure_noise
from cryotrans_jax.density.thresholds import carried_mass
from cryotrans_jax.fit import strain
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.io import atoms
from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion.displacement import mass_points, values_map
from cryotrans_jax.scores import metrics
from cryotrans_jax.scores.confidence import ErrorModel, Evidence
from cryotrans_jax.scores.local_fit import LocalFitRules, local_fit
from cryotrans_jax.scores.surroundings import exposure


@dataclass(frozen=True)
class ErrorRules:
    """How evidence is gathered.

    Attributes:
        cell: side of the cells of mass whose strain is measured, Å.
        radius: of the surroundings over which the strain is averaged, Å.
        local: how the generated map is compared with its target.
        model: how errors are predicted from the evidence.
    """

    cell: float = 4.0
    radius: float = 8.0
    local: LocalFitRules = LocalFitRules()
    model: ErrorModel = ErrorModel()


@dataclass(frozen=True)
class Errors:
    """Predicted errors of what a fit of one target carries.

    Attributes:
        points: positions of the mass in the initial map, Å.
        ends: where the flow carries it, Å.
        mass: of the points.
        error: distance from the true place that 68 % of such places do not exceed, Å.
        supported: whether the target determines the place; elsewhere it is carried along with its surroundings.
        evidence: what the errors are predicted from.
    """

    points: Float[np.ndarray, "n 3"]
    ends: Float[np.ndarray, "n 3"]
    mass: Float[np.ndarray, "n"]
    error: Float[np.ndarray, "n"]
    supported: Bool[np.ndarray, "n"]
    evidence: Evidence

    def nearest(self, xyz: Float[np.ndarray, "m 3"]) -> Int[np.ndarray, "m"]:
        """Number of the mass that is nearest to each position (Å) in the initial map."""
        return cKDTree(self.points).query(xyz)[1]

    def at(self, xyz: Float[np.ndarray, "m 3"]) -> Float[np.ndarray, "m"]:
        """Predicted error (Å) at positions (Å) in the initial map, taken from the nearest point of mass."""
        return self.error[self.nearest(xyz)]

    def of_atoms(self, model: gemmi.Structure) -> Float[np.ndarray, "atoms"]:
        """Predicted error (Å) of each atom of the initial state's model."""
        return self.at(atoms.positions(model))

    def map(self, like: Map) -> Map:
        """The predicted errors (Å) on the grid of the generated map, zero away from the molecule."""
        return values_map(self.ends, self.error, like)


class Quality(NamedTuple):
    """Quality of a target, as a fit compares with it.

    Attributes:
        noise: its noise.
        blur: variance of the Gaussian that takes the generated map to its resolution, Å²; negative where the target is
            sharper, and is blurred instead.
    """

    noise: Noise
    blur: float


def target_quality(
    fit: Fit,
    target: Map,
    number: int = 0,
    resolution: float | None = None,
    halves: tuple[Map, Map] | None = None,
) -> Quality:
    """Measure the quality of a target as before the fit.

    Args:
        fit: the fit, whose report has the thresholds and blurs of its targets.
        target: the target map in the frame of the alignment.
        number: of the target in the report.
        resolution: of the target, Å; None if unknown.
        halves: the target's half-maps, on the same grid.
    """
    blur = float(chosen(fit, "blur_variance")[number])
    if blur < 0:
        target = replace(target, density=ndimage.gaussian_filter(target.density, np.sqrt(-blur) / target.voxel_size))
    sigma = np.sqrt(chosen(fit, "quieting_variance")[number]) / target.voxel_size
    mass = carried_mass(ndimage.gaussian_filter(target.density, sigma), chosen(fit, "targets")[number]["threshold"])
    return Quality(measure_noise(target, mass > 0, halves, resolution), blur)


def predict_errors(
    fit: Fit,
    target: Map,
    quality: Quality,
    generated: Map | None = None,
    number: int = 0,
    rules: ErrorRules = ErrorRules(),
) -> Errors:
    """Predict how far from the truth a fit carries each place of the molecule.

    A place that the target does not determine may have moved as far as the others did. So its error is the rms
    displacement of these at least.

    Args:
        fit: with its initial map.
        target: the target map on the initial map's grid, in the frame of the result.
        quality: of the target, as from `target_quality`.
        generated: the generated map; None: it is made.
        number: of the target in the fit.
        rules: how evidence is gathered.

    Raises:
        InputError: the fit was loaded without its initial map.
    """
    initial = fit.require_initial()
    generated = generated or fit.generated(number)
    points, mass = mass_points(initial, fit.threshold)
    ends = fit.carry(points, [1.0], number)[0]
    carried, goal = metrics.matched(generated, target, quality.blur)
    inside = carried_mass(generated.density, fit.threshold) > 0
    found = local_fit(carried, replace(target, density=goal), quality.noise.power, inside, ends, rules.local)
    evidence = Evidence(
        strain_around(fit, points, number, rules),
        *found,
        slightness(fit, points, number, rules),
        exposure(initial, fit.threshold, points),
    )
    error, supported = rules.model.predict(evidence), found.uncertainty <= rules.local.reach
    moved = float(np.sqrt(np.mean(((ends - points)[supported] ** 2).sum(1)))) if supported.any() else 0.0
    unknown = max(moved, rules.local.reach)
    error = np.where(supported, error, np.maximum(error, unknown))
    return Errors(points, ends, mass, error, supported, evidence)


def chosen(fit: Fit, name: str) -> list:
    """What was chosen by rule for each target of a fit."""
    return (fit.report or {})[name]


def strain_around(fit: Fit, points: Float[np.ndarray, "n 3"], number: int, rules: ErrorRules) -> Float[np.ndarray, "n"]:
    """Mean strain of the mass around each of some positions (Å) in the initial map, as a logarithm."""
    cells, mass = mass_points(fit.require_initial(), fit.threshold, rules.cell)
    strains = strain.log_strains(strain.jacobians(fit.flow(number), cells))
    tree = cKDTree(cells)
    near, nearest = tree.query_ball_point(points, rules.radius), tree.query(points)[1]
    return np.array(
        [
            np.average(strains[own], weights=mass[own]) if own else strains[k]
            for own, k in zip(near, nearest, strict=True)
        ]
    )


def slightness(fit: Fit, points: Float[np.ndarray, "n 3"], number: int, rules: ErrorRules) -> Float[np.ndarray, "n"]:
    """Inverse radius (1/Å) of the rigid body of each of some positions (Å) in the initial map.

    The radius is that of a ball of the volume of the body's mass; without bodies that of the whole molecule.
    """
    partition = fit.partition(number)
    cells, _ = mass_points(fit.require_initial(), fit.threshold, rules.cell)
    own, every = (
        np.zeros(len(at), int) if partition is None else np.asarray(partition.part_at(at)) for at in (points, cells)
    )
    volume = np.maximum(np.bincount(every, minlength=own.max() + 1), 1) * rules.cell**3
    return ((3 / (4 * np.pi) * volume) ** (-1 / 3))[own]
