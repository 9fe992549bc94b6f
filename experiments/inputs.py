"""Finds or makes the input maps that the flags name."""

import contextlib
import itertools
import re
from pathlib import Path

import gemmi
import jax
import numpy as np

from cryotrans_jax import align, atoms
from cryotrans_jax.files import InputError
from cryotrans_jax.maps import Map, read_map, same_grid, write_map
from experiments.demo import hinge_pair
from experiments.results import Case, box, load_reference

ENTRY = re.compile(r"(?P<entry>[0-9][A-Za-z0-9]{3}|pdb_[0-9a-z]{8})_(?P<resolution>[0-9]+(?:\.[0-9]+)?)A\.mrc")
MODEL_SUFFIXES = (".cif", ".pdb", ".cif.gz", ".pdb.gz", ".ent")
INITIAL = "6RAH_3A.mrc"  # TmrAB, the paper's first system


def from_flags(settings, out_dir: Path) -> Case:
    """The case that the flags name.

    Raises InputError for whatever cannot be used.
    """
    initial_name, target_names = settings.initial or INITIAL, settings.target
    if settings.target_resolution and not (settings.initial_resolution or resolution_in(initial_name)):
        raise InputError("--target_resolution is given without --initial_resolution: give both, or neither")
    if not target_names:
        raise InputError("--initial is given but no --target: name the map of the rare conformation as well")
    initial, targets, files = load(initial_name, target_names, settings.data_dir, out_dir)
    used = {name: files[name] for name in (initial_name, *target_names)}
    model = None
    if settings.model:
        used[settings.model] = existing(settings.model, settings.data_dir)
        model = atoms.read_model(used[settings.model])
        check_inside(model, initial.density.shape, initial.voxel_size, initial.origin, settings.model)
    given = settings.reference or []
    if len(given) not in (0, 1, len(targets)):
        raise InputError(f"{len(given)} references for {len(targets)} targets: give one, or one for each target")
    used |= {name: existing(name, settings.data_dir) for name in given}
    superposed = base_model(initial_name, settings.data_dir) is not None  # and so were targets made from models
    placed = [
        place(initial, target, settings, superposed and files[name].parent == out_dir / "inputs")
        for name, target in zip(target_names, targets, strict=True)
    ]
    for name, (_, found) in zip(target_names, placed, strict=True):
        print_alignment(files[name], found)
    given = given * len(targets) if len(given) == 1 else given or [None] * len(targets)
    return Case(
        initial=initial,
        targets=[target for target, _ in placed],
        files=used,
        target_names=unique_stems(target_names),
        initial_resolution=settings.initial_resolution or resolution_in(initial_name),
        target_resolutions=[settings.target_resolution or resolution_in(name) for name in target_names],
        model=model,
        references=[
            name and load_reference(used[name], initial, found.transform)
            for name, (_, found) in zip(given, placed, strict=True)
        ],
        alignments=[found for _, found in placed],
        boxes=[box(target) for target in targets],
    )


def place(initial: Map, target: Map, settings, superposed: bool) -> tuple[Map, align.Alignment]:
    """The target on the initial map's grid as the flags want it, and how it was laid there."""
    return align.onto(
        initial,
        target,
        "none" if superposed else settings.align,
        check_hand=settings.check_hand,
        initial_threshold=settings.initial_threshold,
        target_threshold=settings.target_threshold,
    )


def print_alignment(path: Path, found: align.Alignment) -> None:
    """Nothing; prints, once for all processes, how a target lies, and what to think of."""
    if jax.process_index():
        return
    how = f"{path.name} is {found.status}"
    if found.overlap is not None:
        how += f": its overlap with the initial map at {found.resolutions[0]:.0f} Å is {found.overlap:.3f}"
    if found.transform is not align.IDENTITY:
        how += (
            f" (from {found.overlap_before:.3f}, turned by {found.transform.angle:.1f}°, moved by {found.moved:.1f} Å)"
        )
    print(how)
    if found.inside is not None and found.inside < 0.98:
        print(f"only {100 * found.inside:.0f} % of the mass of {path.name} lies in the initial map's box: pad that map")
    if found.mirrored is not None:
        compared = f"correlation {found.mirrored:.2f} against {found.best:.2f}"
        if found.wrong_hand:
            print(f"the mirror image of {path.name} fits clearly better ({compared}): flip the map whose hand is wrong")
        else:
            print(f"the mirror image of {path.name} does not fit clearly better ({compared})")


def built_in_pair(out_dir: Path) -> Case:
    """The built-in pair at 3 and 7 Å, with both models; its files are written to `out_dir`/inputs."""
    folder = out_dir / "inputs"
    folder.mkdir(parents=True, exist_ok=True)
    models = dict(zip(("closed", "open"), hinge_pair(), strict=True))
    grid = atoms.common_grid(list(models.values()), 1.0, 3.0)
    files, maps = {}, {}
    for (name, model), resolution in zip(models.items(), (3.0, 7.0), strict=True):
        atoms.write_model(folder / f"{name}.cif", model)
        key = f"{name}_{resolution:g}A.mrc"
        files[key], maps[key] = folder / key, atoms.simulate_map(model, *grid, resolution)
        write_input(files[key], maps[key])
    print(f"No maps given: a built-in pair of models was made, and maps of them, in {folder}")
    (initial, target), (start, end) = maps.values(), models.values()
    return Case(initial, [target], files, ["open_7A"], 3.0, [7.0], start, [end])


def existing(name: str, data_dir: str) -> Path:
    """The file of that name, here or in the data folder. Raises InputError where there is none."""
    path = find(name, data_dir)
    if path is None:
        raise InputError(f"no file {name} here or in {data_dir}: give the path of a file, or another --data_dir")
    return path


def unique_stems(names: list[str]) -> list[str]:
    """File names without folders and suffixes, numbered where two would be the same."""
    stems: list[str] = []
    for name in names:
        stem = Path(name).name.split(".mrc")[0].split(".map")[0]
        tries = (stem if k == 1 else f"{stem}_{k}" for k in itertools.count(1))
        stems.append(next(s for s in tries if s not in stems))
    return stems


def resolution_in(name: str) -> float | None:
    """Resolution in Å that a name like 6RAH_3A.mrc tells, if it has that form."""
    match = ENTRY.fullmatch(Path(name).name)
    return float(match["resolution"]) if match else None


def find(name: str, data_dir: str) -> Path | None:
    """The file of that name: as it stands, or in the data folder."""
    for path in (Path(name), Path(data_dir) / name):
        if path.is_file():
            return path
    return None


def find_entry(name: str, data_dir: str) -> Path:
    """The model from which the map `name` can be made, looked up in the data folder.

    Raises InputError, saying what was sought, where, and how to get it.
    """
    match = ENTRY.fullmatch(Path(name).name)
    if not match:
        raise InputError(f"no map {name} here or in {data_dir}: give the path of a file, or another --data_dir")
    entry = match["entry"]
    for stem in (entry.upper(), entry.lower(), entry):
        for suffix in MODEL_SUFFIXES:
            if (path := Path(data_dir) / (stem + suffix)).is_file():
                return path
    raise InputError(
        f"no map {name} here or in {data_dir}, and no {entry}.cif or {entry}.pdb there to make it from: download "
        f"{entry}.cif from the PDB (https://files.rcsb.org/download/{entry.upper()}.cif) into {data_dir}"
    )


def load(initial: str, targets: list[str], data_dir: str, out_dir: Path) -> tuple[Map, list[Map], dict[str, Path]]:
    """The initial and the target maps, and for each name the file that it was read from.

    A map that is not found but whose name is <PDB id>_<r>A.mrc is simulated from the entry's model at r Å, the
    targets' models superposed on the initial entry's, on the initial map's grid, or where that is made as well on
    a grid that holds them all; it is written to the folder `out_dir`/inputs.
    """
    names = [initial, *targets]
    found = {name: find(name, data_dir) for name in names}
    entries = {name: find_entry(name, data_dir) for name in names if found[name] is None}
    if not entries:
        maps = {name: read_map(path) for name, path in found.items()}
        return maps[initial], [maps[t] for t in targets], found
    base = entries.get(initial) or base_model(initial, data_dir)
    models = {name: atoms.read_model(path) for name, path in entries.items()}
    if base:
        fixed = models.get(initial) or atoms.read_model(base)
        models = {n: m if n == initial else atoms.superpose(m, fixed) for n, m in models.items()}
    maps = {name: read_map(path) for name, path in found.items() if path}
    like = maps.get(initial) or next(iter(maps.values()), None)
    if like:
        grid = like.density.shape, like.voxel_size, like.origin
    else:
        sharpest = min(resolution_in(name) for name in models)
        grid = atoms.common_grid(list(models.values()), sharpest / 3, sharpest)
    (out_dir / "inputs").mkdir(parents=True, exist_ok=True)
    for name, model in models.items():
        check_inside(model, *grid, f"the model of {name}")
        maps[name] = atoms.simulate_map(model, *grid, resolution_in(name))
        found[name] = out_dir / "inputs" / Path(name).name
        write_input(found[name], maps[name])
    return maps[initial], [maps[t] for t in targets], found


def write_input(path: Path, map_: Map) -> None:
    """Nothing; the file holds the map. Kept if it does already, as another process of the run may have made it."""
    with contextlib.suppress(InputError, OSError):
        there = read_map(path)
        rounding = 1e-5 * np.abs(map_.density).max()  # other processors round otherwise
        if same_grid(there, map_) is None and np.allclose(there.density, map_.density, rtol=0, atol=rounding):
            return
    write_map(path, map_)


def check_inside(model: gemmi.Structure, shape, voxel_size, origin, name: str) -> None:
    """Nothing; raises InputError where heavy atoms lie outside the grid."""
    x = (atoms.heavy_atoms(model)[0] - origin) / voxel_size
    outside = int(((x < -0.5) | (x > np.array(shape) - 0.5)).any(axis=1).sum())
    if outside:
        raise InputError(
            f"{outside} of {len(x)} atoms of {name} lie outside the map: move the model into it (experiments.simulate "
            "--superpose_on), or simulate all maps in a box that covers all models (--cover)"
        )


def base_model(initial: str, data_dir: str) -> Path | None:
    """The model on which targets are superposed when the initial map itself was found, if there is one."""
    try:
        return find_entry(initial, data_dir)
    except InputError:
        return None
