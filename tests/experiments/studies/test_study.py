"""The study fits targets of several resolutions at once, and tells of each what its generated map is worth."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cryotrans_jax.density import simulation
from cryotrans_jax.io import atoms
from cryotrans_jax.io.maps import read_map
from cryotrans_jax.scores import metrics
from experiments import results, systems

WANTED = "8", "7"
GRID = "--voxel_size=2.5", "--initial_resolution=7", "--steps=0.002"


@pytest.fixture(scope="module")
def pair(models, tmp_path_factory):
    """Flags that name two models, the second one turned away."""
    folder = tmp_path_factory.mktemp("study")
    turn = np.array([[0.0, -1, 0], [0.8, 0, -0.6], [0.6, 0, 0.8]])
    away = atoms.with_positions(models[1], atoms.positions(models[1]) @ turn.T + [30, -20, 10])
    for name, model in (("1abc", models[0]), ("2DEF", away)):
        atoms.write_model(folder / f"{name}.cif", model)
    return "--initial=1ABC", f"--target={folder / '2DEF.cif'}", f"--data_dir={folder}"


@pytest.fixture(scope="module")
def study(job, pair, tmp_path_factory):
    """The folder of a study, fitted by the other recipe, which compiles sooner; and the cases that were fitted."""
    out_dir, cases, fit = tmp_path_factory.mktemp("out") / "study", [], results.fit_case

    def quick(case, settings):
        cases.append(case)
        assert settings.recipe == "default"
        return fit(case, replace(settings, recipe="paper", bin=4))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "fit_case", quick)
        given = *pair, *GRID, f"--resolutions={','.join(WANTED)}", f"--out_dir={out_dir}"
        status, out, error = job("study", *given)
        assert status == 0, error
        assert (out_dir / "study.md").read_text() in out
        status, _, error = job("study", *given)
        assert status == 2 and "holds a study" in error
    return out_dir, cases


def test_all_targets_are_fitted_at_once(study):
    (case,) = study[1]
    assert case.target_resolutions == [8.0, 7.0] and len(case.targets) == 2


def test_each_row_and_curve_is_that_of_the_map_in_the_folder(study, models):
    """FSC against the target's model, which was superposed on the initial one, at the initial map's resolution."""
    folder, (case,) = study
    rows = json.loads((folder / "study.json").read_text())
    end = atoms.superpose(models[1], models[0])
    with (folder / "fsc.csv").open(newline="") as file:
        head, *lines = csv.reader(file)
    assert head == ["frequency", "resolution", "initial", "from_8A", "from_7A"]
    for row, name in zip(rows, WANTED, strict=True):
        generated = read_map(folder / "maps" / f"generated_{name}A.mrc")
        curve = metrics.model_map_fsc(generated, end, 7.0)
        assert row["resolution"] == float(name)
        assert row["fsc_after"] == pytest.approx(metrics.resolution_at(*curve, 0.5), rel=1e-3)
        np.testing.assert_allclose([float(line[head.index(f"from_{name}A")]) for line in lines], curve[1], atol=2e-3)
        target = read_map(folder / "maps" / f"target_{name}A.mrc")
        grid = target.density.shape, target.voxel_size, target.origin
        np.testing.assert_allclose(
            target.density, simulation.simulate_map(end, *grid, float(name)).density, atol=2e-3 * target.density.max()
        )
    assert [row["published"] for row in rows] == [systems.UNKNOWN] * 2  # of initial maps at 3 Å only
    with (folder / "study.csv").open(newline="") as file:
        assert [row["resolution"] for row in csv.DictReader(file)] == list(WANTED)


def test_the_figure_has_a_line_and_a_key_for_each_curve(study):
    text = (study[0] / "study.svg").read_text()
    for said in ("the initial map", "generated from 8 Å", "generated from 7 Å"):
        assert said in text
    with Image.open(study[0] / "study.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20)}
    assert {(0x12, 0x46, 0x6B), (0x86, 0x1A, 0x68)} <= colours  # the first and the last of the row


def test_the_papers_recipe_fits_each_target_with_its_own_steps(job, pair, tmp_path, monkeypatch):
    alone = []
    monkeypatch.setattr(results, "fit_case", lambda case, settings: alone.append(case))
    monkeypatch.setattr(
        "experiments.studies.study.measure", lambda fit, case, number, folder: ({"resolution": 1.0}, [], [])
    )
    monkeypatch.setattr("experiments.studies.study.write", lambda *_: None)
    status, _, error = job("study", *pair, *GRID, "--resolutions=8,7", "--recipe=paper", f"--out_dir={tmp_path / 'o'}")
    assert status == 0, error
    assert [case.target_resolutions for case in alone] == [[8.0], [7.0]]


@pytest.mark.parametrize(
    "given, sentence",
    [
        (["--resolutions=3,3"], "is not different resolutions"),
        (["--resolutions=3,x"], "'x' is not a number from 0.5 to 1000"),
        (["--resolutions=0"], "'0' is not from 0.5 to 1000"),
        (["--initial=1ABC"], "one model is given and not the other"),
        (["--initial=9XYZ", "--target=9XYZ"], "no model 9XYZ here or in"),
    ],
)
def test_what_cannot_be_studied_is_explained(job, tmp_path, pair, given, sentence):
    status, _, error = job("study", pair[-1], *given, f"--out_dir={tmp_path / 'out'}")
    assert status == 2 and sentence in error
