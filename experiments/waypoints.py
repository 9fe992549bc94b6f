"""What a waypoint is worth, on pairs of models of which some of the way between the states is known.

python -m experiments.waypoints --data_dir=PAIRS --pairs=serca,adk --resolutions=7 --seeds=0 --out_dir=DIR

Pairs are those of experiments.validate. Each is fitted twice: from the two maps alone, and with a map of the middle one
of the known path's models as a waypoint half way, simulated as the target is. Scored are the end, the waypoint, and
those models of the path that no fit was told of. Two straight lines stand beside: between the true models of both
states, and from each of these to the true model of the waypoint, which no one has who needs this program.
"""

from itertools import product
from pathlib import Path

from absl import flags

from . import paths, ranges, tables
from .main import run

FLAGS = flags.FLAGS
TIME = 0.5  # at which the waypoint is to be passed
FRAMES = 21  # with which the known path is compared
MADE = ("waypoints.json", "waypoints.md")
WAYS = ("two maps", "with the waypoint", "straight line", "straight lines through the waypoint")
COLUMNS = {
    "pair": "{}",
    "resolution": "{:g}",
    "seed": "{}",
    "way": "{}",
    "end": "{:.2f}",
    "waypoint": "{:.2f}",
    "path": "{:.2f}",
    "path_largest": "{:.2f}",
    "models": "{}",
}
LEGEND = """RMSD over CA atoms in Å. end: of the last frame to the target's model. waypoint: of the frame half way to
the waypoint's model. path, path_largest: of the known path's other models, so many, to the nearest of the frames, mean
and largest. The straight lines are between true models, and need no seed.
"""


def define_flags() -> None:
    """Nothing; the flags of this job are there."""
    paths.define_path("data_dir", "data/pairs", "FOLDER: that holds a folder for each pair.")
    flags.DEFINE_list("pairs", None, "NAME,...: of the pairs. Must be given.", required=True)
    ranges.numbers("resolutions", [7], "Å,...: resolutions of the target map and of the waypoint.", ranges.RESOLUTION)
    ranges.whole_numbers("seeds", [0], "Seeds.", ranges.SEED)
    ranges.number("steps", 1.0, "FACTOR: multiplies the number of steps of every stage.", ranges.STEPS)
    paths.define_path("out_dir", "runs/waypoints", "FOLDER: for waypoints.md and waypoints.json.")
    flags.DEFINE_bool("overwrite", False, "Replace the results that the output folder holds.")


def main() -> None:
    """Nothing; prints and writes the table, anew after every case."""
    from cryotrans_jax.io.files import InputError, write_file

    from . import results, run_folder, validate

    out_dir = Path(FLAGS.out_dir)
    if not FLAGS.overwrite and any((out_dir / name).exists() for name in MADE):
        raise InputError(f"{out_dir} holds a study of waypoints: give another --out_dir, or --overwrite to replace it")
    folders = {name: validate.pair_folder(FLAGS.data_dir, name) for name in FLAGS.pairs}
    rows = []
    with run_folder.growing(out_dir, "waypoints") as growing:
        each = product(folders.items(), FLAGS.resolutions, enumerate(FLAGS.seeds))
        for (name, folder), resolution, (number, seed) in each:
            about = {"pair": name, "resolution": resolution, "seed": seed}
            rows += [about | row for row in studied(folder, resolution, seed, straight=number == 0)]
            run_folder.write_json(growing / MADE[0], {"settings": results.settings_of(FLAGS), "rows": rows})
            write_file(growing / MADE[1], table(rows))
    print(table(rows))
    print(f"The table is in {out_dir}")


def studied(folder: Path, resolution: float, seed: int, straight: bool = True) -> list[dict]:
    """The rows of a pair: both fits, and, if asked for, both straight lines."""
    import numpy as np

    from cryotrans_jax.fit import trajectory
    from cryotrans_jax.io import atoms

    from . import results, validate

    case = validate.load_pair(folder, resolution)
    path, known = way(folder, case.model)
    passed = results.Waypoint("waypoint", simulated(path[known], case, resolution), TIME, resolution)
    settings = validate.by_rule("default", seed, FLAGS.steps)
    times = trajectory.frame_times(FRAMES)
    moved = []
    for number, waypoints in enumerate(([], [passed])):
        print(f"{folder.name} at {resolution:g} Å, seed {seed}: {WAYS[number]}", flush=True)
        case.waypoints = waypoints
        moved += results.fit_case(case, settings).move(case.model, times)
    every = np.stack(atoms.common_ca(case.model, case.references[0], *path, *moved))
    (start, end), path, moved = every[:2], every[2 : 2 + len(path)], every[2 + len(path) :]
    ways = [*moved.reshape(2, FRAMES, *start.shape)]
    if straight:
        ways += [along(times, [0, 1], [start, end]), along(times, [0, TIME, 1], [start, path[known], end])]
    return [{"way": name} | scores(frames, path, known, end) for name, frames in zip(WAYS, ways, strict=False)]


def way(folder: Path, initial) -> tuple[list, int]:
    """Models of a pair's known path, from the initial state on, and the number of its middle one, the waypoint."""
    from cryotrans_jax.io.files import InputError

    from . import validate

    path = validate.known_path(folder, initial)
    if len(path) < 2:
        raise InputError(f"{folder}/pair.json names {len(path)} models of the way: name two at least, one to be passed")
    if validate.described(folder)["path"].get("runs_from") == "target":
        path = path[::-1]
    return path, len(path) // 2


def simulated(model, case, resolution: float):
    """The map of a model on the case's grid. Raises InputError where the model lies outside."""

    from cryotrans_jax.density import simulation

    from .inputs import check_inside

    grid = case.initial
    check_inside(model, grid.density.shape, grid.voxel_size, grid.origin, "the waypoint's model")
    return simulation.simulate(model, resolution, like=grid)


def along(times, at, points):
    """Positions (times, n, 3) on straight lines from point to point (n, 3), which are passed at the times `at`."""
    import numpy as np

    weights = np.stack([np.interp(times, at, unit) for unit in np.eye(len(at))], -1)
    return np.einsum("tk,knd->tnd", weights, np.stack(points))


def scores(frames, path, known: int, end) -> dict:
    """How far (Å) frames (times, n, 3) are from the end, the waypoint, and the path's other models (models, n, 3)."""
    import numpy as np

    def rmsd(a, b):
        return np.sqrt(np.square(a - b).sum(-1).mean(-1))

    others = np.delete(path, known, axis=0)
    least = rmsd(frames[:, None], others[None]).min(0)
    return {
        "end": float(rmsd(frames[-1], end)),
        "waypoint": float(rmsd(frames[round(TIME * (len(frames) - 1))], path[known])),
        "path": float(least.mean()),
        "path_largest": float(least.max()),
        "models": len(others),
    }


def table(rows: list[dict]) -> str:
    """The table in Markdown, and what its columns are."""
    return f"{tables.styled(rows, COLUMNS)}\n{LEGEND}"


def command() -> None:
    """Nothing; the job is done as the command line says."""
    define_flags()
    run(main)


if __name__ == "__main__":
    command()
