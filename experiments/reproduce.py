"""Fit one of the paper's systems and compare its scores with the published ones.

python -m experiments.reproduce --list                     all systems, and what is missing here
python -m experiments.reproduce --system=TmrAB --resolution=7 --recipe=paper --fetch

Entries are looked up in --data_dir, or fetched. Files that no archive has are found there by names like
Arp23_initial.mrc and 70S_target.mrc, or given as --initial and --target. If the paper simulates its maps from models,
or if the files are models (the frames of a simulation), the maps are simulated. Flags that are given take precedence
over the paper's values. In addition to the files of experiments.run, reproduce.md and reproduce.json are written.
"""

import contextlib
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from . import log, ranges, systems, tables
from . import run as job
from .main import run
from .systems import System
from .usage import group

FLAGS = flags.FLAGS
RESOLUTION = 7.0  # Å, default of simulated targets
COMPARED = ("fsc", "fsc_0.143", "fsc_with_target", "correlation_matched", "rmsd", "moved_rmsd")


@group("System")
def define_system() -> None:
    """Define the flags that choose a system."""
    names = ", ".join(system.name for system in systems.SYSTEMS)
    flags.DEFINE_bool("list", False, "Show all systems, and what is missing of each in --data_dir; fit nothing.")
    flags.DEFINE_string("system", None, f"SYSTEM: one of {names}.")
    ranges.number("resolution", None, f"Å: of a simulated target; {RESOLUTION:g} if not given.", ranges.RESOLUTION)
    ranges.whole_number(
        "box",
        None,
        "VOXELS: side of simulated maps; as published if not given, 0 for the smallest possible box.",
        ranges.SIDE._replace(least=0),
    )


def define_flags() -> None:
    """Define the flags of this command, and all of experiments.run."""
    define_system()
    job.define_flags()


def main() -> None:
    """Fit a system and write its table, or list all systems."""
    from cryotrans_jax.io.files import InputError

    if FLAGS.list:
        log.info(systems.table())
        log.info("\n".join(f"{system.name}: {describe_missing(system)}" for system in systems.SYSTEMS))
        return
    if not FLAGS.system:
        raise InputError("no system is named: give --system, or --list to see all of them")
    system = systems.find_system(FLAGS.system)
    from . import hosts

    hosts.join(FLAGS)
    files = collect(system)
    resolution = simulated_resolution(system, files)
    where = f"_{resolution:g}A" if resolution else ""
    out_dir = Path(FLAGS.out_dir or f"runs/{system.slug}{where}_{FLAGS.recipe}")
    with contextlib.ExitStack() as claims:
        hosts.after_first(lambda: claim(out_dir, claims))
        reproduce(system, files, resolution, out_dir)


def claim(out_dir: Path, claims: contextlib.ExitStack) -> None:
    """Lock the folder until `claims` are closed, if its results may be replaced."""
    import jax

    from . import run_folder

    claims.enter_context(run_folder.claimed(out_dir, jax.process_index()))
    run_folder.check_free(out_dir, FLAGS.overwrite)


def reproduce(system: System, files: dict[str, Path], resolution: float | None, out_dir: Path) -> None:
    """Fit the system and write its table.

    Args:
        system: the system.
        files: its files by role, as `collect` finds them.
        resolution: resolution (Å) of a simulated target; None if both states are maps.
        out_dir: folder for the results.
    """
    set_defaults(out_dir=str(out_dir))
    recipe = system.recipe(resolution)
    if recipe and FLAGS.recipe == "paper":
        first, second = recipe.thresholds
        set_defaults(initial_threshold=first, target_threshold=second, schedule=recipe.flag, width=recipe.width)
    check = use_models(system, files, resolution, out_dir) if resolution else use_maps(system, files, out_dir)
    if system.parts and FLAGS.parts == "auto":
        log.info(f"the paper divides this map into {system.parts} parts, which are not published: give --parts")
    begin = time.perf_counter()
    job.main()
    seconds = time.perf_counter() - begin
    if not (out_dir / "metrics.json").is_file():  # another process has written it
        return
    write_table(system, resolution, seconds, check and score_check(check, out_dir), out_dir)


def set_defaults(**values: Any) -> None:
    """Set the flags that were not given to these values; None leaves a flag as it is."""
    for name, value in values.items():
        if value is not None and not FLAGS[name].present:
            FLAGS[name].value = value


# ------------------------------------------------------------------------------------------------------------- inputs


class Requirement(NamedTuple):
    """A file that a system needs: its role, the name by which it is looked up, whether that is an entry."""

    role: str
    name: str
    entry: bool


def requirements(system: System) -> list[Requirement]:
    """Files that a system needs: two maps, or the models to simulate them from, and models for scoring."""
    ends = (("initial", system.initial), ("target", system.target))
    found = []
    for role, state in ends:
        entry = state.map or (state.model if system.simulated else None)
        found.append(Requirement(role, entry or f"{system.slug}_{role}", entry is not None))
    if not system.simulated:
        models = (("model", system.initial.model), ("reference", system.target.model), ("check", system.check))
        found += [Requirement(role, model, True) for role, model in models if model]
    return found


def look_up(name: str) -> Path | None:
    """Find a map or model by name, with or without suffix, here or in the data folder; None if there is none."""
    from . import find
    from .case import MAP_SUFFIXES

    names = [name, *(name + suffix for suffix in MAP_SUFFIXES)]
    maps = (find.find(each, FLAGS.data_dir) for each in names)
    return next(filter(None, maps), None) or find.find_model(name, FLAGS.data_dir)


def describe_missing(system: System) -> str:
    """Describe the files of a system that are missing in the data folder, and how to get them."""
    absent = [each for each in requirements(system) if look_up(each.name) is None]
    if not absent:
        return f"all is in {FLAGS.data_dir}"
    entries = [each.name for each in absent if each.entry]
    hints = [
        f"{each.name}.mrc ({describe_source(system, each.role)}): give --{each.role}, or put it into {FLAGS.data_dir}"
        for each in absent
        if not each.entry
    ]
    if entries:
        fetch = f"python -m experiments.fetch {' '.join(entries)} --parts=map --data_dir={FLAGS.data_dir}"
        hints.append(f"{', '.join(entries)}: {fetch}")
    return "missing " + "; ".join(hints)


def describe_source(system: System, role: str) -> str:
    """Describe the source of a state that is not an entry."""
    source = (system.initial if role == "initial" else system.target).source
    return source or f"its entry is {systems.UNKNOWN}"


def collect(system: System) -> dict[str, Path]:
    """Find the files of a system by role; with --fetch, download those that are missing.

    Raises:
        InputError: a map, or a model to simulate it from, is missing.
    """
    from cryotrans_jax.io.files import InputError

    from . import archives

    given = {"initial": FLAGS.initial, "target": FLAGS.target and FLAGS.target[0]}
    found: dict[str, Path] = {}
    from .find import existing_file

    for role, name, entry in requirements(system):
        wanted = given.get(role) or name
        path = look_up(wanted)
        if path is None and FLAGS.fetch and (entry or wanted != name):
            Path(FLAGS.data_dir).mkdir(parents=True, exist_ok=True)
            archives.fetch(wanted, archives.of(FLAGS), Path(FLAGS.data_dir), ("map",))
            path = look_up(wanted)
        if path:
            found[role] = path
        elif given.get(role):
            existing_file(wanted, FLAGS.data_dir)
        elif role in given:
            raise InputError(f"{system.name} cannot be fitted, {describe_missing(system)}" + ", or add --fetch" * entry)
        else:
            log.info(f"{name} is missing, so no model is carried along or compared with: --fetch downloads it")
    return found


def is_map(path: Path) -> bool:
    """Whether a file is a map, by its suffix."""
    from .case import MAP_SUFFIXES

    return path.name.lower().endswith(MAP_SUFFIXES)


def simulated_resolution(system: System, files: dict[str, Path]) -> float | None:
    """Resolution (Å) at which the target is simulated; None if both states are maps.

    Raises:
        InputError: one state is a map and the other a model, or a resolution is given for maps.
    """
    from cryotrans_jax.io.files import InputError

    first, second = is_map(files["initial"]), is_map(files["target"])
    if first != second:
        raise InputError(
            f"of {files['initial']} and {files['target']} one is a map and the other a model: give two of a kind"
        )
    if first and FLAGS.resolution:
        raise InputError(f"--resolution is for simulated targets, and {files['target']} is a map: leave it out")
    return None if first else FLAGS.resolution or RESOLUTION


def use_models(system: System, files: dict[str, Path], resolution: float, out_dir: Path) -> None:
    """Simulate maps of both models in the folder `inputs`, and set the flags to them.

    The target's model is superposed on the initial one as a whole, even if only one chain of each is used.
    """
    from cryotrans_jax.density import simulation
    from cryotrans_jax.io import atoms

    from . import run_folder

    start, end = (atoms.read_model(files[role], FLAGS.all_models) for role in ("initial", "target"))
    end = atoms.superpose(end, start)
    folder = out_dir / "inputs"
    folder.mkdir(parents=True, exist_ok=True)
    if system.one_chain:
        whole, (start, end) = start, one_chain(start, end)
        repeated = with_operators(start, whole)
        atoms.write_model(folder / "assembly.cif", repeated)
        set_defaults(symmetry=str(folder / "assembly.cif"), one_unit=True)
    grid = cube([start, end], system.box if FLAGS.box is None else FLAGS.box, simulated_voxel_size())
    maps, models = [], []
    for role, model, at in (("initial", start, systems.INITIAL_RESOLUTION), ("target", end, resolution)):
        stem = files[role].name.split(".")[0]
        stem = stem if role == "initial" or stem != files["initial"].name.split(".")[0] else f"{stem}_target"
        models.append(folder / f"{stem}.cif")
        maps.append(folder / f"{stem}_{at:g}A.mrc")
        atoms.write_model(models[-1], model)
        run_folder.write_input(maps[-1], simulation.simulate_map(model, *grid, at))
    FLAGS.initial, FLAGS.target = str(maps[0]), [str(maps[1])]
    set_defaults(model=str(models[0]), reference=[str(models[1])], align="none")
    set_defaults(initial_resolution=systems.INITIAL_RESOLUTION, target_resolution=resolution)


def one_chain(start, end):
    """Extract the first chain that both models share, one model each; if they share none, the first of each."""
    shared = [chain.name for chain in start[0] if any(chain.name == other.name for other in end[0])]
    alone = []
    for model in (start, end):
        model, name = model.clone(), shared[0] if shared else model[0][0].name
        for other in [chain.name for chain in model[0] if chain.name != name]:
            model[0].remove_chain(other)
        alone.append(model)
    return alone


def with_operators(alone, whole):
    """Add to a model of one chain an assembly whose operators superpose it on each equivalent chain.

    Equivalent chains have at least half of its CA atoms, and three, by residue number. The first operator is the
    identity.

    Args:
        alone: the model of one chain.
        whole: the model with all chains.
    """
    import gemmi

    ours = ca_positions(alone[0][0])
    generator = gemmi.Assembly.Gen()
    generator.chains = [alone[0][0].name]
    chains = sorted(whole[0], key=lambda chain: chain.name != alone[0][0].name)
    for chain in chains:
        theirs = ca_positions(chain)
        shared = sorted(ours.keys() & theirs.keys())
        if len(shared) < max(3, len(ours) / 2):
            continue
        found = gemmi.superpose_positions([theirs[number] for number in shared], [ours[number] for number in shared])
        operator = gemmi.Assembly.Operator()
        operator.name, operator.transform = str(len(generator.operators) + 1), found.transform
        generator.operators.append(operator)
    copy = alone.clone()
    assembly = gemmi.Assembly("1")
    assembly.generators.append(generator)
    copy.assemblies.clear()
    copy.assemblies.append(assembly)
    return copy


def ca_positions(chain) -> dict:
    """Positions of a chain's CA atoms by residue number."""
    found = {str(residue.seqid): residue.find_atom("CA", "*") for residue in chain.first_conformer()}
    return {number: atom.pos for number, atom in found.items() if atom}


def simulated_voxel_size() -> float:
    """Voxel size (Å) of simulated maps: --voxel_size, or a third of the resolution, as the paper's is not published.

    Raises:
        InputError: --voxel_size is not one number.
    """
    from cryotrans_jax.io.files import InputError

    size = FLAGS.voxel_size or [systems.INITIAL_RESOLUTION / 3]
    if len(size) > 1:
        raise InputError("simulated maps have cubic voxels: give --voxel_size as one number")
    return size[0]


def cube(models, side: int | None, voxel_size: float):
    """Grid of a cube about the models; the smallest box with wide margins if they do not fit into the cube.

    Args:
        models: the models.
        side: voxels along the side of the cube; None or 0 gives the smallest box.
        voxel_size: Å.

    Returns:
        Shape, voxel size (Å) and origin (Å).
    """

    from cryotrans_jax.density import simulation

    resolution = systems.INITIAL_RESOLUTION
    shape, size, origin = simulation.common_grid(models, voxel_size, resolution, padding=resolution)
    if side and max(shape) <= side:
        return (side,) * 3, size, origin - [(side - n) // 2 * d for n, d in zip(shape, size, strict=True)]
    if side:
        log.info(
            f"both models do not fit into {side} voxels of {voxel_size:g} Å: the box is larger than the published one"
        )
    return simulation.common_grid(models, voxel_size, resolution)


def use_maps(system: System, files: dict[str, Path], out_dir: Path) -> Path | None:
    """Set the flags to the maps and models; return the model for the check in the target's frame, if there is one.

    Models of the target state are aligned to the target map, because entries of different origin have different frames.
    """
    FLAGS.initial, FLAGS.target = str(files["initial"]), [str(files["target"])]
    if system.initial.resolution and system.target.resolution:
        set_defaults(initial_resolution=system.initial.resolution, target_resolution=system.target.resolution)
    given = dict(voxel_size=FLAGS.target_voxel_size, all_models=FLAGS.all_models)
    where = system.target.resolution, out_dir / "inputs", FLAGS.align
    placed = {
        role: align_model(files[role], files["target"], *where, **given)
        for role in ("reference", "check")
        if role in files
    }
    if "model" in files:
        set_defaults(model=str(files["model"]))
    if "reference" in placed:
        set_defaults(reference=[str(placed["reference"])])
    return placed.get("check")


def align_model(
    model: Path,
    target: Path,
    resolution: float | None,
    folder: Path,
    how: str = "auto",
    voxel_size: list[float] | None = None,
    all_models: bool = False,
) -> Path:
    """Align a model to the target map (`align.onto`) and write it into the folder.

    Args:
        model: file of the model.
        target: file of the target map.
        resolution: resolution of the target map, Å; None stands for RESOLUTION.
        folder: for the aligned model.
        how: `auto`, or `none` to leave the model in its pose.
        voxel_size: of the target map, Å, instead of its header's.
        all_models: as in `atoms.read_model`.

    Returns:
        The file of the aligned model.
    """
    from cryotrans_jax.density import align, simulation
    from cryotrans_jax.io import atoms, maps

    read, goal = atoms.read_model(model, all_models), maps.read_map(target, voxel_size)
    simulated = simulation.simulate(read, resolution or RESOLUTION, voxel_size=max(goal.voxel_size))
    found = align.onto(goal, simulated, how)[1]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{model.name.split('.')[0]}_on_target.cif"
    atoms.write_model(path, found.transform.move(read))
    log.info(f"{model.name} is {found.summary} on {target.name}")
    return path


# ------------------------------------------------------------------------------------------------------------ results


def score_check(model: Path, out_dir: Path) -> float:
    """Resolution (Å) at FSC = 0.5 of the generated map against a second model of the target state."""

    from cryotrans_jax.density.align import Transform
    from cryotrans_jax.io import atoms
    from cryotrans_jax.scores import metrics

    from . import run_folder

    there = atoms.read_model(model, FLAGS.all_models)
    if alignment := run_folder.read_config(out_dir).get("alignment"):
        there = Transform.from_matrix(alignment["transform"]).move(there)
    generated = run_folder.load_map(out_dir, "generated.mrc")
    at = FLAGS.initial_resolution or systems.INITIAL_RESOLUTION
    return metrics.resolution_at(*metrics.model_map_fsc(generated, there, at), 0.5)


def write_table(system: System, resolution: float | None, seconds: float, check: float | None, out_dir: Path) -> None:
    """Print the table, and write reproduce.md and reproduce.json into the folder."""
    from cryotrans_jax.io.files import write_file

    from . import run_folder

    scores, config = run_folder.read_scores(out_dir), run_folder.read_config(out_dir)
    rows = score_rows(system, resolution, scores, check) + setting_rows(
        system, resolution, config, scores, seconds, out_dir
    )
    at = f" at {resolution:g} Å" if resolution else ""
    lines = [
        f"# {system.name}{at}: {systems.describe_states(system)}, recipe {FLAGS.recipe}",
        "",
        tables.styled(rows, dict.fromkeys(rows[0], "{}")),
    ]
    lines += [system.remark[:1].upper() + system.remark[1:] + "."] * bool(system.remark)
    lines += [f'"{systems.UNKNOWN}": not among the published facts that this table is made from.']
    text = "\n".join(lines) + "\n"
    log.info(text)
    write_file(out_dir / "reproduce.md", text)
    record = {
        "system": asdict(system),
        "resolution": resolution,
        "recipe": FLAGS.recipe,
        "rows": rows,
        "metrics": scores,
    }
    run_folder.write_json(out_dir / "reproduce.json", record)


def row(quantity: str, before: str = "", ours: str = "", published: str = systems.UNKNOWN) -> dict:
    """Make one row of the table."""
    return {"quantity": quantity, "initial map": before, "ours": ours, "published": published}


def score_rows(system: System, resolution: float | None, scores: dict, check: float | None) -> list[dict]:
    """Rows of scores; the published one is against a model of the target state."""
    from . import log

    rows = []
    styles = {key: (label, style) for label, key, style in log.SCORES}
    for key in COMPARED:
        label, style = styles[key]
        known = systems.format_published(system.result(resolution)) if key == "fsc" else systems.UNKNOWN
        if f"{key}_after" in scores:
            rows.append(row(label, *(style.format(scores[f"{key}_{when}"]) for when in ("before", "after")), known))
        elif key == "fsc":
            rows.append(row(label, ours="no --reference", published=known))
    if check is not None:
        rows.append(row(f"FSC = 0.5 against {system.check} [Å]", ours=f"{check:.2f}"))
    return rows


def setting_rows(
    system: System, resolution: float | None, config: dict, scores: dict, seconds: float, out_dir: Path
) -> list[dict]:
    """Rows of the settings of the fit, here and in the paper."""
    from cryotrans_jax.fit.record import from_plain

    from . import run_folder

    recipe, chosen, ends = system.recipe(resolution), config["chosen"], config["resolutions"]
    used = from_plain(config["recipe"])
    made = [(stage.label, stage.steps, stage.learning_rate) for stage in used.stages]
    map_ = run_folder.load_map(out_dir, "generated.mrc")
    known = [system.initial.resolution, resolution or system.target.resolution]
    levels = chosen["initial"]["threshold"], chosen["targets"][0]["threshold"]
    sharpness = [ends["initial"], *ends["targets"]]
    cut = systems.format_published(system.parts, "{}, by hand")
    return [
        row(
            "resolutions [Å]", ours=join_numbers(sharpness, "estimated"), published=join_numbers(known, systems.UNKNOWN)
        ),
        row(
            "steps",
            ours=systems.describe_schedule(systems.Recipe(tuple(made), levels)),
            published=systems.describe_schedule(recipe),
        ),
        row(
            "width of the network",
            ours=used.field.network.width,
            published=systems.format_published(recipe and recipe.width),
        ),
        row(
            "thresholds",
            ours="{:.4g}, {:.4g}".format(*levels),
            published=systems.format_published(recipe and "{:g}, {:g}".format(*recipe.thresholds)),
        ),
        row(
            "box [voxels]",
            ours=" × ".join(map(str, map_.density.shape)),
            published=systems.format_published(system.box, "{}³"),
        ),
        row("voxel size [Å]", ours=" × ".join(f"{d:.4g}" for d in dict.fromkeys(map_.voxel_size.tolist()))),
        row("parts", ours=max(1, len(scores.get("parts", []))), published=cut),
        row(
            "time",
            ours=f"{seconds:.0f} s in all",
            published=systems.SPEED if system.box == systems.SPEED_BOX else systems.UNKNOWN,
        ),
        row("figure of the paper", published=systems.format_published(system.figure)),
    ]


def join_numbers(values: list, otherwise: str) -> str:
    """Join numbers by commas, with `otherwise` for None."""
    return ", ".join(otherwise if value is None else f"{value:g}" for value in values)


def command() -> None:
    """Run the command with the flags of the command line."""
    define_flags()
    run(main)


if __name__ == "__main__":
    command()
