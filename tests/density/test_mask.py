"""Masks multiply their own map, leave what they cover, and are explained where they cannot."""

import json

import numpy as np
import pytest

from cryotrans_jax.density import contour, mask, thresholds
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, read_map, write_map
from experiments import prechecks


def halves(map_):
    """A mask that is 1 in the first half of x, 0.5 in the next two planes, and 0 beyond."""
    values = np.zeros(map_.density.shape, np.float32)
    middle = len(values) // 2
    values[:middle], values[middle : middle + 2] = 1, 0.5
    return Map(values, map_.voxel_size, map_.origin)


def test_a_mask_multiplies(maps):
    cut = mask.masked(maps[0], halves(maps[0])).density
    middle = len(cut) // 2
    np.testing.assert_array_equal(cut[:middle], maps[0].density[:middle])
    np.testing.assert_array_equal(cut[middle : middle + 2], 0.5 * maps[0].density[middle : middle + 2])
    assert not cut[middle + 2 :].any()


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda m: Map(m.density, m.voxel_size, m.origin + 5), "the mask lies on another grid .*origin"),
        (lambda m: Map(2 * m.density, m.voxel_size, m.origin), "the mask holds values from 0 to 2"),
        (lambda m: Map(m.density - 1, m.voxel_size, m.origin), "the mask holds values from -1 to 0"),
        (lambda m: Map(0 * m.density, m.voxel_size, m.origin), "the mask leaves nothing"),
    ],
)
def test_what_is_no_mask_is_explained(maps, change, sentence):
    with pytest.raises(InputError, match=sentence):
        mask.masked(maps[0], change(halves(maps[0])))


@pytest.mark.parametrize("off", [0.0, 0.0009, 0.0011])
@pytest.mark.parametrize("end", [0, 1])
def test_a_mask_may_be_off_by_what_interpolation_leaves_and_then_changes_nothing(maps, end, off):
    """By a thousandth beyond 0 and 1, as resampled masks are; density is neither amplified nor turned about."""
    values = np.where(halves(maps[0]).density > 0.75, np.float32(1 + off * end), np.float32(off * (end - 1)))
    given = Map(values, maps[0].voxel_size, maps[0].origin)
    if off > 0.001:
        with pytest.raises(InputError, match="a mask's lie between 0 and 1"):
            mask.masked(maps[0], given)
    else:
        np.testing.assert_array_equal(mask.masked(maps[0], given).density, maps[0].density * (values > 0.5))


@pytest.mark.parametrize("radius", [3.0, 8.0])
def test_a_sphere_is_one_within_its_radius_about_the_mass_and_fades(maps, radius):
    """About the centre of mass, which is off the middle of the box, with voxels of three sizes."""
    map_ = maps[0]
    mass = thresholds.carried_mass(map_.density, thresholds.choose_threshold(map_.density)).astype(float)
    at = np.argwhere(np.ones(mass.shape)) * map_.voxel_size
    centre = mass.ravel() @ at / mass.sum()
    away = np.linalg.norm(at - centre, axis=1).reshape(mass.shape)
    values = mask.sphere(map_, radius).density
    np.testing.assert_allclose(values[away <= radius], 1, atol=1e-6)
    np.testing.assert_allclose(values[away >= radius + 5], 0, atol=1e-6)  # Å
    edge = (away > radius) & (away < radius + 5)
    np.testing.assert_allclose(values[edge], 0.5 + 0.5 * np.cos(np.pi * (away[edge] - radius) / 5), atol=1e-5)
    order = np.argsort(away[edge])
    assert (np.diff(values[edge][order]) <= 1e-6).all() and values[edge].min() < 0.01 and values[edge].max() > 0.99


@pytest.fixture(scope="module")
def folder(tmp_path_factory, maps):
    """The maps, and a mask of half of the box."""
    folder = tmp_path_factory.mktemp("masks")
    for name, map_ in zip(("initial", "target"), maps, strict=False):
        write_map(folder / f"{name}.mrc", map_)
    write_map(folder / "half.mrc", halves(maps[0]))
    return folder


@pytest.fixture
def fitted(folder, job, tmp_path, monkeypatch):
    """What a run with these flags would fit: (initial, targets, options); or its line of error."""
    taken = []

    def stop(initial, targets, options, **others):
        taken.extend([initial, targets, options])
        raise InputError("enough")

    def of(*flags):
        taken.clear()
        monkeypatch.setattr("experiments.results.morph", stop)
        maps = f"--initial={folder}/initial.mrc", f"--target={folder}/target.mrc", "--align=none"
        error = job("run", *maps, f"--out_dir={tmp_path}", *flags)[2]
        return taken or error

    return of


def test_masks_and_the_sphere_reach_the_fit(folder, fitted, maps):
    initial, (target,), _ = fitted(f"--target_mask={folder}/half.mrc", "--mask_radius=8")
    cut = mask.masked(maps[1], halves(maps[1]))
    for found, map_ in ((initial, maps[0]), (target, cut)):
        expected = map_.density * mask.sphere(map_, 8.0).density
        np.testing.assert_allclose(found.density, expected, atol=1e-5 * expected.max())  # a file's header is float32


def test_there_are_as_many_masks_as_targets(folder, fitted):
    assert "2 target masks for 1 targets" in fitted(f"--target_mask={folder}/half.mrc,b.mrc")
    assert "no file b.mrc here or in" in fitted("--mask=b.mrc")


def test_a_molecular_weight_reaches_the_fit_as_a_volume(fitted):
    assert fitted("--mass_kda=2.5")[2].thresholds.volume == pytest.approx(1.21 * 2500)
    assert "give the molecular weight in kDa, of all that the map shows" in fitted("--mass_kda=2500")


@pytest.mark.slow
def test_predict_carries_what_the_mask_leaves(folder, job, tmp_path, maps):
    out = tmp_path / "out"
    files = f"--initial={folder}/initial.mrc", f"--target={folder}/target.mrc", f"--mask={folder}/half.mrc"
    quick = "--recipe=paper", "--bin=4", "--steps=0.0001", "--frames=1"
    status, _, error = job("run", *files, f"--out_dir={out}", *quick)
    assert status == 0, error
    saved = json.loads((out / "config.json").read_text())
    assert f"{folder}/half.mrc" in saved["inputs"] and saved["contours"][0]["contour_chosen"] == "by histogram"
    assert job("predict", f"--run_dir={out}", "--frames=1")[0] == 0
    found, made = (read_map(f / "generated.mrc").density for f in (out / "predict_1", out))
    np.testing.assert_array_equal(found, made)
    (folder / "half.mrc").rename(folder / "gone.mrc")
    status, _, error = job("predict", f"--run_dir={out}", "--frames=1", "--overwrite")
    (folder / "gone.mrc").rename(folder / "half.mrc")
    assert status == 2 and "half.mrc is gone or changed" in error


@pytest.mark.parametrize(
    "deviations, doubt",
    [
        (0.5, "the threshold is only 0.5 standard deviations"),  # 31 % of the solvent pass
        (2.2, "dust, which is left out"),  # 1.4 % pass, in specks
        (5.0, None),
    ],
)
def test_noise_that_is_moved_is_warned_of(maps, deviations, doubt):
    """Noise of a tenth of the peak."""
    clean = np.pad(maps[0].density, 10)
    sigma = 0.1 * float(clean.max())
    noise = np.random.default_rng(0).normal(0, sigma, clean.shape)
    loud = Map((clean + noise).astype(np.float32), maps[0].voxel_size, maps[0].origin)
    _, used = thresholds.apply_threshold(loud, deviations * sigma, "map")
    found = prechecks.threshold_doubts(used, contour.describe(loud, 8.0)["body_volume"])
    assert len(found) == (doubt is not None) and all(doubt in words for words in found)
    by_rule = prechecks.threshold_doubts(used | {"threshold_chosen": "by rule"}, used["volume"])
    assert not any("dust" in words for words in by_rule)


def test_too_little_and_too_much_noise_are_told(maps):
    used = thresholds.apply_threshold(maps[0], None, "map")[1]
    assert prechecks.threshold_doubts(used, used["volume"]) == []
    assert "encloses 25 % of the molecular volume" in prechecks.threshold_doubts(used, 4 * used["volume"])[0]
    assert "its volume cannot be estimated" in prechecks.threshold_doubts(used, None)[0]
    assert [prechecks.threshold_doubts(used, volume, True) for volume in (4 * used["volume"], None)] == [[], []]
