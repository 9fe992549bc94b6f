"""Fit the model of predicted errors to residues whose true errors are known, and measure how well it holds."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import optimize, stats

from cryotrans_jax.scores.confidence import FOUND, LOST, PARTLY, ErrorModel, Evidence, judge

Row = dict[str, Any]  # of experiments.studies.validate

KEPT = "pair", "direction", "resolution", "seed", "rmsd_before"  # of a row that is packed
TRUE = "error"  # name of the true errors among the residues of a row
FOLDS = 10  # parts of the molecules, each judged by constants of the others
FRACTIONS = 0.5, 0.68, 0.9, 0.95  # of residues, for which bounds of the error are measured
WRONG = 2.0, 4.0  # Å: errors that are to be told from smaller ones
LEAST_ERROR = 0.15  # Å: smaller true errors count as this much in the fit
RARE = 0.01  # fraction of residues whose evidence is below what counts at least, or above what counts at most
LARGE, SMALL, NOTHING = 4.0, 2.0, 0.01  # Å: CA RMSD of two states above or below which a motion is called so
NOISY = 0.15, 0.3  # Å: uncertainties of places by the target's noise (median) that divide the cases
CURVE = np.linspace(0.05, 0.99, 48)  # fractions of the reliability diagram


def evidence_of(row: Row) -> Evidence:
    """Evidence of the residues of a row."""
    return Evidence(*(np.asarray(row["residues"][name]) for name in Evidence._fields))


def errors_of(row: Row) -> Float[np.ndarray, "n"]:
    """True errors of the residues of a row, Å."""
    return np.asarray(row["residues"][TRUE])


class Judged(NamedTuple):
    """A row, and the model by which its errors are predicted."""

    row: Row
    model: ErrorModel


def judged_by(rows: Sequence[Row], model: ErrorModel) -> list[Judged]:
    """All rows judged by one model."""
    return [Judged(row, model) for row in rows]


def cross_validated(rows: Sequence[Row], folds: int = FOLDS) -> list[Judged]:
    """Each row judged by constants that were fitted without its molecule (the name of its pair up to the first _).

    Args:
        rows: the rows.
        folds: parts into which the molecules are divided, each of which is left out in turn.
    """
    names, found = sorted({molecule(row) for row in rows}), list[Judged]()
    for fold in range(min(folds, len(names))):
        held = set(names[fold::folds])
        model = fit_model([row for row in rows if molecule(row) not in held])
        found += judged_by([row for row in rows if molecule(row) in held], model)
    return found


def molecule(row: Row) -> str:
    """Which molecule a row is of."""
    return row["pair"].partition("_")[0]


def fit_model(rows: Sequence[Row]) -> ErrorModel:
    """Fit the constants: powers that are not negative, by least squares of the logarithm of the error.

    All cases weigh alike. What counts at least and at most of the evidence are quantiles of it. The factors are
    quantiles of the ratio of the true error to the predicted one.
    """
    every = [np.concatenate(values) for values in zip(*map(evidence_of, rows), strict=True)]
    least, most = (tuple(significant(np.quantile(values, share)) for values in every) for share in (RARE, 1 - RARE))
    model = ErrorModel(1.0, (1.0,) * len(least), least, most)
    x = np.concatenate([model.logarithms(evidence_of(row)) for row in rows])
    true = np.concatenate([errors_of(row) for row in rows])
    y = np.log(np.maximum(true, LEAST_ERROR))
    weight = np.concatenate([np.full(len(errors_of(row)), len(errors_of(row)) ** -0.5) for row in rows])
    middle = x.mean(0)
    design = np.concatenate([x - middle, np.ones((len(x), 1)), -np.ones((len(x), 1))], 1) * weight[:, None]
    found, _ = optimize.nnls(design, y * weight)
    powers = found[:-2]
    left = np.log(np.maximum(true, LEAST_ERROR)) - x @ powers
    squared = weight**2 / np.sum(weight**2)
    quantiles = [float(np.exp(weighted_quantile(np.log(true + 1e-9) - x @ powers, squared, f))) for f in FRACTIONS]
    scale = quantiles[FRACTIONS.index(0.68)]
    spread = float(np.sqrt(np.sum(squared * (left - np.sum(squared * left)) ** 2)))
    factors = tuple((f, significant(q / scale)) for f, q in zip(FRACTIONS, quantiles, strict=True))
    return ErrorModel(significant(scale), tuple(map(significant, powers)), least, most, factors, significant(spread))


def significant(value: float, digits: int = 3) -> float:
    """A number to as many digits as are worth keeping."""
    return float(f"{float(value):.{digits}g}")


def weighted_quantile(values: Float[np.ndarray, "n"], weight: Float[np.ndarray, "n"], fraction: float) -> float:
    """Value below which this fraction of the weight is."""
    order = np.argsort(values)
    return float(np.interp(fraction, np.cumsum(weight[order]) / weight.sum(), values[order]))


def measure(cases: Sequence[Judged]) -> dict[str, float]:
    """How well predicted errors hold: share within the bounds, AUROC of being wrong, Spearman's correlation."""
    predicted, true = pooled(cases)
    out: dict[str, float] = {"cases": len(cases)}
    for fraction in (0.5, 0.9, 0.95):
        within = [errors_of(row) <= model.within(fraction) * model.predict(evidence_of(row)) for row, model in cases]
        out[f"within {100 * fraction:.0f} %"] = float(np.mean(np.concatenate(within)))
    for limit in WRONG:
        out[f"AUROC {limit:g} Å"] = area_under_curve(predicted, true > limit)
    out["Spearman"] = float(stats.spearmanr(predicted, true).statistic)
    return {name: value for name, value in out.items() if np.isfinite(value)}


def pooled(cases: Sequence[Judged]) -> tuple[Float[np.ndarray, "n"], Float[np.ndarray, "n"]]:
    """Predicted and true errors (Å) of the residues of all cases."""
    predicted = np.concatenate([model.predict(evidence_of(row)) for row, model in cases])
    return predicted, np.concatenate([errors_of(row) for row, _ in cases])


def area_under_curve(values: Float[np.ndarray, "n"], wrong: Bool[np.ndarray, "n"]) -> float:
    """Area under the receiver operating characteristic: the chance that a wrong place has the larger value."""
    many, few = int(np.sum(~wrong)), int(np.sum(wrong))
    if not many or not few:
        return float("nan")
    return float(stats.mannwhitneyu(values[wrong], values[~wrong], method="asymptotic").statistic / (few * many))


def reliability(cases: Sequence[Judged]) -> Float[np.ndarray, "fractions"]:
    """Share of residues whose true error is within the bound of each fraction of CURVE, by the model's spread."""
    within = []
    for row, model in cases:
        bounds = np.exp(model.spread * stats.norm.ppf(CURVE)) * model.within(0.5)
        within.append(errors_of(row) <= bounds[:, None] * model.predict(evidence_of(row)))
    return np.mean(np.concatenate(within, axis=1), axis=1)


def most_rmsd(resolution: float) -> float:
    """RMSD (Å) up to which a motion counts as found in a target of this resolution (Å)."""
    return 2.5 if resolution >= 8 else 1.5


def rms(errors: Float[np.ndarray, "n"]) -> float:
    """Root mean square; 0 of nothing."""
    return float(np.sqrt(np.mean(errors**2))) if len(errors) else 0.0


def outcomes(cases: Sequence[Judged]) -> dict[tuple[bool, str], int]:
    """Number of cases by whether they failed, and by the kind of their verdict."""
    counts = dict.fromkeys(itertools.product((False, True), (FOUND, PARTLY, LOST)), 0)
    for row, model in cases:
        error = model.predict(evidence_of(row))
        failed = rms(errors_of(row)) > most_rmsd(row["resolution"])
        counts[failed, judge(error, np.ones(len(error)), model).kind] += 1
    return counts


def noise_of(row: Row) -> float:
    """Median over the residues of a row of the uncertainty of their places by the target's noise, Å."""
    return float(np.median(evidence_of(row).uncertainty))


def groups(cases: Sequence[Judged]) -> dict[str, list[Judged]]:
    """The cases by what they have in common: all, by resolution, by noise, by the size of the motion."""
    found = {"all": [*cases]}
    for resolution in sorted({row["resolution"] for row, _ in cases}):
        found[f"targets at {resolution:g} Å"] = [case for case in cases if case.row["resolution"] == resolution]
    little, much = NOISY
    levels: dict[str, Callable[[float], bool]] = {
        f"noise that moves places by less than {little:g} Å": lambda noise: noise < little,
        f"by {little:g} to {much:g} Å": lambda noise: little <= noise <= much,
        f"by more than {much:g} Å": lambda noise: noise > much,
    }
    sizes: dict[str, Callable[[float], bool]] = {
        "nothing moves": lambda before: before < NOTHING,
        f"motions below {SMALL:g} Å": lambda before: NOTHING <= before < SMALL,
        f"motions of {SMALL:g} to {LARGE:g} Å": lambda before: SMALL <= before <= LARGE,
        f"motions above {LARGE:g} Å": lambda before: before > LARGE,
    }
    for value, kinds in ((noise_of, levels), (lambda row: row["rmsd_before"], sizes)):
        for name, holds in kinds.items():
            found[name] = [case for case in cases if holds(value(case.row))]
    return {name: some for name, some in found.items() if some}


def pack(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Evidence and true errors of the residues of all rows as a few arrays, in half precision."""
    counts = np.array([len(errors_of(row)) for row in rows])
    out = {name: np.array([row[name] for row in rows]) for name in KEPT} | {"residues": counts}
    for name in (TRUE, *Evidence._fields):
        out[name] = np.concatenate([row["residues"][name] for row in rows]).astype(np.float16)
    return out


def unpack(arrays: Mapping[str, np.ndarray]) -> list[Row]:
    """The rows that were packed."""
    ends = np.cumsum(arrays["residues"])[:-1]
    residues = {name: np.split(arrays[name].astype(float), ends) for name in (TRUE, *Evidence._fields)}
    rows: list[Row] = []
    for k in range(len(arrays["residues"])):
        own = {name: each[k] for name, each in residues.items()}
        rows.append({name: arrays[name][k].item() for name in KEPT} | {"residues": own})
    return rows
