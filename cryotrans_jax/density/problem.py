"""The maps of a fit, prepared on one grid."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from cryotrans_jax.core.grid import Frame
from cryotrans_jax.density.boxes import crop
from cryotrans_jax.io.chain import Chain
from cryotrans_jax.io.files import InputError


@dataclass(frozen=True)
class Problem:
    """One initial map and its targets, ready to be fitted: all on one crop of the maps' grid.

    Attributes:
        initial: initial map above its threshold, divided by its maximum.
        molecule: where the molecule of the initial map is, which its threshold may show in part only.
        targets: targets above their thresholds, scaled to the total of `initial`.
        densities: targets without a threshold, sharpened as far as their noise allows, scaled as if all thresholds had
            been chosen by rule.
        start: first voxel of the crop on the full grid.
        voxel_size: Å.
        frame: the unit box.
        blurs: variance (Å²) of the blur that takes the initial map to each target's resolution; negative where the
            target is sharper.
        residual_blurs: the same for the sharpened `densities`, Å².
        denoising_blurs: variance (Å²) of the blur that removed the noise before the masses were taken.
        noise: power of the noise of each of the `densities` in each Fourier shell, as the variance of white noise that
            has this power in all.
        report: for each map the threshold used and the fraction of its positive mass kept.
        waypoints: times at which the trajectory passes the targets but the last, where it ends; empty: one trajectory
            for each target.
        labels: the part (1, 2, ...) of each voxel of the initial map, for each trajectory; None: one part.
        stiffness: factor on the weight of the rigidity of each part.
        unit: fraction (0 to 1) of each voxel of the initial map that belongs to the asymmetric unit; for each
            trajectory where the map is divided into parts; None: no symmetry.
        rotations: rotations of the symmetry's operators, which repeat the unit.
        shifts: shifts of the operators, in unit boxes.
        chain: of a model of the initial map; None: no model.
    """

    initial: Float[np.ndarray, "x y z"]
    molecule: Bool[np.ndarray, "x y z"]
    targets: Float[np.ndarray, "targets x y z"]
    densities: Float[np.ndarray, "targets x y z"]
    start: np.ndarray
    voxel_size: np.ndarray
    frame: Frame
    blurs: np.ndarray
    residual_blurs: np.ndarray
    denoising_blurs: np.ndarray
    noise: Float[np.ndarray, "targets shells"]
    report: dict
    waypoints: tuple[float, ...] = ()
    labels: Int[np.ndarray, "trajectories x y z"] | None = None
    stiffness: tuple[float, ...] = ()
    unit: Float[np.ndarray, "*trajectories x y z"] | None = None
    rotations: Float[np.ndarray, "copies 3 3"] | None = None
    shifts: Float[np.ndarray, "copies 3"] | None = None
    chain: Chain | None = None

    @property
    def carried(self) -> Float[np.ndarray, "*trajectories x y z"]:
        """The mass that is carried: the whole initial map, or its asymmetric unit."""
        return self.initial if self.unit is None else self.initial * self.unit

    @property
    def carried_molecule(self) -> Bool[np.ndarray, "*trajectories x y z"]:
        """Outline of the molecule, or of its asymmetric unit where only that is carried."""
        return self.molecule if self.unit is None else self.molecule & (self.unit > 0)

    @property
    def operators(self) -> list[tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]]:
        """Rotation and shift (unit boxes) of each of the symmetry's operators; empty without a symmetry."""
        return [] if self.rotations is None or self.shifts is None else [*zip(self.rotations, self.shifts, strict=True)]

    @property
    def trajectories(self) -> int:
        """Number of trajectories to fit: one for each target, or one through all of them."""
        return 1 if self.waypoints else len(self.targets)

    @property
    def parts(self) -> int:
        """Number of parts with a velocity field each; 0: one field for the whole."""
        return len(self.stiffness)

    def divide(
        self,
        labels: Sequence[Int[np.ndarray, "nx ny nz"]],
        stiffness: Sequence[float] | None = None,
        units: Sequence[Float[np.ndarray, "nx ny nz"]] | None = None,
    ) -> "Problem":
        """Divide the initial map into parts, for each trajectory by its label map.

        Trajectories may have different numbers of parts.

        Args:
            labels: for each trajectory the part (1, 2, ...) of each voxel of the maps' whole grid.
            stiffness: factor on the weight of the rigidity of each part; None: 1 for all.
            units: for each trajectory the fraction of each voxel that belongs to the asymmetric unit, on the whole
                grid; None: as it is.

        Raises:
            InputError: a part has no mass, or the number of weights is not that of the parts.
        """
        count = max(int(each.max()) for each in labels)
        stiffness = (1.0,) * count if stiffness is None else tuple(map(float, stiffness))
        if len(stiffness) != count:
            raise InputError(f"{len(stiffness)} weights of the rigidity for {count} parts: give one for each")
        own = np.stack([self.on_crop(each) for each in labels]).astype(np.int16)
        unit = self.unit if units is None else np.stack([self.on_crop(each) for each in units])
        found = replace(self, labels=own, stiffness=stiffness, unit=unit)
        for each, mass, _ in found.labels_and_carried:
            held = np.bincount(each[mass > 0], minlength=int(each.max()) + 1)
            if not held[1:].all():
                label = 1 + held[1:].argmin()
                raise InputError(f"part {label} has no density above the initial map's threshold: leave it out")
        return found

    @property
    def labels_and_carried(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each trajectory the labels of its parts, the mass that is carried, and its outline."""
        assert self.labels is not None
        both = (np.broadcast_to(a, self.labels.shape) for a in (self.carried, self.carried_molecule))
        return zip(self.labels, *both, strict=True)

    @property
    def solvent(self) -> "Problem":
        """The same problem with the densities set to 0 inside the targets, which leaves their noise."""
        return replace(self, densities=self.densities * (self.targets == 0))

    def select(self, targets: Sequence[int]) -> "Problem":
        """The same problem with the targets of these numbers, in this order, on the same crop."""
        names = ("targets", "densities", "blurs", "residual_blurs", "denoising_blurs", "noise", "labels")
        chosen: dict[str, Any] = {}
        for name in names:
            values = getattr(self, name)
            chosen[name] = None if values is None else values[list(targets)]
        return replace(self, **chosen)

    def on_crop(self, values: Shaped[np.ndarray, "nx ny nz"]) -> Float[np.ndarray, "x y z"]:
        """Values on the maps' whole grid, such as a mask's, on the crop."""
        return crop(values, self.start, self.start + self.initial.shape)

    def positions(self, voxels: Int[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """Positions of voxels of the crop, by their indices, in the unit box."""
        return self.corner + (voxels + 0.5) * self.voxel_size / self.frame.edge

    @property
    def corner(self) -> np.ndarray:
        """Corner of the crop (outer edge of its first voxel), unit box."""
        return self.frame.to_unit(self.report["origin"] + (self.start - 0.5) * self.voxel_size)
