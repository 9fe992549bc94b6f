"""Estimate the molecular volume of a map, and choose the display contour that shows it.

The threshold of the mass that a fit moves is another one, chosen by `prepare`: it is low, so that nothing is lost.
"""

from collections.abc import Iterator

import gemmi
import numpy as np
from jaxtyping import Float
from scipy import ndimage

from cryotrans_jax.density.simulation import SIGMA
from cryotrans_jax.density.thresholds import (
    DALTON,
    carried_mass,
    common_value,
    enclosing_threshold,
    noise_limit,
    solvent_noise,
    threshold_in_sigmas,
)
from cryotrans_jax.io.atoms import molecular_weight
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map

BODY = 8.0  # Å: a resolution at which a protein is a solid body, without gaps between its side chains
SHARP = 3.0  # Å: resolution assumed where it is unknown
WIDEST = 2.0  # Å: widest blur (standard deviation), which swells a molecule by a tenth to a fifth
CLEAR = 2.0  # standard deviations of the noise by which a contour should exceed the solvent
MOST = 40  # most blurs: only voxels of a millionth of WIDEST would need more
SAMPLED = 4_000_000  # voxels whose histogram stands for that of a larger box
DUST = 0.1  # largest share of dust, apart from the molecule, in the voxels above a contour


def solid_body(map_: Map, resolution: float | None = None) -> tuple[float, float]:
    """Estimate the molecular volume of a map.

    At BODY Å a molecule is a solid body whose blurred surface lies where the density is half of the body's
    (`half_height`). If that is less than CLEAR above the noise, the map is blurred further; if that does not help
    either, the volume means little. Dust is not counted.

    Args:
        map_: the map.
        resolution: Å; None for SHARP.

    Returns:
        The volume (Å³), and the `threshold_in_sigmas` of its surface, how far that lies above the noise.
    """
    first = SIGMA * np.sqrt(max(BODY**2 - (resolution or SHARP) ** 2, 0.0))
    for width in blur_widths(float(first), float(map_.voxel_size.min())):
        density = ndimage.gaussian_filter(map_.density, width / map_.voxel_size) if width else map_.density
        values = np.sort(density, axis=None)
        level = half_height(values)
        clear = threshold_in_sigmas(level, *solvent_noise(values))
        if clear >= CLEAR or width >= WIDEST:
            break
    return float(np.count_nonzero(carried_mass(density, level)) * np.prod(map_.voxel_size)), clear


def blur_widths(width: float, least: float) -> Iterator[float]:
    """Standard deviations [Å] of ever wider blurs: √2 times the last each, `least` at least, until WIDEST or more."""
    for _ in range(MOST):
        yield width
        width = min(max(np.sqrt(2) * width, least), WIDEST)
    yield max(width, WIDEST)


def half_height(values: Float[np.ndarray, "n"]) -> float:
    """Threshold half way between the solvent and the mean of the density above the threshold.

    Threshold and mean determine each other (Ridler and Calvard, IEEE Transactions on Systems, Man, and Cybernetics 8,
    1978); the highest such threshold is taken. Noise is symmetric about the solvent: it raises as many voxels above a
    threshold as it lowers below the mirrored value, so those are subtracted. A threshold above which most voxels are
    noise is rejected.

    Args:
        values: of all voxels, sorted.

    Returns:
        The threshold; the solvent's value if there is none.
    """
    step = max(len(values) // SAMPLED, 1)
    values = values[step // 2 :: step]
    solvent = common_value(values)
    above = values[values > solvent][::-1].astype(np.float64) - solvent
    below = solvent - values[values < solvent].astype(np.float64)
    mirrored = np.searchsorted(-below, -above, side="right")
    sums = np.cumsum(above) - np.concatenate([[0.0], np.cumsum(below)])[mirrored]
    counts = np.arange(1, len(above) + 1) - mirrored
    passed = np.flatnonzero((2 * above * counts < sums) & (counts > mirrored))[:1]
    return float(solvent + 0.5 * sums[passed[0]] / counts[passed[0]]) if len(passed) else solvent


def display_contour(map_: Map, volume: float) -> float:
    """Choose a display contour that encloses the molecular volume.

    Args:
        map_: any map.
        volume: molecular volume, Å³.

    Returns:
        The contour that encloses the volume. If it is not CLEAR of the noise, or shows more than DUST of dust, the
        lowest higher contour that is and does not, to 5 % of the voxels above it.
    """
    solvent, noise = solvent_noise(np.sort(map_.density, axis=None))
    level = max(enclosing_threshold(map_, volume), solvent + CLEAR * noise)
    if dust_share(map_.density, level) <= DUST:
        return level
    values = np.sort(map_.density[map_.density >= level])
    low, high = 0, len(values) - 1  # too much dust at the first; none at the last, which shows the strongest voxel
    while high - low > max(1, 0.05 * (len(values) - high)):
        middle = (low + high) // 2
        low, high = (middle, high) if dust_share(map_.density, float(values[middle])) > DUST else (low, middle)
    return float(values[high])


def dust_share(density: Float[np.ndarray, "x y z"], level: float) -> float:
    """Share of the voxels at or above a contour that lie in dust apart from the molecule; 0 without such voxels."""
    above = np.count_nonzero((density >= level) & (density > 0))
    return 1 - np.count_nonzero(carried_mass(density, level)) / above if above else 0.0


def describe(
    map_: Map,
    resolution: float | None = None,
    *,
    given: float | None = None,
    mass_kda: float | None = None,
    deposited: float | None = None,
    model: gemmi.Structure | None = None,
) -> dict:
    """Choose a map's display contour, and describe it and the molecular volume.

    The first of `given`, `mass_kda`, `deposited` and `model` that is not None decides, otherwise the map's histogram. A
    weight is converted to a volume by DALTON, in Å³ per Da. By histogram the contour is that of the volume of the
    `solid_body`, or a higher one where that would show DUST of dust; where the body is not clear of the noise, it is
    the upper limit of the noise, and `body_volume` is None.

    Args:
        map_: the map.
        resolution: Å; None where unknown.
        given: the contour.
        mass_kda: molecular weight, kDa.
        deposited: contour recommended by the depositors.
        model: model whose molecular weight is used.

    Returns:
        The contour (`contour`) and how it was chosen (`contour_chosen`), the volume (`contour_volume`, Å³) and share of
        the positive mass (`contour_share_of_mass`) that it encloses, and the molecular volume (`body_volume`, Å³).

    Raises:
        InputError: the map has no positive density, or that does not fill the volume of `mass_kda`.
    """
    positive = map_.density[map_.density > 0]
    if not positive.size:
        raise InputError("a map has no positive density: give one that shows a molecule, or --invert to negate it")
    volume, clear = solid_body(map_, resolution)
    body = volume if clear >= CLEAR else None
    level, chosen = choose_contour(map_, body, given, mass_kda, deposited, model)
    shown = carried_mass(map_.density, level)
    return {
        "contour": float(level),
        "contour_chosen": chosen,
        "contour_volume": float(np.count_nonzero(shown) * np.prod(map_.voxel_size)),
        "contour_share_of_mass": float(shown.sum(dtype=np.float64) / max(positive.sum(dtype=np.float64), 1e-30)),
        "body_volume": body,
    }


def choose_contour(
    map_: Map,
    body: float | None,
    given: float | None,
    mass_kda: float | None,
    deposited: float | None,
    model: gemmi.Structure | None,
) -> tuple[float, str]:
    """Choose a display contour; see `describe`.

    Args:
        map_: the map.
        body: volume of its `solid_body`, Å³; None where that is not clear of the noise.
        given: the contour.
        mass_kda: molecular weight, kDa.
        deposited: contour recommended by the depositors.
        model: model whose molecular weight is used.

    Returns:
        The contour, and how it was chosen.
    """
    if given is not None:
        return given, "given"
    if mass_kda:
        return enclosing_threshold(map_, 1e3 * mass_kda * DALTON), "by molecular weight"
    if deposited is not None:
        return deposited, "deposited"
    if model is not None:
        most = np.count_nonzero(map_.density > 0) * float(np.prod(map_.voxel_size))
        return enclosing_threshold(map_, min(molecular_weight(model) * DALTON, most)), "by the model's weight"
    if body is not None:
        return display_contour(map_, body), "by histogram"
    return min(noise_limit(map_.density), float(map_.density.max())), "above the noise"
