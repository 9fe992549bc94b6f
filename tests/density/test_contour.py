"""A molecule's volume is read from its map, with noise as without, and the level to look at shows it."""

from pathlib import Path

import gemmi
import numpy as np
import pytest
import scipy.fft
from scipy import ndimage

from cryotrans_jax.density import contour, simulation, thresholds
from cryotrans_jax.density.demo import hinge_pair
from cryotrans_jax.fit import prepare
from cryotrans_jax.fit.options import Thresholds
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, read_map

REAL = Path(__file__).parents[3] / "shared" / "data"  # public depositions, where they are at hand
ROOM = 20.0  # Å of solvent about a model: noise needs room to be seen


@pytest.fixture(scope="module")
def model():
    return hinge_pair()[0]


def simulated(model, resolution):
    """The map of a model with room about it, and the volume of the model's weight in Å³."""
    map_ = simulation.simulate_map(model, *simulation.common_grid([model], 1.0, resolution, padding=ROOM), resolution)
    return map_, 1.21 * atoms.molecular_weight(model)


def noisy(map_, volume, ratio, kind, resolution):
    """The map with noise, `ratio` times weaker than the density's rms over the volume; "low" is low-passed."""
    noise = np.random.default_rng(0).normal(size=map_.density.shape)
    if kind == "low":
        s = [np.fft.fftfreq(n, v) for n, v in zip(noise.shape, map_.voxel_size, strict=True)]
        inside = sum(a**2 for a in np.meshgrid(*s, indexing="ij", sparse=True)) < resolution**-2
        noise = scipy.fft.ifftn(scipy.fft.fftn(noise) * inside).real
    strongest = np.sort(map_.density, axis=None)[-int(volume / np.prod(map_.voxel_size)) :]
    noise *= np.sqrt(np.mean(strongest**2)) / ratio / noise.std()
    return Map((map_.density + noise).astype(np.float32), map_.voxel_size, map_.origin)


def test_a_chain_weighs_what_its_residues_do():
    """An alanine in a chain is C3H5NO, a leucine C6H11NO; water and hydrogens in the file do not count."""
    model = gemmi.Structure()
    model.add_model(gemmi.Model(1))
    chain = model[0].add_chain("A")
    for number, (name, elements) in enumerate([("ALA", "CCCNOHHH"), ("LEU", "CCCCCCNO"), ("HOH", "O")]):
        residue = gemmi.Residue()
        residue.name, residue.seqid = name, gemmi.SeqId(number + 1, " ")
        for place, element in enumerate(elements):
            atom = gemmi.Atom()
            atom.name, atom.element = f"{element}{place}", gemmi.Element(element)
            residue.add_atom(atom)
        chain.add_residue(residue)
    c, h, n, o = 12.011, 1.008, 14.007, 15.999
    assert atoms.molecular_weight(model) == pytest.approx(9 * c + 16 * h + 2 * n + 2 * o, rel=1e-3)  # tabulated weights


def test_half_height_of_a_blurred_slab_is_its_faces():
    """A slab of density 3 on a solvent of 1 meets 2 where it ends, however little it is blurred."""
    sharp = np.where((np.arange(200) >= 40) & (np.arange(200) < 100), 3.0, 1.0)
    for width in (0.5, 2.0):
        values = np.sort(np.tile(ndimage.gaussian_filter1d(sharp, width), 50))
        level = contour.half_height(values)
        assert (values >= level).sum() == 60 * 50
        # the mean above the level is below 3 by the faces' share, and so is the level below 2
        assert 1.8 < level <= 2.0


@pytest.mark.parametrize("part", [0.05, 0.3, 0.45])
def test_the_solvent_is_known_whatever_part_of_the_box_the_molecule_fills(part):
    rng = np.random.default_rng(0)
    values = np.sort(np.where(rng.uniform(size=100000) < part, 10.0, 2.0) + 0.5 * rng.normal(size=100000))
    assert thresholds.common_value(values) == pytest.approx(2, abs=0.15)  # shorths scatter by a few tenths of 0.5
    # three deviations of the solvent's are judged as such
    assert thresholds.threshold_in_sigmas(3.5, *thresholds.solvent_noise(values)) == pytest.approx(3, abs=0.5)


def test_noise_in_the_part_that_a_mask_leaves_is_small_all_over():
    """A tenth of the box holds noise of 1, the rest is 0: the deviation over the box is sqrt(0.1)."""
    values = np.zeros(100000)
    values[:10000] = np.random.default_rng(0).normal(size=10000)
    assert thresholds.solvent_noise(np.sort(values)) == pytest.approx((0, np.sqrt(0.1)), rel=0.05)


@pytest.mark.parametrize("resolution", [3.0, 5.0, 7.0])
@pytest.mark.parametrize("kind, ratio", [("white", 10), ("white", 1), ("low", 10), ("low", 5)])
def test_the_volume_is_the_models_in_any_noise(model, resolution, kind, ratio):
    clean, volume = simulated(model, resolution)
    for known in (resolution, None) if resolution < 7 else (resolution,):  # 7 Å taken for 3 is blurred too far
        assert contour.solid_body(clean, known)[0] == pytest.approx(volume, rel=0.2)
        found, clear = contour.solid_body(noisy(clean, volume, ratio, kind, resolution), known)
        assert found == pytest.approx(volume, rel=0.2) and clear >= contour.CLEAR


@pytest.mark.parametrize("resolution", [3.0, 5.0, 7.0])
def test_the_level_to_look_at_encloses_the_models_volume_where_there_is_no_noise(model, resolution):
    map_, volume = simulated(model, resolution)
    seen = contour.describe(map_, resolution)
    assert seen["contour_volume"] == pytest.approx(volume, rel=0.2)
    assert seen["contour_volume"] == pytest.approx((map_.density >= seen["contour"]).sum(), rel=1e-6)  # no specks here


@pytest.mark.parametrize("ratio", [10, 3])
def test_the_level_to_look_at_is_low_but_shows_few_specks(model, ratio):
    clean, volume = simulated(model, 5.0)
    map_ = noisy(clean, volume, ratio, "white", 5.0)
    seen = contour.describe(map_, 5.0)
    assert contour.dust_share(map_.density, seen["contour"]) <= contour.DUST
    full = seen["contour_volume"] > 0.9 * seen["body_volume"]
    lower = 0.95 * seen["contour"]
    assert full or contour.dust_share(map_.density, lower) > 0.9 * contour.DUST


@pytest.fixture(scope="module")
def speckled():
    """A ball of 1 to 2 on a solvent at 0, and specks of values up to 1.5 all over the box, each of one voxel."""
    rng = np.random.default_rng(3)
    density = np.zeros((30, 30, 30), np.float32)
    specks = tuple((3 * np.argwhere(rng.uniform(size=(10, 10, 10)) < 0.9) + 1).T)
    density[specks] = rng.uniform(0.2, 1.5, len(specks[0]))
    inside = np.linalg.norm(np.indices(density.shape) - 15, axis=0) < 8
    density[inside] = rng.uniform(1, 2, np.count_nonzero(inside))
    return Map(density, np.ones(3), np.zeros(3))


@pytest.mark.parametrize("volume", [500, 1500, 2500, 2800])
def test_the_level_to_look_at_is_the_lowest_with_few_specks_to_five_percent(speckled, volume):
    """At levels of a twentieth more voxels there are too many, unless it is the level of the volume itself."""
    level = contour.display_contour(speckled, float(volume))
    values = np.sort(speckled.density, axis=None)[::-1]
    above = np.count_nonzero(values >= level)
    assert contour.dust_share(speckled.density, level) <= contour.DUST
    lower = values[above : above + max(above // 20, 1) + 1]
    many = [contour.dust_share(speckled.density, float(value)) > contour.DUST for value in lower]
    assert any(many) or level == thresholds.enclosing_threshold(speckled, float(volume))
    assert any(many) == (volume > 1500)  # the ball's own voxels are about 2100, and specks come in from 1.5 on


@pytest.mark.parametrize("factor", [1e3, 1e4, 1e6])
def test_the_level_to_look_at_is_found_also_where_one_voxel_is_all(speckled, factor):
    """The molecule is that voxel then: all else holds less than a hundredth of it, and is specks."""
    density = speckled.density.copy()
    density[0, 0, 0] = factor * density.max()
    level = contour.display_contour(Map(density, speckled.voxel_size, speckled.origin), 500.0)
    assert contour.dust_share(density, level) <= contour.DUST


def test_where_nothing_is_above_a_level_there_are_no_specks(speckled):
    assert contour.dust_share(speckled.density, 3.0) == 0


def test_a_map_without_positive_density_is_refused(speckled):
    with pytest.raises(InputError, match="no positive density"):
        contour.describe(Map(-1 - speckled.density, speckled.voxel_size, speckled.origin))


def test_noise_as_strong_as_the_molecule_is_admitted(model):
    clean, volume = simulated(model, 7.0)
    seen = contour.describe(noisy(clean, volume, 1, "low", 7.0), 7.0)
    assert seen["body_volume"] is None and seen["contour_chosen"] == "above the noise"


def test_what_is_given_decides_before_what_is_found(model):
    map_, volume = simulated(model, 5.0)
    weight = volume / 1.21 / 1e3
    everything = dict(given=0.2, mass_kda=0.5 * weight, deposited=0.1, model=model)
    expected = {"given": "given", "mass_kda": "by molecular weight", "deposited": "deposited"}
    expected |= {"model": "by the model's weight"}
    for name, chosen in expected.items():
        seen = contour.describe(map_, 5.0, **everything)
        assert seen["contour_chosen"] == chosen
        wanted = {"given": (map_.density >= 0.2).sum(), "mass_kda": 0.5 * volume, "model": volume}
        wanted["deposited"] = (map_.density >= 0.1).sum()
        assert seen["contour_volume"] == pytest.approx(wanted[name], rel=0.02)
        del everything[name]
    assert contour.describe(map_, 5.0)["contour_chosen"] == "by histogram"


def test_the_enclosed_volume_is_that_asked_for_without_specks(model):
    clean, volume = simulated(model, 7.0)
    map_ = noisy(clean, volume, 10, "white", 7.0)
    for part in (0.3, 0.6, 0.9):
        level = thresholds.enclosing_threshold(map_, part * volume)
        kept = np.count_nonzero(thresholds.carried_mass(map_.density, level))
        assert kept * np.prod(map_.voxel_size) == pytest.approx(part * volume, rel=0.02)
    with pytest.raises(InputError, match="Å³ of the map are positive: give another molecular weight"):
        thresholds.enclosing_threshold(map_, 1.01 * map_.density.size)


def test_a_given_volume_sets_the_mass_that_is_moved_and_leaves_the_target_as_it_is(model):
    start, volume = simulated(model, 3.0)
    end = Map(ndimage.gaussian_filter(start.density, 1.4), start.voxel_size, start.origin)
    ruled, given = (prepare.prepare(start, [end], thresholds=Thresholds(volume=v)) for v in (None, volume))
    for used in (given.report["initial"], *given.report["targets"]):
        assert used["volume"] == pytest.approx(volume, rel=0.02) and used["threshold_chosen"] == "by volume"
    # the targets' densities are on the scale that they have by rule
    scale = [p.densities.max() * p.report["initial"]["volume"] / p.report["initial"]["volume"] for p in (ruled, given)]
    assert scale[0] == pytest.approx(scale[1], rel=1e-5)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs the depositions in {REAL}")
@pytest.mark.slow
def test_the_volume_of_a_deposited_map_is_its_models():
    map_ = read_map(REAL / "maps/formats/trpv1_noncubic.mrc")
    model = atoms.read_model(REAL / "maps/formats/trpv1_model.pdb")
    volume = 1.21 * atoms.molecular_weight(model)
    assert contour.describe(map_, 3.4)["contour_volume"] == pytest.approx(volume, rel=0.21)
    assert contour.describe(map_, 3.4, model=model)["contour_volume"] == pytest.approx(volume, rel=0.02)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs the depositions in {REAL}")
@pytest.mark.slow
@pytest.mark.parametrize("file", ["adk/open.pdb", "adk/closed.pdb", "groel_subunit/1OEL.pdb", "msba/7SEL.pdb"])
@pytest.mark.parametrize("resolution", [3.0, 5.0, 7.0])
def test_the_volume_of_real_proteins_is_their_weights(file, resolution):
    clean, volume = simulated(atoms.read_model(REAL / "pairs" / file), resolution)
    for map_ in (
        clean,
        *(noisy(clean, volume, r, k, resolution) for r, k in ((3, "white"), (1, "white"), (10, "low"))),
    ):
        assert contour.solid_body(map_, resolution)[0] == pytest.approx(volume, rel=0.2)
