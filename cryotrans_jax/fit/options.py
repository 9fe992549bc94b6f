"""What may be chosen for a fit, in groups; and how it runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from cryotrans_jax.density.align import AlignmentSearch
from cryotrans_jax.density.micelle import MicelleRules
from cryotrans_jax.density.molecule import OutlineRules
from cryotrans_jax.density.noise import NoiseRules
from cryotrans_jax.density.spectrum import SharpeningRules
from cryotrans_jax.density.symmetry import Symmetry
from cryotrans_jax.density.thresholds import ThresholdRules
from cryotrans_jax.fit.devices import DeviceLayout
from cryotrans_jax.fit.frame import FrameRules, Still, check_still
from cryotrans_jax.fit.recipes import Recipe, find_recipe
from cryotrans_jax.fit.snapshots import Snapshot
from cryotrans_jax.fit.stage import Config
from cryotrans_jax.fit.supervise import warn_of_setback
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, MapLike
from cryotrans_jax.motion.partition import Partition


@dataclass(frozen=True)
class Thresholds:
    """Thresholds below which density does not belong to the molecule.

    Attributes:
        initial: of the initial map, in its units; None: chosen by rule, or so that it encloses `volume`.
        targets: of targets and waypoints, likewise.
        volume: of the molecule, Å³.
    """

    initial: float | None = None
    targets: float | None = None
    volume: float | None = None


@dataclass(frozen=True)
class Resolutions:
    """Resolutions of the maps, Å; where one is not known, the difference in resolution is estimated.

    Attributes:
        initial: of the initial map.
        targets: one for all targets, or one for each.
    """

    initial: float | None = None
    targets: float | Sequence[float | None] | None = None

    def of_targets(self, count: int) -> list[float | None]:
        """The resolution of each of `count` targets."""
        return [*self.targets] if isinstance(self.targets, Sequence) else [self.targets] * count


@dataclass(frozen=True)
class Preparation:
    """The rules by which maps are prepared for a fit, and its result. The defaults serve; a study may change them.

    Attributes:
        alignment: how a target's pose is searched for and chosen.
        thresholds: how thresholds are chosen.
        outline: how the molecule is outlined that the initial map shows.
        sharpening: how far targets are sharpened.
        noise: how the noise of targets is measured.
        micelle: how the commands recognise a micelle or nanodisc; `morph` does not remove any.
        whole_box: whether the unit box is the maps' whole box without a crop (the paper). Otherwise it is the cube
            around the initial map's mass, and everything is cropped to the mass of all maps and a margin.
        margin: Å around the mass.
        frame: how the body that stays still in the result is chosen.
    """

    alignment: AlignmentSearch = AlignmentSearch()
    thresholds: ThresholdRules = ThresholdRules()
    outline: OutlineRules = OutlineRules()
    sharpening: SharpeningRules = SharpeningRules()
    noise: NoiseRules = NoiseRules()
    micelle: MicelleRules = MicelleRules()
    whole_box: bool = False
    margin: float = 8.0
    frame: FrameRules = FrameRules()


class Waypoint(NamedTuple):
    """A map that the flow passes on its way to the only target.

    Attributes:
        map: the map, or its path.
        time: between 0 (the initial map) and 1 (the end).
        resolution: Å; None where it is not known.
    """

    map: MapLike
    time: float
    resolution: float | None = None


@dataclass(frozen=True)
class Options:
    """What may be chosen for a fit.

    Attributes:
        recipe: "default", "paper", one of `fit.recipes` with settings, a function of the prepared problem and these
            options that returns a `Config`, or a `Config` itself.
        seed: of the network's initial weights.
        steps: factor on the number of steps of every stage.
        align: "auto" aligns each target to the initial map where that fits clearly better; "none" takes it where its
            origin puts it. Either way it is resampled on the initial map's grid.
        thresholds: below which density does not belong to the molecule.
        resolutions: of the maps.
        parts: of the initial map, each with its own velocity field (paper, eq. 8-15): a partition, or "auto" for the
            rigid bodies that each target's flow shows after the recipe's first stages; None: one field.
        part_rigidity: factor on the weight of the rigidity in each part of a given partition; empty: 1 for all. In
            the recipe "paper" it is the weight itself: λ of each part (eq. 15), or without parts one λ (eq. 13), on
            the scale of the published losses; empty: no rigidity.
        symmetry: of all maps: "C3", "D8", "T", "O" or "I" about an axis along z of the initial map, the path of an
            mmCIF file with a biological assembly, or `Symmetry.named(...)` for any other axis or centre. The flow then
            commutes with its operators and is fitted to the points of the asymmetric unit. Each copy of a rigid body is
            a part, with the body's field rotated accordingly.
        still: what stays still in the result, in whose frame the carried maps and models are: "auto" for the largest
            rigid body of each target, but the frame of the maps with `align="none"` or a symmetry; "largest" for the
            largest rigid body with `align="none"` as well; "none" for the frame in which targets were aligned; or a
            model of the atoms, in the initial map (`io.selections.only(model, "A:1-200")`).
        preparation: the rules by which maps are prepared.
    """

    recipe: str | Recipe | Config = "default"
    seed: int = 0
    steps: float = 1.0
    align: str = "auto"
    thresholds: Thresholds = Thresholds()
    resolutions: Resolutions = Resolutions()
    parts: Partition | str | None = "auto"
    part_rigidity: Sequence[float] = ()
    symmetry: Symmetry | str | None = None
    still: Still = "auto"
    preparation: Preparation = Preparation()

    @property
    def rules(self) -> Preparation:
        """The rules of the preparation, with those that the recipe needs."""
        whole_box = self.preparation.whole_box or bool(getattr(self.chosen_recipe, "whole_box", False))
        return replace(self.preparation, whole_box=whole_box)

    @property
    def chosen_recipe(self) -> Recipe | Config:
        """The recipe, found by its name; raise InputError if there is none of that name."""
        return find_recipe(self.recipe) if isinstance(self.recipe, str) else self.recipe

    def check(self, initial: Map, halves: bool) -> None:
        """Raise InputError if options do not fit each other, the initial map, or half-maps."""
        recipe, parts, weights = self.chosen_recipe, self.parts, self.part_rigidity
        check_still(self.still, bool(self.symmetry), initial, self.preparation.frame)
        if halves and not getattr(recipe, "weighs_noise", True):
            raise InputError("half-maps have no effect in the recipe paper, which weighs no noise: leave them out")
        if self.symmetry and isinstance(parts, Partition):
            raise InputError("parts and a symmetry do not go together yet: leave one of them out")
        if isinstance(parts, str) and parts != "auto":
            raise InputError(f"there are no parts {parts!r}: give a partition, or auto")
        if isinstance(parts, Partition) and parts.labels.shape != initial.density.shape:
            raise InputError("the parts are on another grid than the initial map: make them on its grid")
        whole = len(weights) == 1 and getattr(recipe, "weighs_rigidity", isinstance(recipe, Config))
        if weights and not (whole or isinstance(parts, Partition)):
            raise InputError("part_rigidity is only for given parts: give parts as well, and not auto")
        if weights and min(weights) < 0:
            raise InputError(f"part_rigidity contains {min(weights):g}: give weights that are not negative")


@dataclass(frozen=True)
class Running:
    """How a fit runs, which changes none of its numbers.

    Attributes:
        targets: numbers of the targets to fit, from 0; empty: all. The fit then has these alone, in this order. Crop,
            thresholds and schedule are those for all targets, so that fits of different targets match.
        layout: how targets are laid out over devices; None: over all devices of this host.
        resume_from: a snapshot of an earlier call with otherwise the same arguments. The fit ends the same, bit for
            bit.
        on_snapshot: called with a snapshot after every chunk of steps, and at the end.
        on_prepared: called with the report of the thresholds before the first step.
        on_setback: called with (target, message) when a target diverged; see `stage.Supervision`.
    """

    targets: Sequence[int] = ()
    layout: DeviceLayout | None = None
    resume_from: Snapshot | None = None
    on_snapshot: Callable[[Snapshot], None] | None = None
    on_prepared: Callable[[dict], None] = lambda report: None
    on_setback: Callable[[int, str], None] = warn_of_setback

    def chosen(self, count: int) -> list[int]:
        """Numbers of the targets to fit; raise InputError if they do not fit `count` targets."""
        chosen = [*self.targets] or [*range(count)]
        if not set(chosen) <= set(range(count)):
            raise InputError(f"targets={chosen} does not fit {count} targets: give numbers from 0 to {count - 1}")
        return chosen
