"""The table of domains: axes by a known rotation, hinges where the chain passes from one body to another."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryotrans_jax.density.transform import Transform
from cryotrans_jax.fit.errors import Errors
from cryotrans_jax.io.chain import Chain
from cryotrans_jax.scores.confidence import Evidence
from experiments import domains


@pytest.mark.parametrize("angle, along", [(30.0, 0.0), (179.0, 4.0), (90.0, -7.0)])
def test_the_axis_is_that_about_which_a_body_was_turned(angle, along):
    """A turn about a line, and a shift along it: points on the line move along it alone."""
    direction, point = np.array([1.0, 2.0, -2.0]) / 3, np.array([10.0, -3.0, 40.0])
    rotation = Rotation.from_rotvec(np.radians(angle) * direction).as_matrix()
    found = domains.axis_of(Transform(rotation, point - rotation @ point + along * direction))
    np.testing.assert_allclose(found["axis"], direction, atol=1e-9)
    at = np.array(found["axis_point"])
    assert at @ direction == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(np.cross(at - point, direction), 0, atol=1e-6)


def test_what_hardly_turns_has_no_axis():
    assert domains.axis_of(Transform(np.eye(3), np.array([5.0, 0.0, 0.0]))) == {}


def test_hinges_are_the_joined_residues_on_both_sides_of_a_border(models):
    """A chain of 16 residues with a gap after the tenth, where no hinge is."""
    model = models[0].clone()
    for residue in list(model[0][0])[10:]:
        residue.seqid.num += 5
    chain = Chain.of(model)
    own = np.isin(np.arange(16), [3, 4, 5, 6, 10, 11])
    found = np.flatnonzero(domains.hinges(model, chain, own))
    np.testing.assert_array_equal(found, [2, 3, 6, 7, 11, 12])


def test_errors_of_a_body_are_its_masses_and_turn_it_at_its_radius():
    points = np.array([[2.0, 0, 0], [-2.0, 0, 0], [0, 2.0, 0], [0, -2.0, 0], [50.0, 0, 0]])
    error, mass = np.array([1.0, 1.0, 1.0, 1.0, 9.0]), np.ones(5)
    none = Evidence(*(np.ones(5) for _ in Evidence._fields))
    errors = Errors(points, points, mass, error, error < 5, none)
    found = domains.errors_of(errors, error < 5)
    assert found["error"] == pytest.approx(1.0)
    assert found["turn_error"] == pytest.approx(np.degrees(np.arctan2(1.0, 2.0)))
    assert domains.errors_of(errors, error > 10) == {}
