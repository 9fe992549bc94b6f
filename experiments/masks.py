"""Mask the maps of a run: by given masks, by spheres, or by separating a protein from its micelle or nanodisc."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import gemmi
import jax

from cryotrans_jax.density import mask, micelle
from cryotrans_jax.io.files import InputError, checksum
from cryotrans_jax.io.maps import Map, read_map

from . import log, prechecks
from .find import existing_file, one_for_each, unique_stems
from .run_folder import write_input
from .settings import InputSettings


def mask_all(settings: InputSettings, maps: Sequence[Map]) -> tuple[list[Map], dict[str, Path]]:
    """Apply the masks that the settings name, each on its own map's grid; the initial map comes first.

    Returns:
        The maps, and the files of the masks by name.
    """
    initial, *targets = maps
    each = one_for_each(settings.target_mask, len(targets), "target masks")
    names = filter(None, (settings.mask, *settings.target_mask))
    files = {name: existing_file(name, settings.data_dir) for name in names}
    radius, size = settings.mask_radius, settings.target_voxel_size
    initial = masked(initial, files.get(settings.mask or ""), radius, settings.voxel_size)
    targets = [masked(t, files.get(name or ""), radius, size) for t, name in zip(targets, each, strict=True)]
    return [initial, *targets], files


def without_micelles(
    names: Sequence[str],
    maps: list[Map],
    resolutions: Sequence[float | None],
    has_mask: Sequence[bool],
    model: gemmi.Structure | None,
    out_dir: Path,
    rules: micelle.MicelleRules,
) -> tuple[list[Map], dict[str, Map], dict[str, Path]]:
    """Remove micelles and nanodiscs from maps that show one.

    Args:
        resolutions: in Å; None if unknown.
        has_mask: whether the user gave a mask for a map, which is then taken as it is.
        model: of the initial state, if there is one.
        out_dir: the run's folder; masks of what is kept are written to its folder inputs.
        rules: what is taken for a micelle.

    Returns:
        The maps, the masks of those from which something was removed, and the files of these masks under the names from
        `protein_in`.
    """
    found, kept, files = micelle.proteins(maps, resolutions, has_mask, model, rules), {}, {}
    for number, (name, one) in enumerate(zip(names, found, strict=True)):
        if one is None:
            continue
        path = out_dir / "inputs" / f"protein_in_{unique_stems(names)[number]}.mrc"
        path.parent.mkdir(parents=True, exist_ok=True)
        kept[name], files[protein_in(name)] = replace(maps[number], density=one.mask), path
        write_input(path, kept[name])
        maps[number] = mask.masked(maps[number], kept[name], str(path))
        if not jax.process_index():
            log.micelle_removed(Path(name).name, one.left_out, path)
    return maps, kept, files


def protein_in(name: str) -> str:
    """Name, among a run's inputs, of the mask that removed the micelle of a map."""
    return f"protein in {name}"


def masks_used(config: dict, name: str, given: str | None) -> tuple[Path | None, Path | None]:
    """Files of the masks that a run applied to a map.

    Args:
        name: of the map among the run's inputs.
        given: name of the mask that the flags gave, if they did.

    Returns:
        The mask that the flags gave, and the one that removed a micelle; None for a mask that was not applied.
    """

    def file(known: str | None) -> Path | None:
        if not known:
            return None
        entry = config["inputs"].get(known, {"file": known, "sha256": ""})
        path = Path(entry["file"])
        if not path.is_file() or checksum(path) != entry["sha256"]:
            raise InputError(f"the run's mask {path} is gone or changed: put it back")
        return path

    protein = protein_in(name)
    return file(given), file(protein if protein in config["inputs"] else None)


def read_as_used(config: dict, path: Path, kind: str, masks: tuple[Path | None, Path | None]) -> Map:
    """Read a map of a run as the run did.

    Args:
        kind: "initial" or "target".
    """
    given, protein = masks
    settings = config["settings"]
    size = settings.get("voxel_size" if kind == "initial" else "target_voxel_size")
    map_ = prechecks.as_fitted(read_map(path, size), kind, settings.get("invert"))
    return masked(masked(map_, given, settings.get("mask_radius"), size), protein, None)


def masked(map_: Map, path: Path | None, radius: float | None, voxel_size: list[float] | None = None) -> Map:
    """Apply a mask, and a spherical mask, to a map.

    Args:
        path: file of the mask; None for no mask.
        radius: of a sphere about the map's centre of mass (Å); None for no sphere.
        voxel_size: of the mask (Å), instead of that in its header.
    """
    if radius is not None and radius < (size := float(map_.voxel_size.min())):
        raise InputError(f"--mask_radius={radius:g} is less than a voxel of {size:.3g} Å: give it in Å (1 nm is 10 Å)")
    if path is not None:
        map_ = mask.masked(map_, read_map(path, voxel_size), str(path))
    return map_ if radius is None else mask.masked(map_, mask.sphere(map_, radius), f"a sphere of {radius:g} Å")
