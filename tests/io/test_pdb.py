"""Models are read as they were meant: columns that slipped, chains without names, several models in one file."""

import itertools
import warnings

import gemmi
import numpy as np
import pytest

from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError, InputWarning

BACKBONE = (("N", (0.0, 0.0, 0.0)), ("CA", (1.46, 0.0, 0.0)), ("C", (2.0, 1.4, 0.0)), ("O", (1.3, 2.4, 0.1)))
NAMES = "ALA GLY SER LEU".split()


def atom_line(serial=1, name="N", residue="ALA", chain="A", number=1, xyz=(0, 0, 0), end="           N"):
    """A line of an atom as the format has it, and as %-formats shift it where a number is too long."""
    coordinates = "".join(f"{x:8.3f}" for x in xyz)
    return f"ATOM  {serial:5d}  {name:3s} {residue:3s} {chain:1s}{number:4d}    {coordinates}  1.00 20.00{end}"


def bend(k):
    """Where residue k of a chain is, Å."""
    return np.array([3.5 * k, 1.5 * (k % 2), 0.25 * k])


def molecule(count=4, start=(0.0, 0.0, 0.0), chain="A", segment="", first=1, serial=1):
    """The lines of a chain of `count` residues along a bent line, numbered from `first`."""
    serials = itertools.count(serial)
    for k in range(count):
        for name, at in BACKBONE:
            xyz = np.array(at) + start + bend(k)
            end = f"      {segment:4s}{name[0]:>2s}"
            yield atom_line(next(serials), name, NAMES[k % 4], chain, first + k, xyz, end)


def expected(count=4, start=(0.0, 0.0, 0.0)):
    """The positions of such a chain."""
    return np.array([np.array(at) + start + bend(k) for k in range(count) for _, at in BACKBONE])


@pytest.fixture
def stored(tmp_path):
    """Writes lines to a file, and gives its path."""

    def store(*lines, name="a.pdb"):
        (tmp_path / name).write_text("\n".join([*lines, "END", ""]))
        return tmp_path / name

    return store


APART = (0.0, 50.0, 0.0)
TWO = {
    "segments": [*molecule(chain=" ", segment="PROA"), *molecule(3, APART, " ", "PROB")],
    "segments of a chain": [*molecule(segment="PROA"), *molecule(3, APART, "A", "PROB")],
    "segments of one last letter": [*molecule(segment="AAAX"), *molecule(3, APART, "A", "BBBX")],
    "TER": [*molecule(), "TER", *molecule(3, APART)],
    "TER without chain names": [*molecule(chain=" "), "TER", *molecule(3, APART, " ")],
    "nothing between": [*molecule(chain=" "), *molecule(3, APART, " ")],
}


@pytest.mark.parametrize("kind", TWO)
@pytest.mark.parametrize("suffix", [".cif", ".pdb"])
def test_molecules_that_repeat_residue_numbers_are_chains_of_their_own(stored, tmp_path, kind, suffix):
    with pytest.warns(InputWarning, match="repeats residue numbers.*read as chains A, [A-Z]$"):
        model = atoms.read_model(stored(*TWO[kind]))
    np.testing.assert_allclose(atoms.positions(model), np.concatenate([expected(), expected(3, APART)]))
    assert [len(chain) for chain in model[0]] == [4, 3] and len({chain.name for chain in model[0]}) == 2
    atoms.write_model(tmp_path / f"b{suffix}", model)
    again = atoms.read_model(tmp_path / f"b{suffix}")  # without a warning
    assert [(chain.name, len(chain)) for chain in again[0]] == [(chain.name, len(chain)) for chain in model[0]]
    assert len(atoms.common_ca(model, again)[0]) == 7


def test_chains_are_named_by_the_last_letter_of_their_segments_where_these_differ(stored):
    lines = [*molecule(chain=" ", segment="PROC"), *molecule(chain=" ", segment="PROB", start=APART)]
    with pytest.warns(InputWarning, match="without a name repeats residue numbers in segments PROC, PROB.* C, B$"):
        assert [chain.name for chain in atoms.read_model(stored(*lines))[0]] == ["C", "B"]


def test_new_names_of_chains_are_unique(stored):
    pieces = [molecule(1, (0, 20 * k, 0), " ", f"S{k:02d}") for k in range(70)]
    with pytest.warns(InputWarning, match="and 64 more"):
        names = [chain.name for chain in atoms.read_model(stored(*itertools.chain(*pieces), *molecule()))[0]]
    assert len(names) == len(set(names)) == 71 and all(name.isalnum() for name in names)


@pytest.mark.parametrize("between", [[], ["TER"]])
def test_segments_that_go_on_with_the_numbers_stay_one_chain(stored, between):
    lines = [*molecule(segment="PROA"), *between, *molecule(3, APART, segment="PROB", first=5)]
    model = atoms.read_model(stored(*lines))
    assert [(chain.name, len(chain)) for chain in model[0]] == [("A", 7)]


def test_alternative_residues_of_one_number_stay_together(stored):
    """Two residues at one place (microheterogeneity)."""
    other = [line[:16] + "B" + "THR" + line[20:] for line in molecule(1)]
    first = [line[:16] + "A" + line[17:] for line in molecule(1)]
    model = atoms.read_model(stored(*first, *other, *list(molecule())[4:]))
    assert [chain.name for chain in model[0]] == ["A"] and len(atoms.heavy_atoms(model)[0]) == 16


SERIALS = {
    "shifted": lambda line, k: atom_line(99_998 + k)[:12] + line[11:] if 99_998 + k > 99_999 else line,
    "six columns": lambda line, k: f"ATOM {99_998 + k:6d}" + line[11:],
    "hybrid-36": lambda line, k: f"ATOM  A000{k % 10}" + line[11:],
    "hexadecimal": lambda line, k: f"ATOM  {0x186A0 + k:5x}" + line[11:],
    "asterisks": lambda line, k: "ATOM  *****" + line[11:],
}


@pytest.mark.parametrize("kind", SERIALS)
def test_serial_numbers_of_six_digits_leave_coordinates_as_they_are(stored, kind):
    start = (-100.0, -200.5, 300.25)  # full columns, which make a shift hard to see
    lines = [SERIALS[kind](line, k) for k, line in enumerate(molecule(8, start, chain="B"))]
    model = atoms.read_model(stored(*lines))
    np.testing.assert_allclose(atoms.positions(model), expected(8, start), atol=1e-3)
    assert [(chain.name, len(chain)) for chain in model[0]] == [("B", 8)]
    assert [residue.name for residue in model[0][0]] == NAMES * 2


def test_anisotropic_displacements_are_shifted_back_with_their_atoms(stored):
    u = [1234, 1500, 1100, 100, -200, 50]  # 1e-4 Å²
    line = atom_line(100_000)
    aniso = "ANISOU" + line[6:29] + "".join(f"{value:7d}" for value in u)
    (site,) = atoms.read_model(stored(line, aniso))[0].all()
    found = site.atom.aniso
    np.testing.assert_allclose([found.u11, found.u22, found.u33, found.u12, found.u13, found.u23], np.array(u) / 1e4)


@pytest.mark.parametrize("long", ["in place", "shifted"])
def test_residue_numbers_of_five_digits_are_read(stored, long):
    lines = list(molecule(4, first=9_998))
    lines = [line[:27] + line[28:] if long == "in place" and line[22:27].isdigit() else line for line in lines]
    model = atoms.read_model(stored(*lines))
    np.testing.assert_allclose(atoms.positions(model), expected())
    assert [residue.seqid.num for residue in model[0][0]] == [9_998, 9_999, 10_000, 10_001]


@pytest.mark.parametrize(
    "columns, text",
    [
        ((31, 38), "********"),
        ((47, 54), " " * 8),
        ((31, 54), "   12345.678   1.000   2.000"[:24]),
        ((31, 38), " 1.0 2.0"),
        ((31, 38), "   1,000"),
        ((31, 38), "    -inf"),
        ((23, 26), "****"),
        ((23, 26), " 27a"),
    ],
)
@pytest.mark.parametrize("place", [0, 5])
def test_a_line_that_holds_no_atom_is_refused_with_its_number(stored, columns, text, place):
    lines = list(molecule())
    lines[place] = lines[place][: columns[0] - 1] + text + lines[place][columns[1] :]
    with pytest.raises(InputError, match=rf"a\.pdb .*line {place + 2} has .*columns (31 to 54|23 to 26)"):
        atoms.read_model(stored("REMARK   1", *lines))


def test_a_line_that_is_cut_short_is_refused(stored):
    lines = list(molecule())
    with pytest.raises(InputError, match="line 3 has"):
        atoms.read_model(stored(*lines[:2], lines[2][:50]))
    model = atoms.read_model(stored(*(line[:54] for line in lines)))  # no occupancy, B-factor or element
    assert [site.atom.element.name for site in model[0].all()] == ["N", "C", "C", "O"] * 4


def test_coordinates_of_other_decimals_are_read_where_all_have_them(stored):
    lines = [atom_line(1, xyz=xyz).replace(".000", ".00").replace("  1.00 20", "   1.00 20") for xyz in [(1, 2, 3)]]
    line = lines[0][:30] + "    1.25  -22.50 -133.75" + "  1.00 20.00           N"
    np.testing.assert_allclose(atoms.positions(atoms.read_model(stored(line))), [[1.25, -22.5, -133.75]])


def test_columns_73_to_80_of_before_1996_are_no_elements(stored):
    lines = [line[:66] + f"      1GDR{k:4d}" for k, line in enumerate(molecule(30), start=1)]  # 1 to 120
    model = atoms.read_model(stored(*lines))
    np.testing.assert_allclose(atoms.positions(model), expected(30), atol=1e-3)
    assert [site.atom.element.name for site in model[0].all()] == ["N", "C", "C", "O"] * 30
    assert not any(site.atom.charge or site.residue.segment for site in model[0].all())


def test_residue_names_of_four_letters_are_kept(stored, tmp_path):
    lines = [line[:17] + name + line[21:] for line, name in zip(molecule(1, chain=" "), ["TIP3"] * 4, strict=True)]
    more = [line[:17] + "POPC" + line[21:] for line in molecule(1, APART, " ", first=2)]
    model = atoms.read_model(stored(*lines, *more))
    assert [[residue.name for residue in chain] for chain in model[0]] == [["TIP3", "POPC"]]
    atoms.write_model(tmp_path / "b.cif", model)
    assert [residue.name for residue in atoms.read_model(tmp_path / "b.cif")[0][0]] == ["TIP3", "POPC"]


def test_a_header_that_is_there_in_part_stops_nothing(stored):
    header = ["CRYST1", "SCALE1      1.000000", "MTRIX1   1  1.000000", "REMARK 350 BIOMOLECULE: 1", "SEQRES", "ORIGX1"]
    for record in header:
        np.testing.assert_allclose(atoms.positions(atoms.read_model(stored(record, *molecule()))), expected())


def several(*starts, between=("ENDMDL",), step=1):
    """The lines of a file with a model at each of some places."""
    for k, start in enumerate(starts):
        yield from [f"MODEL     {1 + step * k:4d}", *molecule(start=start), *between]


COPIES = (0.0, 0.0, 0.0), APART, (50.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "lines",
    [
        list(several(*COPIES)),
        list(several(*COPIES, step=0)),
        list(several(*COPIES, between=())),
        [*molecule(), "END", *molecule(start=COPIES[1]), "END", *molecule(start=COPIES[2])],
    ],
    ids=["MODEL", "one number", "no ENDMDL", "END"],
)
def test_copies_that_stand_apart_are_all_read_if_asked_for(stored, tmp_path, lines):
    path = stored(*lines)
    with pytest.warns(InputWarning, match="3 models that do not overlap.*--all_models"):
        np.testing.assert_allclose(atoms.positions(atoms.read_model(path)), expected())
    model = atoms.read_model(path, all_models=True)
    np.testing.assert_allclose(atoms.positions(model), np.concatenate([expected(start=start) for start in COPIES]))
    assert len(model) == 1 and [chain.name for chain in model[0]] == ["A", "B", "C"]
    atoms.write_model(tmp_path / "b.cif", model)
    assert len(atoms.common_ca(model, atoms.read_model(tmp_path / "b.cif"))[0]) == 12


@pytest.mark.parametrize("all_models", [False, True])
def test_of_an_ensemble_the_first_is_read(stored, all_models):
    path = stored(*several((0, 0, 0), (0.5, 0.3, 0), (0, 0.8, 0.2)))
    with pytest.warns(InputWarning, match="3 models that overlap.* the first is read$"):
        np.testing.assert_allclose(atoms.positions(atoms.read_model(path, all_models)), expected())
    assert len(atoms.read_models(path)) == 3  # a trajectory takes them all, without a warning


WEIGHTS = {  # formulas as they are within a chain, without the water that a bond sets free, and standard atomic weights
    "ALA": dict(C=3, H=5, N=1, O=1),
    "TRP": dict(C=11, H=10, N=2, O=1),
    "A": dict(C=10, H=12, N=5, O=6, P=1),
    "DT": dict(C=10, H=13, N=2, O=7, P=1),
    "ATP": dict(C=10, H=16, N=5, O=13, P=3),  # by itself
    "LEU": dict(C=6, H=11, N=1, O=1),
}
ATOMIC = dict(H=1.008, C=12.011, N=14.007, O=15.999, P=30.974)


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("with_hydrogens", [False, True])
def test_a_residue_weighs_what_its_formula_does_whether_hydrogens_are_there_or_not(name, with_hydrogens):
    formula = WEIGHTS[name]
    weight = sum(ATOMIC[element] * count for element, count in formula.items())
    model = made_of(name, {e: n for e, n in formula.items() if e != "H" or with_hydrogens})
    assert atoms.molecular_weight(model) == pytest.approx(weight, rel=1e-3)


def test_an_unknown_residue_has_the_hydrogens_of_leucine_and_water_weighs_nothing():
    heavy = 6 * ATOMIC["C"] + ATOMIC["N"] + ATOMIC["O"]
    share = (heavy + 11 * ATOMIC["H"]) / heavy
    assert atoms.molecular_weight(made_of("~~Z", {"C": 2})) == pytest.approx(2 * ATOMIC["C"] * share, rel=1e-3)
    assert atoms.molecular_weight(made_of("HOH", {"O": 1})) == 0


def made_of(name, formula):
    """A model of one residue with so many atoms of each element."""
    structure = gemmi.Structure()
    structure.add_model(gemmi.Model(1))
    residue = gemmi.Residue()
    residue.name, residue.seqid = name, gemmi.SeqId(1, " ")
    for element, count in formula.items():
        for number in range(count):
            atom = gemmi.Atom()
            atom.name, atom.element = f"{element}{number}", gemmi.Element(element)
            residue.add_atom(atom)
    structure[0].add_chain("A").add_residue(residue)
    return structure


def test_ordinary_files_are_read_without_a_warning(stored):
    lines = [*molecule(), "TER", *molecule(chain="B", start=APART), "TER"]
    water = [line.replace("ATOM  ", "HETATM").replace("ALA", "HOH") for line in molecule(1, COPIES[2], first=101)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = atoms.read_model(stored(*lines, *water))
    assert [(chain.name, len(chain)) for chain in model[0]] == [("A", 5), ("B", 4)]
