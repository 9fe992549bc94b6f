"""A case: the maps and models of a run, as they are fitted and scored."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import gemmi

from cryotrans_jax.density.align import Alignment
from cryotrans_jax.density.symmetry import Symmetry
from cryotrans_jax.fit.options import Preparation
from cryotrans_jax.fit.recipes import Schedule
from cryotrans_jax.fit.stage import Config
from cryotrans_jax.io.maps import COMPRESSION, SUFFIXES, Map
from cryotrans_jax.motion.partition import Partition

MAP_SUFFIXES = (*SUFFIXES, *(suffix + packed for packed in COMPRESSION for suffix in SUFFIXES))


class Doubt(NamedTuple):
    """A warning about the inputs: what was found, what to do, and the number of the target, or None for all targets."""

    what: str
    advice: str
    target: int | None = None


class Waypoint(NamedTuple):
    """A map that the flow has to pass at a time between 0 and 1; resolution in Å, None if unknown."""

    name: str
    map: Map
    time: float
    resolution: float | None


class Original(NamedTuple):
    """A target before its alignment, in the frame of its file: the map, and its reference if that is a map."""

    map: Map
    reference: Map | None = None


@dataclass
class Case:
    """The inputs of a run.

    Attributes:
        initial: the initial map.
        targets: the target maps, on the initial map's grid.
        files: the files that were read, by their names; those of the initial map and of the targets come first.
        target_names: names of the targets' folders.
        initial_resolution: in Å; None if unknown.
        target_resolutions: in Å; None if unknown.
        model: atomic model of the initial state.
        references: for each target a model or a map of the target state to score against, or None.
        contours: display contours of the initial map and of each target, as from `contour.describe`.
        waypoints: maps to pass on the way; only with a single target.
        halves: the half-maps of each target, if there are any.
        alignments: how each target was superposed on the initial map; empty where the maps share a frame.
        originals: each target before that; empty likewise.
        parts: of the initial map, each with a velocity field of its own: given, "auto" to find rigid bodies, or None.
        part_rigidity: factor of the rigidity's weight for each part that was given.
        symmetry: of all maps.
        still: what stays still in the results, as in `Options`; the frame of the alignment if not given.
        repeated: symmetry of the biological assembly, where the maps show one asymmetric unit of it.
        schedule: stages of the recipe paper; None for the published ones.
        config: the configuration of another run that is repeated.
        preparation: the rules by which the maps are prepared.
        sums: SHA-256 of the files when they were read.
        failed: why targets could not be used, by their names; these are not among `targets`.
        doubts: about the inputs, of which the user is warned.
    """

    initial: Map
    targets: list[Map]
    files: dict[str, Path]
    target_names: list[str]
    initial_resolution: float | None
    target_resolutions: list[float | None]
    model: gemmi.Structure | None = None
    references: list[gemmi.Structure | Map | None] = field(default_factory=list)
    contours: list[dict] = field(default_factory=list)
    waypoints: list[Waypoint] = field(default_factory=list)
    halves: list[tuple[Map, Map]] = field(default_factory=list)
    alignments: list[Alignment] = field(default_factory=list)
    originals: list[Original] = field(default_factory=list)
    parts: Partition | str | None = "auto"
    part_rigidity: list[float] = field(default_factory=list)
    symmetry: Symmetry | str | None = None
    still: str | gemmi.Structure = "none"
    repeated: Symmetry | None = None
    schedule: Schedule | None = None
    config: Config | None = None
    preparation: Preparation = Preparation()
    sums: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    doubts: list[Doubt] = field(default_factory=list)


def target_folders(case: Case, out_dir: Path) -> list[Path]:
    """Folder of each target's results: `out_dir` itself, or for several targets a folder with the target's name."""
    several = len(case.targets) + len(case.failed) > 1
    return [out_dir / name if several else out_dir for name in case.target_names]


def replaced_folders(case: Case, out_dir: Path, share: Sequence[int]) -> list[Path]:
    """Folders in which fits of these targets replace results; `out_dir` itself belongs to the first target."""
    found = {target_folders(case, out_dir)[number] for number in share}
    return sorted(found | {out_dir} if 0 in share else found)  # an earlier run of one target wrote to `out_dir` itself


def frame_number(number: int, count: int) -> str:
    """Number of a frame out of `count`, padded with zeros so that names sort by time."""
    return f"{number:0{max(2, len(str(count - 1)))}d}"
