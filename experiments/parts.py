"""Add the parts of the initial map and the symmetry that the flags describe to a case."""

from cryotrans_jax.density import thresholds
from cryotrans_jax.density.symmetry import Symmetry
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, read_map
from cryotrans_jax.motion import partition

from . import paths
from .case import MAP_SUFFIXES, Case
from .find import existing_file, find
from .settings import InputSettings, SymmetrySettings


def add_parts(case: Case, settings: InputSettings) -> None:
    """Add the parts that the settings name to the case, with the factors of the rigidity's weight."""
    case.part_rigidity = settings.part_rigidity
    if settings.parts in ("auto", "none"):
        case.parts = settings.parts if settings.parts == "auto" else None
        return
    names = paths.split(settings.parts)
    if not all(name.lower().endswith(MAP_SUFFIXES) for name in names):
        if case.model is None:
            raise InputError(f"--parts={settings.parts} is not a map: to select residues give the model with --model")
        case.parts = partition.from_model(case.model, settings.parts, case.initial)
        return
    files = {name: existing_file(name, settings.data_dir) for name in names}
    case.files |= files
    maps = [read_map(files[name], settings.voxel_size) for name in names]
    if len(maps) == 1:
        case.parts = partition.from_labels(maps[0], case.initial, names[0])
    else:
        case.parts = partition.from_masks(maps, case.initial, names)


def add_symmetry(case: Case, symmetry: SymmetrySettings, settings: InputSettings) -> None:
    """Add the symmetry that is described to the case: of its maps, or of the assembly if they show one unit."""
    given = symmetry.symmetry
    if not given:
        if symmetry.one_unit or symmetry.symmetry_axis or symmetry.symmetry_centre:
            raise InputError(
                "--one_unit, --symmetry_axis and --symmetry_centre describe a --symmetry: give that as well"
            )
        return
    if symmetry.one_unit and settings.align != "none" and case.alignments:
        raise InputError(
            "a single unit that is aligned may lose its place about the symmetry axis: add --align=none to --one_unit"
        )
    axis = three_numbers(symmetry.symmetry_axis, "symmetry_axis") or (0, 0, 1)
    centre = three_numbers(symmetry.symmetry_centre, "symmetry_centre")
    if (path := find(given, settings.data_dir)) is not None:
        case.files[given], found = path, Symmetry.from_file(path)
    elif centre is not None:
        found = Symmetry.named(given, centre, axis)
    else:  # the axis cannot be found from one unit
        solvent_free = None if symmetry.one_unit else without_solvent(case.initial, settings)
        found = Symmetry.of(given, case.initial, solvent_free, axis)
    if symmetry.one_unit:
        case.repeated = found
    else:
        case.symmetry = found


def without_solvent(initial: Map, settings: InputSettings) -> Map:
    """The initial map, zero below its threshold."""
    level = settings.initial_threshold
    if level is None:
        level = thresholds.choose_threshold(initial.density, settings.preparation.thresholds)
    return Map(thresholds.carried_mass(initial.density, level), initial.voxel_size, initial.origin)


def three_numbers(given: list[float] | None, name: str) -> list[float] | None:
    """The numbers that the flag of this name gives, or None; raise InputError where they are not three."""
    if given is None or len(given) == 3:
        return given
    raise InputError(f"--{name}={','.join(f'{each:g}' for each in given)} is not three numbers such as 0,0,1")
