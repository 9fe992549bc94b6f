"""Validate the recipes on pairs of models whose answer is known.

python -m experiments.studies.validate --data_dir=PAIRS --pairs=adk,msba --resolutions=3,5,7 --seeds=0 --out_dir=DIR

A pair is a folder in --data_dir with two models and a pair.json: {"initial": file, "target": file, "superpose": bool}.
Both are simulated on a common grid, the initial one at 3 Å. Every case runs in a separate process. If models of the
path between the states are known ("path": {"models": [files]}, or {"frames": an npz with `xyz` (frames, atoms, 3) and
`atom_index`, their rows in the initial model}), the table also has their distance from the nearest frame (mean of the
least RMSD over CA atoms), for the fit and for straight lines from the initial model to the target's.
"""

import itertools
import math
import os
import re
import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from absl import flags

from .. import paths, ranges, tables
from ..main import command_of, show_warnings

FLAGS = flags.FLAGS
FRAMES = 11  # number of frames that a known path is compared with
COLUMNS = {
    "pair": "{}",
    "resolution": "{:g}",
    "signal_to_noise": "{:g}",
    "seed": "{}",
    "recipe": "{}",
    "rmsd_before": "{:.2f}",
    "rmsd_after": "{:.2f}",
    "moved_rmsd_after": "{:.2f}",
    "fsc_before": "{:.2f}",
    "fsc_after": "{:.2f}",
    "path": "{:.2f}",
    "straight_path": "{:.2f}",
    "seconds": "{:.0f}",
    "peak_mib": "{:.0f}",
}
MARKS = "<!-- results: begin -->", "<!-- results: end -->"
GROUP_KEYS = ("pair", "resolution", "signal_to_noise", "recipe")
SUMMARY_KEYS = ("rmsd_after", "moved_rmsd_after", "fsc_after", "path", "straight_path", "seconds", "peak_mib")

SIGNAL_TO_NOISE = ranges.Range(1e-3, math.inf, "inf stands for no noise, and a signal of 0.001 cannot be found")
AT_ONCE = ranges.Range(1, 1000, "each case is a separate process")
RECIPE = re.compile(r"(?P<recipe>default|paper(?:/[1248])?)(?:@(?P<at>[^:]+))?(?::(?P<pair>.+))?")


def define_flags() -> None:
    """Define the flags of this command."""
    paths.define_path("data_dir", "data/pairs", "Folder that holds a folder for each pair.")
    flags.DEFINE_list("pairs", None, "Names of the pairs; all in --data_dir if not given.")
    ranges.numbers("resolutions", [3, 5, 7, 10], "Resolutions of the target map, Å.", ranges.RESOLUTION)
    ranges.whole_numbers("seeds", [0, 1, 2], "Seeds.", ranges.SEED)
    ranges.numbers(
        "signal_to_noise",
        [math.inf],
        "White noise in the whole target map: standard deviation of the density within its contour divided by that "
        "of the noise; inf for none.",
        SIGNAL_TO_NOISE,
    )
    flags.DEFINE_list(
        "recipes",
        ["default"],
        "Recipes: default, paper, or paper/2 for maps binned by 2; paper/2@7:adk only at 7 Å and on that pair.",
    )
    flags.DEFINE_bool("reversed", False, "Morph every pair's target to its initial state instead.")
    paths.define_path("out_dir", "runs/validate", "Folder for validate.md and validate.json.")
    ranges.number("steps", 1.0, "Multiplies the number of steps of every stage.", ranges.STEPS)
    paths.define_path("readme", None, "A Markdown file; the table replaces the text between its marks of results.")
    ranges.whole_number(
        "at_once",
        1,
        "Number of cases run at once, if memory allows; their seconds are then not comparable.",
        AT_ONCE,
    )
    flags.DEFINE_bool("overwrite", False, "Replace the results that the output folder holds.")


def main() -> None:
    """Run all cases; print and write the table, updated after every case."""
    from .. import run_folder

    out_dir = Path(FLAGS.out_dir)
    run_folder.check_unused(out_dir, "validation", "a validation", FLAGS.overwrite)
    cases = plan_cases()
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # so that every case's seconds include compilation
    rows: list[dict] = []
    # One process for each case, so that its seconds include start-up and compilation, and its peak memory is its own.
    with (
        run_folder.growing(out_dir, "validation") as growing,
        ProcessPoolExecutor(
            FLAGS.at_once, get_context("spawn"), initializer=show_warnings, max_tasks_per_child=1
        ) as pool,
    ):
        print(f"{len(cases)} cases, {FLAGS.at_once} at once", flush=True)
        for row in pool.map(measure, *zip(*cases, strict=True)):
            rows.append(row)
            print(tables.styled_row(row, COLUMNS), flush=True)
            write_table(rows, growing)
    print(tables.styled(rows, COLUMNS) + summary(rows))
    if FLAGS.readme:
        insert_table(Path(FLAGS.readme), summary(rows) or tables.styled(rows, COLUMNS))


def plan_cases() -> list[tuple]:
    """Arguments of `measure` for every case that the flags select."""
    from ..pairs import pair_folder

    names = FLAGS.pairs or sorted(path.parent.name for path in Path(FLAGS.data_dir).glob("*/pair.json"))
    folders = {name: str(pair_folder(FLAGS.data_dir, name)) for name in names or ["*"]}
    cases = []
    for name, folder in folders.items():
        for text in FLAGS.recipes:
            recipe, at, pair = parse_recipe(text)
            if pair and pair != name:
                continue
            every = itertools.product([at] if at else FLAGS.resolutions, FLAGS.signal_to_noise, FLAGS.seeds)
            cases += [(folder, name, r, noise, seed, recipe, FLAGS.steps, FLAGS.reversed) for r, noise, seed in every]
    return cases


def parse_recipe(text: str) -> tuple[str, float | None, str | None]:
    """Parse one of --recipes, such as paper/2@7:adk.

    Returns:
        The recipe with its bin (paper/2), the resolution (Å) and the pair that it applies to; None stands for all.
    """
    from cryotrans_jax.io.files import InputError

    if not (match := RECIPE.fullmatch(text)):
        raise InputError(f"--recipes={text} is not RECIPE/BIN@RESOLUTION:PAIR: give default, paper, or paper/2@7:adk")
    try:
        return match["recipe"], match["at"] and ranges.RESOLUTION.number(match["at"]), match["pair"]
    except ValueError as error:
        raise InputError(f"--recipes={text}: the resolution {match['at']} {error}") from None


def measure(
    folder: str, pair: str, resolution: float, noise: float, seed: int, recipe: str, steps: float, back: bool
) -> dict:
    """Run one case.

    Args:
        resolution: resolution of the target map, Å.
        noise: signal to noise of the target; inf for no noise.
        recipe: recipe with its bin, such as paper/2.
        steps: factor on the number of steps of every stage.
        back: whether to morph the pair's target to its initial state.

    Returns:
        A row of the table: the scores, and the seconds and peak memory of this whole process.
    """
    import time

    begin = time.perf_counter()
    from cryotrans_jax.io import memory

    from .. import results, score
    from ..pairs import load_pair
    from ..settings import FitSettings

    case = load_pair(Path(folder), resolution, back)
    case.targets = [add_noise(target, noise) for target in case.targets]
    name, _, bin_ = recipe.partition("/")
    fit = results.fit_case(case, FitSettings(name, seed, steps, int(bin_ or 1)))
    generated = fit.generated()
    scores = score.score(fit, case, 0, generated)
    if not back:
        scores |= path_scores(fit, case, Path(folder))
    row = {"pair": f"{pair}, back" if back else pair, "resolution": resolution, "signal_to_noise": noise}
    row |= {"seed": seed, "recipe": recipe}
    measured = {"seconds": time.perf_counter() - begin, "peak_mib": memory.peak() / 2**20}
    return row | {key: scores[key] for key in COLUMNS if key in scores} | measured


def add_noise(map_, signal_to_noise: float):
    """Add white noise, always the same; the density in the contour has `signal_to_noise` times its deviation."""
    from dataclasses import replace

    import numpy as np

    from cryotrans_jax.density.thresholds import choose_threshold

    density = map_.density
    strength = density[density > choose_threshold(density)].std() / signal_to_noise
    noise = np.random.default_rng(0).standard_normal(density.shape, np.float32)
    return replace(map_, density=density + np.float32(strength) * noise)


def path_scores(fit, case, folder: Path) -> dict:
    """Distances (Å) of the known path from the fit's frames and from straight lines; empty if none is known."""
    import numpy as np

    from cryotrans_jax.fit import trajectory
    from cryotrans_jax.io import atoms
    from cryotrans_jax.scores import metrics

    from ..pairs import known_path

    path = known_path(folder, case.model)
    if not path:
        return {}
    times = trajectory.frame_times(FRAMES)
    every = atoms.common_ca(case.model, case.references[0], *fit.move(case.model, times), *path)
    (start, end), frames, path = every[:2], np.stack(every[2 : 2 + FRAMES]), np.stack(every[2 + FRAMES :])
    straight = start + times[:, None, None] * (end - start)
    return {"path": metrics.path_distance(frames, path), "straight_path": metrics.path_distance(straight, path)}


def write_table(rows: list[dict], out_dir: Path) -> None:
    """Write validate.json and validate.md into the folder."""
    from cryotrans_jax.io.files import write_file

    from ..run_folder import write_json

    write_json(out_dir / "validate.json", rows)
    write_file(out_dir / "validate.md", tables.styled(rows, COLUMNS) + summary(rows))


def insert_table(path: Path, text: str) -> None:
    """Replace the text between the marks in the file by the command and this text."""
    from cryotrans_jax.io.files import write_file

    before, _, after = tables.parted(path, *MARKS)
    names = ("pairs", "resolutions", "signal_to_noise", "seeds", "recipes")
    given = [FLAGS[name].serialize() for name in names]
    command = (
        f"    python -m experiments.studies.validate --data_dir=PAIRS {' '.join(given)} --readme={path.as_posix()}"
    )
    write_file(path, f"{before}\n{command}\n\n{text}{after}")


def summary(rows: list[dict]) -> str:
    """Markdown table of the median and the worst of the seeds of each case; empty with one seed."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in GROUP_KEYS), []).append(row)
    if all(len(group) == 1 for group in groups.values()):
        return ""
    lines = []
    for names, group in groups.items():
        cells = [COLUMNS[key].format(value) for key, value in zip(GROUP_KEYS, names, strict=True)] + [str(len(group))]
        for key in SUMMARY_KEYS:
            values = [row[key] for row in group if key in row]
            style = COLUMNS[key] if values else ""
            cells.append(f"{style.format(statistics.median(values))}, {style.format(max(values))}" if values else "")
        lines.append(cells)
    heads = (*GROUP_KEYS, "seeds", *(f"{key}: median, worst" for key in SUMMARY_KEYS))
    return "\n" + tables.markdown(heads, lines)


command = command_of(main, define_flags)

if __name__ == "__main__":
    command()
