"""What a run's numbers say to be careful about, in plain words."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from cryotrans_jax.checks import BLURRIER

from .inputs import protein_in
from .results import threshold_doubts

MASS = 0.10  # a larger part of the mass gained or lost is told
STRETCH = 1.25  # stretched by more, or squeezed to less than its inverse: torn
TORN = 0.05  # a larger share of the mass torn is told
APART = 1.0, 3.0  # Å: a median or 95th percentile of the seeds' spread above these is serious
MATCHED = 0.8  # a correlation at the target's resolution below this is told
STILL = 1.0  # Å: a morph that moves nothing further is told
WORSE = 1.02  # an FSC = 0.5 more than so many times what it was is told
FOLDED = 0.1  # Å, rms: density that the inverse flow brings back to no nearer than this is told
LACKING = 0.05  # a larger share of the mass that the target has no density for is told
EDGE = 0.001  # a larger share of the mass at the sides of the box is told


class Caution(NamedTuple):
    """Something to be careful about: what the numbers say, and what that means or asks for."""

    serious: bool
    what: str
    advice: str


class Measured(NamedTuple):
    """What a report measures besides a run's scores.

    `matched` are the correlations of the initial and the generated map with the target at the target's resolution,
    None where the target is gone; `torn` is the share of mass that is stretched or squeezed by more than STRETCH,
    `at_edge` that at the sides of the box, `outside` that which is carried out of it; `folded` is the share of mass
    where the flow turns volumes inside out; `farthest` is the longest way (Å) of any mass.
    """

    matched: tuple[float, float] | None
    torn: float
    at_edge: float
    farthest: float
    outside: float = 0.0
    folded: float = 0.0


def cautions(config: dict, scores: dict, measured: Measured) -> list[Caution]:
    """All that the numbers call for, the serious first. `config` and `scores` are config.json and metrics.json."""
    found = [
        *of_inputs(config),
        *of_maps(config),
        *of_micelles(config),
        *of_fit(scores, measured),
        *of_target(config, measured),
        *of_run(config, scores),
    ]
    return sorted(found, key=lambda caution: not caution.serious)


def of_inputs(config: dict) -> Iterator[Caution]:
    """What was doubtful about the inputs before the fit."""
    for doubt in config.get("doubts", []):
        if doubt["target"] in (None, number(config)):
            yield Caution(True, doubt["what"], doubt["advice"])


def of_maps(config: dict) -> Iterator[Caution]:
    """What the maps' thresholds give to think about: what the run warned of when it began."""
    if not config.get("contours"):
        return
    place = number(config)
    for name, used, seen in (
        ("initial", config["chosen"]["initial"], config["contours"][0]),
        ("target", config["chosen"]["targets"][place], config["contours"][1 + place]),
    ):
        for doubt in threshold_doubts(used, seen["body_volume"]):
            yield Caution(True, f"In the {name} map {doubt}.", "Give --mask, --mass_kda or another threshold.")


def of_micelles(config: dict) -> Iterator[Caution]:
    """Which maps have lost what was taken for a micelle."""
    names = {"initial": config["initial"], "target": target_name(config)}
    left_out = [kind for kind, name in names.items() if protein_in(name) in config["inputs"]]
    if left_out:
        maps = f"{' and '.join(left_out)} map{'s' * (len(left_out) > 1)}"
        yield Caution(
            False,
            f"Density without detail is left out of the {maps}.",
            "It was taken for detergent or lipid about a membrane protein; masks of what is kept are in inputs. "
            "If it is a part that is blurred because it moves, repeat the run with --micelle=keep.",
        )


def of_fit(scores: dict, measured: Measured) -> Iterator[Caution]:
    """What the generated map itself gives to think about."""
    before, after = (scores[f"correlation_with_target_{when}"] for when in ("before", "after"))
    if not after > before:  # nor where one is no number
        yield Caution(
            True,
            f"The correlation with the target did not rise ({before:.3f} before, {after:.3f} after).",
            "The generated map is no better than the initial one. Are the maps of the same molecule and the same hand, "
            "aligned with each other, and do the contour levels show the whole molecule and no solvent?",
        )
    was, now = (scores[f"fsc_with_target_{when}"] for when in ("before", "after"))
    if now > WORSE * was:
        yield Caution(
            True,
            f"FSC = 0.5 against the target got worse, from {was:.1f} to {now:.1f} Å.",
            "Parts may have been carried to the wrong place: see the slices of the difference.",
        )
    kept = scores["mass_kept"]
    if abs(kept - 1) > MASS:
        share = f"{100 * abs(kept - 1):.0f} % of the mass that was carried"
        yield Caution(
            True,
            f"{share} is missing in the generated map." if kept < 1 else f"The generated map gained {share}.",
            "Density is squeezed where mass is lost, and stretched where it is gained: trust those places less. "
            "(Frames keep the height of peaks; --render=splat keeps the mass.)",
        )
    if measured.torn > TORN:
        yield Caution(
            True,
            f"{100 * measured.torn:.0f} % of the mass is stretched or squeezed by more than a quarter.",
            "Domains should move as bodies. Look for it in the morph: a part that dissolves and condenses elsewhere "
            "has been taken for another one.",
        )
    if scores.get("consistency", 0) > FOLDED:
        yield Caution(
            True,
            f"The flow carried there and back misses its start by {scores['consistency']:.2f} Å, rms.",
            "It folds somewhere: two places are carried to one, and frames that are pulled back show only one of them. "
            "Another --seed, or --parts where domains slide along each other, may be free of it.",
        )
    if scores.get("target_lacks", 0) > LACKING:
        yield Caution(
            True,
            f"For {100 * scores['target_lacks']:.0f} % of the generated map's mass the target has no density.",
            "A part that the target lacks is let go by the fit, and goes along with what it hangs on: do not read its "
            "place as seen. Below zero in unexplained.mrc is where. Or a motion was not found.",
        )
    if measured.folded > 0:
        yield Caution(
            True,
            f"At {100 * measured.folded:.2g} % of the mass the flow turns volumes inside out.",
            "The determinant of its Jacobian is not positive there: density from several places is laid over each "
            "other. folded.mrc shows where; trust nothing about it.",
        )
    if measured.outside > EDGE:
        yield Caution(
            True,
            f"{100 * measured.outside:.1f} % of the mass is carried out of the box.",
            "It is missing in the generated map: give maps in a larger box.",
        )
    if measured.at_edge > EDGE:
        yield Caution(
            True,
            f"{100 * measured.at_edge:.1f} % of the generated map's mass lies at the sides of the box.",
            "What moves out of the box is cut off: give maps in a larger box.",
        )
    if measured.farthest < STILL:
        yield Caution(
            False,
            f"Nothing moves further than {measured.farthest:.1f} Å.",
            "The maps hardly differ in conformation, or the motion was not found.",
        )


def of_target(config: dict, measured: Measured) -> Iterator[Caution]:
    """What the target map gives to think about."""
    if measured.matched and measured.matched[1] < MATCHED:
        before, after = measured.matched
        yield Caution(
            True,
            f"At the target's resolution the generated map correlates with it by {after:.2f} (before: {before:.2f}).",
            "The rest is noise, density that one of the maps lacks, or a motion that was not found: the slices of the "
            "difference show where.",
        )
    if chosen(config, "quieting_variance"):
        yield Caution(
            True,
            "The target map is noisy.",
            "Its mass was taken from it blurred. In strong noise a part can be missed: does every domain stand in its "
            "place?",
        )
    if BLURRIER <= (chosen(config, "blur_variance") or 0) < 0:  # below that it was doubted before the fit
        yield Caution(
            False,
            "The target map was judged sharper than the initial map.",
            "The generated map has the initial map's detail. The morph the other way round would be sharper.",
        )
    resolution = (config["resolutions"]["targets"] or [None])[number(config)]
    if not resolution or not config["resolutions"]["initial"]:
        yield Caution(
            False,
            "The maps' resolutions were not given.",
            "The blur between the maps was estimated from their spectra; --initial_resolution and --target_resolution "
            "make it certain.",
        )
    finer = f"{resolution:g} Å, the target's resolution," if resolution else "the target's resolution"
    yield Caution(
        False,
        f"All detail finer than {finer} comes from the initial map.",
        "What changes between the states at that scale (side chains, local refolding, a ligand) is carried over, not "
        "predicted.",
    )


def of_run(config: dict, scores: dict) -> Iterator[Caution]:
    """What the settings give to think about."""
    settings = config["settings"]
    if settings["recipe"] == "default" and chosen(config, "start") == "transport":
        yield Caution(
            True,
            "The fit started from mass transport, not from correspondences.",
            "The flow could not follow the correspondences found between the maps, so mass alone decided what goes "
            "where. Parts that look alike may be exchanged: compare with another seed.",
        )
    if setbacks := chosen(config, "setbacks"):
        yield Caution(
            True,
            f"While it was fitted, numbers went wrong {setbacks} times.",
            "The fit went back to an earlier state and on at a lower learning rate. Compare with another --seed, and "
            "see that the maps are sound.",
        )
    if "seed_spread_median" in scores:
        middle, far = scores["seed_spread_median"], scores["seed_spread_95"]
        yield Caution(
            middle > APART[0] or far > APART[1],
            f"Fits from {settings['seeds']} seeds lie {middle:.2f} Å apart (median; {far:.1f} Å at 95 % of the mass).",
            "Where they differ the target does not decide; colour the generated map by seed_spread.mrc to see it. "
            "What all seeds get wrong alike does not show.",
        )
    else:
        yield Caution(
            False,
            "One seed was fitted.",
            "--seeds=3 shows where, and by how many Å, the answer hangs on the seed.",
        )
    if settings["steps"] < 1:
        yield Caution(
            True,
            f"The fit took {100 * settings['steps']:g} % of the recipe's steps.",
            "It may not be finished: fit with --steps=1 before trusting it.",
        )
    if "fsc_before" in scores:
        yield Caution(
            False,
            "Scores against the reference are worth as much as the reference is independent.",
            "They measure the prediction only if the reference was made without it.",
        )


def warnings(found: list[Caution]) -> list[str]:
    """The serious ones, each as a text."""
    return [f"{caution.what} {caution.advice}" for caution in found if caution.serious]


def number(config: dict) -> int:
    """The place of the folder's target among the run's."""
    return config["targets"].index(config["target"])


def target_name(config: dict) -> str | None:
    """The name under which the folder's target stands among the inputs; None where the config does not tell it."""
    given = config["settings"].get("target")
    name = given[number(config)] if given else next(iter(list(config["inputs"])[1:]), None)
    return name if name in config["inputs"] else None


def chosen(config: dict, key: str) -> Any:
    """What was chosen by rule for the folder's target; None where older runs do not say."""
    row, place = config["chosen"].get(key) or [], number(config)
    if key in ("start", "setbacks"):  # of the targets of one process alone, which takes every so manieth
        place //= config.get("processes", 1)
    return row[place] if place < len(row) else None
