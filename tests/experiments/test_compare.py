"""All methods' frames are scored alike, wherever they come from, and what is written says what is printed."""

import csv
import json
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import ndimage

from cryotrans_jax.io import atoms
from cryotrans_jax.io.maps import Map, write_map
from cryotrans_jax.scores import metrics
from experiments import contest, methods


@pytest.fixture(scope="module")
def folder(maps, models, tmp_path_factory):
    """Maps of both states, models, and another program's frames: those of the blend in a unit of its own."""
    folder = tmp_path_factory.mktemp("compare")
    for name, map_ in zip(("initial", "target"), maps, strict=False):
        write_map(folder / f"{name}.mrc", map_)
    for name, model in zip(("initial", "target"), models, strict=False):
        atoms.write_model(folder / f"{name}.cif", model)
    for k, t in enumerate(np.linspace(0, 1, 5)):
        density = 7 * ((1 - t) * maps[0].density + t * maps[1].density)
        write_map(folder / f"other_{k}.mrc", Map(density.astype(np.float32), maps[0].voxel_size, maps[0].origin))
    return folder


@pytest.fixture(scope="module")
def compared(folder, job):
    out_dir = folder / "out"
    status, out, error = job("compare", *arguments(folder, out_dir))
    assert status == 0, error
    return out_dir, out


def arguments(folder, out_dir, methods="blend,models"):
    given = (f"--{name}={folder / name}.mrc" for name in ("initial", "target"))
    known = f"--model={folder / 'initial.cif'}", f"--target_model={folder / 'target.cif'}"
    resolutions = "--initial_resolution=8", "--target_resolution=8"
    others = f"--frames_of=Other:{folder}/other_*.mrc", f"--frames_of=Last:{folder}/other_4.mrc"
    return (
        *given,
        *known,
        *resolutions,
        *others,
        f"--methods={methods}",
        "--frames=5",
        "--align=none",
        f"--out_dir={out_dir}",
    )


def test_frames_of_another_program_are_scored_as_ours_whatever_their_unit(compared):
    """The same blend but for the solvent, which is nothing here."""
    scores = json.loads((compared[0] / "compare.json").read_text())["scores"]
    assert set(scores) == {"blend", "models", "Other", "Last"}
    for key in set(scores["blend"]) - {"seconds"}:
        assert scores["Other"][key] == pytest.approx(scores["blend"][key], abs=0.02), key
    for key, value in scores["Last"].items():
        assert value == pytest.approx(scores["Other"][key], rel=1e-6)
    assert "detail_halfway" not in scores["Last"]  # there is no frame half way


def test_what_is_known_comes_out_in_the_scores(compared, maps):
    """The last frame of a blend is the target; the straight line ends at the truth, which a reference model shows."""
    scores = json.loads((compared[0] / "compare.json").read_text())["scores"]
    assert scores["blend"]["correlation_with_target"] == pytest.approx(1, abs=1e-6)
    assert scores["models"]["correlation_with_truth"] == pytest.approx(1, abs=1e-6)
    assert scores["models"]["fsc_with_truth"] == pytest.approx(2 * maps[0].voxel_size.max(), rel=0.05)
    assert scores["blend"]["fleeting"] > scores["models"]["fleeting"]


def test_table_and_files_say_the_same(compared):
    out_dir, out = compared
    scores = json.loads((out_dir / "compare.json").read_text())["scores"]
    assert (out_dir / "compare.txt").read_text() in out
    with (out_dir / "compare.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert set(rows) == set(scores)
    for name, row in rows.items():
        for key, value in scores[name].items():
            assert float(row[key]) == pytest.approx(value, rel=1e-5)
    for name in ("along", "ends", "halfway"):
        text = (out_dir / f"{name}.svg").read_text()
        ElementTree.fromstring(text)
        assert "blend" in text and (out_dir / f"{name}.png").stat().st_size > 1000
    with (out_dir / "along.csv").open() as file:
        known = [row for row in csv.DictReader(file) if row["method"] == "Other" and row["quantity"] == "mass"]
    assert [float(row["time"]) for row in known] == [0, 0.25, 0.5, 0.75, 1] and float(known[0]["value"]) == 1


@pytest.mark.parametrize(
    "changed, said",
    [
        (("--methods=ours,magic",), "no method magic"),
        (("--frames_of=Other",), "not NAME:FILES"),
        (("--frames_of=Other:nowhere_*.mrc",), "no file nowhere_"),
        (("--target=a.mrc,b.mrc",), "one --target"),
        (("--pair=none",), "pair.json"),
        ((), "--overwrite"),
    ],
)
def test_what_cannot_be_compared_is_said(compared, folder, job, changed, said):
    status, _, error = job("compare", *arguments(folder, compared[0] if not changed else folder / "new"), *changed)
    assert status == 2 and said in error and error.count("\n") == 1


def test_a_pair_is_simulated_with_its_known_path(models, tmp_path, job):
    folder = tmp_path / "bent"
    folder.mkdir()
    for name, model in zip(("initial", "target", "middle"), models, strict=True):
        atoms.write_model(folder / f"{name}.cif", model)
    path = {"models": ["middle.cif"]}
    (folder / "pair.json").write_text(json.dumps({"initial": "initial.cif", "target": "target.cif", "path": path}))
    given = (
        f"--data_dir={tmp_path}",
        "--pair=bent",
        "--methods=models,blend",
        "--frames=5",
        f"--out_dir={tmp_path / 'o'}",
    )
    status, _, error = job("compare", *given)
    assert status == 0, error
    scores = json.loads((tmp_path / "o" / "compare.json").read_text())["scores"]
    start, end, middle = (atoms.positions(model) for model in models)
    apart = np.sqrt((((start + end) / 2 - middle) ** 2).sum(-1).mean())
    assert scores["models"]["path"] == pytest.approx(apart, abs=2e-3)
    assert scores["models"]["fsc_with_truth"] < 3 < scores["blend"]["fsc_with_truth"]
    assert scores["models"]["path_correlation"] > scores["blend"]["path_correlation"]


def test_a_worn_map_is_worth_its_resolution():
    density = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(48, 48, 48)), 2.0)
    map_ = Map(density.astype(np.float32), np.ones(3), np.zeros(3))
    for resolution in (4.0, 6.0):
        found = metrics.resolution_at(*metrics.map_fsc(methods.with_noise(map_, resolution), map_), 0.5)
        assert found == pytest.approx(resolution, rel=0.1)  # of shells that hold some hundred coefficients


def test_files_of_one_name_stay_in_the_order_given(tmp_path):
    for name in ("a1", "a2", "b"):
        (tmp_path / f"{name}.mrc").touch()
    text = f"X:{tmp_path}/b.mrc,{tmp_path}/a*.mrc"
    assert [path.stem for path in contest.find_frames([text])["X"]] == ["b", "a1", "a2"]
