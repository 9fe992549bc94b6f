"""Every system of the paper goes from its entries to a scored table, on stand-ins; and the published facts are used.

The built-in pair stands in for all of them: as the entries' models, or as maps of these, on one small grid and with one
threshold, so that all fits share one compiled program.
"""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import gemmi
import numpy as np
import pytest
from absl import flags
from scipy.spatial.transform import Rotation
from test_fetch import Server, mirrors, serving

from cryotrans_jax.density import simulation
from cryotrans_jax.density.demo import hinge_pair
from cryotrans_jax.density.transform import Transform
from cryotrans_jax.fit.recipes import paper
from cryotrans_jax.io import atoms
from cryotrans_jax.io.maps import read_map, write_map
from experiments import parse, system_inputs, systems
from tests.nucleic import bent_rna

ROOT = Path(__file__).parents[2]
SIDE, VOXEL = 24, 4.0
TINY = ("--recipe=paper", "--steps=0.0001", "--frames=2", "--noreport", f"--box={SIDE}", f"--voxel_size={VOXEL}")
TINY += ("--initial_threshold=0.24", "--width=100", "--align=none", "--bin=4")
RESOLUTIONS = {"TmrAB": 7, "PCAT1": 5, "prestin": 7, "Mm-cpn": 5, "spike-RBD": 7}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with the built-in pair under the names of all systems' files."""
    folder = tmp_path_factory.mktemp("systems")
    pair = dict(zip(("initial", "target"), hinge_pair(), strict=True))
    grid = system_inputs.cube(list(pair.values()), SIDE, VOXEL)
    made = {}
    for role, model in pair.items():
        made[role, "model"] = folder / f"{role}.cif"
        made[role, "map"] = folder / f"{role}.map.gz"
        atoms.write_model(made[role, "model"], model)
        write_map(made[role, "map"], simulation.simulate_map(model, *grid, 3.0 if role == "initial" else 7.0))
    for system in systems.SYSTEMS:
        for role, state in (("initial", system.initial), ("target", system.target)):
            for entry in (state.model, system.check if role == "target" else None):
                if entry:
                    shutil.copy(made[role, "model"], folder / f"{entry}.cif")
            if state.map:
                shutil.copy(made[role, "map"], folder / f"emd_{state.map[4:]}.map.gz")
            elif not state.model:
                kind = "model" if system.name == "spike-RBD" else "map"
                end = ".map.gz" if kind == "map" else ".cif"
                shutil.copy(made[role, kind], folder / f"{system.slug}_{role}{end}")
    return folder


def fitted(job, data, out_dir, name, *more):
    """The output of a job on a system, and what its reproduce.json holds."""
    resolution = [f"--resolution={RESOLUTIONS[name]}"] if name in RESOLUTIONS else []
    given = (f"--system={name}", *resolution, f"--data_dir={data}", f"--out_dir={out_dir}", *TINY, *more)
    status, out, error = job("reproduce", *given)
    assert status == 0, error
    return out, json.loads((out_dir / "reproduce.json").read_text())


# one each of models, of maps, of maps with a model to check by, and of a model beside the entries' own
FEW = {"TmrAB", "A2M", "spike", "spike-RBD"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(s.name, marks=[] if s.name in FEW else pytest.mark.slow) for s in systems.SYSTEMS],
)
def test_a_system_goes_from_its_files_to_a_scored_table(job, data, tmp_path, name):
    out, told = fitted(job, data, tmp_path / "out", name)
    system, rows = systems.find_system(name), {row["quantity"]: row for row in told["rows"]}
    assert (tmp_path / "out" / "reproduce.md").read_text() in out
    resolution = RESOLUTIONS.get(name)
    label = "FSC = 0.5 against the reference [Å]"
    assert rows[label]["published"] == (system.result(resolution) or "not published")
    generated = read_map(tmp_path / "out" / "generated.mrc")
    assert generated.density.shape == (SIDE,) * 3 and rows["box [voxels]"]["ours"] == "24 × 24 × 24"
    if resolution or system.target.model:
        assert float(rows[label]["ours"]) == pytest.approx(told["metrics"]["fsc_after"], abs=0.005)
        if resolution or system.initial.model:  # which is carried along
            assert told["metrics"]["rmsd_before"] > 3  # a domain of the built-in pair turns by 30°
    else:
        assert rows[label]["ours"] == "no --reference" and "fsc_after" not in told["metrics"]
    record = json.loads((tmp_path / "out" / "config.json").read_text())
    assert record["recipe"]["render"] == "splat" and generated.density.min() >= 0  # frames as published
    recipe = system.recipe(resolution)
    if recipe:
        assert rows["thresholds"]["ours"] == f"0.24, {recipe.thresholds[1]:g}"
        assert rows["thresholds"]["published"] == "{:g}, {:g}".format(*recipe.thresholds)
    if system.check:  # which is the same model here
        check = rows["FSC = 0.5 against 6X2A [Å]"]
        assert (check["ours"], check["published"]) == (rows[label]["ours"], "3.78 (refined model)")
    page = (tmp_path / "out" / "reproduce.md").read_text()
    assert ("was refined into the generated map (RMSD below 3 Å)" in page) == (name in ("A2M", "Arp2/3", "spike"))
    known = rows["resolutions [Å]"]["published"]
    if name == "A2M":  # by half-maps; the FSC of a map with its model is no measure of its blur
        assert rows["resolutions [Å]"]["ours"] == known == "3.8, 5.3"
        assert rows["FSC = 0.5 of both maps with their models [Å]"]["published"] == "4.32, 8.02"
    elif not resolution:
        assert rows["resolutions [Å]"]["ours"] == "estimated, estimated" and "not published" in known
    status, _, error = job("reproduce", f"--system={name}", f"--data_dir={data}", f"--out_dir={tmp_path / 'out'}")
    assert status == 2 and "holds another run" in error


def test_a_system_is_fetched_from_the_archives(job, data, tmp_path):
    """Maps from one and models from the other; without --fetch it is said what is missing, and how to get it."""
    server, empty = Server(), tmp_path / "data"
    for entry in ("22001", "16697"):
        server.files[f"/emdb/EMD-{entry}/map/emd_{entry}.map.gz"] = (data / f"emd_{entry}.map.gz").read_bytes()
        server.files[f"/api/EMD-{entry}"] = json.dumps({"emdb_id": f"EMD-{entry}"}).encode()
    for entry in ("6X2C", "6ZGG", "6X2A"):
        server.files[f"/pdb/{entry}.cif"] = (data / f"{entry}.cif").read_bytes()
    status, _, error = job("reproduce", "--system=spike", f"--data_dir={empty}", f"--out_dir={tmp_path / 'none'}")
    assert (
        status == 2 and f"experiments.fetch EMD-22001 EMD-16697 6X2C 6ZGG 6X2A --parts=map --data_dir={empty}" in error
    )
    with serving(server) as server.base:
        _, told = fitted(job, empty, tmp_path / "out", "spike", "--fetch", *mirrors(server))
    rows = {row["quantity"]: row for row in told["rows"]}
    assert rows["FSC = 0.5 against the reference [Å]"]["published"] == "3.78 (refined model)"
    assert rows["FSC = 0.5 of both maps with their models [Å]"]["published"] == "3.57, 13.2"


@pytest.mark.slow
def test_parts_are_named_as_in_a_run(job, data, tmp_path):
    _, told = fitted(job, data, tmp_path / "out", "spike", "--parts=A:1-100;A:101-200")
    rows = {row["quantity"]: row for row in told["rows"]}
    assert rows["parts"] == {"quantity": "parts", "initial map": "", "ours": 2, "published": "2, by hand"}


@pytest.fixture
def settings(job, monkeypatch):
    """A function that gives the flags with which a system would be fitted, without fitting it."""
    taken = {}
    monkeypatch.setattr("experiments.run.main", lambda: taken.update(flags.FLAGS.flag_values_dict()))

    def call(*arguments):
        status, _, error = job("reproduce", *arguments)
        assert status == 0, error
        return SimpleNamespace(**taken)

    return call


@pytest.mark.parametrize("system", systems.SYSTEMS[:4], ids=lambda system: system.name)
def test_the_published_recipe_is_what_the_flags_get(settings, problem, data, tmp_path, system):
    """In the recipe paper only, and where nothing else is given."""
    for resolution, recipe in system.recipes:
        common = f"--system={system.name}", f"--resolution={resolution:g}", f"--data_dir={data}", "--voxel_size=4"
        found = settings(*common, "--recipe=paper", "--box=24", f"--out_dir={tmp_path / f'{resolution}'}")
        assert (found.initial_threshold, found.target_threshold) == recipe.thresholds
        config = paper(problem, schedule=parse.parse_schedule(found.schedule, found.width))
        assert tuple((s.label, s.steps, s.learning_rate) for s in config.stages) == recipe.stages
        assert config.field.network.width == recipe.width
        assert all(s.final_learning_rate == s.learning_rate for s in config.stages)
    given = settings(*common, "--recipe=paper", "--box=24", "--width=7", f"--out_dir={tmp_path / 'given'}")
    assert given.width == 7
    ours = settings(*common, "--box=24", f"--out_dir={tmp_path / 'ours'}")
    assert ours.schedule is ours.width is ours.initial_threshold is None


def test_maps_are_simulated_in_the_published_box_where_the_models_fit(settings, data, tmp_path):
    found = settings("--system=mmcpn", f"--data_dir={data}", f"--out_dir={tmp_path / 'out'}")
    initial, target = read_map(found.initial), read_map(found.target[0])
    assert initial.density.shape == target.density.shape == (96,) * 3  # at 1 Å the built-in pair is 88 Å long
    start, end = hinge_pair()
    expected = simulation.simulate_map(start, initial.density.shape, initial.voxel_size, initial.origin, 3.0)
    np.testing.assert_allclose(initial.density, expected.density, atol=0.01 * expected.density.max())  # file's decimals
    middle = initial.origin + 47.5 * initial.voxel_size
    end = atoms.superpose(end, start)
    both = np.concatenate([atoms.positions(model) for model in (start, end)])
    assert np.abs(middle - (both.min(0) + both.max(0)) / 2).max() <= 1.5  # whole voxels on either side
    shape, *_ = system_inputs.cube([start, end], 60, 1.0)
    assert min(shape) < 60 < max(shape)


def test_one_chain_of_each_assembly_stays_where_it_lies():
    both = []
    for model in hinge_pair():
        other = model[0][0].clone()
        other.name = "B"
        model[0].add_chain(other)
        both.append(model)
    for alone, whole in zip(system_inputs.one_chain(*both), both, strict=True):
        assert [chain.name for chain in alone[0]] == ["A"]
        xyz = atoms.positions(whole)
        np.testing.assert_array_equal(atoms.positions(alone), xyz[: len(xyz) // 2])


@pytest.mark.parametrize("pair, name", [(hinge_pair, "CA"), (bent_rna, "C4'")])
def test_the_operators_of_an_assembly_make_it_of_its_chain(tmp_path, pair, name):
    """From the file too; a chain of another kind is none of its copies."""
    whole = pair()[0]
    for strand in [chain.name for chain in whole[0]][1:]:
        whole[0].remove_chain(strand)
    turns = Rotation.from_rotvec(np.pi / 2 * np.arange(4)[:, None] * [0, 0, 1]).as_matrix()
    alone = whole.clone()
    for letter, turn in zip("BCD", turns[1:], strict=True):
        chain = Transform(turn, turn @ [40.0, 0, 0]).move(alone)[0][0]
        chain.name = letter
        whole[0].add_chain(chain)
    other = alone[0][0].clone()
    other.name = "L"
    del other[20:]
    whole[0].add_chain(other)
    atoms.write_model(tmp_path / "assembly.cif", system_inputs.with_operators(alone, whole))
    (generator,) = gemmi.read_structure(str(tmp_path / "assembly.cif")).assemblies[0].generators
    assert len(generator.operators) == 4
    for operator, chain in zip(generator.operators, whole[0], strict=False):
        for here, there in zip(alone[0][0], chain, strict=True):
            moved = gemmi.Position(operator.transform.apply(here[name][0].pos))
            assert moved.dist(there[name][0].pos) < 0.01  # decimals of the file


def test_a_model_is_laid_over_the_target_map(data, tmp_path, monkeypatch, few_rotations):
    """From another frame; maps of one state fit to a small part of a voxel."""
    model = hinge_pair()[1]
    away = Transform(Rotation.from_rotvec([0.3, -0.8, 0.5]).as_matrix(), np.array([30.0, -10.0, 20.0])).move(model)
    atoms.write_model(tmp_path / "away.cif", away)
    path = system_inputs.align_model(tmp_path / "away.cif", data / "emd_16697.map.gz", 7.0, tmp_path / "inputs")
    off = atoms.positions(atoms.read_model(path)) - atoms.positions(model)
    assert np.sqrt((off**2).sum(1).mean()) < 0.25 * VOXEL


def test_the_list_names_all_systems_and_what_is_missing(job, data, tmp_path):
    status, out, _ = job("reproduce", "--list", f"--data_dir={data}")
    assert status == 0 and out.count(f"all is in {data}") == len(systems.SYSTEMS) == 10
    (tmp_path / "6RAH.cif").touch()
    _, out, _ = job("reproduce", "--list", f"--data_dir={tmp_path}")
    assert "TmrAB: missing 6RAI: python -m experiments.fetch 6RAI --parts=map" in out
    assert "Arp2/3: missing Arp23_initial.mrc (the authors' own map, not in the archives): give --initial" in out
    assert systems.table() in out


@pytest.mark.parametrize(
    "given, sentence",
    [
        ([], "no system is named: give --system"),
        (["--system=XYZ"], "there is no system 'XYZ': choose one of TmrAB, PCAT1"),
        (["--system=70S", "--resolution=5"], "is a map: leave it out"),
        (["--system=70S", "--target=6RAH.cif"], "one is a map and the other a model: give two of a kind"),
        (["--system=TmrAB", "--initial=none.cif"], "no file none.cif here or in"),
    ],
)
def test_what_cannot_be_reproduced_is_explained(job, data, tmp_path, given, sentence):
    status, _, error = job("reproduce", *given, f"--data_dir={data}", f"--out_dir={tmp_path / 'out'}")
    assert status == 2 and sentence in error and error.count("\n") == 1


@pytest.mark.parametrize("text", ["w2", "w2:0:1e-3", "w3:10:1e-3", "w2:10:fast", "w2:1.5:1", "w2:10:1e-3:3"])
def test_a_schedule_that_is_none_is_explained(text):
    with pytest.raises(parse.InputError, match="is not LOSS:STEPS:RATE"):
        parse.parse_schedule([text], None)


def test_stages_of_a_schedule_may_have_bins():
    found = parse.parse_schedule(["w2:10:1e-3:4", "w2:10:1e-3:1", "l2:5:1e-4"], None)
    assert found.stages == (("w2", 10, 1e-3, 4), ("w2", 10, 1e-3, 1), ("l2", 5, 1e-4))


def test_the_page_of_systems_has_the_table():
    assert systems.table() in (ROOT / "docs" / "results" / "systems.md").read_text()
