"""How far a fit is to be trusted: a predicted error in each place, and a verdict on the whole."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import ndtr


class Evidence(NamedTuple):
    """What bears on the error of each of some places.

    Attributes:
        strain: of the flow, averaged around the place, as a logarithm.
        shift: displacement by which the density around the place would fit the target better, Å.
        uncertainty: standard deviation of that displacement by the target's noise, Å.
        residual: rms difference from the target around the place, relative to its median over the molecule. How large
            it is in all depends on what the two maps are, and not only on how well they fit.
        slightness: inverse of the radius of the rigid body in which the place is, 1/Å: little density places a small
            body.
        exposure: inverse of the share of the place's wide surroundings that the molecule fills, relative to its median:
            loops and ends at the surface move by themselves.
    """

    strain: Float[np.ndarray, "n"]
    shift: Float[np.ndarray, "n"]
    uncertainty: Float[np.ndarray, "n"]
    residual: Float[np.ndarray, "n"]
    slightness: Float[np.ndarray, "n"]
    exposure: Float[np.ndarray, "n"]


@dataclass(frozen=True)
class ErrorModel:
    """The predicted error: a product of powers of the evidence, as `experiments.studies.calibrate` fits it.

    Attributes:
        scale: Å; the error of a place where all evidence is 1.
        powers: of the evidence, in its order; none is negative.
        least: values below which these count as much.
        most: values above which these count as much, as larger ones were hardly seen.
        smallest: error that is predicted at least, Å; smaller ones were not measured.
        factors: for a fraction of all places the distance from the truth that it does not exceed, relative to the
            predicted error.
        spread: standard deviation of the logarithm of the true error about that of the predicted one.
    """

    scale: float = 134.0
    powers: tuple[float, ...] = (0.491, 0.365, 0.316, 1.12, 0.942, 0.508)
    least: tuple[float, ...] = (0.00541, 0.0231, 0.0369, 0.712, 0.0453, 0.62)
    most: tuple[float, ...] = (0.417, 1.34, 1.72, 1.59, 0.131, 2.17)
    factors: tuple[tuple[float, float], ...] = ((0.5, 0.759), (0.68, 1.0), (0.9, 1.7), (0.95, 2.33))
    spread: float = 0.683
    smallest: float = 0.1

    def predict(self, evidence: Evidence) -> Float[np.ndarray, "n"]:
        """Error (Å) of each place: the distance from the truth that 68 % of such places do not exceed."""
        logarithms = self.logarithms(evidence) @ np.asarray(self.powers)
        return np.maximum(self.scale * np.exp(logarithms), self.smallest)

    def logarithms(self, evidence: Evidence) -> Float[np.ndarray, "n evidence"]:
        """Logarithms of the evidence, in which the logarithm of the predicted error is linear."""
        each = zip(evidence, self.least, self.most, strict=True)
        return np.stack([np.log(np.clip(values, least, most)) for values, least, most in each], -1)

    def within(self, fraction: float) -> float:
        """Factor on the predicted error: the distance that this fraction of all places does not exceed.

        Raises:
            KeyError: the model was not fitted for this fraction.
        """
        return dict(self.factors)[fraction]

    def chance_beyond(self, error: Float[np.ndarray, "n"], limit: float) -> Float[np.ndarray, "n"]:
        """Probability that a place of this predicted error (Å) is further than a limit (Å) from the truth."""
        return ndtr(np.log(error * self.within(0.5) / limit) / self.spread)


DISTANCES = np.geomspace(0.02, 200.0, 120)  # Å: among which that of a share of the mass is interpolated

FOUND, PARTLY, LOST = "found", "partly found", "not found"  # kinds of verdicts


@dataclass(frozen=True)
class VerdictRules:
    """When a motion counts as found.

    Attributes:
        limit: distance from the truth beyond which a place is wrong, Å.
        doubtful: probability of being wrong above which a place is doubtful.
        few: fraction of the mass; a motion is found if no more than that is doubtful.
        most: fraction of the mass; it is not found if more than that is expected to be wrong.
    """

    limit: float = 3.0
    doubtful: float = 0.5
    few: float = 0.005
    most: float = 0.14


class Verdict(NamedTuple):
    """Verdict on a fit.

    Attributes:
        kind: "found", "partly found" or "not found".
        wrong: fraction of the mass that is expected to be wrong.
        doubtful: which places are doubtful.
        doubtful_share: fraction of the mass that is doubtful.
        error: median of the predicted errors, Å.
        reach: distance from its true place, Å, beyond which a tenth of the mass is expected.
    """

    kind: str
    wrong: float
    doubtful: Bool[np.ndarray, "n"]
    doubtful_share: float
    error: float
    reach: float


def judge(
    error: Float[np.ndarray, "n"],
    mass: Float[np.ndarray, "n"],
    model: ErrorModel = ErrorModel(),
    rules: VerdictRules = VerdictRules(),
) -> Verdict:
    """Judge a fit by the predicted errors (Å) of its places and their masses."""
    chance = model.chance_beyond(error, rules.limit)
    wrong, doubtful = float(np.average(chance, weights=mass)), chance > rules.doubtful
    share = float(np.average(doubtful, weights=mass))
    kind = LOST if wrong > rules.most else PARTLY if share > rules.few else FOUND
    beyond = [np.average(model.chance_beyond(error, limit), weights=mass) for limit in DISTANCES]
    reach = float(np.interp(-0.1, -np.array(beyond), DISTANCES))
    return Verdict(kind, wrong, doubtful, share, float(np.median(error)), reach)
