"""A model's geometry is judged against the initial model's, and mended; trajectories hold all that a model holds."""

from types import SimpleNamespace

import gemmi
import numpy as np
import pytest

from cryotrans_jax.density.demo import HELICES, hinge_pair
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError
from cryotrans_jax.scores import geometry
from experiments.frames import Place, write_models
from experiments.settings import OutputSettings
from tests.nucleic import BASES, bent_rna
from tests.nucleic import HELICES as RNA_HELICES

BASE_ATOMS = {name for base in BASES.values() for name in base}
TURN = np.array([[0.0, -1, 0], [0.8, 0, -0.6], [0.6, 0, 0.8]])  # a rotation


@pytest.fixture(scope="module")
def pair():
    """Seven ideal helices, closed and open."""
    return hinge_pair()


@pytest.fixture(scope="module")
def top(pair):
    return geometry.topology(pair[0])


def built(*residues):
    """A model of residues (chain, number, name, [(atom, element, position, alternative)])."""
    model = gemmi.Structure()
    model.add_model(gemmi.Model(1))
    for chain, number, name, parts in residues:
        residue = gemmi.Residue()
        residue.name, residue.seqid = name, gemmi.SeqId(number, " ")
        for atom_name, element, position, altloc in parts:
            atom = gemmi.Atom()
            atom.name, atom.element, atom.altloc = atom_name, gemmi.Element(element), altloc
            atom.pos, atom.b_iso, atom.occ = gemmi.Position(*position), 20.0 + number, 0.75
            residue.add_atom(atom)
        found = model[0].find_chain(chain) or model[0].add_chain(chain)
        found.add_residue(residue)
    model.setup_entities()
    return model


def test_bonds_are_those_of_the_chain(pair, top):
    """A residue has a bond less than atoms, and within a helix each is bonded to the next.

    The straight side chains of two helices meet, and are taken to be bonded.
    """
    residues, sites = list(pair[0][0]["A"]), list(pair[0][0].all())
    inside = len(residues) - len(HELICES)
    own = [np.ptp([sites[k].residue.seqid.num for k in bond]) <= 1 for bond in top.bonds]
    assert sum(own) == sum(len(residue) - 1 for residue in residues) + inside and len(own) - sum(own) == 1
    assert len(top.chain) == inside
    for i, j in top.chain:
        assert sites[i].atom.name == sites[j].atom.name == "CA"
        assert sites[j].residue.seqid.num == sites[i].residue.seqid.num + 1
    # angles share an atom with two bonds: a, b to c gives the pair (a, b)
    joined = {frozenset(pair.tolist()) for pair in top.bonds}
    for i, j in top.angles[::17]:
        assert any(frozenset((i, k)) in joined and frozenset((k, j)) in joined for k in range(len(sites)))
        assert frozenset((i, j)) not in joined


def test_a_rigid_motion_changes_nothing_and_is_not_undone(top):
    moved = top.xyz @ TURN.T + [30, -20, 10]
    found = geometry.measure(top, moved)
    assert found == pytest.approx(geometry.measure(top, top.xyz), abs=1e-9) and found["ca_bonds"] == 1
    np.testing.assert_allclose(geometry.idealise(top, moved), moved, atol=1e-6)


@pytest.mark.parametrize("stretch", [1.02, 1.1])
def test_stretching_shows_in_bonds_and_chain(top, stretch):
    """All bonds grow alike; 3.8 Å times 1.02 is within 0.3 Å of 3.8 and times 1.1 is not."""
    found = geometry.measure(top, stretch * top.xyz)
    lengths = np.linalg.norm(np.diff(top.xyz[top.bonds], axis=1), axis=-1)
    assert found["bond_rms"] == pytest.approx((stretch - 1) * np.sqrt(np.mean(lengths**2)))
    assert found["ca_bonds"] == (stretch < 1.08)


@pytest.mark.parametrize(
    "apart, element, altloc, number, expected",
    [
        (2.1, "C", "\0", 5, 1),
        (2.3, "C", "\0", 5, 0),
        (2.1, "H", "\0", 5, 0),  # hydrogens are placed by programs
        (2.1, "C", "B", 5, 0),  # the second of two conformations
        (2.1, "C", "\0", 1, 0),  # of the same residue
    ],
)
def test_clashes_are_of_heavy_atoms_of_other_residues(apart, element, altloc, number, expected):
    other = [("CB", element, (9, 0, 0), altloc)]
    other += [("CB", "C", (9, 9, 9), "A")] if altloc == "B" else []
    one = ("A", 1, "ALA", [("CA", "C", (0, 0, 0), "\0")])
    model = built(one, ("A", number, "ALA", other)) if number > 1 else built((*one[:3], one[3] + other))
    top = geometry.topology(model)
    xyz = top.xyz.copy()
    xyz[1] = [apart, 0, 0]
    assert geometry.measure(top, xyz)["clashes"] == expected


def test_residues_that_are_bonded_may_be_near():
    """A disulphide and a metal with its ligand, whose other atoms are closer than clashes."""
    sulphur = [("SG", "S", (0, 0, 0), "\0"), ("CB", "C", (-1.8, 0, 0), "\0")]
    other = [("SG", "S", (2.05, 0, 0), "\0")]
    model = built(("A", 1, "CYS", sulphur), ("A", 9, "CYS", other), ("B", 1, "ZN", [("ZN", "Zn", (0, 2.3, 0), "\0")]))
    top = geometry.topology(model)
    assert len(top.bonds) == 3
    xyz = top.xyz.copy()
    xyz[2] = xyz[1] + [0, 0, 1.5]
    assert geometry.measure(top, xyz)["clashes"] == 0


@pytest.mark.parametrize("heavy, hydrogens, expected", [(2, 2, []), (3, 1, [[0, 1, 2, 3]]), (4, 0, [[0, 1, 2, 3]])])
def test_centres_have_three_heavy_neighbours_or_more_of_which_the_first_three_tell_its_hand(heavy, hydrogens, expected):
    around = 0.87 * np.array([[1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]])  # 1.5 Å from the middle
    elements = ["C"] * heavy + ["H"] * hydrogens
    sites = [("CA", "C", (0, 0, 0), "\0")]
    sites += [
        (f"{e}{k}", e, x * (1 if e == "C" else 0.7), "\0")
        for k, (e, x) in enumerate(zip(elements, around, strict=True))
    ]
    top = geometry.topology(built(("A", 1, "XXX", sites)))
    assert len(top.bonds) == 4 and top.centres.tolist() == expected


@pytest.mark.parametrize(
    "first, second, kept",
    [
        (("C", "C"), ("N", "N"), 1),
        (("C", "C"), ("SG", "S"), 0),
        (("CB", "C"), ("N", "N"), 0),
        (("N", "N"), ("C", "C"), 1),
    ],
)
def test_distances_about_a_peptide_bond_are_kept_and_about_other_bonds_between_residues_not(first, second, kept):
    """Of four atoms in a row, two in each residue, the ends are three bonds apart: a peptide bond does not turn."""
    x = [(0, 0, 0), (1.2, 0.9, 0), (2.5, 0.9, 0), (3.7, 0, 0)]
    one = [("CX", "C", x[0], "\0"), (*first, x[1], "\0")]
    model = built(("A", 1, "ALA", one), ("A", 2, "CYS", [(*second, x[2], "\0"), ("CY", "C", x[3], "\0")]))
    top = geometry.topology(model)
    assert sorted(map(sorted, top.bonds.tolist())) == [[0, 1], [1, 2], [2, 3]]
    assert sorted(map(sorted, top.angles.tolist())) == [[0, 2], [1, 3]]
    assert sorted(map(sorted, top.residue.tolist())) == [[0, 3]] * kept


@pytest.mark.parametrize("kind", ["distances", "volumes", "places"])
def test_slopes_are_those_of_the_deviations(top, kind):
    rng = np.random.default_rng(0)
    pairs = np.concatenate([top.bonds[:40], top.residue[:40]])
    term = {
        "distances": geometry.Distances(pairs, geometry.distances(top.xyz, pairs), rng.uniform(0.1, 1, 80), 60),
        "volumes": geometry.ChiralVolumes(top.centres, geometry.volumes(top.xyz, top.centres)[0], 0.2),
        "places": geometry.Places(top.xyz, 1.5),
    }[kind]
    x, along = top.xyz + rng.normal(0, 0.3, top.xyz.shape), rng.normal(size=top.xyz.shape)
    _, on, slopes = term.deviations(x)
    after, before = (term.deviations(x + step * along)[0] for step in (1e-5, -1e-5))
    np.testing.assert_allclose((slopes * along[on]).sum((1, 2)), (after - before) / 2e-5, rtol=1e-6, atol=1e-6)
    assert np.abs(term.deviations(top.xyz)[0]).max() == pytest.approx(0, abs=1e-9)


def test_deviations_are_what_is_off_over_its_sigma(top):
    """A model that is moved by 1 Å, bonds that are longer by half, and centres that have been scaled by a tenth."""
    moved, lengths = top.xyz + [0.6, 0, -0.8], geometry.distances(top.xyz, top.bonds)
    assert geometry.sum_of_squares([geometry.Places(top.xyz, 2.0)], moved) == pytest.approx(len(moved) / 4)
    bonds = geometry.Distances(top.bonds, lengths, np.full(len(lengths), 0.5), len(lengths))
    assert geometry.sum_of_squares([bonds], 1.5 * top.xyz) == pytest.approx(((0.5 * lengths / 0.5) ** 2).sum())
    volumes = geometry.volumes(top.xyz, top.centres)[0]
    off = (1.1**3 - 1) * volumes / 0.2  # Å³
    hands = geometry.ChiralVolumes(top.centres, volumes, 0.2)
    assert geometry.sum_of_squares([hands], 1.1 * top.xyz) == pytest.approx((off**2).sum())


@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0])
def test_every_step_is_a_gain_even_from_where_the_model_is_torn(top, noise):
    by, rng = geometry.Restraints(), np.random.default_rng(0)
    x = place = top.xyz + rng.normal(0, noise, top.xyz.shape)
    pairs = np.concatenate([top.bonds, top.angles])
    lengths = geometry.Distances(pairs, geometry.distances(top.xyz, pairs), np.full(len(pairs), 0.1), len(pairs))
    terms = [lengths, geometry.Places(place, 1.0)]
    sums = [geometry.sum_of_squares(terms, x)]
    for _ in range(4):
        x, gain = geometry.improved(terms, x, by)
        sums.append(geometry.sum_of_squares(terms, x))
        assert 0 <= gain < 1 and sums[-1] == pytest.approx((1 - gain) * sums[-2])
    assert sums[-1] < 0.1 * sums[0] or noise == 0


def test_what_bends_more_easily_is_held_less():
    """Bonds, angles, distances within a residue, places: each may be off by more than the one before."""
    by = geometry.Restraints()
    sigmas = by.bond_sigma, by.angle_sigma, by.residue_sigma, by.place_sigma
    assert 0 < sigmas[0] and (np.divide(sigmas[1:], sigmas[:-1]) >= 1.5).all()


def test_alternative_conformations_are_bonded_to_what_they_share_and_not_to_each_other():
    """Two places of CB on one CA, with one CG each."""
    sites = [("CA", "C", (0, 0, 0), "\0")]
    sites += [("CB", "C", (1.5, 0, 0), "A"), ("CG", "C", (2.0, 1.4, 0), "A")]
    sites += [("CB", "C", (1.4, 0, 0.6), "B"), ("CG", "C", (2.0, -1.3, 0.6), "B")]
    top = geometry.topology(built(("A", 1, "XXX", sites)))
    assert sorted(map(sorted, top.bonds.tolist())) == [[0, 1], [0, 3], [1, 2], [3, 4]]
    assert sorted(map(sorted, top.angles.tolist())) == [[0, 2], [0, 4]]
    assert top.residue.tolist() == [] and top.first.tolist() == [True, True, True, False, False]


def test_a_disturbed_model_gets_its_geometry_back_and_comes_nearer_to_what_it_was(pair, top):
    """Errors of 0.25 Å in every coordinate, and two domains that have turned."""
    true = atoms.positions(pair[1])
    rough = true + np.random.default_rng(0).normal(0, 0.25, true.shape)
    mended = geometry.idealise(top, rough)
    before, after = geometry.measure(top, rough), geometry.measure(top, mended)
    # a bond's change is that of two atoms along one line: sqrt(2) of 0.25
    assert before["bond_rms"] == pytest.approx(0.25 * np.sqrt(2), rel=0.1)
    assert after["bond_rms"] < 0.05 * before["bond_rms"] and after["ca_bonds"] == 1 and after["clashes"] == 0
    ca = [site.atom.name == "CA" for site in pair[1][0].all()]
    rms = [np.sqrt(((xyz - true)[ca] ** 2).sum(1).mean()) for xyz in (rough, mended)]
    assert rms[1] < 0.8 * rms[0]


def test_nucleotides_are_left_whole():
    """RNA that a flow has carried with an error in each atom: its bonds, sugars, flat bases and hands are restored."""
    start, end = bent_rna()
    top, true = geometry.topology(start), atoms.positions(end)
    sites = list(start[0].all())
    joined = [sorted(sites[k].atom.name for k in bond) for bond in top.bonds if np.ptp(top.number[bond])]
    strands = 2 * sum(count - 1 for _, count, *_ in RNA_HELICES)
    assert joined == [["O3'", "P"]] * strands and not len(top.chain)  # a CA atom is not among them
    rough = true + np.random.default_rng(0).normal(0, 0.3, true.shape)
    mended = geometry.idealise(top, rough)
    before, after = geometry.measure(top, rough), geometry.measure(top, mended)
    assert after["bond_rms"] < 0.1 * before["bond_rms"] and after["mirrored"] == after["clashes"] == 0
    assert np.isnan(after["ca_bonds"])
    for first in range(int(top.number.max()) + 1):
        base = mended[[k for k in np.flatnonzero(top.number == first) if sites[k].atom.name in BASE_ATOMS]]
        assert np.linalg.svd(base - base.mean(0))[1][-1] < 0.3
    assert np.sqrt(((mended - true) ** 2).sum(1).mean()) < np.sqrt(((rough - true) ** 2).sum(1).mean())


def test_residues_keep_their_hand_even_where_the_flow_has_mirrored_them(pair, top):
    """The volume that N, C and CB span at CA has a sign, which distances do not have."""
    atoms_of = {
        name: [k for k, s in enumerate(pair[0][0].all()) if s.atom.name == name] for name in ("CA", "N", "C", "CB")
    }

    def volumes(xyz):
        n, c, cb = (xyz[atoms_of[name]] - xyz[atoms_of["CA"]] for name in ("N", "C", "CB"))
        return np.einsum("ij,ij->i", n, np.cross(c, cb))

    carried = top.xyz.copy()
    cb = np.array(atoms_of["CB"][::9])
    toward = np.array(atoms_of["CA"][::9])
    carried[cb] += 1.6 * (carried[toward] - carried[cb])  # to the other side
    before, hurt, after = (volumes(xyz) for xyz in (top.xyz, carried, geometry.idealise(top, carried)))
    assert (before * hurt < 0).sum() == len(cb) <= geometry.measure(top, carried)["mirrored"]
    assert geometry.measure(top, geometry.idealise(top, carried))["mirrored"] == 0
    np.testing.assert_allclose(after, before, rtol=0.2)


def test_clashing_parts_are_moved_apart():
    rows = [("A", 3 * k + 1, "GLY", [("CA", "C", (6.0 * k, 0, 0), "\0")]) for k in range(4)]
    top = geometry.topology(built(*rows))
    near = top.xyz * [0.3, 1, 1]  # 1.8 Å apart
    assert geometry.measure(top, near)["clashes"] == 3
    mended = geometry.idealise(top, near)
    assert geometry.measure(top, mended)["clashes"] == 0
    gaps = np.linalg.norm(np.diff(mended, axis=0), axis=1)
    assert (gaps > 2.7).all() and (gaps < 3.1).all()  # to 3 Å, not as far as they were


@pytest.fixture(scope="module")
def complex_():
    """Two chains with an insertion, alternative conformations, a ligand and water."""
    alanine = [("CA", "C", (1.0, 2.0, 3.0), "\0"), ("CB", "C", (2.5, 2, 3), "A"), ("CB", "C", (1, 3.5, 3), "B")]
    model = built(
        ("A", 1, "ALA", alanine),
        ("A", 2, "GLY", [("CA", "C", (4.8, 2, 3), "\0")]),
        ("B", -3, "GLY", [("CA", "C", (-40.123, 2, 3), "\0")]),
        ("B", 201, "ATP", [("PG", "P", (9, 9, 9), "\0"), ("MG", "Mg", (11, 9, 9), "\0")]),
        ("B", 301, "HOH", [("O", "O", (19, 9, 9), "\0")]),
    )
    model[0]["A"][1].seqid.icode = "C"
    return model


def described(model):
    """All of a model's atoms but their positions."""
    return [
        (s.chain.name, str(s.residue.seqid), s.residue.name)
        + (s.atom.name, s.atom.altloc, s.atom.element.name, s.atom.b_iso, s.atom.occ)
        for s in model.all()
    ]


@pytest.mark.parametrize("suffix", [".pdb", ".cif"])
def test_a_trajectory_holds_every_frame_with_all_that_the_model_has(complex_, tmp_path, suffix):
    xyz = [atoms.positions(complex_) + [k, 0.5 * k, 0] for k in range(4)]
    frames = [atoms.with_positions(complex_, x) for x in xyz]
    atoms.write_trajectory(tmp_path / f"trajectory{suffix}", frames)
    read = gemmi.read_structure(str(tmp_path / f"trajectory{suffix}"))
    assert [model.num for model in read] == [1, 2, 3, 4]
    for model, x in zip(read, xyz, strict=True):
        assert described(model) == described(complex_[0])
        np.testing.assert_allclose([s.atom.pos.tolist() for s in model.all()], x, atol=6e-4)  # three decimals


def test_the_lines_of_a_pdb_trajectory_are_as_other_programs_want_them(complex_, tmp_path):
    """MODEL and ENDMDL about each frame, and in each the same atoms with the same serial numbers."""
    atoms.write_trajectory(tmp_path / "t.pdb", [complex_] * 3)
    frames, inside = [], None
    for line in (tmp_path / "t.pdb").read_text().splitlines():
        if line.startswith("MODEL"):
            inside = []
            assert int(line[10:14]) == len(frames) + 1
        elif line.startswith("ENDMDL"):
            frames, inside = [*frames, inside], None
        elif line.startswith(("ATOM", "HETATM")):
            inside.append(line)
            assert line[30:54] == "".join(f"{float(line[k : k + 8]):8.3f}" for k in (30, 38, 46))
    assert len(frames) == 3 and frames[0] == frames[1] == frames[2]
    assert len(frames[0]) == complex_[0].count_atom_sites() == len({line[6:11] for line in frames[0]})
    assert [line[:6].strip() for line in frames[0] if line[17:20] not in "ALA GLY"] == ["HETATM"] * 3


def crowd(count):
    atom = [("O", "O", (0, 0, 0), "\0")]
    return built(*(("A", k % 9000 + 1, "HOH", atom) for k in range(count)))


@pytest.mark.parametrize(
    "model, sentence",
    [
        (lambda: built(("AA", 1, "GLY", [("CA", "C", (0, 0, 0), "\0")])), "its chain AA has a name"),
        (lambda: built(("A", 1, "A1LU6", [("C", "C", (0, 0, 0), "\0")])), "its residue A1LU6 has a name"),
        (lambda: built(("A", 12000, "GLY", [("CA", "C", (0, 0, 0), "\0")])), "numbered from 12000 to 12000"),
        (lambda: built(("A", 1, "GLY", [("CA", "C", (12345, 0, 0), "\0")])), "coordinates are from 0 to 12345 Å"),
        (lambda: crowd(99999), "it has 99999 atoms, more than 99999"),  # with the chain's end
        (lambda: crowd(9), None),
    ],
    ids=["chain", "residue", "number", "place", "size", "none"],
)
def test_what_does_not_fit_a_pdb_file_is_told(model, sentence):
    found = atoms.pdb_obstacle(model())
    assert found is None if sentence is None else sentence in found


def test_a_trajectory_has_a_models_name(complex_, tmp_path):
    with pytest.raises(InputError, match="end it in .cif or .pdb"):
        atoms.write_trajectory(tmp_path / "t.xyz", [complex_])


@pytest.mark.parametrize("chain, file", [("A", "trajectory.pdb"), ("AB", "trajectory.cif")])
def test_a_model_too_large_for_a_pdb_file_has_its_trajectory_in_mmcif(complex_, tmp_path, capsys, chain, file):
    model = complex_.clone()
    model[0]["A"].name = chain
    shift = {0.0: 0, 0.5: 1, 1.0: 2}
    fit = SimpleNamespace(move=lambda m, times: [atoms.with_positions(m, atoms.positions(m) + shift[t]) for t in times])
    scores, _ = write_models(fit, model, OutputSettings(frames=3), [Place(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {
        file, "generated.cif", "geometry.csv", *(f"model_{k:02d}.cif" for k in range(3))
    }  # fmt: skip
    read = gemmi.read_structure(str(tmp_path / file))
    assert [described(frame) for frame in read] == [described(model[0])] * 3
    message = (
        "mmCIF (trajectory.cif), as the PDB format cannot hold the model: its chain AB has a name of more than one"
    )
    assert (message in capsys.readouterr().out) == (chain == "AB")
    assert scores["bond_rms_after"] == pytest.approx(0, abs=1e-9) and scores["clashes_worst"] == 0
