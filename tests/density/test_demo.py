"""The built-in pair: ideal helices, and a known rotation between two states without clash."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from cryotrans_jax.density.demo import HELICES, HINGE, HINGE_AXIS, MOVING, hinge_pair
from cryotrans_jax.io import atoms


@pytest.fixture(scope="module")
def pair():
    return hinge_pair()


def of_atoms(model, name):
    """Residue numbers and positions of the atoms of one name."""
    sites = [site for site in model[0].all() if site.atom.name == name]
    return np.array([s.residue.seqid.num for s in sites]), np.array([s.atom.pos.tolist() for s in sites])


def test_the_moving_domain_turns_by_thirty_degrees_and_the_other_stays(pair):
    initial, target = (atoms.positions(model) for model in pair)
    moving = np.array([site.residue.seqid.num >= MOVING for site in pair[0][0].all()])
    np.testing.assert_array_equal(initial[~moving], target[~moving])
    a, b = (x[moving] - x[moving].mean(0) for x in (initial, target))
    turn = np.linalg.lstsq(a, b, rcond=None)[0].T
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(turn) == pytest.approx(1)
    assert np.degrees(np.arccos((np.trace(turn) - 1) / 2)) == pytest.approx(30)
    np.testing.assert_allclose(turn @ HINGE_AXIS, HINGE_AXIS, atol=1e-9)
    np.testing.assert_allclose((initial[moving] - HINGE) @ turn.T + HINGE, target[moving], atol=1e-9)


@pytest.mark.parametrize("state", [0, 1])
def test_helices_are_ideal(pair, state):
    (number, n), (_, ca), (_, c), (_, o) = (of_atoms(pair[state], name) for name in ("N", "CA", "C", "O"))
    following = np.diff(number) == 1

    def length(a, b):
        return np.linalg.norm(a - b, axis=1)

    for bonds, ideal in ((length(n, ca), 1.458), (length(ca, c), 1.525), (length(c, o), 1.231)):
        np.testing.assert_allclose(bonds, ideal, atol=0.01)
    np.testing.assert_allclose(length(c[:-1], n[1:])[following], 1.329, atol=0.01)
    np.testing.assert_allclose(length(ca[:-1], ca[1:])[following], 3.80, atol=0.03)
    # radius, rise and twist of the alpha helix; a left-handed one would have negative twist
    first = ca[:20]
    axis = first[18] - first[0]  # 18 residues are 5 turns
    axis /= np.linalg.norm(axis)
    np.testing.assert_allclose(np.diff(first @ axis), 1.5, atol=1e-6)
    second = first[2:] - 2 * first[1:-1] + first[:-2]  # towards the axis
    cosine = (second[1:] * second[:-1]).sum(1) / (second**2).sum(1)[0]
    np.testing.assert_allclose(cosine, np.cos(np.deg2rad(100)), atol=1e-6)
    assert np.all(np.cross(second[:-1], second[1:]) @ axis > 0)
    np.testing.assert_allclose(length(o[:-4], n[4:])[(number[4:] - number[:-4]) == 4], 2.93, atol=0.02)  # H bonds


@pytest.mark.parametrize("state", [0, 1])
def test_domains_do_not_clash(pair, state):
    number, ca = of_atoms(pair[state], "CA")
    assert cdist(ca[number >= MOVING], ca[number < MOVING]).min() > 5
    xyz = atoms.positions(pair[state])
    firsts = np.array([helix[0] for helix in HELICES])
    owner = [np.searchsorted(firsts, site.residue.seqid.num, side="right") for site in pair[state][0].all()]
    for k in range(1, 8):
        here = np.equal(owner, k)
        assert cdist(xyz[here], xyz[~here]).min() > 1.9


def test_the_motion_is_six_to_nine_angstrom(pair):
    a, b = atoms.common_ca(*pair)
    assert len(a) == sum(helix[1] for helix in HELICES) == 140
    assert 6 < np.sqrt(((a - b) ** 2).sum(1).mean()) < 9


def test_the_pair_is_the_same_each_time_and_made_of_known_residues(pair):
    np.testing.assert_array_equal(atoms.positions(hinge_pair()[1]), atoms.positions(pair[1]))
    assert {residue.name for residue in pair[0][0]["A"]} == {"ALA", "SER", "LEU", "MET", "GLU", "LYS", "PHE"}
    assert len({residue.name for residue in pair[0][0]["A"]}) == 7
