"""The simulate job writes the map asked for, and explains in one line what it cannot do."""

import time
from types import SimpleNamespace

import mrcfile
import numpy as np
import pytest
from conftest import run_job

from cryotrans_jax.density.demo import hinge_pair
from cryotrans_jax.io import atoms
from cryotrans_jax.io.maps import read_map, same_grid


def simulate(*arguments):
    """What became of the job, as `subprocess.run` tells it."""
    status, out, error = run_job("simulate", *arguments)
    return SimpleNamespace(returncode=status, stdout=out, stderr=error)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulate")
    for name, model in zip(("closed.cif", "open.pdb"), hinge_pair(), strict=True):
        atoms.write_model(folder / name, model)
    made = simulate(
        f"--model={folder}/closed.cif",
        f"--cover={folder}/open.pdb",
        "--resolution=6",
        f"--output={folder}/a.mrc",
    )
    assert made.returncode == 0, made.stderr
    return folder


def test_a_pair_shares_one_grid(folder):
    arguments = [
        f"--model={folder}/open.pdb",
        "--resolution=8",
        f"--like={folder}/a.mrc",
        f"--output={folder}/b.mrc",
    ]
    assert simulate(*arguments).returncode == 0
    a, b = (read_map(folder / name) for name in ("a.mrc", "b.mrc"))
    assert same_grid(a, b) is None
    np.testing.assert_allclose(a.voxel_size, 2.0)  # resolution / 3
    electrons = atoms.heavy_atoms(hinge_pair()[0])[1].sum()
    for map in (a, b):
        np.testing.assert_allclose(map.density.sum(dtype=float) * map.voxel_size.prod(), electrons, rtol=1e-3)


def test_superpose_on_moves_the_model_first(folder):
    away = atoms.with_positions(hinge_pair()[0], atoms.positions(hinge_pair()[0])[:, [1, 2, 0]] + 100)
    atoms.write_model(folder / "away.pdb", away)
    arguments = [f"--model={folder}/away.pdb", "--resolution=6", f"--like={folder}/a.mrc"]
    outside = simulate(*arguments, f"--output={folder}/c.mrc")
    assert outside.returncode == 2 and "lie outside the map" in outside.stderr
    back = simulate(*arguments, f"--superpose_on={folder}/closed.cif", f"--output={folder}/c.mrc")
    assert back.returncode == 0
    a, c = (read_map(folder / name).density for name in ("a.mrc", "c.mrc"))
    np.testing.assert_allclose(c, a, atol=2e-3 * a.max())  # PDB keeps thousandths of an angstrom


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--nonsense=1"], "nonsense"),
        (["--resolution=-1"], "resolution"),
        (["--resolution=high"], "resolution"),
        ([], "--model is missing; --resolution is missing; --output is missing;"),
        (["--resolution=5", "--model=none.pdb", "--output=new.mrc"], "none.pdb does not exist"),
        (["--resolution=5", "--model={}/open.pdb", "--output={}/a.mrc"], "a.mrc is already there"),
        (["--resolution=5", "--model={}/open.pdb", "--output={}/no/a.mrc"], "no such folder"),
        (["--resolution=5", "--model={}/open.pdb", "--output={}/a.txt"], "not a map's name"),
        (
            ["--resolution=5", "--model={}/open.pdb", "--output={}/n.mrc", "--like=a", "--cover=a"],
            "--like",
        ),
        (["--resolution=5", "--model={}/open.pdb", "--output={}/n.mrc", "open.pdb"], "unexpected argument"),
    ],
)
def test_mistakes_are_one_line_and_status_two(folder, arguments, message):
    done = simulate(*(argument.format(folder) for argument in arguments))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and message in done.stderr


def test_models_that_stand_apart_are_said_in_one_line_or_taken_together(folder):
    model = hinge_pair()[0]
    copies = [atoms.with_positions(model, atoms.positions(model) + [200.0 * k, 0, 0]) for k in range(2)]
    atoms.write_trajectory(folder / "copies.pdb", copies)
    common = [f"--model={folder}/copies.pdb", f"--superpose_on={folder}/copies.pdb", "--resolution=9", "--overwrite"]
    first = simulate(*common, f"--output={folder}/first.mrc")
    assert first.returncode == 0 and first.stderr.count("\n") == 1
    assert first.stderr.startswith(f"warning: {folder}/copies.pdb holds 2 models") and "--all_models" in first.stderr
    both = simulate(*common, f"--output={folder}/both.mrc", "--all_models")
    assert both.returncode == 0 and not both.stderr
    first, both = (read_map(folder / f"{name}.mrc") for name in ("first", "both"))
    sums = [map.density.sum(dtype=float) * map.voxel_size.prod() for map in (first, both)]
    np.testing.assert_allclose(sums[1], 2 * sums[0], rtol=1e-3)


@pytest.mark.parametrize("given, size", [("1.5", (1.5, 1.5, 1.5)), ("1,1.5,2", (1, 1.5, 2))])
def test_the_voxel_size_of_a_map_like_is_given_where_its_header_has_none(folder, given, size):
    with mrcfile.open(folder / "a.mrc") as file:
        density = file.data
    with mrcfile.new(folder / "bare.mrc", overwrite=True) as file:
        file.set_data(density)
        file.set_volume()
    arguments = [f"--model={folder}/small.pdb", "--resolution=6", f"--like={folder}/bare.mrc", "--overwrite"]
    model = hinge_pair()[0]
    middle = (np.array(density.shape[::-1]) - 1) / 2 * size
    small = 0.2 * (atoms.positions(model) - atoms.positions(model).mean(0)) + middle
    atoms.write_model(folder / "small.pdb", atoms.with_positions(model, small))
    refused = simulate(*arguments, f"--output={folder}/like.mrc")
    assert refused.returncode == 2 and "bare.mrc has no voxel size" in refused.stderr
    assert "--voxel_size" in refused.stderr
    done = simulate(*arguments, f"--output={folder}/like.mrc", f"--voxel_size={given}")
    assert done.returncode == 0, done.stderr
    made = read_map(folder / "like.mrc")
    assert made.density.shape == density.shape[::-1]
    np.testing.assert_allclose(made.voxel_size, size, rtol=1e-6)
    np.testing.assert_allclose(
        made.density.sum(dtype=float) * np.prod(size), atoms.heavy_atoms(model)[1].sum(), rtol=1e-3
    )


@pytest.mark.parametrize("given", ["0", "-1", "1,2", "nan", "inf", "wide", "1,2,3,4"])
def test_what_is_no_voxel_size_is_refused(folder, given):
    done = simulate(f"--model={folder}/open.pdb", "--resolution=5", f"--output={folder}/v.mrc", f"--voxel_size={given}")
    why = "one number in Å" if given in ("1,2", "1,2,3,4") else "from 0.01 to 1000: it is in Å"
    assert done.returncode == 2 and "--voxel_size" in done.stderr and why in done.stderr


def test_overwrite_replaces(folder):
    arguments = ["--resolution=9", f"--model={folder}/open.pdb", f"--output={folder}/o.mrc"]
    assert [simulate(*arguments, *more).returncode for more in ([], [], ["--overwrite"])] == [0, 2, 0]


def test_help_is_quick_and_a_success():
    start = time.monotonic()
    done = simulate("--help")
    assert done.returncode == 0 and "--voxel_size" in done.stdout and time.monotonic() - start < 2


def test_interrupt_ends_with_status_130(monkeypatch, capsys):
    from experiments import main

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "parse_flags", lambda names: None)
    with pytest.raises(SystemExit) as stopped:
        main.run(interrupted)
    assert stopped.value.code == 130 and capsys.readouterr().err == "error: stopped by SIGINT\n"


def test_a_map_as_deposited_comes_with_half_maps_and_its_model(folder):
    arguments = [f"--model={folder}/closed.cif", "--resolution=8", "--voxel_size=2.5", "--as_deposited", "--seed=3"]
    made = simulate(*arguments, "--turn=40", "--shift=15", "--scale=0.03", f"--output={folder}/deposited.mrc")
    assert made.returncode == 0, made.stderr
    full, *halves = (read_map(folder / f"deposited{end}.mrc") for end in ("", "_half1", "_half2"))
    assert full.density.std() == pytest.approx(0.03, rel=1e-4)
    assert all(same_grid(full, half) is None for half in halves)
    moved = atoms.positions(atoms.read_model(folder / "deposited_model.cif"))
    shift = moved.mean(0) - atoms.positions(hinge_pair()[0]).mean(0)
    assert np.linalg.norm(shift) == pytest.approx(15, abs=0.01)
    again = simulate(*arguments, f"--output={folder}/deposited.mrc")
    assert again.returncode == 2 and "deposited.mrc is already there" in again.stderr


def test_a_map_that_lacks_a_part_and_has_another_comes_with_the_whole_model(folder):
    first = hinge_pair()[0][0][0]
    arguments = [f"--model={folder}/closed.cif", "--resolution=8", "--voxel_size=3", "--as_deposited", "--extra=0.3"]
    made = simulate(*arguments, f"--lacking={first.name}:1-20", f"--output={folder}/changed.mrc")
    assert made.returncode == 0, made.stderr
    written = atoms.read_model(folder / "changed_model.cif")
    np.testing.assert_allclose(atoms.positions(written), atoms.positions(hinge_pair()[0]), atol=2e-3)


@pytest.mark.parametrize(
    "given, sentence",
    [
        (["--belt"], "--belt is for a map as deposited: add --as_deposited"),
        (["--extra=0.2"], "--extra is for a map as deposited: add --as_deposited"),
        (["--as_deposited", "--lacking=A:900-910"], "A:900-910 in --lacking selects no residue"),
        (["--as_deposited", "--extra=2"], "from 0 to 1: it is a share of the model's mass"),
        (["--as_deposited", "--like={}/a.mrc"], "--as_deposited makes its own box: leave out --like and --cover"),
        (["--as_deposited", "--voxel_size=2,2,3"], "--as_deposited has cubic voxels"),
        (["--as_deposited", "--voxel_size=9"], "is finer than the 10.4 Å that voxels of 9 Å can hold"),
    ],
)
def test_what_is_no_deposition_is_refused(folder, given, sentence):
    made = simulate(
        f"--model={folder}/closed.cif",
        "--resolution=8",
        f"--output={folder}/no.mrc",
        *(g.format(folder) for g in given),
    )
    assert made.returncode == 2 and sentence in made.stderr and not (folder / "no.mrc").exists()
