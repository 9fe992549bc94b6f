"""Every line that the product commands print: results on stdout, warnings and errors on stderr.

A line is `label: value unit`, several scores are one aligned table, and a warning says what was found, then what to do.
Commands are named as the user types them.
"""

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .score_rows import Score

# A command, as texts in the code name it.
COMMAND = re.compile(r"(?<![\w./-])(?:python -m )?experiments\.((?:studies\.)?\w+)")
PROGRAM = "cryotrans"  # the installed program; its commands are installed by themselves as well, as "cryotrans-run"
WITHHELD = (
    "{region}, hidden from the fit: {apart:.1f} Å (median) from where the whole target puts it",
    "  predicted error: {predicted_error:.1f} Å; share within its bound for 90 %: {within_90:.2f}",
    "  correlation with what was hidden: {correlation_without:.2f} (before {correlation_before:.2f}, whole target "
    "{correlation_with:.2f})",
)
SIGNIFICANT = 3  # digits of a volume


class Level(NamedTuple):
    """A density level of a map, how it was chosen, and the volume (Å³) and fraction of the mass that it encloses."""

    value: float
    chosen: str
    volume: float
    mass: float


class RigidBody(NamedTuple):
    """Motion of a rigid body.

    Attributes:
        mass: its fraction of the mass.
        rotation: in degrees.
        translation: in Å.
        deviation: RMS deviation from rigid-body motion (Å).
        copies: number of its symmetry mates, itself included.
        error: predicted error of its place (Å); None where errors were not predicted.
    """

    mass: float
    rotation: float
    translation: float
    deviation: float
    copies: int = 1
    error: float | None = None


def commands_as_typed(text: str) -> str:
    """Name the commands in a text as the user starts them, which is how the running one was started.

    In a checkout that is `python -m experiments.run`, as texts in the code have it; else `cryotrans run` or
    `cryotrans-run`. Studies are not installed as commands.
    """
    name = Path(sys.argv[0]).name
    installed = next((start for start in (f"{PROGRAM} ", f"{PROGRAM}-") if name.startswith(start)), None)
    if __package__ == "experiments" and not installed:
        return text

    def typed(match: re.Match) -> str:
        if not Path(__file__).parent.joinpath(*match[1].split(".")).with_suffix(".py").is_file():
            return match[0]
        return f"{installed if installed and '.' not in match[1] else f'python -m {__package__}.'}{match[1]}"

    return COMMAND.sub(typed, text)


def info(text: str) -> None:
    """Print text to stdout; if the program that reads it has ended, as `head` does, the work goes on without it."""
    try:
        print(commands_as_typed(text), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def version() -> None:
    """Print the version of the package."""
    import cryotrans_jax

    info(f"cryotrans-jax {cryotrans_jax.__version__}")


def warning(text: str) -> None:
    """Print a warning to stderr, at once."""
    print(commands_as_typed(f"warning: {text}"), file=sys.stderr, flush=True)


def error(text: str) -> None:
    """Print why the program ends to stderr, in one line without the control characters of file names and servers."""
    line = " ".join(commands_as_typed(text).split())
    line = "".join(each if each.isprintable() else "?" for each in line)
    print(f"error: {line}", file=sys.stderr, flush=True)


# Inputs


def built_in_pair(folder: Path) -> None:
    """Say that the run works on the built-in pair, and where its files are."""
    info(f"input: no maps given, built-in pair written to {folder}")


def target_skipped(target: str, reason: str) -> None:
    """Warn that one of several targets is not fitted."""
    warning(f"target {target} skipped: {reason}")


def resolution_doubtful(file: str, resolution: float, fault: str, flag: str) -> None:
    """Warn that a map can hardly have the resolution (Å) that is recorded for it, which a flag may correct."""
    warning(f"resolution of {file}, {resolution:g} Å, {fault}: if it is another, give it as {flag}")


def micelle_removed(file: str, fraction: float, mask: Path) -> None:
    """Say what fraction of a map's density was taken for a micelle, and which mask leaves it out."""
    info(f"{file}: micelle removed, {100 * fraction:.0f} % of the density (mask: {mask}; --micelle=keep to keep it)")


def alignment(file: str, status: str, overlap: float | None, resolution: float | None) -> None:
    """Say how a target lies; its overlap with the initial map is the correlation at a resolution (Å)."""
    measured = f", overlap with the initial map at {resolution:.0f} Å: {overlap:.3f}" if overlap is not None else ""
    info(f"alignment of {file}: {status}{measured}")


def alignment_motion(rotation: float, translation: float, overlap_before: float) -> None:
    """Say by how much (degrees, Å) a target was moved, and what its overlap with the initial map had been."""
    info(f"  rotation {rotation:.1f}°, translation {translation:.1f} Å, overlap before: {overlap_before:.3f}")


def alignment_poor(file: str, correlation: float, resolution: float) -> None:
    """Warn that no pose of a target fits the initial map at this resolution (Å)."""
    warning(
        f"{file} fits the initial map poorly in any pose (correlation {correlation:.2f} at {resolution:.0f} Å): check "
        "its voxel size and its hand (--check_hand)"
    )


def mass_outside_box(file: str, inside: float) -> None:
    """Warn that only this fraction of a target's mass lies in the initial map's box."""
    warning(f"only {100 * inside:.0f} % of the mass of {file} lies in the initial map's box: pad the initial map")


def hand(file: str, wrong: bool, mirrored: float, correlation: float) -> None:
    """Say, or warn where it is wrong, how a target and its mirror image correlate with the initial map."""
    compared = f"correlation {mirrored:.2f}, the map itself {correlation:.2f}"
    if wrong:
        warning(f"the mirror image of {file} fits the initial map clearly better ({compared}): flip the map's hand")
    else:
        info(f"hand of {file}: consistent with the initial map (mirror image: {compared})")


# The fit


def memory(least: float, most: float, available: float) -> None:
    """Print how many bytes of memory a run takes, and how many there are."""
    info(f"memory needed: {_range(least, most)} GiB ({available / 2**30:.1f} GiB available)")


def memory_short(least: float, most: float, available: float, advice: str) -> None:
    """Warn that the bytes available may be too few."""
    warning(
        f"memory needed: {_range(least, most)} GiB, of which {available / 2**30:.1f} GiB are available: if the run is "
        f"killed, {advice}"
    )


def map_levels(name: str, threshold: Level, contour: Level | None = None) -> None:
    """Print at which level a map is fitted and at which to display it."""
    info(f"{name}:")
    info(f"  threshold:        {_level(threshold)}")
    if contour is not None:
        info(f"  display contour:  {_level(contour)}")


def molecular_volume(volume: float, resolution: float, kda: float) -> None:
    """Print the volume (Å³) of a map's molecule, filtered to a resolution (Å), and the protein mass that fills it."""
    info(f"  molecular volume: {_volume(volume)} at {resolution:g} Å resolution, {kda:.3g} kDa of protein")


def map_doubtful(name: str, fault: str) -> None:
    """Warn of the density that is fitted."""
    warning(f"{name}: {fault}: give --mask, --mass_kda or another threshold")


def symmetry(name: str, centre: Iterable[float]) -> None:
    """Print the symmetry that the flow keeps, and the point (Å) about which."""
    about = ", ".join(f"{round(c, 1) + 0.0:.1f}" for c in centre)
    info(f"symmetry: {name} about ({about}) Å, kept by the flow")


def target_filtered(target: str, sigma: float, noisy: bool) -> None:
    """Say that a target's mass is taken after a low-pass filter, a Gaussian of standard deviation sigma (Å)."""
    info(f"{target}: {'noisy, ' * noisy}low-pass filtered by a Gaussian of {sigma:.1f} Å before its mass is taken")


def blur(target: str, variance: float) -> None:
    """Print the blur (variance in Å²) of a target relative to the initial map; negative where the target is sharper."""
    blurred, sharp = (target, "initial map") if variance >= 0 else ("initial map", target)
    info(f"blur of the {blurred}: Gaussian of {abs(variance) ** 0.5:.2f} Å relative to the {sharp}")


def target_sharpened(target: str, sigma: float) -> None:
    """Say that a target with little noise is sharpened, by the inverse of a Gaussian of deviation sigma (Å)."""
    info(f"sharpening of the {target}: Gaussian of {sigma:.2f} Å deconvolved for the fit, as its noise is low")


def no_target() -> None:
    """Say that this process has no target to fit."""
    info("targets of this process: 0, as there are more processes than targets")


def run_resumed(place: str, seed: int, folder: Path) -> None:
    """Say from where a run continues."""
    info(f"Run resumed from {place} (seed {seed}, {folder}).")


def checkpoint_failed(reason: str) -> None:
    """Warn that the state of the fit is not on disk."""
    warning(f"the state of the fit could not be saved ({reason}): free disk space, the fit continues")


def target_warning(target: str, text: str) -> None:
    """Warn of one target's fit or result."""
    warning(f"{target}: {text}")


def withholding(region: str, number: int, count: int) -> None:
    """Say which region of the target is hidden from the next fit."""
    info(f"test {number} of {count}: {region} is hidden, and the fit repeated")


# Results


def verdict(target: str, text: str) -> None:
    """Print the verdict on a result."""
    info(f"{target}: {text}.")


def scores(target: str, rows: Sequence[Score]) -> None:
    """Print the scores of the initial and of the generated map as an aligned table."""
    table = [Score(target, "initial", "generated"), *(row._replace(label=f"  {row.label}") for row in rows)]
    name, width = max(len(row.label) for row in table), max(len(cell) for row in table for cell in row[1:])
    for label, initial, generated in table:
        info(f"{label:{name}}  {initial:>{width}}  {generated:>{width}}")


def rigid_bodies(kind: str, bodies: Sequence[RigidBody]) -> None:
    """Print how rigid bodies that were found, or parts that were given, move; `kind` is "rigid body" or "part"."""
    columns = {
        kind: [f"{number}" for number in range(1, 1 + len(bodies))],
        "copies": [f"{body.copies}" for body in bodies if any(each.copies > 1 for each in bodies)],
        "mass [%]": [f"{100 * body.mass:.0f}" for body in bodies],
        "rotation [°]": [f"{body.rotation:.1f}" for body in bodies],
        "translation [Å]": [f"{body.translation:.1f}" for body in bodies],
        "RMS deviation from rigid-body motion [Å]": [f"{body.deviation:.2f}" for body in bodies],
        "predicted error [Å]": [f"{body.error:.1f}" for body in bodies if body.error is not None],
    }
    known = {head: cells for head, cells in columns.items() if len(cells) == len(bodies)}
    for row in zip(*([head, *cells] for head, cells in known.items()), strict=True):
        info("  ".join(f"{cell:>{len(head)}}" for cell, head in zip(row, known, strict=True)))


def result_frame(which: str, rotation: float | None, translation: float | None) -> None:
    """Say in which frame a result is, and what motion (degrees, Å) of the still body was taken out for it."""
    info(f"frame of the result: {which}")
    if rotation is not None:
        info(f"  in the frame of the alignment: rotation {rotation:.1f}°, translation {translation:.1f} Å")


def seed_spread(median: float, far: float) -> None:
    """Print how far apart (Å) fits from several seeds carry the same density: the median and 95th percentile."""
    info(f"spread between seeds: median {median:.2f} Å, 95th percentile {far:.2f} Å")


def withheld(found: Mapping[str, Any]) -> None:
    """Print what became of a region that was hidden from a fit, as from `withhold.compare`."""
    for line in WITHHELD:
        info(line.format_map(found))


def trajectory_in_mmcif(reason: str) -> None:
    """Say that the trajectory is no PDB file."""
    info(f"trajectory format: mmCIF (trajectory.cif), as the PDB format cannot hold the model: {reason}")


def results_written(folder: Path, report: bool, targets: int) -> None:
    """Say where the results are, and what to open."""
    info(f"results: {folder}")
    place = folder if targets == 1 else folder / "<target>"
    page = f"{place / 'report.html'} in a browser, or " if report else ""
    info(f"open {page}{place / 'view.cxc'} in ChimeraX")


def frames_written(count: int, folder: Path) -> None:
    """Say where frames are, and how to look at them."""
    info(f"frames: {count} in {folder}")
    info(f"in ChimeraX: open {folder / 'frame_*.mrc'}" + " vseries true" * (count > 1))


def report_written(path: Path) -> None:
    """Say where a report is."""
    info(f"report: {path}, open it in a browser")


def model_written(path: Path) -> None:
    """Say where the model of a simulated map is."""
    info(f"{path}: the model in the frame of the map")


def map_written(path: str, description: str, resolution: float) -> None:
    """Say what a simulated map is, with its resolution in Å."""
    info(f"{path}: {description}, resolution {resolution:g} Å")


# Folders and files


def lock_taken_over(path: Path) -> None:
    """Say that the lock of a program that has ended was taken over."""
    info(f"lock taken over from a program that has ended: {path}")


def results_restored(folder: Path) -> None:
    """Say that results which a killed command was replacing are in their place again."""
    info(f"results restored in {folder}, as the command that was replacing them was killed")


def file_fetched(path: Path, size: int) -> None:
    """Say that a file of this size in bytes was fetched."""
    info(f"{path}: fetched, {size / 1e6:.1f} MB")


def file_present(path: Path, checked: bool = True) -> None:
    """Say that a file is not fetched because it is there; only what this program fetched can be checked."""
    info(f"{path}: already there" + ", not fetched by this program and not checked" * (not checked))


def part_missing(entry: str, part: str) -> None:
    """Say that an entry of an archive has no files of a kind."""
    info(f"{entry}: no {part} in the archive")


def digest_invalid(algorithm: str) -> None:
    """Warn that a server announces something that is no digest."""
    warning(f"the server's {algorithm} is not a digest: only the length and the format of the file are checked")


def _level(level: Level) -> str:
    """A level with what it encloses."""
    return f"{level.value:.4g} ({level.chosen}), {100 * level.mass:.1f} % of the mass in {_volume(level.volume)}"


def _volume(value: float) -> str:
    """A volume (Å³), to as many digits as are known."""
    unknown = max(len(f"{value:.0f}") - SIGNIFICANT, 0)
    return f"{round(value, -unknown):.0f} Å³"


def _range(least: float, most: float) -> str:
    """Two numbers of bytes, in GiB."""
    return f"{least / 2**30:.1f} to {most / 2**30:.1f}"
