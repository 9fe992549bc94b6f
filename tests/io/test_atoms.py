"""Models keep their atoms through files; simulated maps follow their closed forms."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import gemmi
import numpy as np
import pytest

from cryotrans_jax.density import simulation
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError, InputWarning
from cryotrans_jax.io.maps import write_map
from tests.nucleic import bent_rna

SHARED = Path(__file__).parents[3] / "shared"
TURN = np.array([[0.0, -1, 0], [0.8, 0, -0.6], [0.6, 0, 0.8]])  # a rotation
PDB = """\
ATOM      1  N   HSD A   5      10.000  11.000  12.000  1.00 20.00
ATOM      2  CA  HSD A   5      11.458  11.000  12.000  1.00 21.00
ATOM      3  HA  HSD A   5      11.800  11.900  12.400  1.00 21.00
ATOM      4  C   HSD A   5      12.000  12.400  12.300  1.00 22.00
ATOM      5  O   HSD A   5      11.300  13.400  12.100  1.00 23.00
ATOM      6  CA AALA A   6      14.000  13.700  12.900  0.60 24.00
ATOM      7  CA BALA A   6      14.100  13.800  12.800  0.40 24.00
ATOM      8  CA  LYS A   8      17.500  14.000  13.500  1.00 25.00
ATOM      9 HG   LYS A   8      17.900  15.000  13.900  1.00 25.00
ATOM     10 CE   LYS A   8      18.500  15.500  13.900  1.00 25.00
HETATM   11 CA    CA A 101      20.000  20.000  20.000  1.00 30.00
HETATM   12  O   HOH A 201       5.000   5.000   5.000  1.00 40.00
END
"""


@pytest.fixture
def model(tmp_path):
    (tmp_path / "model.pdb").write_text(PDB)
    return atoms.read_model(tmp_path / "model.pdb")


def renamed(model, name):
    copy = model.clone()
    copy[0][0].name = name
    return copy


def test_missing_elements_are_mended(model):
    names = [site.atom.element.name for site in model[0].all()]
    assert names == ["N", "C", "H", "C", "O", "C", "C", "C", "H", "C", "Ca", "O"]


RESIDUES = {  # atoms that are written with the first two letters of their name as the element, and their elements
    "LYS": {"N": "N", "CA": "C", "CB": "C", "CD": "C", "CE": "C", "HE2": "H", "HD11": "H", "1HG": "H"},
    "MSE": {"N": "N", "CA": "C", "SE": "Se", "CE": "C"},
    "HSD": {"N": "N", "CA": "C", "C": "C", "NE2": "N", "HO": "H"},
    "SEC": {"CA": "C", "SE": "Se"},
    "G": {"P": "P", "C4'": "C", "HO2'": "H", "OS": "O"},
    "BRU": {"BR": "Br", "NB": "N"},
    "ADE": {"C1'": "C", "C3'": "C", "C4'": "C", "O3'": "O", "HO3'": "H"},
    "CA": {"CA": "Ca"},
    "HG": {"HG": "Hg"},
    "ZN": {"ZN": "Zn"},
    "HEM": {"FE": "Fe", "CHA": "C"},
}


def written_by_name(path, element):
    """Write RESIDUES as PDB, each atom with the element that a function of its name gives; return the elements."""
    sites = [(residue, *atom) for residue, held in RESIDUES.items() for atom in held.items()]
    numbers = [*RESIDUES]
    lines = [
        f"ATOM  {k:5d} {name:4s} {residue:>3s} A{numbers.index(residue) + 1:4d}    {4.0 * k:8.3f}{0:8.3f}{0:8.3f}"
        f"  1.00 20.00          {element(name):>2s}"
        for k, (residue, name, _) in enumerate(sites)
    ]
    path.write_text("\n".join([*lines, "END", ""]))
    return [found for _, _, found in sites]


def test_elements_that_a_polymer_cannot_have_are_read_by_name_and_said_once(tmp_path):
    def two_letters(name):
        letters = "".join(filter(str.isalpha, name))[:2]
        return letters if gemmi.Element(letters).atomic_number else letters[0]

    right = written_by_name(tmp_path / "a.pdb", two_letters)
    with pytest.warns(InputWarning) as said:
        model = atoms.read_model(tmp_path / "a.pdb")
    assert [site.atom.element.name for site in model[0].all()] == right
    wrong = sum(
        gemmi.Element(two_letters(name)) != gemmi.Element(element)
        for held in RESIDUES.values()
        for name, element in held.items()
    )
    assert len(said) == 1 and f"a.pdb: {wrong} atoms of amino acids or nucleotides" in str(said[0].message)
    body = (tmp_path / "a.pdb").read_text().removesuffix("END\n")
    (tmp_path / "many.pdb").write_text("".join(f"MODEL {n:8d}\n{body}ENDMDL\n" for n in (1, 2)) + "END\n")
    with pytest.warns(InputWarning) as said:
        frames = atoms.read_models(tmp_path / "many.pdb")
    assert len(said) == 1 and [site.atom.element.name for site in frames[1][0].all()] == right


def test_unknown_elements_are_read_by_name_without_a_warning(tmp_path):
    right = written_by_name(tmp_path / "a.pdb", lambda name: "X")
    model = atoms.read_model(tmp_path / "a.pdb")
    assert [site.atom.element.name for site in model[0].all()] == right


def test_heavy_atoms_leave_out_hydrogens_and_second_conformations(model):
    xyz, numbers = atoms.heavy_atoms(model)
    np.testing.assert_array_equal(numbers, [7, 6, 6, 8, 6, 6, 6, 20, 8])
    np.testing.assert_allclose(xyz[4], [14.0, 13.7, 12.9])


@pytest.mark.parametrize("suffix", [".cif", ".pdb"])
def test_models_survive_writing(tmp_path, model, suffix):
    atoms.write_model(tmp_path / f"a{suffix}", model)
    again = atoms.read_model(tmp_path / f"a{suffix}")
    # PDB stores thousandths of an angstrom
    np.testing.assert_allclose(atoms.positions(again), atoms.positions(model), atol=5e-4)
    for a, b in zip(model[0].all(), again[0].all(), strict=True):
        assert (a.chain.name, str(a.residue.seqid), a.residue.name, a.atom.name, a.atom.altloc) == (
            b.chain.name, str(b.residue.seqid), b.residue.name, b.atom.name, b.atom.altloc)  # fmt: skip
        assert a.atom.b_iso == b.atom.b_iso and a.atom.element == b.atom.element


def test_compressed_models_and_the_first_of_several_are_read(tmp_path):
    body = PDB.removesuffix("END\n")
    many = f"MODEL        1\n{body}ENDMDL\nMODEL        2\n{body}ENDMDL\nEND\n"
    (tmp_path / "a.pdb.gz").write_bytes(gzip.compress(many.encode()))
    with pytest.warns(InputWarning, match="2 models that overlap"):
        model = atoms.read_model(tmp_path / "a.pdb.gz")
    assert len(model) == 1 and len(atoms.positions(model)) == 12


def test_a_chain_without_name_is_named_in_mmcif(tmp_path, model):
    atoms.write_model(tmp_path / "a.cif", renamed(model, ""))
    assert [chain.name for chain in atoms.read_model(tmp_path / "a.cif")[0]] == ["A"]


def test_moved_keeps_all_but_positions(model):
    xyz = atoms.positions(model) @ TURN.T + [1, 2, 3]
    copy = atoms.with_positions(model, xyz)
    np.testing.assert_allclose(atoms.positions(copy), xyz)
    assert [site.atom.b_iso for site in copy[0].all()] == [site.atom.b_iso for site in model[0].all()]
    assert atoms.positions(model)[0].tolist() == [10, 11, 12]
    with pytest.raises(ValueError):
        atoms.with_positions(model, xyz[1:])


def test_superpose_undoes_a_rigid_motion(model):
    away = atoms.with_positions(model, atoms.positions(model) @ TURN.T + [30, -20, 10])
    back = atoms.superpose(away, model)
    np.testing.assert_allclose(atoms.positions(back), atoms.positions(model), atol=1e-9)


def test_common_ca_goes_by_chain_and_number(model):
    other = model.clone()
    del other[0][0][0]
    a, b = atoms.common_ca(model, other)
    np.testing.assert_array_equal(a, [[14.0, 13.7, 12.9], [17.5, 14.0, 13.5]])  # not the calcium ion
    np.testing.assert_array_equal(a, b)
    assert len(atoms.common_ca(model, renamed(model, "Q"))[0]) == 3
    assert len(atoms.common_ca(model, model, renamed(model, "Q"))[0]) == 3  # a moved model keeps its own name


def test_a_nucleotide_is_where_its_c4_is(tmp_path):
    """Also at a 5' end, under a name that is not known, from a file before 2007; P where there is no sugar."""
    model = bent_rna()[0]
    expected = [site.atom.pos.tolist() for site in model[0].all() if site.atom.name == "C4'"]
    assert len(expected) == sum(map(len, model[0]))
    other = model.clone()
    for site in other[0].all():
        site.residue.name = {"A": "ADE", "U": "URA"}.get(site.residue.name, site.residue.name)
        site.atom.name = site.atom.name.replace("'", "*")
    atoms.write_model(tmp_path / "a.pdb", other)
    a, b = atoms.common_ca(model, atoms.read_model(tmp_path / "a.pdb"))
    np.testing.assert_array_equal(a, expected)
    np.testing.assert_allclose(b, expected, atol=5e-4)  # decimals of the file
    coarse = model.clone()
    for residue in (residue for chain in coarse[0] for residue in chain):
        for name in [atom.name for atom in residue if atom.name != "P"]:
            residue.remove_atom(name, "\0")
    (phosphates,) = atoms.common_ca(coarse)
    assert len(phosphates) == len(expected) - 8  # 5' ends of two strands in four helices
    with pytest.raises(InputError, match="no C4' of a nucleotide .*residues"):
        atoms.common_ca(coarse, model)


def test_a_chain_of_another_name_is_found_beside_nucleic_acid(model):
    """One chain of a protein, under two names, and the same strands of RNA in both."""
    one, other = model.clone(), renamed(model, "Q")
    one[0][0].name = "P"
    for each in (one, other):
        for strand in bent_rna()[0][0]:
            each[0].add_chain(strand)
    a, b = atoms.common_ca(one, other)
    assert len(a) == 3 + len(atoms.common_ca(bent_rna()[0])[0])
    np.testing.assert_array_equal(a, b)


def test_a_ligand_with_a_sugar_is_no_residue():
    model = bent_rna()[0]
    ligand = model[0]["A"][0].clone()
    ligand.name, ligand.seqid.num = "GTP", 900
    for name in ("PA", "PB"):
        ligand.add_atom(gemmi.Atom())
        ligand[len(ligand) - 1].name = name
    model[0]["A"].add_residue(ligand)
    assert len(atoms.common_ca(model)[0]) == len(atoms.common_ca(bent_rna()[0])[0])


def test_no_common_ca_is_an_error(model):
    other = model.clone()
    for residue in other[0][0]:
        residue.seqid.num += 1000
    with pytest.raises(InputError, match="no CA atom in common"):
        atoms.common_ca(model, other)
    two = renamed(model, "Q")
    two[0].add_chain(renamed(model, "R")[0][0])
    with pytest.raises(InputError, match="no CA atom in common"):  # which is which is not known
        atoms.common_ca(model, two)


@pytest.mark.parametrize(
    "name, content, sentence",
    [
        ("text.pdb", b"hello\n", "not an atomic model"),
        ("empty.pdb", b"", "is empty"),
        ("bare.cif", b"data_a\n_b.c 1\n", "has no atoms"),
        ("cut.cif", b"data_a\nloop_\n_atom_site.id\n_atom_site.x", "not an atomic model|has no atoms"),
        ("line.pdb", b"ATOM      1  CA  ALA A   1      28.831 -19\n", "line 1 has .*three coordinates"),
        ("page.pdb", b"<!DOCTYPE html>\n<html>ATOM</html>", "is a web page"),
        ("pointer.pdb", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        ("map.pdb", bytes(208) + b"MAP " + bytes(999), "is a map"),
        ("nan.pdb", PDB.replace("10.000", "   nan").encode(), "not numbers"),
        ("cut.pdb.gz", gzip.compress(PDB.encode(), mtime=0)[:-9], "damaged compressed file"),
    ],
)
def test_what_is_no_model_is_explained(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} .*({sentence})") as caught:
        atoms.read_model(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_missing_models_and_names_are_explained(tmp_path, model):
    with pytest.raises(InputError, match="none.pdb does not exist"):
        atoms.read_model(tmp_path / "none.pdb")
    with pytest.raises(InputError, match="is a folder"):
        atoms.read_model(tmp_path)
    with pytest.raises(InputError, match="end it in .cif or .pdb"):
        atoms.write_model(tmp_path / "a.mrc", model)
    with pytest.raises(InputError, match="end the name in .cif"):
        atoms.write_model(tmp_path / "a.pdb", renamed(model, "LONG"))
    assert [path.name for path in tmp_path.iterdir()] == ["model.pdb"]


def test_one_atom_is_a_gaussian():
    voxel, origin, resolution = np.array([0.9, 1.1, 1.3]), np.array([-4.0, 3.0, 11.0]), 6.0
    x, z, shape = np.array([7.2, 15.9, 27.1]), 16.0, (26, 24, 25)
    map = simulation.simulate_map((x[None], np.array([z])), shape, voxel, origin, resolution)
    sigma = resolution * 0.225
    y = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1) * voxel + origin
    exact = z * (2 * np.pi * sigma**2) ** -1.5 * np.exp(-((y - x) ** 2).sum(-1) / (2 * sigma**2))
    np.testing.assert_allclose(
        map.density, exact, atol=5e-6 * exact.max()
    )  # cut at 5 sigma, where 4e-6 are left; float32


def test_simulated_map_integrates_to_the_sum_of_atomic_numbers(model):
    shape, voxel, origin = simulation.common_grid([model], 1.0, 4.0)
    map = simulation.simulate_map(model, shape, voxel, origin, 4.0)
    # a Gaussian of 0.9 voxels sums to its integral within 2 exp(-2 (0.9 pi)^2) = 2e-7; the cut takes 2e-6
    np.testing.assert_allclose(map.density.sum(dtype=float) * voxel.prod(), 7 + 5 * 6 + 20 + 2 * 8, rtol=1e-5)


def test_simulation_is_additive_and_loses_what_is_outside():
    rng = np.random.default_rng(1)
    xyz, weights = rng.uniform(-15, 25, (300, 3)), rng.uniform(1, 9, 300)
    grid = ((21, 20, 23), 0.8, np.array([-3.0, -2.0, -5.0]), 5.0)
    whole = simulation.simulate_map((xyz, weights), *grid).density
    single = sum(simulation.simulate_map((xyz[i : i + 1], weights[i : i + 1]), *grid).density for i in range(300))
    np.testing.assert_allclose(whole, single, atol=1e-5 * whole.max())
    assert not simulation.simulate_map((xyz[:0], weights[:0]), *grid).density.any()


def test_common_grid_holds_all_models_with_padding(model):
    other = atoms.with_positions(model, atoms.positions(model) + [31, -7, 3])
    shape, voxel, origin = simulation.common_grid([model, other], np.array([1.0, 1.25, 1.5]), 4.0)
    xyz = np.concatenate([atoms.positions(m) for m in (model, other)])
    assert np.all(origin <= xyz.min(0) - 12) and np.all(origin + (np.array(shape) - 1) * voxel >= xyz.max(0) + 12)
    assert np.all(np.array(shape) * voxel < 1.2 * (np.ptp(xyz, axis=0) + 24) + 4 * voxel)
    assert all(n % 2 == 0 for n in shape)
    np.testing.assert_allclose(origin / voxel, np.rint(origin / voxel), atol=1e-9)


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="needs the real models in ../shared/data")
def test_simulated_map_equals_the_independent_one(tmp_path):
    path = SHARED / "data/pairs/adk/closed_on_open.pdb"
    model = atoms.read_model(path)
    write_map(tmp_path / "a.mrc", simulation.simulate_map(model, *simulation.common_grid([model], 1.4, 4.0), 4.0))
    command = [
        sys.executable,
        SHARED / "tools/score.py",
        "map",
        tmp_path / "a.mrc",
        path,
        "--resolution",
        "4",
    ]
    score = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert score["correlation"] == 1.0 and score["fsc_0.5"] < 2.9  # Nyquist


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="needs the real models in ../shared/data")
@pytest.mark.parametrize("pair, first, second", [("adk", "open", "closed"), ("msba", "7SEL", "8DMM")])
def test_superposed_real_pairs_have_their_known_rmsd(pair, first, second):
    fixed, mobile = (atoms.read_model(SHARED / f"data/pairs/{pair}/{name}.pdb") for name in (first, second))
    assert all(not site.atom.element.is_metal for site in fixed[0].all())
    a, b = atoms.common_ca(fixed, atoms.superpose(mobile, fixed))
    known = {"adk": (214, 6.9), "msba": (574, 5.5)}[pair]  # stated to a tenth with the data
    assert len(a) == known[0] and abs(np.sqrt(((a - b) ** 2).sum(1).mean()) - known[1]) < 0.06
    assert isinstance(fixed, gemmi.Structure)


def test_b_factors_are_repeated_under_the_name_of_what_they_are(tmp_path, models):
    """In mmCIF alone: PDB has no place for it."""
    values = np.round(np.linspace(0.1, 3.0, 16), 2)
    model = atoms.with_b_factors(models[0], values)
    atoms.write_model(tmp_path / "a.cif", model, "cryotrans_predicted_error")
    atoms.write_model(tmp_path / "a.pdb", model, "cryotrans_predicted_error")
    block = gemmi.cif.read(str(tmp_path / "a.cif")).sole_block()
    found = [float(value) for value in block.find_loop("_atom_site.cryotrans_predicted_error")]
    np.testing.assert_allclose(found, values, atol=1e-6)
    for suffix in ("cif", "pdb"):
        read = atoms.read_model(tmp_path / f"a.{suffix}")
        np.testing.assert_allclose([site.atom.b_iso for site in read[0].all()], values, atol=0.006)
