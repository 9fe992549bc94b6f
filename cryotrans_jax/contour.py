"""How large the molecule in a map is, and the level at which a look at the map shows that volume.

Not the level of the mass that a fit moves, which `prepare` chooses: that one is low, so that nothing is lost.
"""

from collections.abc import Iterator

import gemmi
import numpy as np
from jaxtyping import Float
from scipy import ndimage

from cryotrans_jax.atoms import SIGMA, molecular_weight
from cryotrans_jax.files import InputError
from cryotrans_jax.maps import Map
from cryotrans_jax.prepare import (
    DALTON,
    carried_mass,
    common_value,
    enclosing_threshold,
    noise_limit,
    solvent_noise,
    threshold_in_sigmas,
)

BODY = 8.0  # Å: a resolution at which a protein is a solid body, the gaps between its side chains closed
SHARP = 3.0  # Å: the resolution of a map of which it is not known
WIDEST = 2.0  # Å: a map is blurred by no more than this, which swells its molecule by a tenth to a fifth
CLEAR = 2.0  # standard deviations of the noise by which a level should stand above the solvent
MOST = 40  # blurs at most: the voxels of a map would have to be a millionth of WIDEST to need more
SPECKS = 0.1  # of the voxels above a level at most may be specks apart from the molecule


def solid_body(map_: Map, resolution: float | None = None) -> tuple[float, float]:
    """The volume (Å³) of the molecule in a map, and how clear its surface stands above noise: `threshold_in_sigmas`.

    Blurred to BODY Å a molecule is a solid body with a blurred surface, which is where the density is half of the
    body's: `half_height`. Where it is less than CLEAR there, the map is blurred further; where that is of no use
    either, the volume means little. Specks are not counted.
    """
    first = SIGMA * np.sqrt(max(BODY**2 - (resolution or SHARP) ** 2, 0.0))
    for width in widening(float(first), float(map_.voxel_size.min())):
        density = ndimage.gaussian_filter(map_.density, width / map_.voxel_size) if width else map_.density
        values = np.sort(density, axis=None)
        level = half_height(values)
        clear = threshold_in_sigmas(level, *solvent_noise(values))
        if clear >= CLEAR or width >= WIDEST:
            break
    return float(np.count_nonzero(carried_mass(density, level)) * np.prod(map_.voxel_size)), clear


def widening(width: float, least: float) -> Iterator[float]:
    """Widths of ever wider blurs (Å), each of twice the variance of the last or `least`; WIDEST or more is the last."""
    for _ in range(MOST):
        yield width
        width = min(max(np.sqrt(2) * width, least), WIDEST)
    yield max(width, WIDEST)


def half_height(values: Float[np.ndarray, "n"]) -> float:
    """The level half way between the solvent and the mean of what stands above that level; of sorted values.

    Level and mean decide one another (Ridler and Calvard, IEEE Transactions on Systems, Man, and Cybernetics 8, 1978);
    the highest such level is taken. Noise is symmetric about the solvent: as many voxels as it lifts over a level lie
    as deep below the solvent, and are taken off from what stands above. A level above which most voxels are noise is
    none; where there is no other, the solvent's is returned.
    """
    solvent = common_value(values)
    above = values[values > solvent][::-1].astype(np.float64) - solvent
    below = solvent - values[values < solvent].astype(np.float64)
    mirrored = np.searchsorted(-below, -above, side="right")
    sums = np.cumsum(above) - np.concatenate([[0.0], np.cumsum(below)])[mirrored]
    counts = np.arange(1, len(above) + 1) - mirrored
    passed = np.flatnonzero((2 * above * counts < sums) & (counts > mirrored))[:1]
    return float(solvent + 0.5 * sums[passed[0]] / counts[passed[0]]) if len(passed) else solvent


def quiet_level(map_: Map, volume: float) -> float:
    """Choose the level at which to look at a map.

    Args:
        map_: any map.
        volume: of its molecule, Å³.

    Returns:
        The level at which the map encloses the volume; where that is not CLEAR of the noise, or shows more than SPECKS,
        a higher one that is and does not, as low as such a level can be to 5 % of the voxels above it.
    """
    solvent, noise = solvent_noise(np.sort(map_.density, axis=None))
    level = max(enclosing_threshold(map_, volume), solvent + CLEAR * noise)
    if specks(map_.density, level) <= SPECKS:
        return level
    values = np.sort(map_.density[map_.density >= level])
    low, high = 0, len(values) - 1  # too many specks at the one, none at the other, which shows the strongest voxel
    while high - low > max(1, 0.05 * (len(values) - high)):
        middle = (low + high) // 2
        low, high = (middle, high) if specks(map_.density, float(values[middle])) > SPECKS else (low, middle)
    return float(values[high])


def specks(density: Float[np.ndarray, "x y z"], level: float) -> float:
    """The share of the voxels at or above a level that lie in specks apart from the molecule; 0 without such voxels."""
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
    """The level at which to look at a map, what it encloses, and what the map says of its molecule's volume.

    The first that is there decides: the level `given`; the molecular weight `mass_kda`; the level that the map was
    `deposited` with; the weight of the `model`; the map's own histogram. A weight is a volume of DALTON Å³ each.
    By histogram the level is that of the volume of the `solid_body`, or a higher one where that would show SPECKS;
    where the body is not clear of the noise, it is the noise's ceiling, and there is no `body_volume`.

    Raises InputError where the map has no positive density, or that does not fill the volume of `mass_kda`.
    """
    positive = map_.density[map_.density > 0]
    if not positive.size:
        raise InputError("a map has no positive density: give one that shows a molecule, or --invert to negate it")
    body, clear = solid_body(map_, resolution)
    if given is not None:
        level, chosen = given, "given"
    elif mass_kda:
        level, chosen = enclosing_threshold(map_, 1e3 * mass_kda * DALTON), "by molecular weight"
    elif deposited is not None:
        level, chosen = deposited, "deposited"
    elif model is not None:
        volume = min(molecular_weight(model) * DALTON, len(positive) * float(np.prod(map_.voxel_size)))
        level, chosen = enclosing_threshold(map_, volume), "by the model's weight"
    elif clear >= CLEAR:
        level, chosen = quiet_level(map_, body), "by histogram"
    else:
        level, chosen = min(noise_limit(map_.density), float(map_.density.max())), "above the noise"
    shown = carried_mass(map_.density, level)
    return {
        "contour": float(level),
        "contour_chosen": chosen,
        "contour_volume": float(np.count_nonzero(shown) * np.prod(map_.voxel_size)),
        "contour_share_of_mass": float(shown.sum(dtype=np.float64) / max(positive.sum(dtype=np.float64), 1e-30)),
        "body_volume": body if clear >= CLEAR else None,
    }
