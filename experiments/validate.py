"""Measures the recipes on pairs of models whose answer is known.

python -m experiments.validate --data_dir=PAIRS --pairs=adk,msba --resolutions=3,5,7 --seeds=0 --out_dir=DIR

A pair is a folder in --data_dir with two models and a pair.json: {"initial": file, "target": file, "superpose": bool}.
Both are simulated on a common grid, the initial one at 3 Å; every case runs in a process of its own. Where models of
the way between the states are known ("path": {"models": [files]}, or {"frames": an npz with `xyz` (frames, atoms, 3)
and `atom_index`, their rows in the initial model}), the table also tells how far they are from the nearest of the
frames (mean of the least RMSD over CA atoms), for the fit and for straight lines from the initial model to the
target's.
"""

import itertools
import math
import os
import re
import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from absl import flags

from . import paths, ranges, tables
from .main import run, show_warnings

FLAGS = flags.FLAGS
INITIAL_RESOLUTION, VOXEL_SIZE = 3.0, 1.0  # Å
MOST_BYTES = 1 << 30  # of the frames of a known path
FARTHEST = 1e6  # Å from 0 that an atom lies
FRAMES = 11  # with which a known path is compared
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
GROUPED = ("pair", "resolution", "signal_to_noise", "recipe")
SUMMED = ("rmsd_after", "moved_rmsd_after", "fsc_after", "path", "straight_path", "seconds", "peak_mib")

SIGNAL_TO_NOISE = ranges.Range(1e-3, math.inf, "inf stands for no noise, and a signal of 0.001 cannot be found")
AT_ONCE = ranges.Range(1, 1000, "each case is a process of its own")
RECIPE = re.compile(r"(?P<recipe>default|paper(?:/[1248])?)(?:@(?P<at>[^:]+))?(?::(?P<pair>.+))?")


def define_flags() -> None:
    """Nothing; the flags of this job are there."""
    paths.define_path("data_dir", "data/pairs", "Folder that holds a folder for each pair.")
    flags.DEFINE_list("pairs", None, "Names of the pairs; all in --data_dir if not given.")
    ranges.numbers("resolutions", [3, 5, 7, 10], "Resolutions of the target map, Å.", ranges.RESOLUTION)
    ranges.whole_numbers("seeds", [0, 1, 2], "Seeds.", ranges.SEED)
    ranges.numbers(
        "signal_to_noise",
        [math.inf],
        "White noise all over the target map: standard deviation of the density within its contour over that of the "
        "noise; inf for none.",
        SIGNAL_TO_NOISE,
    )
    flags.DEFINE_list(
        "recipes",
        ["default"],
        "Recipes: default, paper, or paper/2 for maps binned by 2; paper/2@7:adk only at 7 Å and on that pair.",
    )
    flags.DEFINE_bool("reversed", False, "Carry every pair's target to its initial state instead.")
    paths.define_path("out_dir", "runs/validate", "Folder for validate.md and validate.json.")
    ranges.number("steps", 1.0, "Multiplies the number of steps of every stage.", ranges.STEPS)
    paths.define_path(
        "readme", None, "A Markdown file whose part between the marks of results is replaced by the table."
    )
    ranges.whole_number(
        "at_once",
        1,
        "Cases measured at once, for as many as there is memory; their seconds then count for little.",
        AT_ONCE,
    )
    flags.DEFINE_bool("overwrite", False, "Replace the results that the output folder holds.")


def main() -> None:
    """Nothing; prints and writes the table, anew after every case."""
    from cryotrans_jax.files import InputError

    from . import run_folder

    out_dir = Path(FLAGS.out_dir)
    if (out_dir / "validate.json").exists() and not FLAGS.overwrite:
        raise InputError(f"{out_dir} holds a validation: give another --out_dir, or --overwrite to replace it")
    cases = planned()
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # so that every case's seconds hold its compilation
    rows: list[dict] = []
    # A fresh process for each case: its seconds hold start-up and compilation, its peak memory nobody else's.
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
        write_into(Path(FLAGS.readme), summary(rows) or tables.styled(rows, COLUMNS))


def planned() -> list[tuple]:
    """Arguments of `measure` for every case that the flags ask for."""
    names = FLAGS.pairs or sorted(path.parent.name for path in Path(FLAGS.data_dir).glob("*/pair.json"))
    folders = {name: str(pair_folder(FLAGS.data_dir, name)) for name in names or ["*"]}
    cases = []
    for name, folder in folders.items():
        for text in FLAGS.recipes:
            recipe, at, pair = recipe_of(text)
            if pair and pair != name:
                continue
            every = itertools.product([at] if at else FLAGS.resolutions, FLAGS.signal_to_noise, FLAGS.seeds)
            cases += [(folder, name, r, noise, seed, recipe, FLAGS.steps, FLAGS.reversed) for r, noise, seed in every]
    return cases


def pair_folder(data_dir: str, name: str) -> Path:
    """The folder of a pair. Raises InputError where there is none."""
    from cryotrans_jax.files import InputError

    folder = Path(data_dir) / name
    if not (folder / "pair.json").is_file():
        raise InputError(f"no {folder}/pair.json: give the folder that holds the pairs with --data_dir")
    return folder


def recipe_of(text: str) -> tuple[str, float | None, str | None]:
    """Read one of --recipes, such as paper/2@7:adk.

    Returns:
        The recipe with its bin (paper/2), and the resolution (Å) and the pair that it is for, None where for all.

    Raises:
        InputError: it is not of that form, or the resolution is out of range.
    """
    from cryotrans_jax.files import InputError

    if not (match := RECIPE.fullmatch(text)):
        raise InputError(f"--recipes={text} is not RECIPE/BIN@RESOLUTION:PAIR: give default, paper, or paper/2@7:adk")
    try:
        return match["recipe"], match["at"] and ranges.RESOLUTION.number(match["at"]), match["pair"]
    except ValueError as error:
        raise InputError(f"--recipes={text}: the resolution {match['at']} {error}") from None


def measure(
    folder: str, pair: str, resolution: float, noise: float, seed: int, recipe: str, steps: float, back: bool
) -> dict:
    """One row of the table: the scores of one case, and the seconds and peak memory of this whole process.

    `noise` is the signal to noise of the target; `back` carries the pair's target to its initial state.
    """
    import time

    begin = time.perf_counter()
    from cryotrans_jax import memory

    from . import results

    case = load_pair(Path(folder), resolution, back)
    case.targets = [noisy(target, noise) for target in case.targets]
    name, _, bin_ = recipe.partition("/")
    fit = results.fit_case(case, by_rule(name, seed, steps, int(bin_ or 1)))
    generated = fit.generated()
    scores = results.score(fit, case, 0, generated)
    if not back:
        scores |= path_scores(fit, case, Path(folder))
    row = {
        "pair": f"{pair}, back" if back else pair,
        "resolution": resolution,
        "signal_to_noise": noise,
        "seed": seed,
        "recipe": recipe,
    }
    measured = {"seconds": time.perf_counter() - begin, "peak_mib": memory.peak() / 2**20}
    return row | {key: scores[key] for key in COLUMNS if key in scores} | measured


def by_rule(recipe: str, seed: int, steps: float, bin_: int = 1) -> SimpleNamespace:
    """The settings of a fit whose thresholds are chosen by rule."""
    none = dict.fromkeys(("initial_threshold", "target_threshold", "mass_kda"))
    return SimpleNamespace(recipe=recipe, seed=seed, steps=steps, bin=bin_, **none)


def load_models(folder: Path, back: bool = False) -> tuple:
    """The models of a pair's folder, in one frame, the target's first to go `back`. Raises InputError where there is no
    pair."""
    from cryotrans_jax import atoms
    from cryotrans_jax.files import InputError

    if not (folder / "pair.json").is_file():
        raise InputError(f"no {folder}/pair.json: give the folder of a pair")
    named = described(folder)
    states = ("target", "initial") if back else ("initial", "target")
    together = bool(named.get("all_models"))
    start, end = (atoms.read_model(beside(folder, named.get(state)), together) for state in states)
    return start, atoms.superpose(end, start) if named.get("superpose") else end


def load_pair(folder: Path, resolution: float, back: bool = False):
    """The case of a pair's folder, or `back` from its target: both models' maps on a common grid."""
    from cryotrans_jax import atoms

    from .inputs import check_detail
    from .results import Case

    check_detail(resolution, VOXEL_SIZE)
    start, end = load_models(folder, back)
    grid = atoms.common_grid([start, end], VOXEL_SIZE, INITIAL_RESOLUTION)
    maps = [atoms.simulate_map(m, *grid, r) for m, r in ((start, INITIAL_RESOLUTION), (end, resolution))]
    return Case(maps[0], [maps[1]], {}, [folder.name], INITIAL_RESOLUTION, [resolution], start, [end])


def noisy(map_, signal_to_noise: float):
    """The map with white noise, always the same, of a standard deviation relative to the density in its contour."""
    from dataclasses import replace

    import numpy as np

    from cryotrans_jax.prepare import choose_threshold

    density = map_.density
    strength = density[density > choose_threshold(density)].std() / signal_to_noise
    noise = np.random.default_rng(0).standard_normal(density.shape, np.float32)
    return replace(map_, density=density + np.float32(strength) * noise)


def path_scores(fit, case, folder: Path) -> dict:
    """How far the pair's known path is from the fit's frames and from straight lines; empty where none is known."""
    import numpy as np

    from cryotrans_jax import atoms, metrics, trajectory

    path = known_path(folder, case.model)
    if not path:
        return {}
    times = trajectory.frame_times(FRAMES)
    every = atoms.common_ca(case.model, case.references[0], *fit.move(case.model, times), *path)
    (start, end), frames, path = every[:2], np.stack(every[2 : 2 + FRAMES]), np.stack(every[2 + FRAMES :])
    straight = start + times[:, None, None] * (end - start)
    return {"path": metrics.path_distance(frames, path), "straight_path": metrics.path_distance(straight, path)}


def known_path(folder: Path, initial) -> list:
    """Models of the way between a pair's states, on the initial one; none where the pair names none."""
    from cryotrans_jax import atoms
    from cryotrans_jax.files import InputError

    named = described(folder).get("path", {})
    if not isinstance(named, dict) or not isinstance(named.get("models", []), list):
        raise InputError(f"the path in {folder / 'pair.json'} is none: give models, or frames, as its keys")
    together = bool(described(folder).get("all_models"))
    models = [atoms.read_model(beside(folder, name), together) for name in named.get("models", [])]
    if "frames" in named:
        index, frames = stored_frames(beside(folder, named["frames"]))
        for xyz in frames:
            whole = atoms.positions(initial)
            if index.max(initial=-1) >= len(whole) or index.min(initial=0) < 0:
                raise InputError(f"{named['frames']} moves atoms that {folder / named['initial']} lacks")
            whole[index] = xyz
            models.append(atoms.with_positions(initial, whole))
    return models


def described(folder: Path) -> dict:
    """What stands in the pair.json of a pair's folder. Raises InputError where there is no object."""
    from cryotrans_jax.files import read_json

    return read_json(folder / "pair.json")


def beside(folder: Path, name: Any) -> Path:
    """The file of that name in a pair's folder. Raises InputError where it is no name, or one that leads elsewhere."""
    from cryotrans_jax.files import InputError

    if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
        raise InputError(f"{folder / 'pair.json'} names a file {name!r}: give names of files in its own folder")
    if not os.path.isfile(folder / name):  # which a name too long for a file is not, either
        raise InputError(f"{folder} has no {name}, which its pair.json names: put it there")
    return folder / name


def stored_frames(path: Path):
    """The rows of the atoms that move (moving,) and where they are in each frame (frames, moving, 3), in Å.

    From an .npz with `atom_index` and `xyz`. Raises InputError where it is none, or its arrays take more than
    MOST_BYTES.
    """
    import zipfile
    import zlib

    from cryotrans_jax.files import InputError

    try:
        with zipfile.ZipFile(path) as packed:
            index, frames = (stored_array(packed, name) for name in ("atom_index", "xyz"))
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise InputError(f"{path} holds no frames ({error}): give an .npz with atom_index and xyz") from error
    if index.ndim != 1 or index.dtype.kind not in "iu" or frames.dtype.kind != "f" or frames.ndim != 3:
        raise InputError(f"{path} holds no frames: atom_index is to be whole numbers, xyz (frames, atoms, 3)")
    if frames.shape[1:] != (len(index), 3) or not (abs(frames) < FARTHEST).all():
        raise InputError(f"{path} has frames {frames.shape} of {len(index)} atoms: xyz is to be their places in Å")
    return index, frames


def stored_array(packed, name: str):
    """The array of an opened .npz. What its header promises is not allocated before it is there; nothing is pickled.

    Raises ValueError or KeyError where there is none.
    """
    import math

    import numpy as np

    from cryotrans_jax.files import read_bytes

    with packed.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, kind = read(file)
        wanted = math.prod(shape) * kind.itemsize
        if kind.hasobject or not 0 < wanted <= MOST_BYTES:
            raise ValueError(f"{name} would be {wanted} bytes of {kind}")
        data = read_bytes(file, wanted)
    if len(data) < wanted:
        raise ValueError(f"of the {wanted} bytes of {name} {len(data)} are there")
    return np.frombuffer(data, kind).reshape(shape, order="F" if by_columns else "C")


def write_table(rows: list[dict], out_dir: Path) -> None:
    """Nothing; the folder holds validate.json and validate.md."""
    from cryotrans_jax.files import write_file

    from .results import write_json

    write_json(out_dir / "validate.json", rows)
    write_file(out_dir / "validate.md", tables.styled(rows, COLUMNS) + summary(rows))


def write_into(path: Path, text: str) -> None:
    """Nothing; what stands between the marks in the file is the text, headed by the command that made it."""
    from cryotrans_jax.files import write_file

    before, _, after = tables.parted(path, *MARKS)
    names = ("pairs", "resolutions", "signal_to_noise", "seeds", "recipes")
    given = [FLAGS[name].serialize() for name in names]
    command = f"    python -m experiments.validate --data_dir=PAIRS {' '.join(given)} --readme={path.name}"
    write_file(path, f"{before}\n{command}\n\n{text}{after}")


def summary(rows: list[dict]) -> str:
    """Median and worst over the seeds of each pair, resolution and recipe, in Markdown; empty with one seed."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in GROUPED), []).append(row)
    if all(len(group) == 1 for group in groups.values()):
        return ""
    lines = []
    for names, group in groups.items():
        cells = [COLUMNS[key].format(value) for key, value in zip(GROUPED, names, strict=True)] + [str(len(group))]
        for key in SUMMED:
            values = [row[key] for row in group if key in row]
            style = COLUMNS[key] if values else ""
            cells.append(f"{style.format(statistics.median(values))}, {style.format(max(values))}" if values else "")
        lines.append(cells)
    heads = (*GROUPED, "seeds", *(f"{key}: median, worst" for key in SUMMED))
    return "\n" + tables.markdown(heads, lines)


def command() -> None:
    """Nothing; the job is done as the command line says."""
    define_flags()
    run(main)


if __name__ == "__main__":
    command()
