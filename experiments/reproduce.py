"""One of the paper's systems, fitted and scored beside what was published of it.

python -m experiments.reproduce --list                     all of them, and what is missing here
python -m experiments.reproduce --system=TmrAB --resolution=7 --recipe=paper --fetch

Entries are looked up in --data_dir, or fetched. Files that no archive has are found there by names like
Arp23_initial.mrc and 70S_target.mrc, or given as --initial and --target. Where the paper simulates its maps from
models, so does this; where files are models (the frames of a simulation), their maps are simulated too. Flags that are
given take precedence over the paper's values. Beside the files of experiments.run the folder holds reproduce.md and
reproduce.json.
"""

import contextlib
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from . import ranges, systems, tables
from . import run as job
from .log import commands_as_typed
from .main import run
from .systems import System
from .usage import group

FLAGS = flags.FLAGS
RESOLUTION = 7.0  # Å, of simulated targets, if none is given
COMPARED = ("fsc", "fsc_0.143", "fsc_with_target", "correlation_matched", "rmsd", "moved_rmsd")


@group("System")
def define_system() -> None:
    """Nothing; the flags that name a system are there."""
    names = ", ".join(system.name for system in systems.SYSTEMS)
    flags.DEFINE_bool("list", False, "Show all systems, and what of each is missing in --data_dir; fit nothing.")
    flags.DEFINE_string("system", None, f"SYSTEM: one of {names}.")
    ranges.number("resolution", None, f"Å: of a simulated target; {RESOLUTION:g} if not given.", ranges.RESOLUTION)
    ranges.whole_number(
        "box",
        None,
        "VOXELS: side of simulated maps; as published if not given, 0 for as few as will do.",
        ranges.SIDE._replace(least=0),
    )


def define_flags() -> None:
    """Nothing; the flags of this job are there, and all of experiments.run."""
    define_system()
    job.define_flags()


def main() -> None:
    """Nothing; the folder holds the fit of a system and its table, or all systems are listed."""
    from cryotrans_jax.files import InputError

    if FLAGS.list:
        print(systems.table())
        print("\n".join(f"{system.name}: {commands_as_typed(missing_told(system))}" for system in systems.SYSTEMS))
        return
    if not FLAGS.system:
        raise InputError("no system is named: give --system, or --list to see all of them")
    system = systems.named(FLAGS.system)
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
    """Keep other programs from writing to the folder until `claims` are closed, if its results may be replaced."""
    import jax

    from . import run_folder

    claims.enter_context(run_folder.claimed(out_dir, jax.process_index()))
    run_folder.check_free(out_dir, FLAGS.overwrite)


def reproduce(system: System, files: dict[str, Path], resolution: float | None, out_dir: Path) -> None:
    """Fit the system from its files, with targets simulated at the resolution if one is given, and write its table."""
    fill(out_dir=str(out_dir))
    recipe = system.recipe(resolution)
    if recipe and FLAGS.recipe == "paper":
        first, second = recipe.thresholds
        fill(initial_threshold=first, target_threshold=second, schedule=recipe.flag, width=recipe.width)
    check = from_models(system, files, resolution, out_dir) if resolution else from_maps(system, files, out_dir)
    if system.parts and FLAGS.parts == "auto":
        print(
            f"the paper cuts this map into {system.parts} parts by hand, where is not published: give --parts for that"
        )
    begin = time.perf_counter()
    job.main()
    seconds = time.perf_counter() - begin
    if not (out_dir / "metrics.json").is_file():  # another process has written it
        return
    write_table(system, resolution, seconds, check and score_check(check, out_dir), out_dir)


def fill(**values: Any) -> None:
    """Nothing; flags that were not given, and whose value here is not None, have it."""
    for name, value in values.items():
        if value is not None and not FLAGS[name].present:
            FLAGS[name].value = value


# ------------------------------------------------------------------------------------------------------------- inputs


class Needed(NamedTuple):
    """What a system takes: its part in it, the name by which it is looked up, and whether that is an entry."""

    role: str
    name: str
    entry: bool


def needed(system: System) -> list[Needed]:
    """All that a system takes: the two maps, or the models that they are simulated from, and models to score with."""
    ends = (("initial", system.initial), ("target", system.target))
    found = []
    for role, state in ends:
        entry = state.map or (state.model if system.simulated else None)
        found.append(Needed(role, entry or f"{system.slug}_{role}", entry is not None))
    if not system.simulated:
        models = (("model", system.initial.model), ("reference", system.target.model), ("check", system.check))
        found += [Needed(role, model, True) for role, model in models if model]
    return found


def look_up(name: str) -> Path | None:
    """The map or model of that name, with or without suffix, here or in the data folder; None where there is none."""
    from . import inputs, results

    names = [name, *(name + suffix for suffix in results.MAP_SUFFIXES)]
    maps = (inputs.find(each, FLAGS.data_dir) for each in names)
    return next(filter(None, maps), None) or inputs.find_model(name, FLAGS.data_dir)


def missing_told(system: System) -> str:
    """What of a system is not in the data folder, and how to get it."""
    absent = [each for each in needed(system) if look_up(each.name) is None]
    if not absent:
        return f"all is in {FLAGS.data_dir}"
    entries = [each.name for each in absent if each.entry]
    told = [
        f"{each.name}.mrc ({shown_source(system, each.role)}): give --{each.role}, or put it into {FLAGS.data_dir}"
        for each in absent
        if not each.entry
    ]
    if entries:
        fetch = f"python -m experiments.fetch {' '.join(entries)} --parts=map --data_dir={FLAGS.data_dir}"
        told.append(f"{', '.join(entries)}: {fetch}")
    return "missing " + "; ".join(told)


def shown_source(system: System, role: str) -> str:
    """Where a state that is no entry is from."""
    source = (system.initial if role == "initial" else system.target).source
    return source or f"its entry is {systems.UNKNOWN}"


def collect(system: System) -> dict[str, Path]:
    """The files of a system by their part in it; fetched where they are missing and the flags say so.

    Raises InputError where a map, or a model to make it from, is not there.
    """
    from cryotrans_jax.files import InputError

    from . import archives, inputs

    given = {"initial": FLAGS.initial, "target": FLAGS.target and FLAGS.target[0]}
    found: dict[str, Path] = {}
    for role, name, entry in needed(system):
        wanted = given.get(role) or name
        path = look_up(wanted)
        if path is None and FLAGS.fetch and (entry or wanted != name):
            Path(FLAGS.data_dir).mkdir(parents=True, exist_ok=True)
            archives.fetch(wanted, archives.of(FLAGS), Path(FLAGS.data_dir), ("map",))
            path = look_up(wanted)
        if path:
            found[role] = path
        elif given.get(role):
            inputs.existing_file(wanted, FLAGS.data_dir)
        elif role in given:
            raise InputError(f"{system.name} cannot be fitted, {missing_told(system)}" + ", or add --fetch" * entry)
        else:
            print(f"without {name} nothing is carried along or scored by it: --fetch gets it")
    return found


def is_map(path: Path) -> bool:
    """Whether a file is a map, by its suffix."""
    from . import results

    return path.name.lower().endswith(results.MAP_SUFFIXES)


def simulated_resolution(system: System, files: dict[str, Path]) -> float | None:
    """The resolution [Å] at which the target is simulated, None where both states are maps.

    Raises InputError where one is a map and the other a model, or a resolution is given for maps.
    """
    from cryotrans_jax.files import InputError

    first, second = is_map(files["initial"]), is_map(files["target"])
    if first != second:
        raise InputError(
            f"of {files['initial']} and {files['target']} one is a map and the other a model: give two of a kind"
        )
    if first and FLAGS.resolution:
        raise InputError(f"--resolution is for simulated targets, and {files['target']} is a map: leave it out")
    return None if first else FLAGS.resolution or RESOLUTION


def from_models(system: System, files: dict[str, Path], resolution: float, out_dir: Path) -> None:
    """Nothing; maps of both models are in the folder `inputs`, and the flags name them.

    The target's model is superposed on the initial one, as a whole also where one chain of each is taken.
    """
    from cryotrans_jax import atoms

    from . import inputs

    start, end = (atoms.read_model(files[role], FLAGS.all_models) for role in ("initial", "target"))
    end = atoms.superpose(end, start)
    folder = out_dir / "inputs"
    folder.mkdir(parents=True, exist_ok=True)
    if system.one_chain:
        whole, (start, end) = start, one_chain(start, end)
        repeated = with_operators(start, whole)
        atoms.write_model(folder / "assembly.cif", repeated)
        fill(symmetry=str(folder / "assembly.cif"), one_unit=True)
    grid = cube([start, end], system.box if FLAGS.box is None else FLAGS.box, simulated_voxel_size())
    maps, models = [], []
    for role, model, at in (("initial", start, systems.INITIAL_RESOLUTION), ("target", end, resolution)):
        stem = files[role].name.split(".")[0]
        stem = stem if role == "initial" or stem != files["initial"].name.split(".")[0] else f"{stem}_target"
        models.append(folder / f"{stem}.cif")
        maps.append(folder / f"{stem}_{at:g}A.mrc")
        atoms.write_model(models[-1], model)
        inputs.write_input(maps[-1], atoms.simulate_map(model, *grid, at))
    FLAGS.initial, FLAGS.target = str(maps[0]), [str(maps[1])]
    fill(model=str(models[0]), reference=[str(models[1])], align="none")
    fill(initial_resolution=systems.INITIAL_RESOLUTION, target_resolution=resolution)


def one_chain(start, end):
    """The first chain that both models have, each in a model of its own; of each the first where they share none."""
    shared = [chain.name for chain in start[0] if any(chain.name == other.name for other in end[0])]
    alone = []
    for model in (start, end):
        model, name = model.clone(), shared[0] if shared else model[0][0].name
        for other in [chain.name for chain in model[0] if chain.name != name]:
            model[0].remove_chain(other)
        alone.append(model)
    return alone


def with_operators(alone, whole):
    """The model of one chain, with an assembly whose operators lay it over each chain of the whole model like it.

    Those are the chains that have its CA atoms, by residue number; the first operator is the identity.
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
    """The positions of a chain's CA atoms by residue number."""
    found = {str(residue.seqid): residue.find_atom("CA", "*") for residue in chain.first_conformer()}
    return {number: atom.pos for number, atom in found.items() if atom}


def simulated_voxel_size() -> float:
    """The voxel size of simulated maps, Å: --voxel_size, or a third of the resolution, as the paper's is not published.

    Raises InputError where --voxel_size is not one number.
    """
    from cryotrans_jax.files import InputError

    size = FLAGS.voxel_size or [systems.INITIAL_RESOLUTION / 3]
    if len(size) > 1:
        raise InputError("simulated maps have cubic voxels: give --voxel_size as one number")
    return size[0]


def cube(models, side: int | None, voxel_size: float):
    """Shape, voxel size and origin [Å] of a cube about the models with so many voxels along its side.

    Of the smallest box with wide margins instead where no side is given, or the models do not fit into the cube.
    """
    from cryotrans_jax import atoms

    resolution = systems.INITIAL_RESOLUTION
    shape, size, origin = atoms.common_grid(models, voxel_size, resolution, padding=resolution)
    if side and max(shape) <= side:
        return (side,) * 3, size, origin - [(side - n) // 2 * d for n, d in zip(shape, size, strict=True)]
    if side:
        print(
            f"both models do not fit into {side} voxels of {voxel_size:g} Å: the box is larger than the published one"
        )
    return atoms.common_grid(models, voxel_size, resolution)


def from_maps(system: System, files: dict[str, Path], out_dir: Path) -> Path | None:
    """The check's model where the target lies, if there is one; the flags name the maps and models.

    Models of the target state are laid over the target map, as entries of different origin have frames of their own.
    """
    FLAGS.initial, FLAGS.target = str(files["initial"]), [str(files["target"])]
    if system.initial.resolution and system.target.resolution:
        fill(initial_resolution=system.initial.resolution, target_resolution=system.target.resolution)
    given = dict(voxel_size=FLAGS.target_voxel_size, all_models=FLAGS.all_models)
    where = system.target.resolution, out_dir / "inputs", FLAGS.align
    placed = {
        role: laid_over(files[role], files["target"], *where, **given)
        for role in ("reference", "check")
        if role in files
    }
    if "model" in files:
        fill(model=str(files["model"]))
    if "reference" in placed:
        fill(reference=[str(placed["reference"])])
    return placed.get("check")


def laid_over(
    model: Path,
    target: Path,
    resolution: float | None,
    folder: Path,
    how: str = "auto",
    voxel_size: list[float] | None = None,
    all_models: bool = False,
) -> Path:
    """The file in the folder of a model in the pose in which its map fits the target map best (`align.onto`).

    Or as it lies, if `how` is none. `voxel_size` (Å) is the target map's instead of its header's, and `all_models` as
    in `atoms.read_model`.
    """
    from cryotrans_jax import align, atoms, maps

    read, goal = atoms.read_model(model, all_models), maps.read_map(target, voxel_size)
    simulated = atoms.simulate(read, resolution or RESOLUTION, voxel_size=max(goal.voxel_size))
    found = align.onto(goal, simulated, how)[1]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{model.name.split('.')[0]}_on_target.cif"
    atoms.write_model(path, found.transform.move(read))
    print(f"{model.name} is {found.summary} on {target.name}")
    return path


# ------------------------------------------------------------------------------------------------------------ results


def score_check(model: Path, out_dir: Path) -> float:
    """FSC = 0.5 [Å] of the generated map against another model of the target state, in the target's frame."""

    from cryotrans_jax import atoms, metrics
    from cryotrans_jax.align import Transform

    from . import run_folder

    there = atoms.read_model(model, FLAGS.all_models)
    if laid := run_folder.read_config(out_dir).get("alignment"):
        there = Transform.from_matrix(laid["transform"]).move(there)
    generated = run_folder.load_map(out_dir, "generated.mrc")
    at = FLAGS.initial_resolution or systems.INITIAL_RESOLUTION
    return metrics.resolution_at(*metrics.model_map_fsc(generated, there, at), 0.5)


def write_table(system: System, resolution: float | None, seconds: float, check: float | None, out_dir: Path) -> None:
    """Nothing; the table is printed, and in reproduce.md and reproduce.json in the folder."""
    from cryotrans_jax.files import write_file

    from . import run_folder

    scores, config = run_folder.read_scores(out_dir), run_folder.read_config(out_dir)
    rows = scored(system, resolution, scores, check) + settings(system, resolution, config, scores, seconds, out_dir)
    at = f" at {resolution:g} Å" if resolution else ""
    lines = [
        f"# {system.name}{at}: {systems.states(system)}, recipe {FLAGS.recipe}",
        "",
        tables.styled(rows, dict.fromkeys(rows[0], "{}")),
    ]
    lines += [system.remark[:1].upper() + system.remark[1:] + "."] * bool(system.remark)
    lines += [f'"{systems.UNKNOWN}": not among the published facts that this table is made from.']
    text = "\n".join(lines) + "\n"
    print(text)
    write_file(out_dir / "reproduce.md", text)
    told = {"system": asdict(system), "resolution": resolution, "recipe": FLAGS.recipe, "rows": rows, "metrics": scores}
    run_folder.write_json(out_dir / "reproduce.json", told)


def row(quantity: str, before: str = "", ours: str = "", published: str = systems.UNKNOWN) -> dict:
    """One row of the table."""
    return {"quantity": quantity, "initial map": before, "ours": ours, "published": published}


def scored(system: System, resolution: float | None, scores: dict, check: float | None) -> list[dict]:
    """The rows of scores; the published one is that against a model of the target state."""
    from . import log

    rows = []
    styles = {key: (label, style) for label, key, style in log.SCORES}
    for key in COMPARED:
        label, style = styles[key]
        known = systems.shown(system.result(resolution)) if key == "fsc" else systems.UNKNOWN
        if f"{key}_after" in scores:
            rows.append(row(label, *(style.format(scores[f"{key}_{when}"]) for when in ("before", "after")), known))
        elif key == "fsc":
            rows.append(row(label, ours="no --reference", published=known))
    if check is not None:
        rows.append(row(f"FSC = 0.5 against {system.check} [Å]", ours=f"{check:.2f}"))
    return rows


def settings(
    system: System, resolution: float | None, config: dict, scores: dict, seconds: float, out_dir: Path
) -> list[dict]:
    """The rows that tell how it was fitted, here and in the paper."""
    from . import run_folder

    recipe, chosen, ends = system.recipe(resolution), config["chosen"], config["resolutions"]
    made = [(s["loss"], s["steps"], s["learning_rate"]) for s in config["recipe"]["stages"]]
    map_ = run_folder.load_map(out_dir, "generated.mrc")
    known = [system.initial.resolution, resolution or system.target.resolution]
    levels = chosen["initial"]["threshold"], chosen["targets"][0]["threshold"]
    sharpness = [ends["initial"], *ends["targets"]]
    cut = systems.shown(system.parts, "{}, by hand")
    return [
        row("resolutions [Å]", ours=listed(sharpness, "estimated"), published=listed(known, systems.UNKNOWN)),
        row("steps", ours=systems.scheduled(systems.Recipe(tuple(made), levels)), published=systems.scheduled(recipe)),
        row("width of the network", ours=config["recipe"]["width"], published=systems.shown(recipe and recipe.width)),
        row(
            "thresholds",
            ours="{:.4g}, {:.4g}".format(*levels),
            published=systems.shown(recipe and "{:g}, {:g}".format(*recipe.thresholds)),
        ),
        row(
            "box [voxels]",
            ours=" × ".join(map(str, map_.density.shape)),
            published=systems.shown(system.box, "{}³"),
        ),
        row("voxel size [Å]", ours=" × ".join(f"{d:.4g}" for d in dict.fromkeys(map_.voxel_size.tolist()))),
        row("parts", ours=max(1, len(scores.get("parts", []))), published=cut),
        row(
            "time",
            ours=f"{seconds:.0f} s in all",
            published=systems.SPEED if system.box == systems.SPEED_BOX else systems.UNKNOWN,
        ),
        row("figure of the paper", published=systems.shown(system.figure)),
    ]


def listed(values: list, otherwise: str) -> str:
    """Numbers, separated by commas; `otherwise` where one is not known."""
    return ", ".join(otherwise if value is None else f"{value:g}" for value in values)


def command() -> None:
    """Nothing; the job is done as the command line says."""
    define_flags()
    run(main)


if __name__ == "__main__":
    command()
