"""Blocks choose the parts of least cost: their own, that of tears between them, and that of the number of parts."""

import itertools

import numpy as np
import pytest

from cryotrans_jax.density import simulation
from cryotrans_jax.motion.labelling import (
    ChoiceRules,
    choose_few,
    choose_parts,
    cost_of_parts,
    least_cost_labels,
    make_blocks,
)


def blocks_of_a_rod():
    """Blocks of 4 Å of the map of a rod along x, 60 Å long."""
    x = np.stack([np.linspace(10, 70, 120), np.full(120, 7.0), np.full(120, 10.0)], -1)
    given = simulation.simulate_map((x, np.full(len(x), 6.0)), (80, 20, 20), np.ones(3), np.zeros(3), 3.0)
    return make_blocks(np.maximum(given.density, 0), given, 4.0)


def test_the_cost_of_a_choice_is_that_of_its_blocks_and_of_their_tears():
    rules, blocks = ChoiceRules(tie=0.5, torn=4.0), blocks_of_a_rod()
    y = np.stack([blocks.x, blocks.x + [0, 6.0, 0]], axis=1)
    right = blocks.x[:, 0] > np.median(blocks.x[:, 0])
    costs = np.stack([right, ~right], axis=1) * 1e3 + np.random.default_rng(0).uniform(0, 1, (len(right), 2))
    owner = choose_parts(blocks, y, costs, rules)
    np.testing.assert_array_equal(owner, right)
    torn = 0.0
    for axis, pairs in enumerate(blocks.pairs()):
        for one, other in pairs[right[pairs[:, 0]] != right[pairs[:, 1]]]:
            gap = blocks.x[one] - blocks.x[other]
            after = gap + [0, 6.0 * (float(right[one]) - right[other]), 0]
            longer = np.linalg.norm(after) - np.linalg.norm(gap)
            held = min(blocks.density[one], blocks.density[other]) / blocks.density.mean()
            torn += 0.5 * np.prod(blocks.size) / blocks.size[axis] * held * np.clip(longer / 4.0, 0, 1)
    cost = cost_of_parts(blocks, y, costs, owner, rules)
    assert torn > 0 and cost == pytest.approx(costs[np.arange(len(owner)), owner].sum() + torn, rel=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_what_is_agreed_on_costs_least_along_a_chain(seed):
    """Where there is no loop the messages find the least sum."""
    rng = np.random.default_rng(seed)
    costs, pairs = rng.uniform(0, 1, (7, 3)), np.stack([np.arange(6), np.arange(1, 7)], -1)
    cuts = rng.uniform(0, 1, (6, 3, 3))

    def total(labels):
        labels = np.array(labels)
        return costs[np.arange(7), labels].sum() + cuts[np.arange(6), labels[:-1], labels[1:]].sum()

    best = min(itertools.product(range(3), repeat=7), key=total)
    assert total(least_cost_labels(costs, pairs, cuts)) == pytest.approx(total(best))


@pytest.mark.parametrize(("part", "fewest"), [(0.5, [0, 1, 2]), (3.0, [0, 1]), (100.0, [0])])
def test_a_part_that_saves_less_than_it_costs_is_left_out(part, fewest):
    """Part 0 fits ten points, part 1 four others and part 2 one; any other part costs a point 1 or 2."""
    best = np.repeat([0, 1, 2], [10, 4, 1])
    costs = np.where(best[:, None] == np.arange(4), 0.0, 2.0 - (np.arange(4) == 0))

    def choose(kept):
        return kept[costs[:, kept].argmin(1)]

    def cost(owner):
        return costs[np.arange(15), owner].sum() + part * len(np.unique(owner))

    found = choose_few(choose, cost, 4, np.ones(15), 0.0)
    assert [*np.unique(found)] == fewest
    np.testing.assert_array_equal(found, np.where(np.isin(best, fewest), best, 0))


def test_a_part_with_too_little_mass_is_left_out_whatever_it_saves():
    best, mass = np.repeat([0, 1], [10, 1]), np.ones(11)
    costs = np.where(best[:, None] == np.arange(2), 0.0, 1e3)

    def choose(kept):
        return kept[costs[:, kept].argmin(1)]

    def cost(owner):
        return costs[np.arange(11), owner].sum()

    assert [len(np.unique(choose_few(choose, cost, 2, mass, least))) for least in (0.05, 0.15, 2.0)] == [2, 1, 1]
