"""Check maps and models before a fit: contrast, units, identical maps, swapped maps, misplaced models."""

from dataclasses import replace
from typing import NamedTuple

import gemmi
import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage
from scipy.spatial.transform import Rotation

from cryotrans_jax.density.contour import half_height
from cryotrans_jax.density.similarity import correlation
from cryotrans_jax.density.thresholds import DALTON, carried_mass, common_value
from cryotrans_jax.io.atoms import heavy_atoms
from cryotrans_jax.io.maps import Map

BLUR, BLUR_VOXELS = 3.0, (1.0, 3.0)  # Å; and least and most in voxels: removes ripples and most of the noise
SKEW, DEEP, RIM = -0.5, 4.0, 0.25  # skewness below, depth above, rim below these: the contrast is inverted
LIGHT, FINE = 1.0, 0.2  # kDa, Å: a lighter molecule or a finer voxel means that the unit is nm
SAME = 1e-4  # 1 − correlation: two states differ by more at any resolution
BLURRIER = -1.0  # Å²: variance of the blur from the initial map to the target below which the two are swapped
UNLIKE = 0.6  # least ratio of the molecular weights of two states of one molecule
POSES, SHIFT, FITS = 48, 4.0, 0.5  # random poses, their shifts (Å, rms along each axis), least score of a placed model
BAND = 2.0, 5.0  # Å: standard deviations of the two blurs between which a model is scored


class Survey(NamedTuple):
    """Statistics of a map's histogram once its noise is blurred away.

    Attributes:
        skewness: from -1, where all strong voxels are darker than the solvent, to 1, where all are brighter.
        depth: how far the darkest voxels lie below the solvent, in widths of the solvent's own distribution.
        rim: deviation of the box's faces from the solvent, as a share of that depth.
        kda: molecular weight of a protein that fills the volume above half height; 0 where no bright body is seen.
    """

    skewness: float
    depth: float
    rim: float
    kda: float

    @property
    def inverted(self) -> bool:
        """Whether the molecule is darker than its surroundings."""
        return self.skewness < SKEW and self.depth > DEEP and self.rim < RIM


def survey(map_: Map) -> Survey:
    """Survey a map of either contrast, with its solvent at any value."""
    width = np.clip(BLUR / map_.voxel_size, *BLUR_VOXELS)
    density = ndimage.gaussian_filter(map_.density, width)
    values = np.sort(density, axis=None)
    solvent, half = common_value(values), len(values) // 2
    spread = float((values[half : 2 * half] - values[:half]).min())
    away = (values - np.float32(solvent)) / max(float(np.abs(values - np.float32(solvent)).max()), 1e-30)
    skewness = np.sum(away**3, dtype=np.float64) / max(np.sum(np.abs(away) ** 3, dtype=np.float64), 1e-30)
    deepest = max(solvent - float(values[len(values) // 10000]), 1e-30)
    rim = abs(float(np.median(density[box_faces(density.shape)])) - solvent)
    surface = half_height(values)
    body = carried_mass(density - np.float32(solvent), surface - solvent)
    volume = np.count_nonzero(body) * np.prod(map_.voxel_size) if surface > solvent and skewness > 0 else 0.0
    kda = volume / DALTON / 1e3
    return Survey(float(skewness), deepest / max(spread, 1e-6 * deepest), rim / deepest, float(kda))


def invert_contrast(map_: Map) -> Map:
    """Invert a map's contrast and set its solvent to 0: the solvent's value minus the density."""
    solvent = np.float32(common_value(np.sort(map_.density, axis=None)))
    return replace(map_, density=solvent - map_.density)


def box_faces(shape: tuple[int, ...]) -> Bool[np.ndarray, "x y z"]:
    """Mask of the voxels at the faces of a box."""
    rim = np.ones(shape, bool)
    rim[1:-1, 1:-1, 1:-1] = False
    return rim


def in_nanometres(map_: Map, kda: float) -> bool:
    """Whether a map's voxel size seems to be in nm: no molecule is so light and no voxel so fine.

    Args:
        map_: the map.
        kda: molecular weight by its `survey`.
    """
    return 0 < kda < LIGHT or float(map_.voxel_size.max()) < FINE


def same_density(a: Map, b: Map) -> bool:
    """Whether two maps on one grid are identical up to scale and offset."""
    return correlation(a.density, b.density) > 1 - SAME


def fit_of_model(map_: Map, model: gemmi.Structure, seed: int = 0) -> float:
    """Score a model in a map as placed against the best of POSES random poses about its centroid.

    A pose's score is the mean over heavy atoms of the map between two blurs, which is small for a wrong pose.

    Args:
        map_: map of the model's state.
        model: structure whose first model is scored.
        seed: seed of the random poses.

    Returns:
        The difference of the two scores in standard deviations of the random poses' scores. It is about zero or less
        for a model that is not placed in the map, 8 to 50 for proteins in their own maps, and still above 1 for a
        single helix.
    """
    xyz = heavy_atoms(model)[0]
    fine, coarse = (ndimage.gaussian_filter(map_.density, width / map_.voxel_size) for width in BAND)
    band = replace(map_, density=fine - coarse)
    middle, rng = xyz.mean(0), np.random.default_rng(seed)
    turns, shifts = Rotation.random(POSES, rng=rng).as_matrix(), SHIFT * rng.normal(size=(POSES, 3))

    def fit(at: Float[np.ndarray, "n 3"]) -> float:
        return float(band.interpolate(at).mean())

    fits = [fit((xyz - middle) @ turn.T + middle + shift) for turn, shift in zip(turns, shifts, strict=True)]
    return (fit(xyz) - max(fits)) / max(float(np.std(fits)), 1e-30)
