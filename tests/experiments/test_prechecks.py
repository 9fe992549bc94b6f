"""Before a fit a run refuses maps that cannot be meant, and warns of what is doubtful, once and in plain words."""

from dataclasses import replace

import numpy as np
import pytest

from cryotrans_jax.density import simulation
from cryotrans_jax.density.demo import hinge_pair
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, read_map, write_map
from experiments import load, masks, prechecks
from experiments.pages import cautions
from experiments.settings import InputSettings


@pytest.fixture(scope="module")
def pair():
    """The built-in models, and their maps at 5 and 6 Å on voxels of 2 Å."""
    models = hinge_pair()
    grid = simulation.common_grid(list(models), 2.0, 5.0, padding=24.0)
    return models, [simulation.simulate_map(model, *grid, at) for model, at in zip(models, (5.0, 6.0), strict=True)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pair):
    """Maps of the pair in every state in which they should not be, and models."""
    folder = tmp_path_factory.mktemp("prechecks")
    models, (start, end) = pair
    hot, half = end.density.copy(), end.density.copy()
    hot[1, 2, 3] = 1e4 * hot.max()
    half[:, :, : half.shape[2] // 2] = 0
    made = {
        "a": start,
        "b": end,
        "dark_a": replace(start, density=-start.density),
        "dark": replace(end, density=3 - end.density),
        "nm": Map(end.density, 0.1 * end.voxel_size, 0.1 * end.origin),
        "hot": replace(end, density=hot),
        "half": replace(end, density=half),
        "blurred": simulation.simulate(models[0], 9.0, like=start),
    }
    for name, map_ in made.items():
        write_map(folder / f"{name}.mrc", map_)
    atoms.write_model(folder / "model.cif", models[0])
    xyz = atoms.positions(models[0])
    turned = (xyz - xyz.mean(0)) @ np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]]) + xyz.mean(0)  # by 90° about y
    atoms.write_model(folder / "turned.cif", atoms.with_positions(models[0], turned))
    return folder


@pytest.fixture
def run(folder, job, tmp_path, monkeypatch):
    """What a run of two maps would fit, and what it says on stderr: (initial, targets, settings) or None, text."""

    def of(initial, target, *flags):
        taken = []

        def stop(*maps, **settings):
            taken.extend([maps[0], maps[1], settings])
            raise InputError("enough")

        monkeypatch.setattr("experiments.results.morph", stop)
        maps = f"--initial={folder}/{initial}.mrc", f"--target={folder}/{target}.mrc", "--align=none"
        status, _, error = job("run", *maps, f"--out_dir={tmp_path}", "--micelle=keep", *flags)
        assert status == 2 and "Traceback" not in error, error
        assert taken or "error: enough" not in error
        return taken or None, error

    return of


def warned(error):
    return [line for line in error.splitlines() if line.startswith("warning: ")]


def test_a_good_pair_is_not_warned_of(run, folder):
    taken, error = run("a", "b", f"--model={folder}/model.cif")
    assert taken and warned(error) == []


@pytest.mark.parametrize(
    "maps, asked", [(("a", "dark"), "target"), (("dark_a", "b"), "initial"), (("dark_a", "dark"), "both")]
)
def test_inverted_contrast_is_refused_and_the_flag_named(run, pair, maps, asked):
    taken, error = run(*maps)
    assert taken is None and f"--invert={asked}" in error and len(error.splitlines()) == 1
    initial, (target,), _ = run(*maps, f"--invert={asked}")[0]
    for found, expected in zip((initial, target), pair[1], strict=True):  # whatever the solvent was
        np.testing.assert_allclose(found.density, expected.density, atol=1e-3 * expected.density.max())


def test_what_is_to_be_taken_as_it_is_is_not_judged(run):
    taken, error = run("a", "dark", "--invert=none", "--target_threshold=1")
    assert taken and "inverted" not in error


def test_half_maps_are_negated_as_their_target_is(run, folder, pair):
    for number in (1, 2):
        write_map(folder / f"dark_half{number}.mrc", replace(pair[1][1], density=-number * pair[1][1].density))
    taken, _ = run("a", "dark", "--invert=target", f"--target_half1={folder}/dark_half1.mrc")
    for number, half in enumerate(taken[2]["halves"][0], 1):
        expected = number * pair[1][1].density
        np.testing.assert_allclose(half.density, expected, atol=1e-3 * expected.max())


def test_a_run_is_read_again_as_it_was_fitted(folder, pair):
    config = {"settings": {"invert": "target"}, "inputs": {}}
    again = masks.read_as_used(config, folder / "dark.mrc", "target", (None, None))
    np.testing.assert_allclose(again.density, pair[1][1].density, atol=1e-3 * pair[1][1].density.max())
    same = masks.read_as_used(config, folder / "a.mrc", "initial", (None, None))
    np.testing.assert_array_equal(same.density, read_map(folder / "a.mrc").density)
    old = {"settings": {}, "inputs": {}}  # of a version that knew no such flag
    repaired = masks.read_as_used(old, folder / "hot.mrc", "target", (None, None))
    assert repaired.density.max() == pytest.approx(pair[1][1].density.max(), rel=1e-6)


@pytest.mark.parametrize("maps, flag", [(("a", "nm"), "--target_voxel_size=2"), (("nm", "b"), "--voxel_size=2")])
def test_voxel_sizes_in_nanometres_are_refused(run, maps, flag):
    taken, error = run(*maps)
    assert taken is None and "seems to be in nm" in error and error.rstrip().endswith(flag)


def test_of_several_targets_the_inverted_one_is_left_out(folder, capsys):
    settings = InputSettings(target=[f"{folder}/b.mrc", f"{folder}/dark.mrc"], reference=["one for all"])
    used, left_out = load.without_unusable_targets(settings)
    assert list(left_out) == ["dark"] and used == replace(settings, target=[f"{folder}/b.mrc"])
    assert "the contrast seems inverted" in capsys.readouterr().err


def test_a_hot_voxel_is_replaced_in_all_that_reads_the_map(run, pair):
    taken, error = run("a", "hot")
    (line,) = warned(error)
    assert "In hot.mrc 1 voxel is up to 10000 times as strong as all others, such as (1, 2, 3)." in line
    assert taken[1][0].density.max() == pytest.approx(pair[1][1].density.max(), rel=1e-6)


@pytest.mark.parametrize(
    "maps, flags, words",
    [
        (("a", "a"), [], "a.mrc holds the same density as the initial map a.mrc"),
        (("blurred", "b"), [], "swap the two, --initial=b.mrc --target=blurred.mrc"),
        (("a", "b"), ["--initial_resolution=9", "--target_resolution=5"], "swap the two"),
        (("a", "half"), [], "The molecule in a.mrc fills"),
        (("a", "b"), ["--model={}/turned.cif"], "The model turned.cif fits a.mrc hardly better than in random poses"),
    ],
)
def test_what_is_doubtful_is_warned_of_in_a_line_each(run, folder, maps, flags, words):
    taken, error = run(*maps, *(flag.format(folder) for flag in flags))
    (line,) = warned(error)
    assert taken and words in line


def test_doubts_are_cautions_of_their_target_alone():
    doubts = [prechecks.Doubt("Of all.", "Look."), prechecks.Doubt("Of b.", "Look.", 1)]
    config = {"doubts": [doubt._asdict() for doubt in doubts], "targets": ["a", "b"]}
    told = {name: [c.what for c in cautions.input_cautions(config | {"target": name})] for name in "ab"}
    assert told == {"a": ["Of all."], "b": ["Of all.", "Of b."]}
    assert list(cautions.input_cautions({"targets": ["a"], "target": "a"})) == []  # runs of older versions
