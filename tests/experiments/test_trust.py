"""The verdict as a sentence, with the doubtful residues."""

import numpy as np
import pytest

from cryotrans_jax.fit.errors import Errors
from cryotrans_jax.io import atoms
from cryotrans_jax.io.maps import read_map
from cryotrans_jax.scores.confidence import Evidence
from experiments import trust


def errors_of(model, error):
    """Predicted errors of points of mass at the atoms of a model."""
    xyz, error = atoms.positions(model), np.asarray(error, float)
    none = Evidence(*(np.ones(len(xyz)) for _ in Evidence._fields))
    return Errors(xyz, xyz, np.ones(len(xyz)), error, error < 5, none)


@pytest.mark.parametrize(
    "error, kind, words",
    [
        ([0.3] * 16, "found", "motion found: predicted error 0.3 Å (median), 90 % of the molecule within"),
        ([0.3] * 15 + [20.0], "partly found", "6 % is probably more than 3 Å from its place (A:16)"),
        (
            [200.0] * 8 + [0.3] * 8,
            "not found",
            "motion probably not found: about 50 % of the molecule is",
        ),
    ],
)
def test_the_verdict_and_its_residues(tmp_path, maps, models, error, kind, words):
    found = trust.write(errors_of(models[0], error), models[0], maps[0], tmp_path)
    assert found["verdict"] == kind and words in found["verdict_text"]
    assert found["doubtful"] == found["unsupported"] == pytest.approx(np.mean(np.array(error) > 5))
    assert found["predicted_error"] == np.median(error)
    assert found["doubtful_residues"] == {"found": [], "partly found": ["A:16"], "not found": ["A:1-8"]}[kind]
    shown = read_map(tmp_path / "error.mrc")
    assert shown.density.shape == maps[0].density.shape and shown.density.max() == pytest.approx(max(error), rel=0.1)


def test_without_a_model_the_verdict_names_no_residues(tmp_path, maps, models):
    found = trust.write(errors_of(models[0], [0.3] * 15 + [20.0]), None, maps[0], tmp_path)
    assert found["doubtful_residues"] == [] and found["verdict_text"].endswith("from its place")


def test_many_doubtful_places_are_counted(tmp_path, maps, models):
    """Each other residue of one atom: more runs than a sentence has room for."""
    model = models[0]
    error = np.where(np.isin(np.arange(16), [0, 2, 4, 6, 8, 10, 12]), 6.0, 0.2)
    named = trust.doubtful_residues(errors_of(model, error), trust.judge(error, np.ones(16)), model)
    assert named == [f"A:{k}" for k in (1, 3, 5, 7, 9, 11, 13)]
    text = trust.in_words(trust.judge(error, np.ones(16))._replace(kind="partly found"), named)
    assert text.endswith("(A:1, A:3, A:5, A:7, A:9, A:11 and 1 more)")
