"""Density without detail: what is taken for a micelle, what is not, and what a run makes of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from cryotrans_jax.density import micelle, simulation
from cryotrans_jax.density.demo import hinge_pair
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, read_map, write_map

THICK, WIDE = 10.0, 14.0  # Å: half the belt's thickness, and how far it reaches beyond the molecule


@pytest.fixture(scope="module")
def pair():
    """The built-in models, and for each its map at 3 and 5 Å with some noise, where its atoms are far, and a belt."""
    models = hinge_pair()
    shape, size, origin = simulation.common_grid(list(models), 1.0, 3.0, padding=26.0)
    found = []
    for number, (model, resolution) in enumerate(zip(models, (3.0, 5.0), strict=True)):
        map_ = simulation.simulate_map(model, shape, size, origin, resolution)
        xyz = atoms.positions(model)
        empty = np.ones(shape, bool)
        empty[tuple(np.round((xyz - origin) / size).astype(int).T)] = False
        far = ndimage.distance_transform_edt(empty)  # voxels are 1 Å
        inside = far < 2
        height = np.abs(np.arange(shape[2]) * size[2] + origin[2] - xyz[:, 2].mean())
        belt = (far > 3) & (far < 3 + WIDE) & (height < THICK)
        smooth = ndimage.gaussian_filter(belt * 0.7 * np.float32(map_.density[inside].mean()), 2.0)
        noise = np.random.default_rng(number).normal(size=shape) * 0.05 * map_.density[inside].mean()
        noise = ndimage.gaussian_filter(noise, 0.5)
        found.append((model, replace(map_, density=(map_.density + noise).astype(np.float32)), far, smooth, belt))
    return found


def with_belt(one) -> Map:
    """The map with its belt."""
    return replace(one[1], density=(one[1].density + one[3]).astype(np.float32))


def told(protein: micelle.Protein, one) -> tuple[float, float]:
    """How much of the molecule a mask keeps, and of the belt further from it than 6 Å."""
    _, _, far, _, belt = one
    return float(protein.mask[far < 2].mean()), float(protein.mask[belt & (far > 6)].mean())


def test_a_belt_is_told_from_the_protein_in_both_maps(pair):
    found = micelle.proteins([with_belt(one) for one in pair], [3.0, 5.0])
    for protein, one in zip(found, pair, strict=True):
        kept, belt = told(protein, one)
        assert kept > 0.93 and belt < 0.2 and protein.left_out > 0.2
        assert protein.mask.min() == 0 and protein.mask.max() == 1


@pytest.mark.parametrize("resolutions", [None, [3.0, 5.0]])
def test_a_protein_alone_is_left_as_it_is(pair, resolutions):
    assert micelle.proteins([one[1] for one in pair], resolutions) == [None, None]


def test_a_belt_in_the_target_alone_is_left_out_of_it(pair):
    initial, target = pair
    for masked in (None, [True, False]):
        first, second = micelle.proteins([initial[1], with_belt(target)], [3.0, 5.0], masked)
        assert first is None and told(second, target)[0] > 0.9 and told(second, target)[1] < 0.2


def test_more_protein_in_the_target_is_no_micelle(pair):
    initial, (_, target, *_) = pair
    twice = np.concatenate([target.density, target.density])
    assert micelle.most_detailed(replace(target, density=twice), micelle.measure_detail(initial[1]).volume, 5.0) is None


def test_a_target_that_shows_hardly_more_than_the_initial_map_is_left_whole(pair):
    """By less than a quarter of its volume, though the belt has a sixth of the protein's detail."""
    target = with_belt(pair[0])
    volume = micelle.measure_detail(target, 3.0).volume
    assert micelle.most_detailed(target, volume / 1.24, 3.0) is None
    assert micelle.most_detailed(target, volume / 1.26, 3.0) is not None


def test_what_is_masked_or_modelled_stays(pair):
    initial, target = pair
    both = with_belt(initial), with_belt(target)
    assert micelle.proteins(both, [3.0, 5.0], [True, True]) == [None, None]
    model = initial[0]
    assert micelle.proteins(both, [3.0, 5.0], model=model)[0] is not None
    belt = np.argwhere(initial[4] & (initial[2] > 8))[: len(atoms.positions(model))]
    there = atoms.with_positions(
        model, np.resize(belt, (len(atoms.positions(model)), 3)) * both[0].voxel_size + both[0].origin
    )
    assert micelle.proteins(both, [3.0, 5.0], model=there)[0] is None


def test_two_classes_are_divided_where_that_explains_most():
    """Of a uniform distribution a cut in the middle explains 3/4 of the variance; of two narrow peaks nearly all."""
    level, explained = micelle.two_classes(np.linspace(2, 4, 12801))
    assert level == pytest.approx(3, abs=0.02) and explained == pytest.approx(0.75, abs=1e-3)
    peaks = np.concatenate([np.linspace(-0.1, 0.1, 300), np.linspace(9.9, 10.1, 100)])
    level, explained = micelle.two_classes(peaks)
    assert 0.1 < level < 9.9 and explained == pytest.approx(1, abs=0.01)


def detail(body, contrast):
    """Detail on voxels of 1, 2 and 0.5 Å, in the middle of a larger box."""
    box = tuple(slice(3, 3 + n) for n in body.shape)
    shape = tuple(n + 6 for n in body.shape)
    return micelle.Detail(body, contrast, contrast, box, shape, np.array([1.0, 2.0, 0.5]))


def test_what_is_kept_has_a_volume_a_ratio_of_contrasts_and_a_mask_that_fades_out():
    """Half of a body, with a hole that is filled and without a speck apart from it; the solvent stays."""
    body = np.zeros((30, 10, 40), bool)
    body[2:12, 2:8, 4:36] = True
    upper = body & (np.arange(40) >= 20)
    one = detail(body, np.where(upper, 3.0, 0.75) * np.ones(body.shape))
    assert one.volume == body.sum() * 1.0
    assert one.ratio(upper) == 0.25 and one.ratio(body) == one.ratio(np.zeros_like(body)) == 1
    pierced = upper.copy()
    pierced[6, 4, 27], pierced[2, 2, 6] = False, True
    found = one.protein(pierced)
    assert found.volume == upper.sum() and found.left_out == pytest.approx(0.5)
    inner = found.mask[3:-3, 3:-3, 3:-3]
    away, outside = (ndimage.distance_transform_edt(~part, sampling=one.voxel_size) for part in (upper, body))
    assert (inner[upper] == 1).all() and not inner[(away >= 2) & (outside <= 6)].any()
    assert (found.mask[:3] == 1).all() and (inner[outside >= 8] == 1).all() and inner[outside >= 8].size
    np.testing.assert_allclose(inner[away == 1], 0.5, atol=1e-6)  # half way


def test_the_share_of_a_model_within_a_mask_is_that_of_its_atoms(models):
    """By the nearest voxel; what is outside of the box counts by the box's side."""
    xyz = atoms.positions(models[0])
    map_ = Map(np.zeros((40, 30, 50), np.float32), np.array([1.0, 1.5, 0.8]), xyz.min(0) - 3)
    cut = np.median(xyz[:, 2])
    mask = np.where(map_.origin[2] + np.arange(50) * 0.8 > cut, np.float32(0.6), np.float32(0.4)) * np.ones((40, 30, 1))
    nearest = map_.origin[2] + np.rint((xyz[:, 2] - map_.origin[2]) / 0.8) * 0.8
    expected = (nearest > cut).mean()
    assert micelle.share_in_mask(models[0], map_, mask.astype(np.float32)) == expected == 0.5
    mask[..., 0] = 0.7
    for away in (500.0, -500.0):
        far = atoms.with_positions(models[0], xyz + [0, 0, away])
        assert micelle.share_in_mask(far, map_, mask.astype(np.float32)) == 1


@pytest.mark.parametrize("scale, offset", [(1e-4, 0.0), (3.0, 0.0), (1.0, 5.0), (0.2, -0.01)])
def test_detail_grows_with_the_density_and_its_contrast_does_not(maps, scale, offset):
    """Whatever the solvent's level."""
    wide = replace(maps[0], density=np.pad(maps[0].density, 4) / maps[0].density.max())
    noise = np.random.default_rng(0).normal(0, 0.01, wide.density.shape)
    wide = replace(wide, density=(wide.density + noise).astype(np.float32))
    plain = micelle.measure_detail(wide, 8.0)
    found = micelle.measure_detail(replace(wide, density=np.float32(scale) * wide.density + np.float32(offset)), 8.0)
    assert found.box == plain.box and (found.body == plain.body).mean() > 0.999
    np.testing.assert_allclose(found.detail, scale * plain.detail, rtol=0.02, atol=2e-3 * scale * plain.detail.max())
    np.testing.assert_allclose(found.contrast, plain.contrast, rtol=0.05, atol=5e-3 * plain.contrast.max())


def test_detail_is_looked_at_within_20_angstroms_of_the_body(maps):
    """Where the solvent's noise is judged, whatever the size of the box; and an initial map alone is enough."""
    wide = replace(maps[0], density=np.pad(maps[0].density, 24))
    found = micelle.measure_detail(wide, 8.0)
    inside = np.argwhere(found.body)
    room = np.ceil(20 / wide.voxel_size)
    np.testing.assert_array_equal(inside.min(0), room)
    np.testing.assert_array_equal(np.array(found.body.shape) - 1 - inside.max(0), room)
    assert micelle.proteins([wide], [8.0]) == [None]


def test_noise_alone_has_no_detail(maps):
    """Its power, the median of what is away from the molecule, is taken off: half of that is left with the least."""
    wide = np.pad(maps[0].density / maps[0].density.max(), 12)
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(0, 0.1, wide.shape), 0.6)
    found = micelle.measure_detail(replace(maps[0], density=(wide + noise).astype(np.float32)), 8.0)
    away = ndimage.distance_transform_edt(~found.body, sampling=found.voxel_size) > 16
    quiet = found.detail[away]
    assert (quiet < 1.0001 * quiet.min()).mean() == pytest.approx(0.5, abs=0.15)
    assert quiet.max() < np.median(found.detail[found.body])


def test_maps_without_a_body_have_nothing_to_tell():
    for density in (np.zeros((12, 12, 12)), np.ones((12, 12, 12))):
        map_ = Map(density.astype(np.float32), np.ones(3), np.zeros(3))
        assert micelle.proteins([map_, map_]) == [None, None]


@pytest.fixture
def belted(pair, tmp_path):
    """Flags of a short run between the maps with belts."""
    for name, one in zip("ab", pair, strict=True):
        write_map(tmp_path / f"{name}.mrc", with_belt(one))
    maps = f"--initial={tmp_path}/a.mrc", f"--target={tmp_path}/b.mrc"
    return *maps, "--recipe=paper", "--bin=8", "--steps=0.0001", "--frames=1", "--align=none"


@pytest.mark.slow
def test_a_run_leaves_belts_out_and_says_so(pair, belted, job, tmp_path):
    out = tmp_path / "out"
    status, printed, error = job("run", *belted, f"--out_dir={out}")
    assert status == 0, error
    assert "micelle removed, " in printed
    saved = json.loads((out / "config.json").read_text())
    assert {f"protein in {tmp_path}/{name}.mrc" for name in "ab"} <= set(saved["inputs"])
    mask = read_map(out / "inputs" / "protein_in_a.mrc").density
    assert told(micelle.Protein(mask, 0.0, 0.0), pair[0])[1] < 0.2
    assert "Density without detail was removed from the initial and target maps." in (out / "report.html").read_text()
    assert job("predict", f"--run_dir={out}", "--frames=1")[0] == 0
    made, again = (read_map(folder / "generated.mrc").density for folder in (out, out / "predict_1"))
    np.testing.assert_array_equal(made, again)
    (out / "inputs" / "protein_in_a.mrc").unlink()
    status, _, error = job("predict", f"--run_dir={out}", "--frames=1", "--overwrite")
    assert status == 2 and "protein_in_a.mrc is gone or changed" in error


def test_belts_are_left_out_of_what_is_fitted_unless_they_are_to_be_kept(pair, belted, job, tmp_path, monkeypatch):
    cases = []

    def stop(case, *_):
        cases.append(case)
        raise InputError("enough")

    monkeypatch.setattr("experiments.results.fit_case", stop)
    for kept, more in ((False, ()), (True, ("--micelle=keep",))):
        status, printed, error = job("run", *belted, *more, f"--out_dir={tmp_path}/{kept}")
        assert (status, error) == (2, "error: enough\n")
        assert ("micelle removed, " in printed) != kept
        assert (tmp_path / str(kept) / "inputs").exists() != kept
        case = cases.pop()
        belt = pair[0][4] & (pair[0][2] > 6)  # further than that from the molecule
        for map_, one in zip((case.initial, *case.targets), pair, strict=True):
            ours = np.abs(map_.density[one[4] & (one[2] > 6)]).mean() / np.abs(with_belt(one).density[belt]).mean()
            assert ours > 0.9 if kept else ours < 0.3


def test_the_volume_of_a_model_is_that_near_its_atoms(models):
    """Of one atom a sphere, to the voxels of its surface; of atoms that are far apart the sum."""
    model = models[0]
    count = len(atoms.positions(model))
    map_ = Map(np.zeros((4, 4, 4), np.float32), np.array([0.5, 0.6, 0.4]), np.zeros(3))
    sphere = 4 / 3 * np.pi * micelle.DEFAULT.beside**3
    one = atoms.with_positions(model, np.tile([30.0, -7.0, 5.0], (count, 1)))
    assert micelle.volume_of(one, map_) == pytest.approx(sphere, rel=0.03)
    two = atoms.with_positions(model, np.where(np.arange(count)[:, None] < count // 2, 0.0, [0.0, 25.0, 0.0]))
    assert micelle.volume_of(two, map_) == pytest.approx(2 * sphere, rel=0.03)


def test_a_target_is_cut_to_the_volume_of_the_model(pair):
    """Where the initial map shows more than its protein, and no micelle is recognised in it."""
    initial, target = pair
    shown = [initial[1], with_belt(target)]
    twice = replace(initial[1], density=np.concatenate([initial[1].density] * 2))
    volume = micelle.volume_of(initial[0], twice)
    without, given = (micelle.proteins([twice, shown[1]], [3.0, 5.0], [True, False], m)[1] for m in (None, initial[0]))
    assert given is not None and abs(given.volume / volume - 1) < 0.15
    assert without is None or without.volume > 1.2 * given.volume
