"""Warnings and notes about a run, from its scores and settings."""

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

from cryotrans_jax.density.checks import BLURRIER
from cryotrans_jax.scores.confidence import FOUND

from ..masks import protein_in
from ..prechecks import threshold_doubts

MASS = 0.10  # fraction of the mass; larger gains or losses are reported
STRETCHED = 0.05  # fraction of the mass; more that is stretched or compressed is reported
APART = 1.0, 3.0  # Å; a median or 95th percentile of the spread between seeds above these is serious
MATCHED = 0.8  # a lower correlation at the target's resolution is reported
STILL = 1.0  # Å; a morph without larger displacements is reported
WORSE = 1.02  # factor on FSC = 0.5 [Å]; a larger increase is reported
FOLDED = 0.1  # Å, RMS; a larger deviation of the inverse flow from the flow is reported
LACKING = 0.05  # fraction of the mass; more without density in the target is reported
EDGE = 0.001  # fraction of the mass; more at the sides of the box is reported


class Caution(NamedTuple):
    """A warning, if serious, or a note: what was found, and what it means or what to do."""

    serious: bool
    what: str
    advice: str


class Measured(NamedTuple):
    """Measurements of a run besides its scores.

    Attributes:
        matched: correlations of the initial and of the generated map with the target at the target's resolution; None
            where the target's file is gone.
        stretched: fraction of the mass that is stretched or compressed by more than a quarter within its rigid body.
        at_edge: fraction of the generated map's mass at the sides of the box.
        farthest: largest displacement of any mass (Å).
        outside: fraction of the mass that is carried out of the box.
        folded: fraction of the mass where the determinant of the flow's Jacobian is not positive.
    """

    matched: tuple[float, float] | None
    stretched: float
    at_edge: float
    farthest: float
    outside: float = 0.0
    folded: float = 0.0


serious, note = partial(Caution, True), partial(Caution, False)


def cautions(config: dict, scores: dict, measured: Measured) -> list[Caution]:
    """All cautions about a run, serious ones first."""
    found = [
        *input_cautions(config),
        *threshold_cautions(config),
        *micelle_cautions(config),
        *score_cautions(scores),
        *flow_cautions(scores, measured),
        *target_cautions(config, scores, measured),
        *settings_cautions(config, scores),
    ]
    return sorted(found, key=lambda caution: not caution.serious)


def in_doubt(scores: dict) -> bool:
    """Whether signs that right results have too are warnings: not where a verdict says that the motion was found."""
    return scores.get("verdict") != FOUND


def input_cautions(config: dict) -> Iterator[Caution]:
    """Warnings of the inputs from before the fit."""
    for doubt in config.get("doubts", []):
        if doubt["target"] in (None, target_index(config)):
            yield serious(doubt["what"], doubt["advice"])


def threshold_cautions(config: dict) -> Iterator[Caution]:
    """Warnings of the maps' thresholds, which the run printed when it started."""
    if not config.get("contours"):
        return
    place = target_index(config)
    for name, used, seen in (
        ("initial", config["chosen"]["initial"], config["contours"][0]),
        ("target", config["chosen"]["targets"][place], config["contours"][1 + place]),
    ):
        outlined = name == "initial" and bool(config["settings"].get("model"))
        for doubt in threshold_doubts(used, seen["body_volume"], outlined):
            yield serious(f"In the {name} map {doubt}.", "Give --mask, --mass_kda or another threshold.")


def micelle_cautions(config: dict) -> Iterator[Caution]:
    """Note of the maps from which a micelle was removed."""
    names = {"initial": config["initial"], "target": target_name(config)}
    left_out = [kind for kind, name in names.items() if protein_in(name) in config["inputs"]]
    if left_out:
        maps = f"{' and '.join(left_out)} map{'s' * (len(left_out) > 1)}"
        yield note(
            f"Density without detail was removed from the {maps}.",
            "It was taken for detergent or lipid around a membrane protein; masks of what is kept are in inputs. "
            "If it is a domain that is blurred because it moves, repeat the run with --micelle=keep.",
        )


def score_cautions(scores: dict) -> Iterator[Caution]:
    """Warnings of the generated map, by its scores."""
    before, after = (scores[f"correlation_with_target_{when}"] for when in ("before", "after"))
    if not after > before:  # also if one is nan
        yield serious(
            f"The correlation with the target did not rise ({before:.3f} before, {after:.3f} after).",
            "The generated map is no better than the initial one. Check that the maps are of the same molecule and "
            "hand, that they are aligned, and that the thresholds enclose the whole molecule and no solvent.",
        )
    was, now = (scores[f"fsc_with_target_{when}"] for when in ("before", "after"))
    if now > WORSE * was:
        yield serious(
            f"FSC = 0.5 against the target got worse, from {was:.1f} to {now:.1f} Å.",
            "Domains may have been carried to the wrong place: see the slices of the difference.",
        )
    kept = scores["mass_kept"]
    if abs(kept - 1) > MASS:
        share = f"{100 * abs(kept - 1):.0f} % of the mass that was carried"
        yield serious(
            f"{share} is missing in the generated map." if kept < 1 else f"The generated map gained {share}.",
            "Density is compressed where mass is lost, and stretched where it is gained: trust those places less. "
            "(--render=pull_back keeps the height of peaks, --render=splat the mass.)",
        )


def flow_cautions(scores: dict, measured: Measured) -> Iterator[Caution]:
    """Cautions about the flow and the places to which it carries mass."""
    sign = partial(Caution, in_doubt(scores))
    if measured.stretched > STRETCHED:
        yield sign(
            f"{100 * measured.stretched:.0f} % of the mass is stretched or compressed by more than a quarter.",
            "Domains should move as rigid bodies. Play the morph: a domain that dissolves and condenses elsewhere was "
            "mistaken for another one.",
        )
    if scores.get("consistency", 0) > FOLDED:
        yield serious(
            f"The inverse of the flow misses its start by {scores['consistency']:.2f} Å (RMS).",
            "The flow folds: it carries two places to one, and frames that are pulled back show only one of them. "
            "Try another --seed, or --parts where domains slide along each other.",
        )
    if scores.get("target_lacks", 0) > LACKING:
        yield sign(
            f"For {100 * scores['target_lacks']:.0f} % of the generated map's mass the target has no density.",
            "A domain that the target lacks is not fitted and moves with its neighbours, so its place is not seen in "
            "the target; or a motion was not found. See where unexplained.mrc is below zero.",
        )
    if measured.folded > 0:
        yield serious(
            f"The flow folds at {100 * measured.folded:.2g} % of the mass.",
            "The determinant of its Jacobian is not positive there, and density from several places overlaps. "
            "folded.mrc shows where: do not interpret those places.",
        )
    if measured.outside > EDGE:
        yield serious(
            f"{100 * measured.outside:.1f} % of the mass is carried out of the box.",
            "It is missing in the generated map: give maps in a larger box.",
        )
    if measured.at_edge > EDGE:
        yield serious(
            f"{100 * measured.at_edge:.1f} % of the generated map's mass lies at the sides of the box.",
            "Density that moves out of the box is cut off: give maps in a larger box.",
        )
    if measured.farthest < STILL:
        yield note(
            f"The largest displacement is {measured.farthest:.1f} Å.",
            "The maps hardly differ in conformation, or the motion was not found.",
        )


def target_cautions(config: dict, scores: dict, measured: Measured) -> Iterator[Caution]:
    """Cautions about the target map."""
    sign = partial(Caution, in_doubt(scores))
    if measured.matched and measured.matched[1] < MATCHED:
        before, after = measured.matched
        yield sign(
            f"The correlation at the target's resolution is only {after:.2f} ({before:.2f} before).",
            "The rest is noise, density that one of the maps lacks, or a motion that was not found: see the slices of "
            "the difference.",
        )
    if chosen(config, "noisy"):
        yield sign(
            "The target map is noisy.",
            "It was low-pass filtered before its mass was taken. In strong noise a domain can be missed: check that "
            "each is in its place.",
        )
    if chosen(config, "noise") == "surface":
        yield note(
            "Around the molecule in the target map there is no solvent: the map seems to have been masked.",
            "Its noise was estimated from negative density at the molecule's surface. Half-maps show it better: give "
            "--target_half1.",
        )
    if BLURRIER <= (chosen(config, "blur_variance") or 0) < 0:  # sharper targets were warned of before the fit
        yield note(
            "The target map was judged sharper than the initial map.",
            "The generated map has the initial map's detail. A morph in the other direction would be sharper.",
        )
    resolution = (config["resolutions"]["targets"] or [None])[target_index(config)]
    if not resolution or not config["resolutions"]["initial"]:
        yield note(
            "The maps' resolutions were not given.",
            "The blur between the maps was estimated from their spectra; give --initial_resolution and "
            "--target_resolution to be certain of it.",
        )
    finer = f"{resolution:g} Å, the target's resolution," if resolution else "the target's resolution"
    yield note(
        f"All detail finer than {finer} comes from the initial map.",
        "Changes between the states at that scale (side chains, local refolding, a ligand) are not predicted.",
    )


def settings_cautions(config: dict, scores: dict) -> Iterator[Caution]:
    """Cautions about the settings and the course of the fit."""
    settings = config["settings"]
    if settings["recipe"] == "default" and chosen(config, "start") == "transport":
        yield serious(
            "The fit started from mass transport, not from correspondences.",
            "The flow could not follow the correspondences found between the maps, so only mass decided what goes "
            "where. Domains that look alike may be exchanged: compare with another seed.",
        )
    if setbacks := chosen(config, "setbacks"):
        yield serious(
            f"The fit diverged {setbacks} times.",
            "The best parameters were restored and the learning rate was reduced. Compare with another --seed, and "
            "check the maps.",
        )
    if "seed_spread_median" in scores:
        middle, far = scores["seed_spread_median"], scores["seed_spread_95"]
        yield Caution(
            middle > APART[0] or far > APART[1],
            f"Fits from {settings['seeds']} seeds differ by {middle:.2f} Å (median; {far:.1f} Å at 95 % of the mass).",
            "Where they differ the target does not determine the result: colour the generated map by seed_spread.mrc. "
            "Errors that all seeds share do not show.",
        )
    else:
        yield note(
            "One seed was fitted.",
            "--seeds=3 shows where, and by how many Å, the result depends on the seed.",
        )
    if settings["steps"] < 1:
        yield serious(
            f"The fit took {100 * settings['steps']:g} % of the recipe's steps.",
            "It may not have converged: repeat it with --steps=1 before trusting it.",
        )
    if "fsc_before" in scores:
        yield note(
            "The scores against the reference assume that it is independent.",
            "They measure the prediction only if the reference was made without it.",
        )


def warnings(found: list[Caution]) -> list[str]:
    """Texts of the serious cautions."""
    return [f"{caution.what} {caution.advice}" for caution in found if caution.serious]


def target_index(config: dict) -> int:
    """Index of the folder's target among the run's targets."""
    return config["targets"].index(config["target"])


def target_name(config: dict) -> str | None:
    """Name of the folder's target among the inputs; None where the config does not have it."""
    given = config["settings"].get("target")
    name = given[target_index(config)] if given else next(iter(list(config["inputs"])[1:]), None)
    return name if name in config["inputs"] else None


def chosen(config: dict, key: str) -> Any:
    """A value that was chosen by rule for the folder's target; None where an older run does not have it."""
    row, place = config["chosen"].get(key) or [], target_index(config)
    if key in ("start", "setbacks"):  # listed for the targets of one process, which fits every n-th of n processes
        place //= config.get("processes", 1)
    return row[place] if place < len(row) else None
