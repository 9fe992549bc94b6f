"""The calibration finds the constants by which errors were made, and says how well predictions hold."""

import json
from pathlib import Path

import numpy as np
import pytest

from cryotrans_jax.scores.confidence import FOUND, LOST, PARTLY, ErrorModel, Evidence
from experiments.studies import calibration

POWERS, SPREAD, SCALE = np.array([0.7, 0.3, 0.5, 0.0, 0.6, 0.4]), 0.5, 2.0


def make_row(number, seed, resolution=6.0, before=8.0, residues=200):
    """A row whose errors are lognormal about a product of powers of the evidence."""
    rng = np.random.default_rng(seed)
    evidence = {name: np.exp(rng.normal(0, 1, residues)) for name in Evidence._fields}
    logs = sum(power * np.log(value) for power, value in zip(POWERS, evidence.values(), strict=True))
    error = SCALE * np.exp(logs + SPREAD * rng.normal(0, 1, residues))
    kept = {name: np.asarray(value).tolist() for name, value in (evidence | {"error": error}).items()}
    return {"pair": f"mol{number:02}_pair", "resolution": resolution, "rmsd_before": before, "residues": kept}


@pytest.fixture(scope="module")
def rows():
    return [make_row(k, k, resolution=(6.0, 8.0)[k % 2], before=(1.0, 3.0, 9.0)[k % 3]) for k in range(60)]


@pytest.fixture(scope="module")
def model(rows):
    return calibration.fit_model(rows[::2])


def test_the_constants_are_found_again(model):
    """But for what the least values cut off."""
    np.testing.assert_allclose(model.powers, POWERS, atol=0.05)
    assert model.spread == pytest.approx(SPREAD, rel=0.1)
    assert model.scale * model.within(0.5) == pytest.approx(SCALE, rel=0.1)
    assert model.within(0.9) / model.within(0.5) == pytest.approx(np.exp(1.2816 * SPREAD), rel=0.1)


def test_bounds_hold_for_pairs_that_were_not_fitted(rows, model):
    found = calibration.measure(calibration.judged_by(rows[1::2], model))
    assert found["within 50 %"] == pytest.approx(0.5, abs=0.03)
    assert found["within 90 %"] == pytest.approx(0.9, abs=0.02)
    assert found["within 95 %"] == pytest.approx(0.95, abs=0.02)
    assert found["AUROC 2 Å"] > 0.9 and found["Spearman"] > 0.8 and found["cases"] == 30
    np.testing.assert_allclose(
        calibration.reliability(calibration.judged_by(rows, model)), calibration.CURVE, atol=0.04
    )


def test_errors_that_are_not_predicted_are_seen_to_be_so(rows, model):
    """Errors in another order are told from one another no better than by chance, and bounds half as wide hold less."""
    rng, mixed = np.random.default_rng(0), []
    for row in rows:
        shuffled = rng.permutation([e for other in rows[:5] for e in other["residues"]["error"]])[:200]
        mixed.append(row | {"residues": row["residues"] | {"error": shuffled.tolist()}})
    found = calibration.measure(calibration.judged_by(mixed, model))
    assert found["AUROC 2 Å"] == pytest.approx(0.5, abs=0.05) and abs(found["Spearman"]) < 0.1
    double = [
        row | {"residues": row["residues"] | {"error": (2 * np.array(row["residues"]["error"])).tolist()}}
        for row in rows
    ]
    assert calibration.measure(calibration.judged_by(double, model))["within 90 %"] < 0.75


def test_each_case_is_judged_by_constants_fitted_without_its_molecule(rows):
    """Pairs of one molecule are left out together, and every case is judged once."""
    few = [row | {"pair": f"mol{k // 2}_{k % 2}"} for k, row in enumerate(rows[:8])]
    found = calibration.cross_validated(few, folds=4)
    assert [case.row["pair"] for case in found] == [row["pair"] for row in few]
    for case in found:
        own = calibration.molecule(case.row)
        assert case.model == calibration.fit_model([row for row in few if calibration.molecule(row) != own])


def test_the_area_under_the_curve_counts_pairs_in_order():
    values, wrong = np.array([1.0, 2.0, 3.0, 4.0, 4.0]), np.array([False, True, False, True, False])
    pairs = [(a > b) + 0.5 * (a == b) for a in values[wrong] for b in values[~wrong]]
    assert calibration.area_under_curve(values, wrong) == pytest.approx(np.mean(pairs))
    assert np.isnan(calibration.area_under_curve(values, np.zeros(5, bool)))


def verdict_row(errors, evidence, resolution=6.0):
    """A row of residues with these errors (Å), whose evidence speaks of errors (1) or not (0)."""
    values = {name: [100.0 if bad else 0.01 for bad in evidence] for name in Evidence._fields}
    kept = values | {"error": list(errors)}
    return {"pair": "a", "resolution": resolution, "rmsd_before": 9.0, "residues": kept}


def test_verdicts_are_counted_by_whether_the_case_failed():
    model = ErrorModel(1.0, (1.0, *5 * (0.0,)), (0.01,) * 6, (100.0,) * 6)
    right, wrong, none, all_ = [0.5] * 50, [9.0] * 50, [0] * 50, [1] * 50
    tenth = [1] + [0] * 49
    cases = [
        (verdict_row(right, none), (False, FOUND)),
        (verdict_row(wrong, none), (True, FOUND)),
        (verdict_row(wrong, all_), (True, LOST)),
        (verdict_row(right, all_), (False, LOST)),
        (verdict_row(right, tenth), (False, PARTLY)),
        (verdict_row([2.0] * 50, none), (True, FOUND)),
        (verdict_row([2.0] * 50, none, resolution=8.0), (False, FOUND)),
    ]
    every = calibration.outcomes(calibration.judged_by([row for row, _ in cases], model))
    for row, expected in cases:
        counts = calibration.outcomes(calibration.judged_by([row], model))
        assert counts[expected] == 1 == sum(counts.values())
        assert every[expected] == sum(other == expected for _, other in cases)


def test_cases_are_grouped_by_noise(rows):
    """Every case is in one of three groups, by the median uncertainty of its places."""
    quiet, some, much = (
        row | {"residues": row["residues"] | {"uncertainty": [value] * 200}}
        for row, value in zip(rows, (0.01, 0.2, 1.0), strict=False)
    )
    found = calibration.groups(calibration.judged_by([quiet, some, much, much], ErrorModel()))
    counts = [len(cases) for name, cases in found.items() if "by less" in name or name.startswith("by ")]
    assert counts == [1, 1, 2]


def test_packed_rows_are_read_as_they_were(job, rows, tmp_path, model):
    """To half precision, which changes no share by more than a residue or two."""
    some = [row | {"direction": "forward", "seed": 0} for row in rows]
    back = calibration.unpack(calibration.pack(some))
    for row, other in zip(some, back, strict=True):
        assert {name: row[name] for name in calibration.KEPT} == {name: other[name] for name in calibration.KEPT}
        np.testing.assert_allclose(calibration.errors_of(other), calibration.errors_of(row), rtol=1e-3)
    before, after = (calibration.measure(calibration.judged_by(each, model)) for each in (some, back))
    assert after == pytest.approx(before, abs=1e-3)
    (tmp_path / "validate.json").write_text(json.dumps(some))
    status, out, error = job(
        "calibrate", f"--results={tmp_path}", f"--out_dir={tmp_path / 'a'}", f"--pack={tmp_path}/a.npz"
    )
    assert status == 0, error
    again = job("calibrate", f"--results={tmp_path}/a.npz", f"--out_dir={tmp_path / 'b'}")
    assert again[0] == 0 and again[1].splitlines()[2].split("|")[1:3] == out.splitlines()[2].split("|")[1:3]


def test_tables_and_figure_are_written_from_the_rows_of_a_study(job, rows, tmp_path):
    study, page = tmp_path / "study", tmp_path / "page.md"
    study.mkdir()
    (study / "validate.json").write_text(json.dumps([*rows, {"pair": "failed"}]))
    page.write_text("Before\n<!-- errors: begin -->\nold\n<!-- errors: end -->\nafter\n")
    given = (f"--results={study}", f"--out_dir={tmp_path / 'out'}", "--fit", f"--readme={page}")
    status, out, error = job("calibrate", *given)
    assert status == 0, error
    assert "ErrorModel(" in out and "| all | 60 |" in out and "| motions above 4 Å | 20 |" in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "calibrate.json", "calibrate.md", "reliability.png", "reliability.svg",
    }  # fmt: skip
    text = page.read_text()
    assert text.startswith("Before") and text.endswith("after\n") and "old" not in text and "| all | 60 |" in text
    status, _, error = job("calibrate", f"--results={study}", f"--out_dir={tmp_path / 'out'}")
    assert status == 2 and "--overwrite" in error


def test_rows_without_some_evidence_are_said_to_be_of_an_earlier_version(job, rows, tmp_path):
    old = [row | {"residues": {"error": row["residues"]["error"], "strain": row["residues"]["strain"]}} for row in rows]
    (tmp_path / "validate.json").write_text(json.dumps([*rows, *old]))
    status, _, error = job("calibrate", f"--results={tmp_path}", f"--out_dir={tmp_path / 'out'}")
    assert status == 2 and "rows without exposure" in error and "earlier version" in error and error.count("\n") == 1


@pytest.mark.parametrize("content", [None, "no JSON", json.dumps([{"pair": "a"}])])
def test_a_folder_without_such_rows_is_refused(job, tmp_path, content):
    if content is not None:
        (tmp_path / "validate.json").write_text(content)
    status, _, error = job("calibrate", f"--results={tmp_path}", f"--out_dir={tmp_path / 'out'}")
    assert status == 2 and "experiments.studies.validate" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def stored():
    """The cases on which the constants were found."""
    with np.load(Path(__file__).parents[2] / "reference" / "errors.npz") as arrays:
        return calibration.unpack(arrays)


def test_the_constants_are_those_of_the_stored_cases(stored):
    """To half precision of the evidence."""
    found, model = calibration.fit_model(stored), ErrorModel()
    np.testing.assert_allclose(found.powers, model.powers, atol=0.02)
    np.testing.assert_allclose(
        [found.spread, *dict(found.factors).values()], [model.spread, *dict(model.factors).values()], rtol=0.03
    )


def test_predicted_errors_hold_for_molecules_that_were_not_fitted(stored):
    """As the page of results says: of the bound for 90 %, overall and at each resolution; and of the verdicts."""
    cases = calibration.cross_validated(stored)
    found = {name: calibration.measure(some) for name, some in calibration.groups(cases).items()}
    assert 0.87 <= found["all"]["within 90 %"] <= 0.93
    assert found["all"]["AUROC 2 Å"] >= 0.88 and found["all"]["AUROC 4 Å"] >= 0.91
    for name in [name for name in found if name.startswith("targets")]:
        assert 0.8 <= found[name]["within 90 %"] <= 0.97, name
    counts = calibration.outcomes(cases)
    succeeded = sum(count for (failed, _), count in counts.items() if not failed)
    assert counts[True, FOUND] <= 0.03 * len(cases) and counts[False, LOST] <= 0.1 * succeeded
