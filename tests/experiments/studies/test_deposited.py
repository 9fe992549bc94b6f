"""The validation on maps as deposited: which fits are successes, what the summary says of them, and what is kept."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import numpy as np
import pytest

from cryotrans_jax.density.demo import hinge_pair
from cryotrans_jax.density.deposition import random_pose
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import read_map
from experiments.studies import deposited, peers
from experiments.studies.deposited import Trial, summary
from experiments.studies.deposited_cases import PEER
from tests.nucleic import write_pair

TRIAL = Trial("pairs/adk", "adk", "forward", 6.0, 0, "default", 1.0, 3.2, False, False)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A folder of one pair, the built-in one."""
    folder = tmp_path_factory.mktemp("pairs") / "hinge"
    folder.mkdir()
    for name, model in zip(("initial", "target"), hinge_pair(), strict=True):
        atoms.write_model(folder / f"{name}.cif", model)
    (folder / "pair.json").write_text(json.dumps({"initial": "initial.cif", "target": "target.cif"}))
    return folder.parent


def row(**changes):
    """A row of the table: a success at 6 Å, but for the changes."""
    found = {
        "rmsd_before": 8.0,
        "rmsd_after": 1.0,
        "displaced": 0.0,
        "ca_bonds": 0.9,
        "stretched": 0.02,
        "seconds": 9.0,
    }
    return asdict(TRIAL) | found | {"atoms_per_residue": 7.8, "peak_mib": 900.0, "success": True} | changes


@pytest.mark.parametrize(
    "before, resolution, most",
    [(4.0, 6.0, 1.0), (20.0, 6.0, 1.5), (20.0, 8.0, 2.5), (6.0, 10.0, 1.5), (1.0, 4.0, 1.3), (1.0, 10.0, 1.3)],
)
def test_a_success_leaves_a_quarter_of_a_motion_and_a_small_one_as_it_was(before, resolution, most):
    assert deposited.succeeded(before, most - 1e-6, resolution)
    assert not deposited.succeeded(before, most + 1e-6, resolution)


def test_the_summary_has_the_rate_of_large_motions_with_its_interval():
    """Wilson (1927): the shares p for which the number found lies within 1.96 standard deviations of n p."""
    rows = [row(seed=seed, rmsd_after=1.0 + 0.1 * seed) for seed in range(3)] + [row(rmsd_after=5.0, success=False)]
    rows += [row(rmsd_before=1.0, success=seed > 0, rmsd_after=1.2) for seed in range(2)]
    rows += [row(resolution=10.0, rmsd_before=3.0, ca_bonds=0.5)]
    lines = summary(rows).splitlines()
    n, share, z = 4, 0.75, 1.959964
    middle, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = (100 * (middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    interval = f"{low:.0f} to {high:.0f} %"
    assert lines[2] == f"| default | 6 | 6 | 75 % (3 of 4) | {interval} | 1.10 | 50 % (1 of 2) | 0.90 | 0.02 |  |"
    assert lines[3] == "| default | 10 | 1 |  |  |  |  | 0.50 | 0.02 |  |"


def test_failures_are_listed_one_by_one_also_those_without_a_result():
    killed = asdict(TRIAL) | {"rmsd_before": 8.0, "atoms_per_residue": 7.8, "success": False, "failed": "it was killed"}
    text = summary([row(), row(seed=4, rmsd_after=6.543, success=False), killed | {"direction": "back"}])
    assert "33 % (1 of 3)" in text
    failures = text.partition("## Failures")[2]
    assert "| adk | forward | 6 | 4 | default | 8.00 | 6.54 |" in failures
    assert "| adk | back | 6 | 0 | default | 8.00 |  |" in failures
    assert "- adk, back, 6 Å, seed 0: it was killed" in failures
    assert failures.count("| adk ") == 2 and "None." in summary([row()]) and summary([]) == ""


def test_backbones_and_belts_are_in_a_note():
    text = summary([row(), row(pair="thin", atoms_per_residue=4.0), row(pair="wet", belt=True)])
    assert "backbones: thin.\n" in text and "in both maps: wet.\n" in text
    assert "backbones" not in summary([row()]) and "belt" not in summary([row()])


def test_targets_that_differ_in_composition_are_in_a_note_and_what_they_lack_is_not_scored(pairs):
    text = summary([row(lacking=0.25, extra=0.3)])
    assert "lack 25 % of the residues" in text and "of 0.3 times the molecule's mass" in text
    assert "lack" not in summary([row()]) and "further protein" not in summary([row()])
    whole, part = (replace(TRIAL, folder=str(pairs / "hinge"), lacking=share) for share in (0.0, 0.25))
    assert whole.states == replace(whole, seed=3).states and part.states != replace(part, seed=3).states
    (start, end), (_, seen) = whole.models(), part.models()
    far = atoms.with_positions(end, atoms.positions(end) + 100.0 * ~present(end, seen)[:, None])
    assert deposited.score(start, end, seen, 6.0)["rmsd_after"] < 1e-3
    assert (
        deposited.score(start, far, seen, 6.0)["rmsd_after"]
        < 1e-3
        < 1
        < deposited.score(start, far, end, 6.0)["rmsd_after"]
    )


def present(model, part):
    """Which atoms of a model are in a part of it."""
    held = {tuple(x) for x in np.round(atoms.positions(part), 3)}
    return np.array([tuple(x) in held for x in np.round(atoms.positions(model), 3)])


def test_the_pose_of_the_answer_does_not_count():
    start, end = hinge_pair()
    perfect = random_pose(end, 40.0, 15.0).move(atoms.with_positions(start, atoms.positions(end)))
    posed = deposited.score(start, perfect, end, 6.0)
    assert posed["rmsd_after"] < 1e-3 and posed["displaced"] == 0 and posed["success"]
    same = deposited.score(start, start, end, 6.0)
    assert same["rmsd_after"] == same["rmsd_before"] == posed["rmsd_before"] > 3
    assert 0 < same["displaced"] < 1 and not same["success"]


def test_nucleic_acids_are_scored_by_their_own_atoms(tmp_path):
    """Of a complex every residue counts, not those of the protein alone; RNA alone has no distances of CA atoms."""
    write_pair(tmp_path / "rna")
    trial = replace(TRIAL, folder=str(tmp_path / "rna"))
    known, (start, end) = deposited.describe(trial), trial.models()
    assert known["rmsd_before"] > deposited.LARGE and known["atoms_per_residue"] > deposited.BACKBONE
    moved = random_pose(end, 40.0, 15.0).move(atoms.with_positions(start, atoms.positions(end)))
    found = deposited.score(start, moved, end, 6.0)
    assert found["success"] and found["rmsd_after"] < 1e-3 and "ca_bonds" not in found
    protein = hinge_pair()[0][0]["A"].clone()
    protein.name = "P"
    for model in (start, end):
        model[0].add_chain(protein)
    assert len(deposited.ca_distances(start, end)) == sum(map(len, end[0]))


@pytest.fixture(scope="module")
def peer_rows(pairs):
    """Rows of both other methods on the built-in pair."""
    trial = replace(TRIAL, folder=str(pairs / "hinge"), pair="hinge", resolution=9.0)
    return {name: deposited.measure(replace(trial, recipe=f"{PEER}{name}")) for name in peers.PEERS}


def test_domains_are_fitted_to_where_they_are_and_a_blend_moves_nothing(peer_rows):
    """Both domains of the pair are rigid bodies, so that nothing but noise keeps them from their places."""
    domains, blend = peer_rows["domains"], peer_rows["blend"]
    assert domains["rmsd_after"] < 1 and domains["success"] and domains["seconds"] > 0
    assert blend["rmsd_after"] == pytest.approx(blend["rmsd_before"], abs=1e-3) and not blend["success"]
    assert 0 < blend["correlation"] < domains["correlation"] <= 1


def test_the_domains_are_the_rigid_bodies_of_the_motion():
    """Residues from 101 on move; one of them that the other model lacks goes with them, and no residue is torn."""
    start, end = hinge_pair()
    del end[0]["A"][-1]
    domain = peers.find_domains(start, end)
    moving = np.array([site.residue.seqid.num >= 101 for site in start[0].all()])
    assert set(domain) == {0, 1} and len(set(domain[moving])) == len(set(domain[~moving])) == 1


def test_models_of_other_programs_are_scored_alike_and_read_again(job, pairs, tmp_path, monkeypatch):
    """Rows of cases that a program wrote nothing for are failures, until it has."""
    monkeypatch.setattr(deposited, "ProcessPoolExecutor", lambda count, *_, **more: ThreadPoolExecutor(count))
    folder, out = tmp_path / "theirs", tmp_path / "out"
    folder.mkdir()
    end = hinge_pair()[1]
    answer = random_pose(end, 40.0, 15.0, 7).move(end)
    answer[0]["A"].name = "X"  # in a frame and with a chain name of its own
    atoms.write_model(folder / "hinge_forward_9_0.pdb", answer)
    given = ("--as_deposited", f"--data_dir={pairs}", f"--out_dir={out}", "--resolutions=9", "--seeds=0,1")
    given = (*given, "--recipes=", f"--models_of=Other:{folder}", "--initial_resolution=8")
    status, printed, error = job("validate", *given)
    assert status == 0, error
    found, missing = json.loads((out / "validate.json").read_text())
    assert found["recipe"] == "peer: Other" and found["rmsd_after"] < 1e-2 and "seconds" not in found
    assert not missing["success"] and "has no hinge_forward_9_1.pdb" in missing["failed"]
    assert "| peer: Other | 9 | 2 |" in printed
    atoms.write_model(folder / "hinge_forward_9_1.cif", answer)
    assert job("validate", *given)[0] == 0
    assert [row["success"] for row in json.loads((out / "validate.json").read_text())] == [True, True]


def test_a_model_that_lacks_residues_is_no_answer(tmp_path):
    start = hinge_pair()[0]
    part = start.clone()
    del part[0]["A"][0]
    atoms.write_model(tmp_path / "case.pdb", part)
    count = len(start[0]["A"])
    with pytest.raises(InputError, match=f"case.pdb has {count - 1} of the {count} residues"):
        peers.read_written(tmp_path, "case", start)


def test_maps_are_kept_for_other_programs(pairs, tmp_path):
    """Their initial model is written too, in the pose of the target map; existing files are not written again."""
    trial = replace(TRIAL, folder=str(pairs / "hinge"), pair="hinge", resolution=9.0, initial_resolution=8.0)
    deposited.keep_inputs([trial, replace(trial, recipe="paper")], tmp_path, False)
    folder = tmp_path / "maps" / trial.case
    assert trial.case == "hinge_forward_9_0" and [path.name for path in (tmp_path / "maps").iterdir()] == [trial.case]
    names = {"initial.mrc", "target.mrc", "target_half1.mrc", "target_half2.mrc", "model.cif", "start.pdb"}
    assert {path.name for path in folder.iterdir()} == names
    target, begin = read_map(folder / "target.mrc"), atoms.read_model(folder / "start.pdb")
    inside, elsewhere = (target.interpolate(atoms.positions(begin) + shift).mean() for shift in (0.0, 25.0))
    assert inside > 3 * abs(elsewhere)
    (folder / "target.mrc").unlink()
    deposited.keep_inputs([trial], tmp_path, False)
    assert not (folder / "target.mrc").exists()


def test_maps_are_written_as_a_user_has_them(pairs, tmp_path):
    trial = replace(TRIAL, folder=str(pairs / "hinge"), resolution=9.0, initial_resolution=8.0, half_maps=True)
    inputs = deposited.simulate_inputs(trial, *trial.models(), tmp_path)
    maps = [read_map(name) for name in (inputs.initial, *inputs.target, *inputs.target_half1, *inputs.target_half2)]
    assert [map_.voxel_size[0] for map_ in maps] == pytest.approx([1.05, 1.3, 1.3, 1.3], rel=1e-5)
    assert maps[1].density.std() == pytest.approx(0.03, rel=1e-4)
    assert (inputs.initial_resolution, inputs.target_resolution) == (8.0, 9.0)
    without = deposited.simulate_inputs(replace(trial, half_maps=False, seed=1), *trial.models(), tmp_path)
    assert without.target_half1 == without.target_half2 == []
    assert not np.array_equal(read_map(without.initial).density, maps[0].density)


def test_a_stopped_study_continues_and_no_other_cases_are_replaced(pairs, tmp_path, monkeypatch):
    trials = [replace(TRIAL, folder=str(pairs / "hinge"), pair="hinge", seed=seed) for seed in range(3)]
    ran, stop_at = [], [1]

    def measured(trial):
        if trial.seed in stop_at:
            raise KeyboardInterrupt
        ran.append(trial.seed)
        return {"rmsd_after": 0.5, "ca_bonds": 0.9, "success": True}

    monkeypatch.setattr(deposited, "measure_apart", measured)
    with pytest.raises(KeyboardInterrupt):
        deposited.study(trials, tmp_path, 1, False)
    stop_at.clear()
    ran.clear()
    deposited.study(trials, tmp_path, 1, False)
    assert sorted(ran) == [1, 2]  # 0 was done
    rows = json.loads((tmp_path / "validate.json").read_text())
    assert [each["seed"] for each in rows] == [0, 1, 2] and rows[0]["rmsd_before"] > 3
    ran.clear()
    assert "(3 of 3)" in deposited.study(trials, tmp_path, 1, False) or rows[0]["rmsd_before"] < deposited.LARGE
    assert ran == []
    with pytest.raises(InputError, match="holds other cases"):
        deposited.study(trials[:2], tmp_path, 1, False)
    deposited.study(trials[:2], tmp_path, 1, True)
    assert ran == [0, 1]


def test_rows_of_maps_without_noise_are_not_taken(tmp_path):
    (tmp_path / "validate.json").write_text(json.dumps([{"pair": "adk", "resolution": 6.0}]))
    with pytest.raises(InputError, match="holds other cases"):
        deposited.study([TRIAL], tmp_path, 1, False)


@pytest.mark.parametrize(
    "given, sentence",
    [
        (["--half_maps"], "--half_maps is for maps as deposited: add --as_deposited"),
        (["--directions=up"], "--directions=up is to be some of forward, back, still"),
        (["--directions=still"], "--directions=still is for maps as deposited: add --as_deposited"),
        (["--as_deposited", "--signal_to_noise=1"], "--signal_to_noise adds noise to maps that have none"),
        (["--as_deposited", "--belt=other"], "--belt=other is no pair of this study"),
        (["--peers=domains"], "--peers is for maps as deposited"),
        (["--as_deposited", "--peers=hands"], "--peers=hands is no other method: choose of domains, blend"),
        (["--as_deposited", "--models_of=Other:none"], "--models_of=Other:none is not NAME:FOLDER"),
        (["--as_deposited", "--models_of=blend:."], "--models_of=blend:. is not NAME:FOLDER: give a new name"),
        (["--as_deposited", f"--models_of=Other:{os.sep}"], "no model for a case of this study: name them like hinge_"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(job, pairs, tmp_path, given, sentence):
    status, _, error = job("validate", f"--data_dir={pairs}", f"--out_dir={tmp_path / 'out'}", *given)
    assert status == 2 and sentence in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_every_pair_is_tried_in_both_directions_at_all_resolutions_from_all_seeds(job, pairs, tmp_path, monkeypatch):
    planned = []
    monkeypatch.setattr(deposited, "study", lambda trials, *more: planned.extend(trials) or "table")
    given = ("--as_deposited", "--directions=forward,back", "--seeds=0,1", "--belt=hinge", "--peers=domains")
    status, out, error = job("validate", f"--data_dir={pairs}", f"--out_dir={tmp_path}", *given)
    assert status == 0 and "table" in out, error
    cases = {(trial.recipe, trial.direction, trial.resolution, trial.seed) for trial in planned}
    assert len(planned) == len(cases) == 2 * 2 * len(deposited.RESOLUTIONS) * 2
    assert [*dict.fromkeys(trial.recipe for trial in planned)] == ["default", "peer: domains"]
    assert all(trial.belt and not trial.half_maps and trial.initial_resolution == 3.2 for trial in planned)
    there, back = ({t.direction: t for t in planned}[direction].models() for direction in ("forward", "back"))
    np.testing.assert_array_equal(atoms.positions(there[0]), atoms.positions(back[1]))


@pytest.mark.parametrize("measure, given, why", [(os._exit, 1, "was killed"), (int, "one", "ValueError: invalid")])
def test_a_case_that_dies_or_raises_is_a_row_that_says_so(monkeypatch, measure, given, why):
    monkeypatch.setattr(deposited, "measure", measure)
    row = deposited.measure_apart(given)
    assert why in row["failed"] and row["success"] is False


@pytest.mark.slow
def test_both_seeds_have_rows_and_what_fails_is_a_row_too(job, pairs, tmp_path):
    out = tmp_path / "out"
    given = ("--resolutions=9", "--steps=0.02", "--initial_resolution=6", "--half_maps", "--directions=back")
    status, printed, error = job(
        "validate", "--as_deposited", f"--data_dir={pairs}", f"--out_dir={out}", "--seeds=0,1", *given
    )
    assert status == 0, error
    rows = json.loads((out / "validate.json").read_text())
    assert [(each["direction"], each["seed"]) for each in rows] == [("back", 0), ("back", 1)]
    assert all(each["rmsd_after"] > 0 and each["seconds"] > 0 and 0 < each["ca_bonds"] <= 1 for each in rows)
    assert all(0 <= each["stretched"] <= 1 and 0 < each["detail"] < 1.5 for each in rows)
    assert deposited.SUMMARY[3] in printed and "## Failures" in (out / "validate.md").read_text()
    failed = deposited.measure_apart(replace(TRIAL, folder=str(tmp_path / "none")))
    assert not failed["success"] and failed["failed"].startswith("no ") and "pair.json" in failed["failed"]
