"""Find the files of one of the paper's systems, and simulate or align what a run of it needs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gemmi

from cryotrans_jax.density import align, simulation
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import read_map

from . import archives, find, log, systems
from .case import MAP_SUFFIXES
from .run_folder import write_input
from .systems import System

RESOLUTION = 7.0  # Å, of simulated targets if none is given


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


def look_up(name: str, data_dir: str) -> Path | None:
    """Find a map or model by name, with or without suffix, here or in the data folder; None if there is none."""
    names = [name, *(name + suffix for suffix in MAP_SUFFIXES)]
    maps = (find.find(each, data_dir) for each in names)
    return next(filter(None, maps), None) or find.find_model(name, data_dir)


def describe_missing(system: System, data_dir: str) -> str:
    """Describe the files of a system that are missing in the data folder, and how to get them."""
    absent = [each for each in requirements(system) if look_up(each.name, data_dir) is None]
    if not absent:
        return f"all is in {data_dir}"
    entries = [each.name for each in absent if each.entry]
    hints = [
        f"{each.name}.mrc ({describe_source(system, each.role)}): give --{each.role}, or put it into {data_dir}"
        for each in absent
        if not each.entry
    ]
    if entries:
        fetch = f"python -m experiments.fetch {' '.join(entries)} --parts=map --data_dir={data_dir}"
        hints.append(f"{', '.join(entries)}: {fetch}")
    return "missing " + "; ".join(hints)


def describe_source(system: System, role: str) -> str:
    """Describe the source of a state that is not an entry."""
    source = (system.initial if role == "initial" else system.target).source
    return source or f"its entry is {systems.UNKNOWN}"


def collect(
    system: System, given: Mapping[str, str | None], data_dir: str, source: archives.Archives | None
) -> dict[str, Path]:
    """Find the files of a system by role.

    Args:
        system: the system.
        given: names of the "initial" and the "target" state, where they are not those of the system.
        data_dir: where names that are not files are looked up.
        source: where to fetch missing files from; None fetches nothing.

    Raises:
        InputError: a map, or a model to simulate it from, is missing.
    """
    found: dict[str, Path] = {}
    for role, name, entry in requirements(system):
        wanted = given.get(role) or name
        path = look_up(wanted, data_dir)
        if path is None and source is not None and (entry or wanted != name):
            Path(data_dir).mkdir(parents=True, exist_ok=True)
            archives.fetch(wanted, source, Path(data_dir), ("map",))
            path = look_up(wanted, data_dir)
        if path:
            found[role] = path
        elif given.get(role):
            find.existing_file(wanted, data_dir)
        elif role in given:
            missing = describe_missing(system, data_dir)
            raise InputError(f"{system.name} cannot be fitted, {missing}" + ", or add --fetch" * entry)
        else:
            log.info(f"{name} is missing, so no model is carried along or compared with: --fetch downloads it")
    return found


def is_map(path: Path) -> bool:
    """Whether a file is a map, by its suffix."""
    return path.name.lower().endswith(MAP_SUFFIXES)


def simulated_resolution(files: Mapping[str, Path], given: float | None) -> float | None:
    """Resolution (Å) at which the target is simulated, the given one if there is one; None if both states are maps.

    Raises:
        InputError: one state is a map and the other a model, or a resolution is given for maps.
    """
    first, second = is_map(files["initial"]), is_map(files["target"])
    if first != second:
        raise InputError(
            f"of {files['initial']} and {files['target']} one is a map and the other a model: give two of a kind"
        )
    if first and given:
        raise InputError(f"--resolution is for simulated targets, and {files['target']} is a map: leave it out")
    return None if first else given or RESOLUTION


def simulate_pair(
    files: Mapping[str, Path],
    resolution: float,
    folder: Path,
    side: int | None,
    voxel_size: list[float] | None,
    all_models: bool,
    alone: bool,
) -> dict[str, Any]:
    """Simulate maps of both models, and write them and the models.

    The target's model is superposed on the initial one as a whole, even if only one chain of each is used.

    Args:
        files: of the models, by role.
        resolution: of the target (Å).
        folder: for what is written.
        side: voxels along the side of the box; None or 0 gives the smallest box.
        voxel_size: one number (Å); None gives a third of the initial map's resolution, as the paper's is not published.
        all_models: as in `atoms.read_model`.
        alone: whether to use one chain of each model.

    Returns:
        Values of the flags with which the pair is fitted.
    """
    if voxel_size and len(voxel_size) > 1:
        raise InputError("simulated maps have cubic voxels: give --voxel_size as one number")
    start, end = (atoms.read_model(files[role], all_models) for role in ("initial", "target"))
    end, values = atoms.superpose(end, start), {}
    folder.mkdir(parents=True, exist_ok=True)
    if alone:
        whole, (start, end) = start, one_chain(start, end)
        atoms.write_model(folder / "assembly.cif", with_operators(start, whole))
        values = {"symmetry": str(folder / "assembly.cif"), "one_unit": True}
    grid = cube([start, end], side, voxel_size[0] if voxel_size else systems.INITIAL_RESOLUTION / 3)
    stems = [files[role].name.split(".")[0] for role in ("initial", "target")]
    stems[1] += "_target" * (stems[0] == stems[1])
    maps, models = [], []
    for stem, model, at in zip(stems, (start, end), (systems.INITIAL_RESOLUTION, resolution), strict=True):
        models.append(str(folder / f"{stem}.cif"))
        maps.append(folder / f"{stem}_{at:g}A.mrc")
        atoms.write_model(models[-1], model)
        write_input(maps[-1], simulation.simulate_map(model, *grid, at))
    values |= {"initial": str(maps[0]), "target": [str(maps[1])], "model": models[0], "reference": [models[1]]}
    values |= {"initial_resolution": systems.INITIAL_RESOLUTION, "target_resolution": resolution}
    return values | {"align": "none"}


def one_chain(start: gemmi.Structure, end: gemmi.Structure) -> list[gemmi.Structure]:
    """Extract the first chain that both models share, one model each; if they share none, the first of each."""
    shared = [chain.name for chain in start[0] if any(chain.name == other.name for other in end[0])]
    alone = []
    for model in (start, end):
        model, name = model.clone(), shared[0] if shared else model[0][0].name
        for other in [chain.name for chain in model[0] if chain.name != name]:
            model[0].remove_chain(other)
        alone.append(model)
    return alone


def with_operators(alone: gemmi.Structure, whole: gemmi.Structure) -> gemmi.Structure:
    """Add to a model of one chain an assembly whose operators superpose it on each equivalent chain.

    Equivalent chains have at least half of its residues, and three, by number and atom (CA, or C4' of a nucleotide).
    The first operator is the identity.

    Args:
        alone: the model of one chain.
        whole: the model with all chains.
    """
    ours = residue_positions(alone[0][0])
    generator = gemmi.Assembly.Gen()
    generator.chains = [alone[0][0].name]
    chains = sorted(whole[0], key=lambda chain: chain.name != alone[0][0].name)
    for chain in chains:
        theirs = residue_positions(chain)
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


def residue_positions(chain: gemmi.Chain) -> dict[tuple[str, str], gemmi.Position]:
    """Positions of the atoms that stand for a chain's residues, by residue number and name of the atom."""
    found = ((str(residue.seqid), atoms.residue_atom(residue)) for residue in chain.first_conformer())
    return {(number, atom.name): atom.pos for number, atom in found if atom}


def cube(models: Sequence[gemmi.Structure], side: int | None, voxel_size: float):
    """Grid of a cube about the models; the smallest box with wide margins if they do not fit into the cube.

    Args:
        models: the models.
        side: voxels along the side of the cube; None or 0 gives the smallest box.
        voxel_size: Å.

    Returns:
        Shape, voxel size (Å) and origin (Å).
    """
    resolution = systems.INITIAL_RESOLUTION
    shape, size, origin = simulation.common_grid(models, voxel_size, resolution, padding=resolution)
    if side and max(shape) <= side:
        return (side,) * 3, size, origin - [(side - n) // 2 * d for n, d in zip(shape, size, strict=True)]
    if side:
        log.info(
            f"both models do not fit into {side} voxels of {voxel_size:g} Å: the box is larger than the published one"
        )
    return simulation.common_grid(models, voxel_size, resolution)


def align_models(
    system: System, files: Mapping[str, Path], folder: Path, how: str, voxel_size: list[float] | None, all_models: bool
) -> tuple[dict[str, Any], Path | None]:
    """Align the models of the target state to the target map, as entries of different origin have different frames.

    Args:
        system: the system.
        files: its maps and models by role.
        folder: for the aligned models.
        how: as for `align_model`.
        voxel_size: as for `align_model`.
        all_models: as in `atoms.read_model`.

    Returns:
        Values of the flags with which the system is fitted, and the model for the check in the target's frame if there
        is one.
    """
    detail = system.target.model_fsc or system.target.resolution  # to which the map shows the model
    placed = {
        role: align_model(files[role], files["target"], detail, folder, how, voxel_size, all_models)
        for role in ("reference", "check")
        if role in files
    }
    values: dict[str, Any] = {"initial": str(files["initial"]), "target": [str(files["target"])]}
    if system.initial.resolution and system.target.resolution:
        values["initial_resolution"] = system.initial.resolution
        values["target_resolution"] = system.target.resolution
    if "model" in files:
        values["model"] = str(files["model"])
    if "reference" in placed:
        values["reference"] = [str(placed["reference"])]
    return values, placed.get("check")


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
    read, goal = atoms.read_model(model, all_models), read_map(target, voxel_size)
    simulated = simulation.simulate(read, resolution or RESOLUTION, voxel_size=max(goal.voxel_size))
    found = align.onto(goal, simulated, how)[1]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{model.name.split('.')[0]}_on_target.cif"
    atoms.write_model(path, found.transform.move(read))
    log.info(f"{model.name} is {found.summary} on {target.name}")
    return path
