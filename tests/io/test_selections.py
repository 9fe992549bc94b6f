"""Selections name residues, and are named by them."""

import numpy as np

from cryotrans_jax.io import selections


def test_names_of_residues_select_them_again(models):
    """Runs of a chain are named as such, and one residue by its number; nothing is named of none."""
    model = models[0].clone()
    other = model[0][0].clone()
    other.name = "B"
    model[0].add_chain(other)
    chosen = np.zeros(32, bool)
    chosen[[0, 1, 2, 5, 15, 16, 31]] = True
    names = selections.name_residues(model, chosen)
    assert names == ["A:1-3", "A:6", "A:16", "B:1", "B:16"]
    assert selections.select_each(model, ",".join(names), "the test") == set(np.flatnonzero(chosen))
    assert selections.name_residues(model, np.zeros(32, bool)) == []
