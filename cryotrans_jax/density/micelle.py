"""Separate a membrane protein from density without detail: detergent, lipid or nanodisc, which a fit should not carry.

In a blurred map a micelle is as strong as the protein, so that no threshold leaves it out. But its density is a mean
over all particles, without helices and side chains, and a fit that carries it draws the protein's density into it. The
protein is recognised by its detail: the rms of the density in a band around the map's resolution, minus the noise, in a
neighbourhood of each voxel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import gemmi
import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from cryotrans_jax.density.boxes import box_slices
from cryotrans_jax.density.contour import SHARP, half_height
from cryotrans_jax.density.mask import soft_edge
from cryotrans_jax.density.slabs import distance_within
from cryotrans_jax.density.thresholds import carried_mass, solvent_noise
from cryotrans_jax.io.atoms import positions
from cryotrans_jax.io.maps import Map

Mask = Float[np.ndarray, "x y z"]


@dataclass(frozen=True)
class MicelleRules:
    """Rules by which detail is measured and a micelle is recognised.

    Attributes:
        resolution: assumed for a target where it is unknown, Å.
        band: of the resolution: standard deviations of the blurs that bound the band of detail.
        density_blur: standard deviation of the blur of the density, Å.
        detail_blur: standard deviation of the blur of the squared detail, Å.
        room: Å around the body in which the noise is measured,
        distance: at least so far (Å) from all voxels
        sigmas: this many standard deviations above the solvent.
        least_power: of detail that can be measured, as a fraction of the noise's power.
        unlike: largest ratio of the contrasts of micelle and protein.
        explained: least share of the variance of the log contrasts that the two classes explain.
        same: ratio of contrasts above which the part left out is as detailed as the rest.
        more: least ratio of a map's volume to the other map's protein at which it shows more than the protein.
        modelled: least share of a model's atoms in the part kept if the part left out is a micelle.
        beside: Å from the atoms of a model, within which its density is.
        fade: Å over which a mask falls to 0 outside the part with detail, and rises to 1 in the solvent.
    """

    resolution: float = 5.0
    band: tuple[float, float] = (0.2, 0.6)
    density_blur: float = 3.0
    detail_blur: float = 4.0
    room: float = 20.0
    distance: float = 6.0
    sigmas: float = 5.0
    least_power: float = 0.05
    unlike: float = 0.45
    explained: float = 0.66
    same: float = 0.6
    more: float = 1.25
    modelled: float = 0.9
    beside: float = 3.5
    fade: float = 2.0


DEFAULT = MicelleRules()


class Protein(NamedTuple):
    """The part of a map that has detail.

    Attributes:
        mask: 1 in the protein and in the solvent, whose noise is still to be seen, and 0 in the micelle; soft edges.
        volume: Å³.
        left_out: share of the map's body that the mask leaves out.
    """

    mask: Mask
    volume: float
    left_out: float


class Detail(NamedTuple):
    """Local detail of a map.

    Attributes:
        body: voxels of the molecule and its micelle, in the map blurred by `rules.density_blur`.
        detail: local rms of the density in the band.
        contrast: ratio of detail to density.
        box: slices of the box around the body that the arrays cover.
        shape: shape of the whole map.
        voxel_size: Å.
        rules: by which it was measured.
    """

    body: Bool[np.ndarray, "bx by bz"]
    detail: Float[np.ndarray, "bx by bz"]
    contrast: Float[np.ndarray, "bx by bz"]
    box: tuple[slice, ...]
    shape: tuple[int, ...]
    voxel_size: np.ndarray
    rules: MicelleRules = DEFAULT

    @property
    def volume(self) -> float:
        """Volume of the body, Å³."""
        return float(self.body.sum() * self.voxel_size.prod())

    def ratio(self, kept: Bool[np.ndarray, "bx by bz"]) -> float:
        """Median contrast of the rest of the body over that of the part kept; 1 where one is empty."""
        rest = self.body & ~kept
        both = rest.any() and kept.any()
        return float(np.median(self.contrast[rest]) / np.median(self.contrast[kept])) if both else 1.0

    def protein(self, kept: Bool[np.ndarray, "bx by bz"]) -> Protein:
        """Clean the part of the body that is kept of dust and holes, and mask the rest of the body."""
        filled = ndimage.binary_fill_holes(carried_mass(kept.astype(np.float32), 0.5) > 0)
        from_kept = distance_within(self.rules.fade, filled, self.voxel_size)
        from_body = distance_within(self.rules.distance + self.rules.fade, self.body, self.voxel_size)
        mask = np.ones(self.shape, np.float32)
        solvent = 1 - soft_edge(from_body - self.rules.distance, self.rules.fade)
        mask[self.box] = np.maximum(soft_edge(from_kept, self.rules.fade), solvent)
        return Protein(mask, float(filled.sum() * self.voxel_size.prod()), 1 - filled.sum() / self.body.sum())

    def detailed_part(self) -> Protein | None:
        """The part of the map with detail; None if that is the whole body.

        The ratio of detail to density falls into two classes (Otsu, IEEE Transactions on Systems, Man, and Cybernetics
        9, 1979). In a protein alone they lie close together, 0.6 to 0.75, because a molecule's surface has less detail
        than its core; a micelle has a sixth of the protein's ratio in a sharp map, and less than half in one at 5 Å.
        """
        level, explained = two_classes(np.log(np.maximum(self.contrast[self.body], 1e-30)))
        kept = self.body & (self.contrast >= np.exp(level))
        if explained < self.rules.explained or self.ratio(kept) > self.rules.unlike:
            return None
        lower = np.median(self.contrast[self.body & ~kept])
        return self.protein(self.body & (self.contrast >= np.sqrt(lower * np.exp(level))))


def proteins(
    maps: Sequence[Map],
    resolutions: Sequence[float | None] | None = None,
    masked: Sequence[bool] | None = None,
    model: gemmi.Structure | None = None,
    rules: MicelleRules = DEFAULT,
) -> list[Protein | None]:
    """Find the protein in an initial map and in its targets, each on its own grid.

    In the initial map it is the part with detail (`Detail.detailed_part`). A target may be too blurred for that: there
    it is the `most_detailed` part as large as the initial map's protein.

    Args:
        maps: the initial map, then the targets.
        resolutions: Å, of each map; None where unknown, for which 3 Å (initial map) or `rules.resolution`
            (targets) is assumed.
        masked: whether each map is masked already and stays as it is.
        model: of the molecule in the initial map, which stays as it is if the part left out holds atoms of it.
        rules: by which detail is measured and a micelle is recognised.

    Returns:
        The protein of each map; None where that is the whole map.
    """
    resolutions, masked = resolutions or [None] * len(maps), masked or [False] * len(maps)
    if all(masked):
        return [None] * len(maps)
    start = measure_detail(maps[0], resolutions[0], rules)
    first = None if start is None or masked[0] else start.detailed_part()
    if first and model is not None and share_in_mask(model, maps[0], first.mask) < rules.modelled:
        first = None
    shown = first or start
    volume = min(shown.volume if shown else np.inf, np.inf if model is None else volume_of(model, maps[0], rules))
    each = zip(maps[1:], resolutions[1:], masked[1:], strict=True)
    return [
        first,
        *(
            None if known else most_detailed(map_, volume, resolution or rules.resolution, rules)
            for map_, resolution, known in each
        ),
    ]


def volume_of(model: gemmi.Structure, map_: Map, rules: MicelleRules = DEFAULT) -> float:
    """Volume (Å³) near a model's atoms, in voxels of a map's size."""
    index = np.rint(positions(model) / map_.voxel_size).astype(int)
    index += np.ceil(rules.beside / map_.voxel_size).astype(int) + 1 - index.min(0)
    filled = np.zeros(2 * index.min(0) + np.ptp(index, axis=0) + 1, bool)
    filled[tuple(index.T)] = True
    near = distance_within(rules.beside, filled, map_.voxel_size) < np.inf
    return float(np.count_nonzero(near) * map_.voxel_size.prod())


def share_in_mask(model: gemmi.Structure, map_: Map, mask: Mask) -> float:
    """Share of a model's atoms at which a mask of the map exceeds one half."""
    index = np.round((positions(model) - map_.origin) / map_.voxel_size).astype(int)
    index = np.clip(index, 0, np.array(mask.shape) - 1)
    return float(np.mean(mask[tuple(index.T)] > 0.5))


def measure_detail(map_: Map, resolution: float | None = None, rules: MicelleRules = DEFAULT) -> Detail | None:
    """Measure a map's local detail.

    Args:
        map_: the map.
        resolution: Å; None for SHARP.
        rules: how it is measured.

    Returns:
        The detail; None if the map shows no body.
    """
    size = map_.voxel_size
    resolution = max(resolution or SHARP, 2 * float(size.max()))
    smooth = ndimage.gaussian_filter(map_.density, rules.density_blur / size)
    values = np.sort(smooth, axis=None)
    (solvent, noise), surface = solvent_noise(values), half_height(values)
    body = carried_mass(smooth, surface) > 0
    if not body.any() or not surface > solvent:
        return None
    box = box_slices(body, np.ceil(rules.room / size).astype(int))
    body, smooth, density = body[box], smooth[box], map_.density[box]
    fine, coarse = (ndimage.gaussian_filter(density, share * resolution / size) for share in rules.band)
    power = ndimage.gaussian_filter((fine - coarse) ** 2, rules.detail_blur / size)
    shown = smooth > solvent + rules.sigmas * noise
    away = distance_within(rules.distance, shown, size) == np.inf
    base = float(np.median(power[away])) if away.any() else 0.0
    detail = np.sqrt(np.maximum(power - base, rules.least_power * base))
    contrast = detail / np.maximum(smooth - solvent, surface - solvent)
    return Detail(body, detail, contrast, box, map_.density.shape, size, rules)


def most_detailed(
    map_: Map, volume: float, resolution: float | None = None, rules: MicelleRules = DEFAULT
) -> Protein | None:
    """The part of a map with the most detail that fills a given volume.

    Args:
        map_: the map.
        volume: Å³.
        resolution: Å; None for 3 Å.
        rules: by which detail is measured and a micelle is recognised.

    Returns:
        The part; None where the map shows hardly more than that volume, or where the rest is as detailed and so not a
        micelle.
    """
    found = measure_detail(map_, resolution, rules)
    if found is None or found.volume < rules.more * volume:
        return None
    falling = np.sort(found.detail[found.body])[::-1]
    kept = found.body & (found.detail >= falling[int(volume / found.voxel_size.prod())])
    return found.protein(kept) if found.ratio(kept) <= rules.same else None


def two_classes(values: Float[np.ndarray, "n"]) -> tuple[float, float]:
    """Otsu's threshold between two classes of values, and the share of the variance that the classes explain."""
    count, edges = np.histogram(values, 128)
    share, centre = count / len(values), 0.5 * (edges[1:] + edges[:-1])
    below, moment = np.cumsum(share), np.cumsum(share * centre)
    between = (moment[-1] * below - moment) ** 2 / np.maximum(below * (1 - below), 1e-12)
    best = int(np.argmax(between))
    return float(edges[best + 1]), float(between[best] / max(np.var(values), 1e-30))
