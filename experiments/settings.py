"""Settings of the commands, taken from the flags here and nowhere else."""

from dataclasses import dataclass, field, fields, replace
from typing import TypeVar

from absl import flags

from cryotrans_jax.fit.options import Preparation

from .archives import Archives
from .find import INITIAL

FLAGS = flags.FLAGS
LISTED_BY_TARGET = ("target", "target_half1", "target_half2", "target_mask", "reference")
Settings = TypeVar("Settings")


@dataclass(frozen=True)
class InputSettings:
    """The input files, and how they are read; each field has the meaning of the flag of its name.

    Attributes:
        resolutions_given: those of "initial_resolution" and "target_resolution" that the user gave;
            experiments.reproduce sets them to published values as well.
        archives: where to fetch missing files from; None without --fetch.
        preparation: the rules of the preparation, which only a config.json changes.
    """

    initial: str | None = None
    target: list[str] = field(default_factory=list)
    data_dir: str = "data"
    waypoint: list[str] = field(default_factory=list)
    model: str | None = None
    all_models: bool = False
    reference: list[str] = field(default_factory=list)
    target_half1: list[str] = field(default_factory=list)
    target_half2: list[str] = field(default_factory=list)
    voxel_size: list[float] | None = None
    target_voxel_size: list[float] | None = None
    initial_resolution: float | None = None
    target_resolution: float | None = None
    resolutions_given: frozenset[str] = frozenset()
    invert: str | None = None
    mask: str | None = None
    target_mask: list[str] = field(default_factory=list)
    mask_radius: float | None = None
    micelle: str = "auto"
    initial_threshold: float | None = None
    target_threshold: float | None = None
    mass_kda: float | None = None
    align: str = "auto"
    check_hand: bool = False
    still: str = "auto"
    parts: str = "auto"
    part_rigidity: list[float] = field(default_factory=list)
    archives: Archives | None = None
    preparation: Preparation = Preparation()

    @property
    def initial_name(self) -> str:
        """Name of the initial map, also where only targets are given."""
        return self.initial or INITIAL

    @property
    def built_in(self) -> bool:
        """Whether no maps are given, so that the built-in pair is taken."""
        return not (self.initial or self.target)


@dataclass(frozen=True)
class SymmetrySettings:
    """The symmetry of the maps, or of the assembly of which they show one unit; fields are named as the flags."""

    symmetry: str | None = None
    symmetry_axis: list[float] | None = None
    symmetry_centre: list[float] | None = None
    one_unit: bool = False


@dataclass(frozen=True)
class FitSettings:
    """What decides a fit besides its inputs; fields are named as the flags."""

    recipe: str = "default"
    seed: int = 0
    steps: float = 1.0
    bin: int = 1
    initial_threshold: float | None = None
    target_threshold: float | None = None
    mass_kda: float | None = None


@dataclass(frozen=True)
class OutputSettings:
    """What is written of a fit; fields are named as the flags."""

    frames: int = 11
    idealise: bool = True
    frame: str = "initial"
    error: bool = True
    report: bool = True


@dataclass(frozen=True)
class HostSettings:
    """The place of this process among those of a run; fields are named as the flags."""

    distributed: bool | None = None
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


def from_flags(kind: type[Settings]) -> Settings:
    """Take settings of a kind from the flags of the same names; without a flag or its value a default holds."""
    values = {each.name: FLAGS[each.name].value for each in fields(kind) if each.name in FLAGS}
    return kind(**{name: value for name, value in values.items() if value is not None})


def inputs() -> InputSettings:
    """The settings of the inputs."""
    given = frozenset(name for name in ("initial_resolution", "target_resolution") if FLAGS[name].present)
    return replace(from_flags(InputSettings), resolutions_given=given, archives=archives() if FLAGS.fetch else None)


def archives(replace: bool = False) -> Archives:
    """The public archives.

    Args:
        replace: whether to fetch again files that are there but not as they were fetched.
    """
    bases = (FLAGS.emdb_api, FLAGS.emdb_files, FLAGS.pdb_files)
    return Archives(*(base.rstrip("/") for base in bases), limit=1e9 * FLAGS.max_gb, replace=replace)


def record_targets(used: InputSettings) -> None:
    """Set the flags to the targets that are used, so that a run's record does not list those that are left out."""
    for name in LISTED_BY_TARGET:
        if FLAGS[name].value:
            FLAGS[name].value = getattr(used, name)
