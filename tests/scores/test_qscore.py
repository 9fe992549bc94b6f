"""The Q-score follows its definition: of lone atoms by formula, of crowded ones at points that are their own."""

import time
from pathlib import Path

import numpy as np
import pytest

from cryotrans_jax.density import simulation
from cryotrans_jax.density.demo import hinge_pair
from cryotrans_jax.io import atoms
from cryotrans_jax.io.maps import Map, read_map
from cryotrans_jax.scores import qscore

SHARED = Path(__file__).parents[3] / "shared" / "data"
SHAPE, VOXEL, ORIGIN = (40, 36, 44), np.array([0.25, 0.3, 0.2]), np.array([-3.1, 4.0, 1.3])
MIDDLE = ORIGIN + VOXEL * (20.3, 17.6, 22.1)


def lone(resolution):
    """The Q-score of one atom in its own map."""
    one = MIDDLE[None], np.array([6.0])
    return qscore.q_scores(simulation.simulate_map(one, SHAPE, VOXEL, ORIGIN, resolution), one)[0]


@pytest.mark.parametrize("resolution", [2.0, 0.6 / 0.225, 4.0, 6.0])
def test_a_lone_atom_has_the_correlation_of_two_gaussians(resolution):
    """Each shell counts alike, as it has as many points; lines between 0.3 Å voxels blur by some 0.12 Å, of 0.45."""
    r = np.arange(21) / 10
    width = 0.225 * resolution
    expected = np.corrcoef(np.exp(-0.5 * (r / width) ** 2), np.exp(-0.5 * (r / 0.6) ** 2))[0, 1]
    assert lone(resolution) == pytest.approx(expected, abs=6e-3)


def test_q_is_blind_to_scale_and_offset_and_turns_with_the_sign():
    one = MIDDLE[None], np.array([6.0])
    map_ = simulation.simulate_map(one, SHAPE, VOXEL, ORIGIN, 3.0)
    q = qscore.q_scores(map_, one)
    other = Map(3 * map_.density + 0.2, VOXEL, ORIGIN)
    np.testing.assert_allclose(qscore.q_scores(other, one), q, atol=1e-5)
    np.testing.assert_allclose(qscore.q_scores(Map(-map_.density, VOXEL, ORIGIN), one), -q, atol=1e-6)
    assert qscore.q_scores(Map(0 * map_.density + 1, VOXEL, ORIGIN), one)[0] == 0


def test_points_are_nearer_to_their_own_atom_than_to_any_other():
    """And a shell has eight of them, unless the slow search finds fewer among the most directions tried."""
    x = np.random.default_rng(0).uniform(0, 7, (60, 3))
    u = [qscore.sphere(n) for n in qscore.TRIED]
    sets = np.split(np.arange(sum(qscore.TRIED)), np.cumsum(qscore.TRIED)[:-1])
    crowded, every = qscore.crowding(x, np.concatenate(u)), np.concatenate(u)
    for radius in (0.3, 1.0, 2.0):
        towards, own = qscore.choose_points(2 * radius * crowded < 1, sets, every)
        for number, at in enumerate(x):
            nearest = np.linalg.norm((at + radius * towards[number])[:, None] - x, axis=-1).argmin(1)
            assert (nearest[own[number]] == number).all()
            slow = np.linalg.norm((at + radius * u[-1])[:, None] - x, axis=-1).argmin(1) == number
            assert own[number].sum() == 8 or own[number].sum() == slow.sum() < 8
            assert len(np.unique(towards[number][own[number]], axis=0)) == own[number].sum()  # none twice


def test_directions_are_spread_evenly():
    for count in qscore.TRIED:
        u = qscore.sphere(count)
        np.testing.assert_allclose(np.linalg.norm(u, axis=1), 1)
        second = u.T @ u / count  # a third of the identity if even
        np.testing.assert_allclose(second, np.eye(3) / 3, atol=1 / count)


def of_deposited_maps(resolution):
    """Mean Q-score of proteins at a resolution (Å), the paper's fit to deposited maps."""
    return 1.1244 - 0.1775 * resolution


def test_q_of_a_simulated_protein_falls_with_its_resolution_and_with_a_shift():
    """A noiseless map without B-factors stands above the line of deposited maps, and below a lone atom's Q."""
    model = hinge_pair()[0]
    grid = simulation.common_grid([model], 1.0, 3.0)
    q = {r: qscore.q_score(simulation.simulate_map(model, *grid, r), model) for r in (2.0, 3.0, 5.0, 8.0)}
    assert sorted(q, key=q.get, reverse=True) == [2.0, 3.0, 5.0, 8.0]
    assert of_deposited_maps(3.0) < q[3.0] < lone(3.0)
    off = atoms.with_positions(model, atoms.positions(model) + (1.0, 0, 0))
    assert qscore.q_score(simulation.simulate_map(model, *grid, 3.0), off) < q[3.0] - 0.3


def test_five_thousand_atoms_take_less_than_two_seconds():
    x = np.random.default_rng(0).uniform(0, 46, (5000, 3))  # as crowded as in a protein
    map_ = Map(np.random.default_rng(1).normal(size=(48, 48, 48)).astype(np.float32), np.ones(3), np.zeros(3))
    begin = time.process_time()
    assert qscore.q_scores(map_, (x, np.ones(5000))).shape == (5000,)
    assert time.process_time() - begin < 2


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_q_of_a_deposited_map_is_that_of_its_resolution():
    """TRPV1's map has 3.3 Å (EMD-5778): the paper's line says 0.54, and single maps lie within 0.1 of it."""
    folder = SHARED / "maps" / "formats"
    found = qscore.q_score(read_map(folder / "trpv1_noncubic.mrc"), atoms.read_model(folder / "trpv1_model.pdb"))
    assert found == pytest.approx(of_deposited_maps(3.3), abs=0.1)
