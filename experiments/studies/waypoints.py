"""Measure the gain from a waypoint, on pairs of models whose path between the states is partly known.

python -m experiments.studies.waypoints --data_dir=PAIRS --pairs=serca,adk --resolutions=7 --seeds=0 --out_dir=DIR

Pairs are those of experiments.studies.validate. Each is fitted twice: from the two maps alone, and with a map of the
middle model of the known path as a waypoint half way, simulated like the target. The end, the waypoint and the other
models of the path, which no fit has seen, are scored. Two straight lines are given for comparison: between the true
models of both states, and through the true model of the waypoint. No user of this program has these models.
"""

from itertools import product
from pathlib import Path

from absl import flags

from .. import paths, ranges, tables
from ..main import command_of

FLAGS = flags.FLAGS
TIME = 0.5  # of the waypoint
FRAMES = 21  # number of frames that the known path is compared with
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
the waypoint's model. path, path_largest: of the known path's other models (models: their number) to the nearest frame,
mean and largest. The straight lines are between true models, and need no seed.
"""


def define_flags() -> None:
    """Define the flags of this command."""
    paths.define_path("data_dir", "data/pairs", "FOLDER: that holds a folder for each pair.")
    flags.DEFINE_list("pairs", None, "NAME,...: of the pairs. Must be given.", required=True)
    ranges.numbers("resolutions", [7], "Å,...: resolutions of the target map and of the waypoint.", ranges.RESOLUTION)
    ranges.whole_numbers("seeds", [0], "Seeds.", ranges.SEED)
    ranges.number("steps", 1.0, "FACTOR: multiplies the number of steps of every stage.", ranges.STEPS)
    paths.define_path("out_dir", "runs/waypoints", "FOLDER: for waypoints.md and waypoints.json.")
    flags.DEFINE_bool("overwrite", False, "Replace the results that the output folder holds.")


def main() -> None:
    """Run all cases; print and write the table, updated after every case."""
    from cryotrans_jax.io.files import write_file

    from .. import pairs, record, run_folder

    out_dir = Path(FLAGS.out_dir)
    run_folder.check_unused(out_dir, "waypoints", "a study of waypoints", FLAGS.overwrite)
    folders = {name: pairs.pair_folder(FLAGS.data_dir, name) for name in FLAGS.pairs}
    rows = []
    with run_folder.growing(out_dir, "waypoints") as growing:
        each = product(folders.items(), FLAGS.resolutions, enumerate(FLAGS.seeds))
        for (name, folder), resolution, (number, seed) in each:
            about = {"pair": name, "resolution": resolution, "seed": seed}
            rows += [about | row for row in study_pair(folder, resolution, seed, straight=number == 0)]
            run_folder.write_json(growing / "waypoints.json", {"settings": record.settings_of(FLAGS), "rows": rows})
            write_file(growing / "waypoints.md", table(rows))
    print(table(rows))
    print(f"The table is in {out_dir}")


def study_pair(folder: Path, resolution: float, seed: int, straight: bool = True) -> list[dict]:
    """Rows of a pair: both fits and, if `straight`, both straight lines."""
    import numpy as np

    from cryotrans_jax.fit import trajectory
    from cryotrans_jax.io import atoms

    from .. import pairs, results
    from ..case import Waypoint
    from ..settings import FitSettings

    case = pairs.load_pair(folder, resolution)
    path, known = path_with_waypoint(folder, case.model)
    waypoint = Waypoint("waypoint", simulate_inside(path[known], case, resolution), TIME, resolution)
    settings = FitSettings(seed=seed, steps=FLAGS.steps)
    times = trajectory.frame_times(FRAMES)
    moved = []
    for number, waypoints in enumerate(([], [waypoint])):
        print(f"{folder.name} at {resolution:g} Å, seed {seed}: {WAYS[number]}", flush=True)
        case.waypoints = waypoints
        moved += results.fit_case(case, settings).move(case.model, times)
    every = np.stack(atoms.common_ca(case.model, case.references[0], *path, *moved))
    (start, end), path, moved = every[:2], every[2 : 2 + len(path)], every[2 + len(path) :]
    ways = [*moved.reshape(2, FRAMES, *start.shape)]
    if straight:
        ways += [
            straight_lines(times, [0, 1], [start, end]),
            straight_lines(times, [0, TIME, 1], [start, path[known], end]),
        ]
    return [{"way": name} | scores(frames, path, known, end) for name, frames in zip(WAYS, ways, strict=False)]


def path_with_waypoint(folder: Path, initial) -> tuple[list, int]:
    """Models of a pair's known path, from the initial state on, and the index of the middle one, the waypoint."""
    from cryotrans_jax.io.files import InputError

    from .. import pairs

    path = pairs.known_path(folder, initial)
    if len(path) < 2:
        raise InputError(f"{folder}/pair.json names {len(path)} models of the way: name two at least, one to be passed")
    if pairs.read_description(folder)["path"].get("runs_from") == "target":
        path = path[::-1]
    return path, len(path) // 2


def simulate_inside(model, case, resolution: float):
    """Simulate the map of a model on the case's grid."""

    from cryotrans_jax.density import simulation

    from ..inputs import check_inside

    grid = case.initial
    check_inside(model, grid.density.shape, grid.voxel_size, grid.origin, "the waypoint's model")
    return simulation.simulate(model, resolution, like=grid)


def straight_lines(times, at, points):
    """Positions (times, n, 3) on straight lines through `points`, each (n, 3), at the times `at`."""
    import numpy as np

    weights = np.stack([np.interp(times, at, unit) for unit in np.eye(len(at))], -1)
    return np.einsum("tk,knd->tnd", weights, np.stack(points))


def scores(frames, path, known: int, end) -> dict:
    """RMSD (Å) of frames (times, n, 3) from the end, the waypoint, and the path's other models (models, n, 3)."""
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
    """Format the table in Markdown, with a legend of its columns."""
    return f"{tables.styled(rows, COLUMNS)}\n{LEGEND}"


command = command_of(main, define_flags)

if __name__ == "__main__":
    command()
