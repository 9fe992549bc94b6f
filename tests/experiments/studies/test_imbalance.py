"""The study of imbalanced classes: what it refuses, and, slowly, what it finds."""

import json

import pytest

from experiments.studies import imbalance


def test_too_few_particles_and_an_earlier_study_are_told(job, tmp_path):
    status, _, error = job("imbalance", "--particles=40", f"--out_dir={tmp_path}")
    assert status == 2 and "2 particles of the rare conformation make no two half-maps" in error
    (tmp_path / "imbalance.json").write_text("[]")
    status, _, error = job("imbalance", f"--out_dir={tmp_path}")
    assert status == 2 and "holds a study" in error
    status, _, error = job("imbalance", f"--pair={tmp_path}", f"--out_dir={tmp_path / 'other'}")
    assert status == 2 and "pair.json: give the folder of a pair" in error


def test_the_table_has_a_row_for_each_map_and_blanks_where_nothing_is_known():
    rows = [{"map": "rare", "particles": 150, "resolution": 9.96}, {"map": "generated", "rmsd": 1.234}]
    head, _, first, second = imbalance.tables.styled(rows, imbalance.COLUMNS).splitlines()
    assert head.count("|") == first.count("|") == second.count("|") == len(imbalance.COLUMNS) + 1
    assert first.startswith("| rare | 150 | 10.0 |  |") and second.endswith("|  | 1.23 |")


@pytest.mark.slow
def test_the_generated_map_is_nearer_to_the_truth_than_the_rare_one(job, tmp_path):
    """And the common class resolves more than the rare one."""
    flags = ["--particles=2000", "--steps=0.1", f"--out_dir={tmp_path}"]
    status, out, error = job("imbalance", *flags)
    assert status == 0, error
    rows = {row["map"]: row for row in json.loads((tmp_path / "imbalance.json").read_text())["rows"]}
    assert rows["common"]["resolution"] < rows["rare"]["resolution"]
    assert rows["generated"]["correlation"] > max(rows[name]["correlation"] for name in ("rare", "common"))
    assert rows["generated"]["rmsd"] < 0.3 * rows["common"]["rmsd"]
    made = {path.name for path in tmp_path.iterdir()}
    maps = {f"{name}.mrc" for name in ("common", "rare", "generated", "truth")}
    assert made == maps | {"imbalance.md", "imbalance.json", "fsc.png", "fsc.svg"}
