"""Simulated study of one pair of models: targets from sharp to blurred, and the resolution of each prediction.

python -m experiments.studies.study                                        the built-in pair
python -m experiments.studies.study --initial=6RAH --target=6RAI --fetch   entries, or files
python -m experiments.studies.study --initial=A.cif --target=B.cif --resolutions=5,10

Maps are simulated from both models on one grid, the target's at several resolutions, and the recipe default fits all of
them in one program. The output folder has the FSC of each generated map against the target's model as one figure
(study.svg, study.png) and in fsc.csv, one table (study.md, study.csv, study.json), and the maps.
"""

from pathlib import Path

from absl import flags

from .. import flags as shared
from .. import paths, ranges, systems, tables
from ..main import command_of
from ..usage import group

FLAGS = flags.FLAGS
STYLES = {
    "resolution": "{:g}",
    "fsc_before": "{:.2f}",
    "fsc_after": "{:.2f}",
    "fsc_0.143_after": "{:.2f}",
    "rmsd_before": "{:.2f}",
    "rmsd_after": "{:.2f}",
    "published": "{}",
}
HEADS = (
    "target [Å]", "initial map: FSC = 0.5 [Å]", "generated map: FSC = 0.5 [Å]", "FSC = 0.143 [Å]",
    "CA RMSD before [Å]", "after [Å]", "published FSC = 0.5 [Å]",
)  # fmt: skip


@group("Study")
def define_pair() -> None:
    """Define the flags that choose the pair."""
    paths.define_path("initial", None, "MODEL: of the initial state: a file, or an entry of the PDB like 6RAH.")
    paths.define_path("target", None, "MODEL: of the target state; without the two, the built-in pair.")
    ranges.numbers("resolutions", [3, 5, 7, 10], "Å,...: of the simulated targets.", ranges.RESOLUTION)
    ranges.number("initial_resolution", systems.INITIAL_RESOLUTION, "Å: of the initial map.", ranges.RESOLUTION)
    ranges.number("voxel_size", 1.0, "Å: of all maps.", ranges.VOXEL_SIZE)
    paths.define_path("data_dir", "data", "FOLDER: where entries are looked up.")
    flags.DEFINE_bool("fetch", False, "Fetch entries that are not in --data_dir: see experiments.fetch.")
    paths.define_path("out_dir", "runs/study", "FOLDER: for the results.")
    flags.DEFINE_bool("overwrite", False, "Replace the results that the output folder holds.")


def define_flags() -> None:
    """Define the flags of this command."""
    define_pair()
    shared.define_all_models()
    shared.define_fit()
    shared.define_machine()
    shared.define_archives()


def main() -> None:
    """Run the study and write it into the folder."""
    from .. import run_folder

    out_dir = Path(FLAGS.out_dir)
    run_folder.check_unused(out_dir, "study", "a study", FLAGS.overwrite)
    case = load(resolutions())
    rows, curves, maps = [], {}, out_dir / "maps"
    with (
        run_folder.claimed(out_dir, inside=["maps"], kinds=["study", "study_maps"]),
        run_folder.replacing(out_dir, "study"),
        run_folder.replacing(maps, "study_maps"),
    ):
        for path in run_folder.result_files(maps, run_folder.KINDS["study_maps"]):
            path.unlink()  # from other resolutions
        for case_, fit, number in fits(case):
            row, start, end = measure(fit, case_, number, maps)
            rows.append(row)
            curves |= {"initial": start, f"from_{row['resolution']:g}A": end}
        write(rows, curves, out_dir)


def resolutions() -> list[float]:
    """Resolutions of the targets, Å."""
    from cryotrans_jax.io.files import InputError

    found = FLAGS.resolutions
    if not found or len(set(found)) < len(found):
        raise InputError(f"{FLAGS['resolutions'].serialize()} is not different resolutions such as 3,5,7,10")
    return found


def load(wanted: list[float]):
    """Simulate the maps of the pair that the flags name, with a target of each resolution, on one grid.

    The target's model is superposed on the initial one, except for the built-in pair.
    """
    from cryotrans_jax.density import demo, simulation
    from cryotrans_jax.io import atoms

    from ..case import Case
    from ..inputs import check_detail

    check_detail(min(wanted), FLAGS.voxel_size, "--resolutions")
    check_detail(FLAGS.initial_resolution, FLAGS.voxel_size, "--initial_resolution")
    if FLAGS.initial or FLAGS.target:
        start, end = (atoms.read_model(find_model(name), FLAGS.all_models) for name in (FLAGS.initial, FLAGS.target))
        end = atoms.superpose(end, start)
    else:
        start, end = demo.hinge_pair()
    grid = simulation.common_grid([start, end], FLAGS.voxel_size, FLAGS.initial_resolution)
    initial = simulation.simulate_map(start, *grid, FLAGS.initial_resolution)
    targets = [simulation.simulate_map(end, *grid, at) for at in wanted]
    names, references = [f"{at:g}A" for at in wanted], [end] * len(wanted)
    return Case(initial, targets, {}, names, FLAGS.initial_resolution, wanted, start, references)


def find_model(name: str | None) -> Path:
    """Find a model: a file, here or in the data folder, or an entry there, downloaded with --fetch."""
    from cryotrans_jax.io.files import InputError

    from .. import archives, find, settings

    if not name:
        raise InputError("one model is given and not the other: give --initial and --target, or neither")
    path = find.find(name, FLAGS.data_dir) or find.find_model(name, FLAGS.data_dir)
    if path is None and FLAGS.fetch:
        Path(FLAGS.data_dir).mkdir(parents=True, exist_ok=True)
        (path,) = archives.fetch(name, settings.archives(), Path(FLAGS.data_dir), ("map",))
    if path is None:
        raise InputError(
            f"no model {name} here or in {FLAGS.data_dir}: give the path of a file, or for an entry --fetch"
        )
    return path


def fits(case):
    """Fit all targets, in one program if they take the same steps, and yield the case, the fit and number of each.

    The recipe paper has different steps for each resolution. Each target then has its own fit, so that none waits,
    computed in vain, for those with more steps.
    """
    from dataclasses import replace

    from .. import results
    from ..settings import FitSettings, from_flags

    settings = from_flags(FitSettings)
    numbers = range(len(case.targets))
    if FLAGS.recipe == "default":
        whole = results.fit_case(case, settings)
        yield from ((case, whole.select([number]), number) for number in numbers)
        return
    for number in numbers:
        each = ("targets", "target_names", "target_resolutions", "references")
        one = replace(case, **{name: getattr(case, name)[number : number + 1] for name in each})
        yield one, results.fit_case(one, settings), 0


def measure(fit, case, number: int, folder: Path):
    """Score one target, and write its map and the generated map into the folder.

    Returns:
        A row of the table, and the FSC curves of the initial and the generated map against the target's model.
    """
    from cryotrans_jax.io import maps
    from cryotrans_jax.scores import metrics

    from .. import score

    generated = fit.generated()
    compared = score.compare(fit, case, number, generated)
    scores = score.score(fit, case, number, generated, compared)
    at, name = case.target_resolutions[number], case.target_names[number]
    maps.write_map(folder / f"target_{name}.mrc", case.targets[number])
    maps.write_map(folder / f"generated_{name}.mrc", generated)
    start, end = (
        metrics.model_map_fsc(map_, case.references[number], FLAGS.initial_resolution)
        for map_ in (compared.start, generated)
    )
    same = FLAGS.initial_resolution == systems.INITIAL_RESOLUTION  # as for the published initial maps
    published = systems.format_published(dict(systems.SIMULATED).get(at) if same else None)
    return (
        {"resolution": at} | {key: scores[key] for key in STYLES if key in scores} | {"published": published},
        start,
        end,
    )


def write(rows: list[dict], curves: dict, out_dir: Path) -> None:
    """Write figure, curves and table into the folder, and print the table."""
    from cryotrans_jax import plots
    from cryotrans_jax.io.files import write_file

    from .. import exchange, run_folder

    ends = {}
    for row in rows:
        curve = curves[f"from_{row['resolution']:g}A"]
        crossing = "0.5 at" if (curve[1][1:] < 0.5).any() else "above 0.5 to"  # end of the scale
        ends[f"generated from {row['resolution']:g} Å: {crossing} {row['fsc_after']:.2f} Å"] = curve
    drawing = plots.targets_drawing(curves["initial"], ends)
    text = f"# Targets at {', '.join(f'{at:g}' for at in FLAGS.resolutions)} Å, recipe {FLAGS.recipe}\n\n"
    text += tables.styled(rows, STYLES, HEADS)
    pair = f"{FLAGS.initial} to {FLAGS.target}" if FLAGS.initial else "The built-in pair"
    text += (
        f"\n{pair}, initial map at {FLAGS.initial_resolution:g} Å; FSC against the target's model at that resolution. "
    )
    text += f"{2 * FLAGS.voxel_size:.2f} Å is the limit of the voxels; targets have no noise. "
    text += "The published figures are of four other pairs together (see experiments.reproduce --list).\n"
    exchange.write_drawing(out_dir, "study", drawing)
    write_file(out_dir / "study.md", text)
    run_folder.write_rows(out_dir / "study.csv", rows)
    run_folder.write_json(out_dir / "study.json", rows)
    exchange.write_fsc(out_dir, curves)
    print(text)
    print(f"Results are in {out_dir}")


command = command_of(main, define_flags)

if __name__ == "__main__":
    command()
