"""Density without detail: the detergent, lipid or nanodisc about a membrane protein, which a fit should not carry.

It is as strong as the protein in a blurred map, so that no contour level leaves it out, but what is shown of it is a
mean over all particles: it has no helices and no side chains. Where it is left in, the protein's density is drawn into
it. So the protein is told from it by its detail: the rms of what lies in a band about the map's resolution, less the
noise's, in a neighbourhood of each voxel.
"""

from collections.abc import Sequence
from typing import NamedTuple

import gemmi
import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from cryotrans_jax.atoms import positions
from cryotrans_jax.contour import SHARP, half_height
from cryotrans_jax.maps import Map
from cryotrans_jax.prepare import box_slices, carried_mass, solvent_noise

TYPICAL = 5.0  # Å: the resolution of a target of which it is not known
BAND = 0.2, 0.6  # of the resolution: widths of the blurs between which detail lies
BLURRED, NEAR = 3.0, 4.0  # Å: widths of the blurs that the density, and the squares of its detail, are judged by
ROOM = 20.0  # Å about the body in which the noise is judged
AWAY, CLEAR = 6.0, 5.0  # Å, and standard deviations above the solvent: further than that from what is above is noise
LEAST = 0.05  # of the noise's power: detail is told no better than this
UNLIKE = 0.45  # the ratio of the contrasts of a map's two classes at most
APART = 0.66  # of the variance of their logarithms that the two explain at least
SAME = 0.6  # the ratio of contrasts above which what is left out is as detailed as the rest
MORE = 1.25  # times the volume of what the other map shows, from which a map has something besides
MODELLED = 0.9  # of a model's atoms: with fewer in what is kept, what is left out is no micelle
FADE = 2.0  # Å over which a mask falls to 0 beyond what has detail


Mask = Float[np.ndarray, "x y z"]


class Protein(NamedTuple):
    """What of a map has detail: a `mask` (0 to 1), its `volume` (Å³), and the share of the body that is `left_out`."""

    mask: Mask
    volume: float
    left_out: float


class Detail(NamedTuple):
    """Of a map: its `body`, blurred to BLURRED, and in each voxel the rms `detail` and its ratio to the density.

    All in the `box` about the body, of a map of this `shape`.
    """

    body: Bool[np.ndarray, "bx by bz"]
    detail: Float[np.ndarray, "bx by bz"]
    contrast: Float[np.ndarray, "bx by bz"]
    box: tuple[slice, ...]
    shape: tuple[int, ...]
    voxel_size: np.ndarray

    @property
    def volume(self) -> float:
        """That of the body in Å³."""
        return float(self.body.sum() * self.voxel_size.prod())

    def ratio(self, kept: Bool[np.ndarray, "bx by bz"]) -> float:
        """The median contrast of the body's other part over that of the part that is kept; 1 where one is empty."""
        rest = self.body & ~kept
        both = rest.any() and kept.any()
        return float(np.median(self.contrast[rest]) / np.median(self.contrast[kept])) if both else 1.0

    def protein(self, kept: Bool[np.ndarray, "bx by bz"]) -> Protein:
        """The part of the body that is kept, without specks and holes, with a soft edge."""
        held = ndimage.binary_fill_holes(carried_mass(kept.astype(np.float32), 0.5) > 0)
        distance = ndimage.distance_transform_edt(~held, sampling=self.voxel_size)
        mask = np.zeros(self.shape, np.float32)
        mask[self.box] = 0.5 + 0.5 * np.cos(np.pi * np.clip(distance / FADE, 0, 1))
        return Protein(mask, float(held.sum() * self.voxel_size.prod()), 1 - held.sum() / self.body.sum())

    def detailed(self) -> Protein | None:
        """What has detail in the map; None where all has.

        The ratio of detail to density falls into two classes (Otsu, IEEE Transactions on Systems, Man, and Cybernetics
        9, 1979). In a protein alone they lie close together, 0.6 to 0.75, as a molecule's surface has less than its
        core; a micelle has a sixth of the protein's in a sharp map, and less than half in one at 5 Å.
        """
        level, explained = two_classes(np.log(np.maximum(self.contrast[self.body], 1e-30)))
        kept = self.body & (self.contrast >= np.exp(level))
        if explained < APART or self.ratio(kept) > UNLIKE:
            return None
        lower = np.median(self.contrast[self.body & ~kept])
        return self.protein(self.body & (self.contrast >= np.sqrt(lower * np.exp(level))))


def proteins(
    maps: Sequence[Map],
    resolutions: Sequence[float | None] | None = None,
    masked: Sequence[bool] | None = None,
    model: gemmi.Structure | None = None,
) -> list[Protein | None]:
    """What is protein in an initial map and in its targets, each on its own grid; None where all of a map is.

    The initial map comes first. Of it what is `Detail.detailed`; of a target, which may be too blurred for that, the
    `most_detailed` part as large as the initial map's protein. Resolutions are Å, 3 and 5 where they are not known.
    What is `masked` already stays as it is, and so does an initial map whose `model` stands in what would be left out.
    """
    resolutions, masked = resolutions or [None] * len(maps), masked or [False] * len(maps)
    start = None if all(masked) else detail_of(maps[0], resolutions[0])
    first = None if start is None or masked[0] else start.detailed()
    if first and model is not None and share_within(model, maps[0], first.mask) < MODELLED:
        first = None
    shown = first or start
    volume = shown.volume if shown else np.inf
    each = zip(maps[1:], resolutions[1:], masked[1:], strict=True)
    return [
        first,
        *(None if known else most_detailed(map_, volume, resolution or TYPICAL) for map_, resolution, known in each),
    ]


def share_within(model: gemmi.Structure, map_: Map, mask: Mask) -> float:
    """The share of a model's atoms that stand where a mask of the map is above one half."""
    index = np.round((positions(model) - map_.origin) / map_.voxel_size).astype(int)
    index = np.clip(index, 0, np.array(mask.shape) - 1)
    return float(np.mean(mask[tuple(index.T)] > 0.5))


def detail_of(map_: Map, resolution: float | None = None) -> Detail | None:
    """What detail a map has where, at its resolution in Å; None where it shows no body."""
    size = map_.voxel_size
    resolution = max(resolution or SHARP, 2 * float(size.max()))
    smooth = ndimage.gaussian_filter(map_.density, BLURRED / size)
    values = np.sort(smooth, axis=None)
    (solvent, noise), surface = solvent_noise(values), half_height(values)
    body = carried_mass(smooth, surface) > 0
    if not body.any() or not surface > solvent:
        return None
    box = box_slices(body, np.ceil(ROOM / size).astype(int))
    body, smooth, density = body[box], smooth[box], map_.density[box]
    fine, coarse = (ndimage.gaussian_filter(density, share * resolution / size) for share in BAND)
    power = ndimage.gaussian_filter((fine - coarse) ** 2, NEAR / size)
    away = ndimage.distance_transform_edt(smooth <= solvent + CLEAR * noise, sampling=size) > AWAY
    base = float(np.median(power[away])) if away.any() else 0.0
    detail = np.sqrt(np.maximum(power - base, LEAST * base))
    contrast = detail / np.maximum(smooth - solvent, surface - solvent)
    return Detail(body, detail, contrast, box, map_.density.shape, size)


def most_detailed(map_: Map, volume: float, resolution: float | None = None) -> Protein | None:
    """So much of a map as fills a volume in Å³ and has the most detail, at a resolution in Å.

    None where the map shows hardly more than that volume, or the rest is as detailed and so is no micelle.
    """
    found = detail_of(map_, resolution)
    if found is None or found.volume < MORE * volume:
        return None
    falling = np.sort(found.detail[found.body])[::-1]
    kept = found.body & (found.detail >= falling[int(volume / found.voxel_size.prod())])
    return found.protein(kept) if found.ratio(kept) <= SAME else None


def two_classes(values: Float[np.ndarray, "n"]) -> tuple[float, float]:
    """The level that divides values into two classes as far apart as can be, and the share of variance it explains."""
    count, edges = np.histogram(values, 128)
    share, centre = count / len(values), 0.5 * (edges[1:] + edges[:-1])
    below, moment = np.cumsum(share), np.cumsum(share * centre)
    between = (moment[-1] * below - moment) ** 2 / np.maximum(below * (1 - below), 1e-12)
    best = int(np.argmax(between))
    return float(edges[best + 1]), float(between[best] / max(np.var(values), 1e-30))
