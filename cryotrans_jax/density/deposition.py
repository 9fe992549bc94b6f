"""Maps as reconstructions are deposited: from a model, with noise that limits their resolution.

A map without noise flatters a method: its blur is undone by a division. Here each of two half-maps has its own noise,
with the spectrum that makes their Fourier shell correlation (FSC) fall as it does in reconstructions.
"""

from dataclasses import dataclass
from typing import NamedTuple

import gemmi
import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage, special
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from cryotrans_jax.density.mask import soft_edge
from cryotrans_jax.density.simulation import SIGMA, common_grid, simulate_map
from cryotrans_jax.density.slabs import distance_within
from cryotrans_jax.density.spectrum import filtered, shell_power
from cryotrans_jax.density.transform import Transform
from cryotrans_jax.io.atoms import heavy_atoms, positions
from cryotrans_jax.io.maps import Map, radial_frequency
from cryotrans_jax.io.selections import without

Volume = Float[np.ndarray, "x y z"]
AT_RESOLUTION = 0.143  # FSC of the half-maps by which a resolution is stated (Rosenthal and Henderson 2003)
WHITE = 1.2  # frequency, relative to that of the resolution, from which on the noise of the half-maps is white
CONTACT = 3.5  # Å between the nearest heavy atoms of two proteins in contact


@dataclass(frozen=True)
class Conditions:
    """How a deposited map differs from the map of a model.

    Attributes:
        resolution: Å, at which the FSC of the half-maps within a mask falls to 0.143.
        b_factor: of atoms at the centre, Å²; None: 10 resolution², as reconstructions have it.
        b_growth: what the B-factor has more at the atom farthest away, Å²; it grows with the squared distance.
        belt: whether detergent or lipid surrounds the middle of the longest axis: density without detail.
        belt_thickness: of the belt along that axis, Å.
        belt_width: from the protein to the belt's outer rim, Å.
        belt_density: of the belt, relative to the protein's at low resolution.
        lacking: residues without density, such as A:40-80,B (`selections.without`); empty for none.
        extra: mass of a further protein in contact with the molecule, relative to the molecule's (`with_extra`).
        sharpen: whether the fall of the amplitudes between 10 Å and the resolution is undone (Guinier plot).
        half_fsc: FSC of the half-maps at half the frequency of the resolution.
        scale: standard deviation of the full map; the half-maps are scaled by the same factor.
        offset: added to the density after that.
    """

    resolution: float
    b_factor: float | None = None
    b_growth: float = 0.0
    belt: bool = False
    belt_thickness: float = 34.0
    belt_width: float = 18.0
    belt_density: float = 0.55
    lacking: str = ""
    extra: float = 0.0
    sharpen: bool = False
    half_fsc: float = 0.99
    scale: float = 1.0
    offset: float = 0.0


class Deposition(NamedTuple):
    """A map as deposited.

    Attributes:
        map: the mean of the half-maps, weighted in each shell by its figure of merit, and sharpened if that is asked.
        halves: the half-maps, neither weighted nor sharpened.
        mask: about the molecule, 0 to 1, within which the FSC falls as wanted.
        sharpening: B-factor that was undone, Å².
    """

    map: Map
    halves: tuple[Map, Map]
    mask: Map
    sharpening: float


def deposit(
    model: gemmi.Structure, conditions: Conditions, voxel_size: float | None = None, seed: int = 0
) -> Deposition:
    """Simulate a map of a model as reconstructions are deposited.

    Args:
        model: the model.
        conditions: resolution, B-factors, belt, missing and extra density, sharpening, scale.
        voxel_size: Å; None: a third of the resolution.
        seed: of the noise, and of the place of extra density.

    Returns:
        The full map, its half-maps, their mask, and the B-factor that was undone.

    Raises:
        InputError: `lacking` is no selection, selects nothing, or the whole model.
    """
    model = without(model, conditions.lacking, "--lacking")
    seen = with_extra(model, conditions.extra, seed) if conditions.extra else model
    shape, voxel, origin = common_grid([seen], voxel_size or conditions.resolution / 3, conditions.resolution, 20.0)
    empty = Map(np.zeros(shape, np.float32), voxel, origin)
    signal = blurred_atoms(seen, empty, conditions)
    if conditions.belt:
        signal = signal + belt_density(model, signal, empty, conditions)
    mask, s = envelope(signal, voxel), radial_frequency(shape, voxel)
    white = np.random.default_rng(seed).standard_normal((2, *shape), np.float32)
    gain = noise_gain(signal, mask, white[0], empty, s, conditions)
    halves = [signal + filtered(each, gain) for each in white]
    mean, fsc = 0.5 * (halves[0] + halves[1]), wanted_fsc(s * conditions.resolution, conditions.half_fsc)
    sharpening = guinier_b_factor(mean, voxel, conditions) if conditions.sharpen else 0.0
    fall = np.exp(sharpening / 4 * np.minimum(s, 1 / conditions.resolution) ** 2)
    full = filtered(mean, np.sqrt(2 * fsc / (1 + fsc)) * fall)
    unit = conditions.scale / float(full.std())
    scaled = (Map((unit * each + conditions.offset).astype(np.float32), voxel, origin) for each in (full, *halves))
    whole, first, second = scaled
    return Deposition(whole, (first, second), Map(mask, voxel, origin), sharpening)


def random_pose(model: gemmi.Structure, turn: float, shift: float, seed: int = 0) -> Transform:
    """A rotation by `turn` degrees about a random axis through the model's middle, and a random shift by `shift` Å."""
    axis, along = (each / np.linalg.norm(each) for each in np.random.default_rng(seed).standard_normal((2, 3)))
    turned, centre = Rotation.from_rotvec(np.radians(turn) * axis).as_matrix(), positions(model).mean(0)
    return Transform(turned, centre + shift * along - turned @ centre)


def with_extra(model: gemmi.Structure, share: float, seed: int = 0) -> gemmi.Structure:
    """Copy a model and add a compact protein that touches it at a random place, such as an antibody.

    The protein is a copy of the model's residues nearest to its middle, in a random orientation. Of two atoms, one of
    each, the nearest are CONTACT apart.

    Args:
        model: the model.
        share: mass of the protein, relative to the model's; at most 1, and rounded up to a whole residue.
        seed: of its place and orientation.
    """
    random, (xyz, weights), copy = np.random.default_rng(seed), heavy_atoms(model), model.clone()
    part = middle_residues(model, share * weights.sum())
    turn = Rotation.from_quat(random.standard_normal(4)).as_matrix()
    outwards, *across = Rotation.from_quat(random.standard_normal(4)).as_matrix()
    turned = heavy_atoms(part)[0] @ turn.T
    nearest = turned[((turned - turned.mean(0)) ** 2).sum(1).argmin()]
    shift = random.choice(xyz) - nearest  # the part lies on an atom of the model, and leaves it outwards
    flat = (cKDTree(x @ np.transpose(across)) for x in (xyz, turned + shift))
    pairs = next(flat).sparse_distance_matrix(next(flat), CONTACT, output_type="coo_matrix")
    along = (xyz[pairs.row] - turned[pairs.col] - shift) @ outwards
    touching = (along + np.sqrt(CONTACT**2 - pairs.data**2)).max()
    copy[0].add_chain(Transform(turn, shift + touching * outwards).move(part)[0][0])
    return copy


def middle_residues(model: gemmi.Structure, mass: float) -> gemmi.Structure:
    """Copy the residues nearest to a model's middle, as one chain: as many as have the mass, in atomic numbers."""
    whole, centres, masses = residues_of(model)
    middle = centres[((centres - centres.mean(0)) ** 2).sum(1).argmin()]
    order = np.argsort(((centres - middle) ** 2).sum(1))
    count = np.searchsorted(np.cumsum(masses[order]), 0.999999 * mass) + 1
    part, chain = gemmi.Structure(), gemmi.Chain("extra")
    for number, place in enumerate(order[:count], 1):
        residue = whole[place].clone()
        residue.seqid = gemmi.SeqId(number, " ")  # numbers of several chains may be equal
        chain.add_residue(residue)
    part.add_model(gemmi.Model(1))
    part[0].add_chain(chain)
    return part


def without_side(model: gemmi.Structure, share: float, seed: int = 0) -> gemmi.Structure:
    """Copy a model without the residues on one side of it, in a random direction, as a target may lack a domain.

    Args:
        model: the model.
        share: of the residues that are left out; at least one stays.
        seed: of the direction.
    """
    copy = model.clone()
    whole, centres, _ = residues_of(copy)
    height = centres @ np.random.default_rng(seed).standard_normal(3)
    for place in np.argsort(height)[max(round((1 - share) * len(whole)), 1) :]:
        whole[place].flag = "x"
    for chain in copy[0]:
        for place in reversed(range(len(chain))):
            if chain[place].flag == "x":
                del chain[place]
    return copy


def residues_of(
    model: gemmi.Structure,
) -> tuple[list[gemmi.Residue], Float[np.ndarray, "residues 3"], Float[np.ndarray, "residues"]]:
    """The residues of a model that have heavy atoms, their middles (Å), and their masses in atomic numbers."""
    whole = [residue for chain in model[0] for residue in chain.first_conformer()]
    heavy = [[atom for atom in residue.first_conformer() if not atom.is_hydrogen()] for residue in whole]
    kept = [(residue, own) for residue, own in zip(whole, heavy, strict=True) if own]
    centres = np.array([np.mean([atom.pos.tolist() for atom in own], axis=0) for _, own in kept])
    masses = np.array([sum(atom.element.atomic_number for atom in own) for _, own in kept], float)
    return [residue for residue, _ in kept], centres, masses


def blurred_atoms(model: gemmi.Structure, like: Map, conditions: Conditions) -> Volume:
    """Density of a model whose B-factors grow outwards: Gaussians of variance B / 8π² for the elements' weights.

    Atoms whose widths differ by less than 2 % are summed together.
    """
    xyz, weights = heavy_atoms(model)
    squared = ((xyz - xyz.mean(0)) ** 2).sum(1)
    least = 10 * conditions.resolution**2 if conditions.b_factor is None else conditions.b_factor
    b_factors = least + conditions.b_growth * squared / max(squared.max(), 1e-30)
    widths = np.maximum(np.sqrt(b_factors / (8 * np.pi**2)), 0.45 * like.voxel_size.max())
    classes = np.round(np.log(widths) / 0.02)
    shape, density = like.density.shape, np.zeros_like(like.density)
    for each in np.unique(classes):
        own, resolution = classes == each, float(np.exp(0.02 * each)) / SIGMA
        density += simulate_map((xyz[own], weights[own]), shape, like.voxel_size, like.origin, resolution).density
    return density


def belt_density(model: gemmi.Structure, signal: Volume, like: Map, conditions: Conditions) -> Volume:
    """Density of a belt about the middle of a model's longest axis, where the protein is not."""
    x = positions(model) - positions(model).mean(0)
    axis = np.linalg.svd(x, full_matrices=False)[2][0]
    half = conditions.belt_thickness / 2
    radius = np.linalg.norm(x - np.outer(x @ axis, axis), axis=1)[np.abs(x @ axis) < half]
    grid = np.indices(signal.shape).reshape(3, -1).T * like.voxel_size + like.origin - positions(model).mean(0)
    height = grid @ axis
    across = np.sqrt(np.maximum((grid**2).sum(1) - height**2, 0))
    rim = np.percentile(radius, 90) + conditions.belt_width
    disc = ((np.abs(height) < half) & (across < rim)).reshape(signal.shape).astype(np.float32)
    smooth = ndimage.gaussian_filter(signal, 4.0 / like.voxel_size)
    level = np.median(smooth[inside(signal, like.voxel_size)])
    occupied = np.clip(smooth / level, 0, 1)
    return conditions.belt_density * level * ndimage.gaussian_filter(disc, 4.0 / like.voxel_size) * (1 - occupied)


def inside(signal: Volume, voxel_size: np.ndarray) -> Bool[np.ndarray, "x y z"]:
    """Where the density, blurred by 4 Å, is above a tenth of its maximum."""
    smooth = ndimage.gaussian_filter(signal, 4.0 / voxel_size)
    return smooth > 0.1 * smooth.max()


def envelope(signal: Volume, voxel_size: np.ndarray) -> Volume:
    """Mask (0 to 1) of the molecule, with an edge that falls over 6 Å."""
    return soft_edge(distance_within(6.0, inside(signal, voxel_size), voxel_size), 6.0)


def wanted_fsc(frequency: np.ndarray, half_fsc: float) -> np.ndarray:
    """FSC of half-maps at a frequency relative to that of the resolution: a logistic curve.

    It is `half_fsc` at one half and AT_RESOLUTION at 1.
    """
    low, high = special.logit(half_fsc), special.logit(AT_RESOLUTION)
    return special.expit(low + (high - low) * 2 * (frequency - 0.5))


def noise_gain(
    signal: Volume, mask: Volume, white: Volume, like: Map, s: Float[np.ndarray, "x y half"], conditions: Conditions
) -> Float[np.ndarray, "x y half"]:
    """Amplitude of the noise at each frequency s (1/Å), relative to that of white noise.

    Within the mask the signal has the power P in a shell and the half-maps the FSC P / (P + N), which gives the power N
    of the noise. A mask spreads power over neighbouring shells, so the amplitudes are corrected by what the white noise
    has after it was filtered and masked. Powers are smoothed over five shells. From WHITE times the frequency of the
    resolution on the amplitude stays as it is there, as noise has no end at the resolution.
    """

    def power_of(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
        frequency, power = shell_power(volume * mask, like.voxel_size)
        return frequency, np.maximum(ndimage.uniform_filter1d(power, 5, mode="nearest"), 1e-30)

    frequency, power = power_of(signal)
    fsc = wanted_fsc(np.minimum(frequency * conditions.resolution, WHITE), conditions.half_fsc)
    wanted, amplitude = power * (1 - fsc) / fsc, np.ones(len(frequency))
    at = np.minimum(s, min(WHITE / conditions.resolution, frequency[-1]))
    for _ in range(6):
        made = power_of(filtered(white, np.interp(at, frequency, amplitude)))[1]
        amplitude *= np.sqrt(wanted / made)
    return np.interp(at, frequency, amplitude).astype(np.float32)


def guinier_b_factor(density: Volume, voxel_size: np.ndarray, conditions: Conditions) -> float:
    """B-factor (Å²) by which the amplitudes fall from 10 Å to the resolution; 0 where they do not."""
    s, power = shell_power(density, voxel_size)
    band = (s > 0.1) & (s < 0.95 / conditions.resolution)
    if band.sum() < 3:
        return 0.0
    slope = np.polyfit(s[band] ** 2, 0.5 * np.log(np.maximum(power[band], 1e-30)), 1)[0]
    return float(max(-4 * slope, 0.0))
