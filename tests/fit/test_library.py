"""The package as a library: its public names, maps by path and in any pose, fits that hold their initial map."""

import ast
import contextlib
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import gemmi
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import identical

import cryotrans_jax as ct
from cryotrans_jax.density import transform
from cryotrans_jax.density.transform import Transform
from cryotrans_jax.fit import progress, recipes, trajectory
from cryotrans_jax.fit.options import Preparation
from cryotrans_jax.fit.stage import Action
from cryotrans_jax.io import atoms
from cryotrans_jax.io.maps import as_map

ROOT = Path(__file__).parents[2]
SOURCE = ast.parse((ROOT / "cryotrans_jax/__init__.py").read_text())
SHORT = ct.Options(recipes.Paper(4, recipes.Schedule((("l2", 10, 1e-3),))), align="none")
HOW = ct.Options(steps=0.03, parts=None, resolutions=ct.Resolutions(8.0, 8.0))
TURN = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])


def test_what_type_checkers_see_is_what_is_loaded():
    guarded = next(node for node in SOURCE.body if isinstance(node, ast.If))
    imports = [node for node in guarded.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: node.module for node in imports for alias in node.names}
    assert sorted(seen) == ct.__all__ == sorted(ct.__all__) == dir(ct)
    for name, module in seen.items():
        assert getattr(ct, name) is getattr(__import__(module, fromlist=[name]), name)
        assert getattr(ct, name).__doc__
    assert (ROOT / "cryotrans_jax/py.typed").is_file()


def test_no_public_name_is_a_files_name_too():
    """Importing such a file would put it in the name's place."""
    files = {path.stem for path in (ROOT / "cryotrans_jax").glob("*.py")}
    assert files & set(ct.__all__) == {"plots"}  # the file itself


def test_importing_the_package_loads_nothing_heavy():
    program = "import sys, cryotrans_jax; print(sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(ast.literal_eval(done.stdout)) & {"jax", "numpy", "scipy", "gemmi", "flax", "ott", "skimage"}
    with pytest.raises(AttributeError, match="has no attribute 'morf'"):
        _ = ct.morf


@pytest.mark.slow
def test_type_checkers_know_what_comes_back(tmp_path):
    (tmp_path / "use.py").write_text(
        "import cryotrans_jax as ct\n"
        "fit = ct.morph('a.mrc', ct.read_map('b.mrc'), progress=True)\n"
        "model = ct.read_model('a.cif')\n"
        "for found in (fit, fit.frames(11), fit.generated(), fit.move(model), fit.move(model, 3), ct.morf):\n"
        "    pass\n"
        "reveal_type(fit)\nreveal_type(fit.frames(11))\nreveal_type(fit.move(model))\nreveal_type(fit.move(model, 3))\n"
    )
    command = [sys.executable, "-m", "mypy", "--follow-imports=silent", "--ignore-missing-imports"]
    done = subprocess.run([*command, tmp_path / "use.py"], cwd=ROOT, capture_output=True, text=True)
    said = [line.split(": ", 1)[1] for line in done.stdout.splitlines() if "use.py" in line]
    assert [line for line in said if line.startswith("error")] == [
        'error: Module has no attribute "morf"  [attr-defined]'
    ]
    assert [line.split('"')[1].removeprefix("builtins.") for line in said if line.startswith("note: Revealed")] == [
        "cryotrans_jax.fit.result.Fit",
        "typing.Iterator[cryotrans_jax.io.maps.Map]",
        "gemmi.Structure",
        "list[gemmi.Structure]",
    ]


# ------------------------------------------------------------------------------------------------ maps that are given


@pytest.fixture
def one_stage(monkeypatch):
    """The default recipe cut down to one stage of a few steps."""
    default = recipes.default
    monkeypatch.setattr(recipes, "default", lambda *a: replace(c := default(*a), schedule=c.stages[1:2]))


def test_paths_are_as_good_as_maps(fit, maps, tmp_path):
    paths = [tmp_path / "a.mrc", str(tmp_path / "b.mrc"), tmp_path / "c.mrc"]
    for path, map_ in zip(paths, maps, strict=True):
        ct.write_map(path, map_)
    read = ct.morph(paths[0], paths[1:], SHORT)
    np.testing.assert_allclose(read.history[0], fit.history[0], rtol=1e-3)  # headers hold origins as float32
    with pytest.raises(ct.InputError, match="none.mrc does not exist"):
        ct.morph(paths[0], [paths[1], tmp_path / "none.mrc"])


def test_arrays_with_a_voxel_size_are_as_good_as_maps(fit, maps):
    given = [ct.Map(jnp.asarray(map_.density), map_.voxel_size, map_.origin) for map_ in maps]
    found = ct.morph(given[0], given[1:], SHORT)
    np.testing.assert_array_equal(found.history[0], fit.history[0])
    twice = ct.Map(maps[1].density.astype(np.float64), maps[1].voxel_size, maps[1].origin)
    assert as_map(twice).density.dtype == np.float32


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda map_: map_.density, r"an array of shape \(24, 20, 28\) is given as a map: .*Map\(array, voxel_size\)"),
        (lambda map_: replace(map_, density=np.full_like(map_.density, np.nan)), "holds 13440 values that are NaN"),
        (lambda map_: replace(map_, voxel_size=np.full(3, 1e-10)), "the map has voxels of 1e-10"),
    ],
)
def test_arrays_that_are_no_maps_are_refused_in_one_sentence(maps, unchecked, change, sentence):
    for arguments in ((change(maps[0]), maps[1]), (maps[0], change(maps[1]))):
        with pytest.raises(ct.InputError, match=sentence) as refused:
            ct.morph(*arguments)
        assert "\n" not in str(refused.value)
    with pytest.raises(ct.InputError, match=sentence):
        ct.morph(maps[0], maps[1], halves=(change(maps[1]), maps[1]))


@pytest.mark.slow
def test_a_target_on_another_grid_in_another_pose_is_laid_over_the_initial_map(maps, one_stage):
    """As `onto` lays it, and its half-maps where it went; what is far away has nothing in common."""
    size = np.array([2.3, 2.3, 2.3])
    away = Transform(TURN, np.array([60.0, -40.0, 25.0]))
    centre = away((maps[1].origin + maps[1].voxel_size * np.array(maps[1].density.shape) / 2)[None])[0]
    grid = ct.Map(np.zeros((30, 30, 30), np.float32), size, centre - 15 * size)
    target = ct.resampled(maps[1], grid, away)
    fit = ct.morph(maps[0], target, HOW, halves=(target, target))
    laid, found = ct.onto(maps[0], target)
    assert found.transform.angle == pytest.approx(90, abs=15)  # the states differ by more than that of one domain
    end = fit.flow().still.end  # the fit is that of the frame of the alignment, and its result in another
    np.testing.assert_allclose(fit.alignments[0].transform.matrix, end.after(found.transform).matrix)
    assert fit.alignments[0].status.startswith(f"{found.status}, then moved") and "rotated by" in repr(fit)
    same = ct.morph(maps[0], laid, replace(HOW, align="none"), halves=(laid, laid))
    np.testing.assert_array_equal(fit.history[0], same.history[0])
    with pytest.raises(ct.InputError, match="mass lies in the initial map's box"):
        ct.morph(maps[0], target, ct.Options(align="none"))


def test_a_map_that_is_where_it_should_be_is_given_back_as_it_is(maps):
    assert transform.resampled(maps[1], maps[0]) is maps[1]
    moved = replace(maps[1], origin=maps[1].origin + maps[1].voxel_size)
    back = transform.resampled(moved, maps[0])  # by a whole voxel
    inner, outer = (slice(0, -1),) * 3, (slice(1, None),) * 3
    np.testing.assert_allclose(back.density[outer], maps[1].density[inner], atol=1e-5 * maps[1].density.max())


# ---------------------------------------------------------------------------------------------------------- the fit


@pytest.fixture(scope="module")
def fit(maps, tmp_path_factory):
    """A short fit of two targets by the paper's recipe."""
    return ct.morph(maps[0], maps[1:], SHORT)


kept = []


@dataclass(frozen=True)
class Keep(Action):
    """Keep the fit of the moment."""

    def __call__(self, fitting):
        kept.append(fitting.fit())
        return fitting


def test_an_action_sees_the_fit_of_the_moment(fit, maps):
    """Of the chosen targets in their order; after the last stage it is the one that `morph` returns."""

    def recipe(problem, options):
        config = SHORT.recipe(problem, options)
        return replace(config, schedule=(*config.schedule, Keep(), *config.schedule))

    how = replace(SHORT, recipe=recipe, preparation=Preparation(whole_box=True))  # as the recipe paper has it
    found = ct.morph(maps[0], maps[1:], how, running=ct.Running(targets=[1, 0]))
    (first,) = kept
    assert identical(replace(first, config=fit.config, still=fit.still), fit.select([1, 0]))
    assert identical(first.history, found.history[:1]) and not identical(first.params, found.params)
    assert first.generated().density.any()


def test_a_number_of_frames_means_equally_spaced_times(fit, models):
    for number, times in ((1, [1.0]), (3, [0.0, 0.5, 1.0]), (2, [0.0, 1.0])):
        for a, b in zip(fit.frames(number, 1), fit.frames(times, 1), strict=True):
            np.testing.assert_array_equal(a.density, b.density)
        for a, b in zip(fit.move(models[0], number, 1), fit.move(models[0], times, 1), strict=True):
            np.testing.assert_array_equal(*(atoms.positions(m) for m in (a, b)))
    assert len(list(fit.frames())) == 11
    *_, last = fit.frames(2)
    np.testing.assert_array_equal(fit.generated().density, last.density)


def test_a_model_is_moved_to_the_end_unless_times_are_asked_for(fit, models):
    moved = fit.move(models[0], target=1)
    assert isinstance(moved, gemmi.Structure)
    np.testing.assert_array_equal(
        atoms.positions(moved), atoms.positions(fit.move(models[0], [0.2, 1.0], target=1)[-1])
    )


@pytest.mark.parametrize(
    "asked, sentence",
    [
        (dict(times=0), "0 frames are asked for"),
        (dict(times=[0.5, 1.2]), "are not numbers from 0"),
        (dict(times=[np.nan]), "are not numbers from 0"),
        (dict(render="smear"), "cannot be made by 'smear': choose one of pull_back, splat"),
    ],
)
def test_frames_that_cannot_be_are_refused_at_once(fit, asked, sentence):
    with pytest.raises(ct.InputError, match=sentence):
        fit.frames(**asked)


def test_a_loaded_fit_asks_for_its_initial_map_and_takes_no_other(fit, maps, models, tmp_path):
    fit.save(tmp_path / "fit")
    assert identical(ct.Fit.load(tmp_path / "fit", maps[0]), fit)
    ct.write_map(tmp_path / "a.mrc", maps[0])
    alone, whole = ct.Fit.load(tmp_path / "fit"), ct.Fit.load(str(tmp_path / "fit"), tmp_path / "a.mrc")
    after = fit.generated(1).density  # the file's header holds the origin as float32
    np.testing.assert_allclose(whole.generated(1).density, after, atol=1e-5 * after.max())
    np.testing.assert_array_equal(*(atoms.positions(each.move(models[0])) for each in (alone, fit)))
    for ask in (alone.frames, alone.generated, alone.consistency, lambda: alone.spread([fit])):
        with pytest.raises(ct.InputError, match="loaded without its initial map"):
            ask()
    with pytest.raises(ct.InputError, match=r"not that of the fit under .* \(24 x 20 x 27 against 24 x 20 x 28 voxels"):
        ct.Fit.load(tmp_path / "fit", replace(maps[0], density=maps[0].density[..., 1:]))


def test_a_selected_target_is_the_same_one(fit, maps):
    alone = fit.select([1])
    np.testing.assert_array_equal(alone.generated().density, fit.generated(1).density)
    assert alone.alignments == fit.alignments[1:]


def test_fits_and_maps_are_shown_in_a_few_lines(fit, maps):
    assert repr(maps[0]) == "Map(24 x 20 x 28 voxels of (2, 2.2, 2.1) Å, origin (-21.3, 11.2, 40.7) Å)"
    first, second, *targets = repr(fit).splitlines()
    stages = fit.config.stages
    assert first == f"Fit of 2 targets: {len(stages)} stages of {sum(s.steps for s in stages)} steps at most"
    assert "24 x 20 x 28 voxels" in second and f"above {fit.threshold:.4g}" in second
    for number, line in enumerate(targets):
        loss = f"last loss {fit.history[-1][-1, number]:.4g}"
        assert line == f"  target {number}: in its given pose; one flow for all; {loss}"
    assert len(targets) == 2 and repr(ct.plots.Drawing(10, 20)) == "<Drawing size 10x20 with 0 Axes>"


# --------------------------------------------------------------------------------------------------------- progress


def test_progress_is_shown_if_asked_for(fit, maps, capsys):
    ct.morph(maps[0], maps[1:], SHORT)
    assert capsys.readouterr().err == ""
    ct.morph(maps[0], maps[1:], SHORT, progress=True)
    told = capsys.readouterr().err
    assert "stage 1/" in told and "\r" not in told  # lines, as for a log
    calls = []
    found = ct.morph(maps[0], maps[1:], SHORT, progress=lambda *call: calls.append(call))
    assert calls[-1][:3] == (found.config, len(found.config.stages) - 1, found.config.stages[-1].steps)


def test_the_bar_is_full_at_the_end_of_a_fit_that_stopped_early_and_not_after_an_error(fit, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    config, bars = fit.config, []
    done = config.stages[0].steps - 1
    for error in (None, KeyboardInterrupt):
        with contextlib.suppress(KeyboardInterrupt), progress.reporting(True) as report:
            report(config, 0, done, np.ones((1, 2)))
            bars.append(report.bar)
            if error:
                raise error
    total = sum(stage.steps for stage in config.stages)
    assert [(bar.n, bar.total, bar.disable) for bar in bars] == [(total, total, True), (done, total, True)]


# ------------------------------------------------------------------------------------------------- simulated maps


def test_a_simulated_map_lies_on_the_grid_that_is_asked_for(models, maps):
    like = ct.simulate(models[1], 8.0, like=maps[0])
    np.testing.assert_array_equal(like.density, maps[1].density)
    box = ct.simulate(models[0], 6.0, cover=[models[1]])
    assert box.voxel_size.tolist() == [2.0] * 3
    for model in models[:2]:
        x = (atoms.positions(model) - box.origin) / box.voxel_size
        assert x.min() > 0 and (x < np.array(box.density.shape) - 1).all()
    with pytest.raises(ct.InputError, match="already sets the grid"):
        ct.simulate(models[0], 6.0, like=maps[0], voxel_size=1.0)


def test_times_that_are_given_are_kept_and_numpys_numbers_are_numbers():
    np.testing.assert_array_equal(trajectory.as_times([0.3, 0.1]), [0.3, 0.1])
    np.testing.assert_array_equal(trajectory.as_times(np.int64(3)), [0.0, 0.5, 1.0])


def test_the_chain_of_a_given_model_guides_the_docking(models, maps, monkeypatch):
    """Docking sees the residues of the model, and the fit without a model sees none."""
    seen = []

    def dock(problem, *_):
        seen.append(problem.chain)
        raise RuntimeError("seen")

    monkeypatch.setattr("cryotrans_jax.fit.bodies.searched", dock)
    for model in (models[0], None):
        with pytest.raises(RuntimeError, match="seen"):
            ct.morph(*maps[:2], ct.Options(steps=0.01, align="none"), model=model)
    np.testing.assert_allclose(seen[0].x, atoms.common_ca(models[0])[0])
    assert seen[1] is None
