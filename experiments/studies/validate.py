"""Validate the recipes on pairs of models whose answer is known.

python -m experiments.studies.validate --data_dir=PAIRS --pairs=adk,msba --resolutions=3,5,7 --seeds=0 --out_dir=DIR

A pair is a folder in --data_dir with two models and a pair.json: {"initial": file, "target": file, "superpose": bool}.
Both are simulated on a common grid, the initial one at 3 Å. Every case runs in a separate process. If models of the
path between the states are known ("path": {"models": [files]}, or {"frames": an npz with `xyz` (frames, atoms, 3) and
`atom_index`, their rows in the initial model}), the table also has their distance from the nearest frame (mean of the
least RMSD over CA atoms), for the fit and for straight lines from the initial model to the target's.

python -m experiments.studies.validate --as_deposited --data_dir=PAIRS --directions=forward,back --out_dir=DIR

Both maps are then simulated with noise, as reconstructions are deposited (deposited.py), and the table has the rate of
success at each resolution. A study that was stopped continues where it was when the command is given again. Other
methods come into the same table: --peers computes them, --models_of reads the models that other programs wrote for the
maps that --keep_maps writes (peers.py).
"""

import contextlib
import itertools
import math
import os
import re
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from .. import paths, ranges, tables
from ..main import command_of, show_warnings
from ..usage import group

if TYPE_CHECKING:
    from .deposited_cases import Trial

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

DIRECTIONS = ("forward", "back", "still")
SELECTING = ("pairs", "directions", "resolutions", "seeds", "recipes")  # flags that a table's command names
DEPOSITED = ("initial_resolution", "belt", "half_maps", "extra", "lacking", "peers", "models_of", "keep_maps")

SIGNAL_TO_NOISE = ranges.Range(1e-3, math.inf, "inf stands for no noise, and a signal of 0.001 cannot be found")
LACKING = ranges.Range(0, 0.9, "the target must show a tenth of the molecule at least")
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
    flags.DEFINE_list(
        "directions",
        ["forward"],
        "forward, back (from the target state to the initial one), still (nothing moves: both maps are of the initial "
        "state; only with --as_deposited), or several, as in forward,back.",
    )
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
    define_deposited()


@group("As deposited")
def define_deposited() -> None:
    """Define the flags of maps as reconstructions are deposited."""
    flags.DEFINE_bool(
        "as_deposited",
        False,
        "Simulate both maps as deposited, the target in another pose; --resolutions are 4,6,8,10 if not given.",
    )
    ranges.number("initial_resolution", 3.2, "Resolution of the initial map, Å.", ranges.RESOLUTION)
    flags.DEFINE_list("belt", [], "Names of the pairs that have a belt of detergent in both maps.")
    flags.DEFINE_bool("half_maps", False, "Give the target's half-maps to the fit.")
    ranges.number("extra", 0.0, "Mass of a further protein in contact in the target, relative.", ranges.SHARE)
    ranges.number(
        "lacking",
        0.0,
        "Share of the residues, on a random side, that the target lacks; the others are scored.",
        LACKING,
    )
    flags.DEFINE_list(
        "peers",
        [],
        "Other methods for the same table, at all of --resolutions: domains (each domain fitted as a rigid body), "
        "blend (the initial model as it is).",
    )
    flags.DEFINE_multi_string(
        "models_of",
        [],
        "NAME:FOLDER: models that another program wrote for the same maps, PAIR_DIRECTION_RESOLUTION_SEED.pdb or .cif "
        "(adk_forward_6_0.pdb), for the same table. May be repeated.",
    )
    flags.DEFINE_bool(
        "keep_maps",
        False,
        "Write the maps of every case, and the model that peers begin with, into a folder of maps in --out_dir.",
    )


def main() -> None:
    """Run all cases; print and write the table, updated after every case."""
    check_mode()
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # so that every case's seconds include compilation
    table = run_as_deposited() if FLAGS.as_deposited else run_without_noise()
    if FLAGS.readme:
        insert_table(Path(FLAGS.readme), table)


def check_mode() -> None:
    """Raise InputError for flags of one kind of maps that are given with the other kind, and for unknown directions."""
    from cryotrans_jax.io.files import InputError

    if not FLAGS.directions or not set(FLAGS.directions) <= set(DIRECTIONS):
        raise InputError(f"--directions={','.join(FLAGS.directions)} is to be some of {', '.join(DIRECTIONS)}")
    if not FLAGS.as_deposited and "still" in FLAGS.directions:
        raise InputError("--directions=still is for maps as deposited: add --as_deposited, or leave it out")
    if FLAGS.as_deposited and FLAGS["signal_to_noise"].present:
        raise InputError("--signal_to_noise adds noise to maps that have none: leave it or --as_deposited out")
    if not FLAGS.as_deposited and (given := [name for name in DEPOSITED if FLAGS[name].present]):
        raise InputError(f"--{given[0]} is for maps as deposited: add --as_deposited, or leave it out")


def run_as_deposited() -> str:
    """Run the cases as deposited that are not done yet; print and return the summary."""
    from . import deposited

    if not FLAGS["resolutions"].present:
        FLAGS.resolutions = [*deposited.RESOLUTIONS]
    trials, out_dir = plan_trials(), Path(FLAGS.out_dir)
    if FLAGS.keep_maps:
        deposited.keep_inputs(trials, out_dir, FLAGS.overwrite)
    table = deposited.study(trials, out_dir, FLAGS.at_once, FLAGS.overwrite)
    print(table)
    return table


def run_without_noise() -> str:
    """Run the cases whose maps have no noise but what --signal_to_noise adds; print and return the table."""
    from .. import run_folder

    out_dir = Path(FLAGS.out_dir)
    run_folder.check_unused(out_dir, "validation", "a validation", FLAGS.overwrite)
    cases = plan_cases()
    rows: list[dict] = []
    # One process for each case, so that its seconds include start-up and compilation, and its peak memory is its own.
    with (
        run_folder.growing(out_dir, "validation") as growing,
        ProcessPoolExecutor(
            FLAGS.at_once, get_context("spawn"), initializer=show_warnings, max_tasks_per_child=1
        ) as pool,
        contextlib.ExitStack() as ending,
    ):
        ending.callback(pool.shutdown, cancel_futures=True)  # where the block fails, start no further case
        print(f"{len(cases)} cases, {FLAGS.at_once} at once", flush=True)
        for row in pool.map(measure, *zip(*cases, strict=True)):
            rows.append(row)
            print(tables.styled_row(row, COLUMNS), flush=True)
            write_table(rows, growing)
    print(tables.styled(rows, COLUMNS) + summary(rows))
    return summary(rows) or tables.styled(rows, COLUMNS)


def plan(
    recipes: Sequence[tuple[str, float | None, str | None]],
) -> Iterator[tuple[str, str, str, str, float]]:
    """Yield a pair's folder and name, a direction, a recipe and a resolution for all that the flags select.

    Args:
        recipes: as from `parse_recipe`.
    """
    from ..pairs import pair_folder

    names = FLAGS.pairs or sorted(path.parent.name for path in Path(FLAGS.data_dir).glob("*/pair.json"))
    folders = {name: str(pair_folder(FLAGS.data_dir, name)) for name in names or ["*"]}
    for (name, folder), (recipe, at, pair) in itertools.product(folders.items(), recipes):
        if not pair or pair == name:
            every = itertools.product(FLAGS.directions, [at] if at else FLAGS.resolutions)
            yield from ((folder, name, direction, recipe, resolution) for direction, resolution in every)


def plan_cases() -> list[tuple]:
    """Arguments of `measure` for every case without noise of its own."""
    return [
        (folder, name, resolution, noise, seed, recipe, FLAGS.steps, direction == "back")
        for folder, name, direction, recipe, resolution in plan([*map(parse_recipe, FLAGS.recipes)])
        for noise, seed in itertools.product(FLAGS.signal_to_noise, FLAGS.seeds)
    ]


def plan_trials() -> "list[Trial]":
    """The cases as deposited: those of our recipes, of other methods, and of other programs' models."""
    from cryotrans_jax.io.files import InputError

    from . import peers
    from .deposited_cases import PEER, Trial

    settings, written = (FLAGS.steps, FLAGS.initial_resolution), peers.find_folders(FLAGS.models_of)
    shown = FLAGS.half_maps, FLAGS.extra, FLAGS.lacking
    others = [(f"{PEER}{name}", None, None) for name in (*peers.known(FLAGS.peers), *written)]
    methods = [*map(parse_recipe, FLAGS.recipes), *others]
    trials = [
        Trial(folder, name, direction, resolution, seed, method, *settings, name in FLAGS.belt, *shown, models)
        for folder, name, direction, method, resolution in plan(methods)
        for seed in FLAGS.seeds
        for models in [written.get(method.removeprefix(PEER), "")]
    ]
    if unknown := set(FLAGS.belt) - {trial.pair for trial in trials}:
        raise InputError(f"--belt={','.join(sorted(unknown))} is no pair of this study: name pairs that are in it")
    peers.check_models(written, [trial.case for trial in trials])
    return [*dict.fromkeys(trials)]


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
    mode = ("as_deposited", *DEPOSITED) if FLAGS.as_deposited else ("signal_to_noise",)
    given = [text for name in (*SELECTING, *mode) for text in FLAGS[name].serialize().splitlines()]
    command = (
        f"    python -m experiments.studies.validate --data_dir=PAIRS {' '.join(given)} --readme={path.as_posix()}"
    )
    write_file(path, f"{before}\n{command}\n\n{text}{after}")


def summary(rows: list[dict]) -> str:
    """Markdown table of the median and the worst of the seeds of each case; empty with one seed."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in GROUP_KEYS), []).append(row)
    if all(len(same) == 1 for same in groups.values()):
        return ""
    lines = []
    for names, same in groups.items():
        cells = [COLUMNS[key].format(value) for key, value in zip(GROUP_KEYS, names, strict=True)] + [str(len(same))]
        for key in SUMMARY_KEYS:
            values = [row[key] for row in same if key in row]
            style = COLUMNS[key] if values else ""
            cells.append(f"{style.format(statistics.median(values))}, {style.format(max(values))}" if values else "")
        lines.append(cells)
    heads = (*GROUP_KEYS, "seeds", *(f"{key}: median, worst" for key in SUMMARY_KEYS))
    return "\n" + tables.markdown(heads, lines)


command = command_of(main, define_flags)

if __name__ == "__main__":
    command()
