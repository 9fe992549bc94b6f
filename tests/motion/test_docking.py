"""Docking: pieces of a map are found in the target in any pose, and no two in one place."""

from concurrent.futures import CancelledError
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage, spatial
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from cryotrans_jax.density.transform import Transform
from cryotrans_jax.fit import prepare
from cryotrans_jax.fit.options import Resolutions
from cryotrans_jax.io.chain import Chain
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map
from cryotrans_jax.motion import docking
from cryotrans_jax.motion.hinges import Density, HingeSearch, turned_sides
from cryotrans_jax.motion.offers import BodyRules, DockedBody, free_target
from cryotrans_jax.motion.pieces import Pieces, PoseSearch

SIZE, SIDE = 2.0, 48  # Å, voxels


def domain(seed, radius=15.0, rods=9):
    """Points of a compact body of rods like helices, Å from its middle."""
    rng = np.random.default_rng(seed)
    points, along = np.zeros((0, 3)), np.linspace(-7, 7, 20)[:, None]
    while len(points) < 20 * rods:
        axis = rng.standard_normal(3)
        rod = rng.uniform(-radius, radius, 3) + along * axis / np.linalg.norm(axis)
        if (np.linalg.norm(rod, axis=1) < radius).all() and (not len(points) or cdist(rod, points).min() > 5):
            points = np.concatenate([points, rod])
    return points + rng.normal(0, 1.0, points.shape)


def density(x, noise=0.0, seed=0):
    """A map of points with noise of a given strength, relative to the largest density."""
    whole, _ = np.histogramdd(x, SIDE, [(-SIDE * SIZE / 2, SIDE * SIZE / 2)] * 3)
    whole = ndimage.gaussian_filter(whole, 1.0)
    rough = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(whole.shape), 1.0)
    whole = whole + noise * whole.max() * rough / rough.std()
    return Map(whole.astype(np.float32), np.full(3, SIZE), np.full(3, -SIDE * SIZE / 2 + SIZE / 2))


def turned(x, degrees, about, shift):
    """Points turned about an axis through their middle, and shifted (Å)."""
    turn = Rotation.from_rotvec(np.radians(degrees) * np.array(about) / np.linalg.norm(about))
    return turn.apply(x - x.mean(0)) + x.mean(0) + shift


def errors(first, second, first_end, second_end, noise):
    """Distances (Å) of the docked ends of two bodies' points from where they belong."""
    x, y = np.concatenate([first, second]), np.concatenate([first_end, second_end])
    return np.linalg.norm(docked_ends(x, y, noise, rounds=4, searching=2) - y, axis=1)


def results(x, y, noise=0.0, chain=None, known=(), **search):
    """The results of docking the map of points x into that of y, by one search."""
    problem = replace(prepare.prepare(density(x), [density(y, noise)], Resolutions(6.0, 6.0)), chain=chain)
    search = {"balls": (docking.Balls(8, 0.35),)} | search
    found = docking.searched(problem, 0, docking.DockingSearch(**search)).results(known)
    assert all(np.abs(each.match).max() <= 1 for each in found)
    return found


def docked(x, y, noise=0.0, chain=None, known=(), **search):
    """The result of least cost."""
    return results(x, y, noise, chain, known, **search)[0]


def docked_ends(x, y, noise=0.0, chain=None, **search):
    """Where docking the map of points x into that of y puts x (Å)."""
    found = docked(x, y, noise, chain, **search)
    bodies = found.bodies(np.ones(len(found.owner), bool), 0.04)
    assert set(bodies.labels) == {*range(1, len(bodies.motions) + 1)}
    body = bodies.labels[spatial.cKDTree(bodies.x).query(x)[1]] - 1
    return np.stack([motion(x) for motion in bodies.motions])[body, np.arange(len(x))]


def walk(count, radius, seed, start):
    """A chain of residues 3.8 Å apart within a ball about the origin, from a place in it; none is near another."""
    rng, x = np.random.default_rng(seed), [np.asarray(start, float)]
    step = rng.standard_normal(3)
    while len(x) < count:
        for _ in range(200):
            step = 0.6 * step / np.linalg.norm(step) + rng.normal(0, 0.6, 3)
            following = x[-1] + 3.8 * step / np.linalg.norm(step)
            clear = len(x) < 2 or np.linalg.norm(np.array(x[:-1]) - following, axis=1).min() > 5
            if np.linalg.norm(following) < radius and clear:
                x.append(following)
                break
        else:
            x = x[: len(x) // 2 + 1]  # a dead end
    return np.array(x)


def hanging(seed, degrees):
    """A chain of two domains, and the same with the second turned about the residue from which it hangs."""
    x = np.concatenate(
        [walk(60, 13, seed, [0, 0, 12])[::-1] - [0, 0, 14], walk(60, 13, seed + 1, [0, 0, -10]) + [0, 0, 14]]
    )
    y, pivot = x.copy(), x[60]
    y[60:] = Rotation.from_rotvec(np.radians(degrees) * np.array([0.8, 0.6, 0.0])).apply(x[60:] - pivot) + pivot
    return x, y


def test_a_domain_is_found_on_its_chain_which_stays_whole():
    x, y = hanging(1, 100)
    chain = Chain(x, np.arange(len(x)) < len(x) - 1)
    ends = docked_ends(x, y, 0.06, chain, rounds=3, searching=1)
    assert np.median(np.linalg.norm(ends - y, axis=1)) < 1.0
    before, after = (np.linalg.norm(np.diff(at, axis=0), axis=1) for at in (x, ends))
    assert np.abs(after - before).max() < 4.0


def test_without_a_gain_no_side_of_a_chain_is_turned():
    """Where nothing has moved, the present motion explains more than any other."""
    x, _ = hanging(3, 0)
    chain, held = Chain(x, np.arange(len(x)) < len(x) - 1), density(x)
    first = np.arange(len(x)) < 60
    values = held.interpolate(x)
    given = Density(x, values, np.arange(len(x)), values * values, first)
    sides = turned_sides(chain, given, Transform(np.eye(3), np.zeros(3)), held, HingeSearch(rotations=100))
    assert sides and all((side.points < 60).all() or (side.points >= 60).all() or side.gain < 0 for side in sides)
    beyond = [side for side in sides if (side.points >= 60).any()]
    assert beyond and max(side.gain for side in beyond) < 0.1 * float(values @ values)


def test_a_side_of_a_chain_is_turned_to_where_the_target_has_it():
    x, y = hanging(5, 100)
    chain, left = Chain(x, np.arange(len(x)) < len(x) - 1), density(y[60:])
    left = replace(left, density=ndimage.gaussian_filter(left.density, 1.5))
    values, first = density(x).interpolate(x), np.arange(len(x)) < 60
    given = Density(x, values, np.arange(len(x)), np.zeros(len(x)), first)
    sides = turned_sides(chain, given, Transform(np.eye(3), np.zeros(3)), left, HingeSearch())
    there, before = (float(values[60:] @ left.interpolate(at[60:])) for at in (y, x))
    assert max(before, 0.5 * there) < max(side.gain for side in sides)


@pytest.mark.parametrize("noise", [0.0, 0.08])
def test_a_domain_that_turns_around_is_found_where_it_is(noise):
    first, second = domain(1) - [0, 0, 15], domain(2) + [0, 0, 15]
    off = errors(first, second, first, turned(second, 170, [1, 0.3, 0.2], [4, 0, 0]), noise)
    assert np.median(off) < 0.6 and np.mean(off > 4) < 0.1  # the rest is near the border, which is redrawn later


def test_two_domains_that_are_alike_are_not_put_in_one_place():
    first = domain(3) - [0, 0, 16]
    second = turned(first, 120, [0.2, 1, 0.1], [0, 0, 32])
    off = errors(first, second, turned(first, 60, [1, 0, 0], [0, 0, 0]), second, 0.0)
    each = [np.median(off[: len(first)]), np.median(off[len(first) :])]
    wrong = np.mean(off > 4)
    assert max(each) < 1.5 and wrong < 0.15


def test_of_several_searches_and_known_motions_the_least_cost_comes_first(monkeypatch):
    """No further search is done once one agrees with a result so far."""
    first, second = domain(1) - [0, 0, 15], domain(2) + [0, 0, 15]
    end = turned(second, 170, [1, 0.3, 0.2], [4, 0, 0])
    x, y = np.concatenate([first, second]), np.concatenate([first, end])
    still = Transform(np.eye(3), np.zeros(3))
    turn = Rotation.align_vectors(end - end.mean(0), second - second.mean(0))[0].as_matrix()
    right = [still, Transform(turn, end.mean(0) - turn @ second.mean(0))]
    weak, strong, poor, begun = docking.Balls(1, 0.9), docking.Balls(4, 0.35), dict(rounds=2, searching=0), []
    search = docking.Docking.candidates
    monkeypatch.setattr(docking.Docking, "candidates", lambda self, balls: begun.append(balls) or search(self, balls))

    def cost(known, *balls):
        begun.clear()
        return docked(x, y, 0.0, None, known, balls=balls, **poor).cost

    missed, found, known = cost((), weak), cost((), strong), cost(right, weak)
    assert missed > 1.2 * found and known == pytest.approx(found, rel=0.05)
    assert begun == [weak]
    assert cost((), weak, strong) == found and begun == [weak, strong]
    assert cost((), weak, weak, strong) == missed and begun == [weak, weak]
    for close, kept in ((0.1, [found]), (9.0, [found, missed])):
        assert [each.cost for each in results(x, y, balls=(weak, strong), close=close, **poor)] == kept


def test_a_search_that_is_stopped_ends_before_its_next_piece():
    x, looks = np.concatenate([domain(1) - [0, 0, 15], domain(2) + [0, 0, 15]]), iter([False, False, True])
    problem = prepare.prepare(density(x), [density(x)], Resolutions(6.0, 6.0))
    with pytest.raises(CancelledError):
        docking.searched(problem, 0, stopped=looks.__next__)
    assert next(looks, None) is None  # asked thrice


def test_without_a_search_there_is_no_docking():
    with pytest.raises(InputError, match="give those of one search"):
        docking.DockingSearch(balls=())


def test_a_molecule_that_does_not_move_stays():
    first, second = domain(4) - [0, 0, 15], domain(5) + [0, 0, 15]
    assert np.percentile(errors(first, second, first, second, 0.0), 95) < 0.5


def test_noise_makes_no_bodies_of_a_molecule_that_does_not_move():
    """If bodies cost nothing, fragments of it fit the noise somewhere else by chance."""
    x = np.concatenate([domain(4) - [0, 0, 15], domain(5) + [0, 0, 15]])
    counts = [
        len(np.unique(docked(x, x, 0.15, rounds=2, searching=1, bodies=BodyRules(body=body, fragment=0.0)).owner))
        for body in (0.01, 0.0)
    ]
    assert counts[0] == 1 < counts[1]


def test_what_a_body_claims_is_free_for_no_other():
    """And for itself all is free that no better body claims."""
    first, second = domain(1) - [0, 0, 15], domain(2) + [0, 0, 15]
    held = density(np.concatenate([first, second]))
    pieces = Pieces(held, held, 8.0, 4.0, 6000, PoseSearch())
    above, still = pieces.blocks.x[:, 2] > 0, Transform(np.eye(3), np.zeros(3))
    claims = [pieces.sharp(pieces.moved(own, still)) for own in (above, ~above)]
    bodies = [
        DockedBody(own, still, pieces.moved(own, still), claim)
        for own, claim in zip((above, ~above), claims, strict=True)
    ]
    onto_first = Transform(np.eye(3), first.mean(0) - second.mean(0))
    whole = pieces.interpolate(pieces.sharp_target, pieces.blocks.x)
    y = np.stack([motion(pieces.blocks.x) for motion in (still, still, onto_first)], axis=1)
    stays, _, leaves = free_target(pieces, bodies, y).T
    np.testing.assert_allclose(stays[above], whole[above], atol=1e-5 * np.abs(whole).max())
    there = pieces.interpolate(pieces.sharp_target, onto_first(pieces.blocks.x))
    inside = pieces.interpolate(held.density, onto_first(pieces.blocks.x)) > 0.3 * held.density.max()
    taken = above & inside
    assert np.abs(leaves[taken]).mean() < 0.2 * np.abs(there[taken]).mean()


def test_points_are_spread_as_far_as_they_can():
    x = np.array([[0.0, 0, 0], [1, 0, 0], [10, 0, 0], [0, 5, 0]])
    np.testing.assert_array_equal(docking.spread_points(x, 2), [[10, 0, 0], [0, 5, 0]])
    assert len(docking.spread_points(x, 9)) == 4
