"""The simulate job writes the map asked for, and explains in one line what it cannot do."""

import time
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import run_job

from cryotrans_jax import atoms
from cryotrans_jax.demo import hinge_pair
from cryotrans_jax.maps import read_map, same_grid


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
    away = atoms.moved(hinge_pair()[0], atoms.positions(hinge_pair()[0])[:, [1, 2, 0]] + 100)
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
            ["--resolution=5", "--model={}/open.pdb", "--output={}/n.mrc", "--like=a", "--voxel_size=1"],
            "--like",
        ),
        (["--resolution=5", "--model={}/open.pdb", "--output={}/n.mrc", "open.pdb"], "unexpected argument"),
    ],
)
def test_mistakes_are_one_line_and_status_two(folder, arguments, message):
    done = simulate(*(argument.format(folder) for argument in arguments))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and message in done.stderr


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

    monkeypatch.setattr(main, "parse_flags", lambda: None)
    with pytest.raises(SystemExit) as stopped:
        main.run(interrupted)
    assert stopped.value.code == 130 and capsys.readouterr().err == "error: stopped by SIGINT\n"
