"""Chains of models: which residues are joined, and by how much parts take them apart."""

import gemmi
import numpy as np
import pytest
from conftest import bent_chain
from nucleic import bent_rna

from cryotrans_jax.io import atoms
from cryotrans_jax.io.chain import Chain, Links


def renumbered(model, number):
    """Copy of a model of one chain whose residue of this index, and all after it, are numbered one higher."""
    copy = model.clone()
    for residue in list(copy[0][0])[number:]:
        residue.seqid.num += 1
    return copy


def test_residues_that_follow_one_another_are_joined():
    model = bent_chain(0.0)
    chain = Chain.of(model)
    np.testing.assert_allclose(chain.x, atoms.common_ca(model)[0])
    assert chain.joined[:-1].all() and not chain.joined[-1]
    assert set(chain.segment) == {0}


def test_a_gap_in_the_numbers_or_in_space_parts_a_chain():
    model = bent_chain(0.0)
    count = len(Chain.of(model).x)
    assert list(np.flatnonzero(~Chain.of(renumbered(model, 10)).joined)) == [9, count - 1]
    far = model.clone()
    for residue in list(far[0][0])[5:]:
        for atom in residue:
            atom.pos += gemmi.Position(30, 0, 0)
    chain = Chain.of(far)
    assert list(np.flatnonzero(~chain.joined)) == [4, count - 1]
    assert set(chain.segment[:5]) == {0} and set(chain.segment[5:]) == {1}


def test_nucleotides_are_joined_along_a_helix():
    """Strands are broken where the helices of this model meet, and at their ends."""
    model = bent_rna()[0]
    chain, first = Chain.of(model), len(model[0][0])
    assert chain.joined[:13].all() and not chain.joined[[first - 1, -1]].any()
    assert np.linalg.norm(np.diff(chain.x, axis=0), axis=1)[chain.joined[:-1]].max() < 8


def test_a_model_without_residues_has_no_links():
    model = gemmi.Structure()
    model.add_model(gemmi.Model(1))
    chain = Chain.of(model)
    assert chain.x.shape == (0, 3) and len(chain.segment) == 0
    assert len(chain.links(np.zeros((4, 3)), 3.0, [lambda x: x]).pairs) == 0
    assert list(chain.residues_at(np.zeros((4, 3)), 3.0)) == [-1] * 4


def straight(count=6, step=3.8):
    """A straight chain along x, and its residues' places."""
    x = np.stack([step * np.arange(count), np.zeros(count), np.zeros(count)], axis=1)
    return Chain(x, np.arange(count) < count - 1), x


@pytest.mark.parametrize("shift", [-2.0, 5.0])
def test_links_measure_how_far_parts_take_residues_apart(shift):
    chain, x = straight()
    links = chain.links(x, 1.0, [lambda x: x, lambda x: x + [shift, 0, 0]])
    assert isinstance(links, Links) and len(links.pairs) == 5
    found = links.stretches(np.tile([0, 1], (len(x), 1)))
    off = np.abs(np.abs(3.8 + shift) - 3.8), np.abs(np.abs(3.8 - shift) - 3.8)
    np.testing.assert_allclose(found, np.broadcast_to([[0, off[0]], [off[1], 0]], (5, 2, 2)), atol=1e-12)


def test_residues_that_are_not_seen_give_their_neighbours_slack():
    chain, x = straight()
    seen = np.delete(x, 2, axis=0)
    links = chain.links(seen, 1.0, [lambda x: x, lambda x: x + [5.0, 0, 0]])
    assert [tuple(pair) for pair in links.pairs] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    np.testing.assert_allclose(links.slack, [0, 3.8, 0, 0])
    np.testing.assert_allclose(links.stretches(np.tile([0, 1], (5, 1)))[:, 0, 1], [5.0, 1.2, 5.0, 5.0])


def test_density_far_from_the_model_has_no_residue():
    chain, x = straight()
    assert list(chain.residues_at(x + [0, 1, 0], 2.0)) == [*range(6)]
    assert list(chain.residues_at(x + [0, 3, 0], 2.0)) == [-1] * 6
