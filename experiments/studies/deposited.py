"""Validation on maps as deposited: both maps of a pair are simulated with noise, written, and fitted as a user's are.

The initial map and the target have their own noise, B-factors, voxels and scale, and the target has another pose. The
carried model is scored after it was superposed on that of the target state, as the pose is not part of the answer. In
all scores C4' represents a nucleotide as CA represents an amino acid, so that a CA RMSD includes both; only the
distances of consecutive CA atoms are those of proteins alone.
"""

import contextlib
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
from scipy import stats

from cryotrans_jax.density import similarity
from cryotrans_jax.density.simulation import simulate
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.io import atoms, cores, memory
from cryotrans_jax.io.files import InputError, write_file
from cryotrans_jax.io.maps import Map, read_map
from cryotrans_jax.scores import geometry, metrics, qscore

from .. import load, results, run_folder, tables
from ..main import show_warnings
from ..settings import FitSettings
from . import evidence, peers
from .calibration import LARGE, SMALL, most_rmsd, rms
from .deposited_cases import PEER, SUFFIXES, Trial, deposit_target, in_pose, simulate_inputs, write_inputs

RESOLUTIONS = (4.0, 6.0, 8.0, 10.0)  # of the targets, Å
BACKBONE = 5.5  # heavy atoms a residue: with fewer a model has no side chains
COLUMNS = {
    "pair": "{}",
    "direction": "{}",
    "resolution": "{:g}",
    "seed": "{}",
    "recipe": "{}",
    "rmsd_before": "{:.2f}",
    "rmsd_after": "{:.2f}",
    "displaced": "{:.2f}",
    "ca_bonds": "{:.2f}",
    "stretched": "{:.2f}",
    "detail": "{:.2f}",
    "correlation": "{:.3f}",
    "seconds": "{:.0f}",
    "peak_mib": "{:.0f}",
    "success": "{}",
    "failed": "{}",
}
FAILURES = {key: COLUMNS[key] for key in [*COLUMNS][:7]}
SUMMARY = (
    "recipe", "resolution", "cases", f"success (moves > {LARGE:g} Å)", "95 % interval",
    "median rmsd_after of successes", f"not made worse (moves < {SMALL:g} Å)",
    "median ca_bonds", "median stretched", "median detail",
)  # fmt: skip


def study(trials: Sequence[Trial], out_dir: Path, at_once: int, overwrite: bool) -> str:
    """Run all trials that the folder has no rows of, and write validate.json and validate.md after each.

    Every trial has a process of its own, so that its memory is its own and its end is not that of the study.

    Args:
        trials: the cases.
        out_dir: the folder; a study that was stopped continues from the rows in it.
        at_once: number of trials that run at the same time.
        overwrite: whether to begin anew, and replace rows of other trials.

    Returns:
        The summary.
    """
    rows = {} if overwrite else earlier_rows(out_dir, trials)
    again = {trial for trial in trials if trial.written}  # the program may have written more since
    rows = {trial: row for trial, row in rows.items() if trial not in again}
    left = [trial for trial in trials if trial not in rows]
    states = {trial.states: trial for trial in left}
    known = {state: describe(trial) for state, trial in states.items()}
    free = cores.shares(at_once)
    with (
        run_folder.growing(out_dir, "validation") as growing,
        ThreadPoolExecutor(at_once, initializer=lambda: cores.bind(0, free.pop())) as pool,  # and so its processes
        contextlib.ExitStack() as ending,
    ):
        ending.callback(pool.shutdown, cancel_futures=True)  # where the block fails, start no further case
        print(f"{len(trials)} cases, {at_once} at once; {len(rows)} are done", flush=True)
        write(in_order(rows, trials), growing)
        for trial, scores in zip(left, pool.map(measure_apart, left), strict=True):
            rows[trial] = asdict(trial) | known[trial.states] | scores
            print(tables.styled_row(rows[trial], COLUMNS), flush=True)
            write(in_order(rows, trials), growing)
    return summary(in_order(rows, trials))


def keep_inputs(trials: Sequence[Trial], out_dir: Path, overwrite: bool) -> None:
    """Write what every method is given in each case into a folder of its own in out_dir/maps, unless it is there.

    Raises:
        InputError: the folder holds rows of other cases, which `study` would refuse too.
    """
    if not overwrite:
        earlier_rows(out_dir, trials)
    with run_folder.claimed(out_dir, inside=["maps"], kinds=["validation"]):
        for trial in {trial.case: trial for trial in trials}.values():
            place = out_dir / "maps" / trial.case
            if overwrite or not any((place / f"start{suffix}").is_file() for suffix in SUFFIXES):
                print(f"maps of {trial.case}", flush=True)
                write_inputs(trial, place)


def in_order(rows: dict[Trial, dict], trials: Sequence[Trial]) -> list[dict]:
    """The rows that there are, in the order of the trials."""
    return [rows[trial] for trial in trials if trial in rows]


def earlier_rows(out_dir: Path, trials: Sequence[Trial]) -> dict[Trial, dict]:
    """Read the rows of trials that a finished or stopped study wrote to the folder.

    Raises:
        InputError: they are of another kind, or of trials that are not among these.
    """
    paths = [path for path in (out_dir / "partial" / "validate.json", out_dir / "validate.json") if path.is_file()]
    if not paths:
        return {}
    wrong = f"{paths[0]} holds other cases than these: give another --out_dir, or --overwrite to replace them"
    try:
        found = json.loads(paths[0].read_bytes())
        named = [key.name for key in fields(Trial) if key.compare]
        rows = {Trial(**{name: row[name] for name in named if name in row}): row for row in found}
    except (ValueError, KeyError, TypeError):
        raise InputError(wrong) from None
    if not rows.keys() <= set(trials):
        raise InputError(wrong)
    return rows


def describe(trial: Trial) -> dict[str, float]:
    """CA RMSD of the two states (`rmsd_before`, Å), and heavy atoms a residue of the model that is carried."""
    start, end = trial.models()
    count = len(atoms.heavy_atoms(start)[1]) / len(atoms.common_ca(start)[0])
    return {"rmsd_before": rms(ca_distances(start, end)), "atoms_per_residue": count}


def measure_apart(trial: Trial) -> dict[str, Any]:
    """Run a trial in a process of its own; where it fails, `failed` says why."""
    try:
        with ProcessPoolExecutor(1, get_context("spawn"), initializer=show_warnings) as pool:
            return pool.submit(measure, trial).result()
    except BrokenProcessPool:
        return {"failed": "its process was killed, perhaps for want of memory", "success": False}
    except Exception as error:
        words = " ".join(str(error).split()) or "no message"
        return {"failed": words if isinstance(error, InputError) else f"{type(error).__name__}: {words}"} | {
            "success": False
        }


def measure(trial: Trial) -> dict[str, Any]:
    """Simulate the maps of a trial, fit them or have another method do so, and score the carried model.

    Returns:
        The scores, with the correlation of the target map with the map of the model superposed on the true one, at the
        target's resolution; the seconds of loading and fitting with compilation; and the peak memory of this process.
    """
    start, end = trial.models()
    posed = in_pose(trial, end)
    moved, target, seconds, more = (
        (*move_by_peer(trial, start, posed), {}) if trial.peer else move_by_fit(trial, start, end)
    )
    there = simulate(atoms.superpose(moved, posed), trial.resolution, like=target)
    scores = score(start, moved, end, trial.resolution) | more
    scores["correlation"] = similarity.correlation(there.density, target.density)
    cost = {"seconds": seconds, "peak_mib": memory.peak() / 2**20}
    return scores | ({} if trial.written else cost)  # what it cost another program is not known


def move_by_fit(
    trial: Trial, start: gemmi.Structure, end: gemmi.Structure
) -> tuple[gemmi.Structure, Map, float, dict[str, Any]]:
    """Fit the maps by a recipe of ours.

    Returns:
        The carried model, idealised; the target map; the seconds; and how well the carried map is kept: the fraction of
        the mass that is stretched, and its detail, which is the Q-score of the true model superposed on the carried one
        in the generated map, relative to that of the initial model in the initial map; and the evidence of the errors
        of its residues, with these.
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs = simulate_inputs(trial, start, end, Path(folder))
        begin = time.perf_counter()
        case = load.load_case(inputs, Path(folder))
        name, _, bin_ = trial.recipe.partition("/")
        fit: Fit = results.fit_case(case, FitSettings(name, trial.seed, trial.steps, int(bin_ or 1)))
        assert case.model is not None
        moved = idealised(case.model, fit.move(case.model))
        seconds = time.perf_counter() - begin
        own, there = qscore.q_score(case.initial, case.model), atoms.superpose(end, moved)
        kept = {"stretched": fit.stretched_fraction(), "detail": qscore.q_score(fit.generated(), there) / own}
        truth = case.alignments[0].transform.move(in_pose(trial, end))
        kept["residues"] = evidence.of_residues(fit, case, moved, truth)
        return moved, read_map(inputs.target[0]), seconds, kept


def move_by_peer(trial: Trial, start: gemmi.Structure, posed: gemmi.Structure) -> tuple[gemmi.Structure, Map, float]:
    """Read the model that another program wrote, or make that of another method; with the target map, and seconds."""
    target = deposit_target(trial, posed).map
    begin = time.perf_counter()
    if trial.written:
        moved = peers.read_written(Path(trial.written), trial.case, start)
    else:
        moved = peers.PEERS[trial.peer](atoms.superpose(start, posed), posed, target, trial.resolution)
    return moved, target, time.perf_counter() - begin


def idealised(model: gemmi.Structure, moved: gemmi.Structure) -> gemmi.Structure:
    """The carried model with bonds and angles restored, as a run writes it."""
    return atoms.with_positions(moved, geometry.idealise(geometry.topology(model), atoms.positions(moved)))


def score(model: gemmi.Structure, moved: gemmi.Structure, truth: gemmi.Structure, resolution: float) -> dict[str, Any]:
    """Score a carried model against that of the target state, on which it is superposed.

    Returns:
        CA RMSD before and after (Å), the share of residues displaced by more than 3 Å after, the share of consecutive
        CA atoms at the distance of a peptide (absent without any), and whether the fit is a success.
    """
    before, after = (ca_distances(each, truth) for each in (model, moved))
    ca_bonds = share_of_ca_bonds(model, moved)
    return {
        "rmsd_before": rms(before),
        "rmsd_after": rms(after),
        "displaced": float(np.mean(after > metrics.MOVED)),
        **({} if math.isnan(ca_bonds) else {"ca_bonds": ca_bonds}),
        "success": succeeded(rms(before), rms(after), resolution),
    }


def ca_distances(model: gemmi.Structure, truth: gemmi.Structure) -> np.ndarray:
    """Distances (Å) of the CA atoms that two models have in common, after superposition by least squares."""
    return np.linalg.norm(np.subtract(*atoms.common_ca(truth, atoms.superpose(model, truth))), axis=1)


def share_of_ca_bonds(model: gemmi.Structure, moved: gemmi.Structure) -> float:
    """Share of CA atoms that follow one another in a model and are at a peptide's distance when moved; NaN without any.

    The moved model may lack atoms, or have others besides.
    """
    first, last = (np.linalg.norm(np.diff(xyz, axis=0), axis=1) for xyz in atoms.common_ca(model, moved))
    off = np.abs(last[first < geometry.NEXT] - geometry.CA_CA)
    return float(np.mean(off <= geometry.CA_SLACK)) if len(off) else math.nan


def succeeded(before: float, after: float, resolution: float) -> bool:
    """Whether a fit is a success, by the CA RMSD (Å) before and after it and the target's resolution (Å).

    A motion is to be found but for a quarter and for 1.5 Å, or 2.5 Å from 8 Å resolution on. Where the states are
    nearer than SMALL there is little to be found, and nothing is to be made worse.
    """
    if before < SMALL:
        return after <= 1.1 * before + 0.2
    return after <= min(before / 4, most_rmsd(resolution))


def write(rows: Sequence[dict], out_dir: Path) -> None:
    """Write validate.json and validate.md into the folder."""
    run_folder.write_json(out_dir / "validate.json", rows)
    write_file(out_dir / "validate.md", f"{summary(rows)}\n## Cases\n\n{tables.styled(rows, COLUMNS)}")


def summary(rows: Sequence[dict]) -> str:
    """Markdown: success by resolution, and the failures one by one; empty without rows."""
    if not rows:
        return ""
    groups = sorted({(row["recipe"], row["resolution"]) for row in rows})
    lines = (summary_line([row for row in rows if (row["recipe"], row["resolution"]) == group]) for group in groups)
    text = tables.markdown(SUMMARY, lines) + "".join(f"\n{note}\n" for note in notes(rows))
    failures = [row for row in rows if not row["success"]]
    reasons = [f"{row['pair']}, {row['direction']}, {row['resolution']:g} Å, seed {row['seed']}: " for row in failures]
    why = [f"- {where}{row['failed']}\n" for where, row in zip(reasons, failures, strict=True) if "failed" in row]
    listed = tables.styled(failures, FAILURES) if failures else "None.\n"
    return f"{text}\n## Failures\n\n{listed}" + ("\nWithout a result:\n\n" + "".join(why) if why else "")


def summary_line(rows: Sequence[dict]) -> list[str]:
    """Cells of the summary for the rows of one recipe and resolution; a case without a result is a failure."""
    large = [row for row in rows if row["rmsd_before"] > LARGE]
    small = [row for row in rows if row["rmsd_before"] < SMALL]
    found = [row["rmsd_after"] for row in large if row["success"]]
    interval = ""
    if large:
        low, high = stats.binomtest(len(found), len(large)).proportion_ci(method="wilson")
        interval = f"{100 * low:.0f} to {100 * high:.0f} %"
    return [
        rows[0]["recipe"],
        f"{rows[0]['resolution']:g}",
        str(len(rows)),
        rate(len(found), len(large)),
        interval,
        f"{statistics.median(found):.2f}" if found else "",
        rate(sum(row["success"] for row in small), len(small)),
        *(median_of(rows, name) for name in ("ca_bonds", "stretched", "detail")),
    ]


def median_of(rows: Sequence[dict], name: str) -> str:
    """Median of a score over the rows that have it; empty where none has."""
    values = [row[name] for row in rows if name in row]
    return f"{statistics.median(values):.2f}" if values else ""


def rate(count: int, of: int) -> str:
    """Share in percent, with its numbers; empty where there are no cases."""
    return f"{100 * count / of:.0f} % ({count} of {of})" if of else ""


def notes(rows: Sequence[dict]) -> Iterator[str]:
    """Sentences below the summary: how the maps were made, and which models are backbones."""
    halves = "with" if rows[0]["half_maps"] else "without"
    yield f"Maps as deposited, the initial one at {rows[0]['initial_resolution']:g} Å, fitted {halves} half-maps."
    if any(row["recipe"].startswith(PEER) for row in rows):
        yield "Peers begin with the initial model superposed on the true one; our fits find the pose themselves."
    if belts := sorted({row["pair"] for row in rows if row["belt"]}):
        yield f"With a belt of detergent in both maps: {', '.join(belts)}."
    if lacking := rows[0].get("lacking"):
        yield f"The targets lack {100 * lacking:.0f} % of the residues, on one side; the others are scored."
    if extra := rows[0].get("extra"):
        yield f"The targets have a further protein in contact, of {extra:g} times the molecule's mass."
    if bare := sorted({row["pair"] for row in rows if row["atoms_per_residue"] < BACKBONE}):
        yield f"Models without side chains, so that their maps are of backbones: {', '.join(bare)}."
