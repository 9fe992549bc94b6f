"""Predicted errors rise with the evidence against a place, and a verdict says what share of the molecule is wrong."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from cryotrans_jax.scores.confidence import FOUND, LOST, PARTLY, ErrorModel, Evidence, VerdictRules, judge

MODEL = ErrorModel()
EVIDENCE = Evidence(*(np.array([0.5, 1.0]) for _ in Evidence._fields))


@pytest.mark.parametrize("name", Evidence._fields)
def test_more_evidence_of_an_error_never_predicts_a_smaller_one(name):
    more = EVIDENCE._replace(**{name: 3 * getattr(EVIDENCE, name)})
    assert (MODEL.predict(more) >= MODEL.predict(EVIDENCE)).all()
    assert all(power >= 0 for power in MODEL.powers)


def test_errors_are_powers_of_the_evidence_between_what_counts_at_least_and_at_most():
    model = replace(MODEL, scale=2.0, powers=(1.0, 0.5, 0.0, 0.0, 1.0, 0.0), least=(0.75, *5 * (0.1,)), most=(9.0,) * 6)
    np.testing.assert_allclose(model.predict(EVIDENCE), [2 * 0.75 * 0.5**0.5 * 0.5, 2.0])
    low = replace(model, most=(0.8, *5 * (9.0,)))
    np.testing.assert_allclose(low.predict(EVIDENCE), [2 * 0.75 * 0.5**0.5 * 0.5, 1.6])


def test_no_error_is_predicted_smaller_than_was_measured():
    tiny = Evidence(*(np.full(2, 1e-9) for _ in Evidence._fields))
    np.testing.assert_array_equal(replace(MODEL, scale=1e-3).predict(tiny), MODEL.smallest)


def test_bounds_hold_more_places_the_wider_they_are():
    fractions, factors = zip(*MODEL.factors, strict=True)
    assert list(fractions) == sorted(fractions) and list(factors) == sorted(factors)
    assert MODEL.within(0.68) == 1.0
    with pytest.raises(KeyError):
        MODEL.within(0.123)


def test_the_chance_to_be_further_off_is_that_of_a_lognormal_distribution():
    error, limit = np.array([0.5, 2.0, 8.0]), 3.0
    median = error * MODEL.within(0.5)
    expected = stats.lognorm(MODEL.spread, scale=median).sf(limit)
    np.testing.assert_allclose(MODEL.chance_beyond(error, limit), expected, rtol=1e-6)
    assert MODEL.chance_beyond(np.array([limit / MODEL.within(0.5)]), limit)[0] == pytest.approx(0.5)


@pytest.mark.parametrize("wrong, kind", [(0.0, FOUND), (0.05, PARTLY), (0.6, LOST)])
def test_the_verdict_is_of_the_share_of_the_mass_that_is_wrong(wrong, kind):
    mass = np.ones(1000)
    error = np.where(np.arange(1000) < 1000 * wrong, 50.0, 0.2)
    found = judge(error, mass)
    assert found.kind == kind
    np.testing.assert_array_equal(found.doubtful, error > 1)
    assert found.wrong == pytest.approx(wrong, abs=0.01) and found.error == pytest.approx(np.median(error))


def test_a_tenth_of_the_mass_is_expected_beyond_the_reach():
    """Of equal places it is the bound of a lognormal distribution; of two kinds it is that of their mixture."""
    same = judge(np.full(10, 0.8), np.ones(10))
    median = 0.8 * MODEL.within(0.5)
    assert same.reach == pytest.approx(stats.lognorm(MODEL.spread, scale=median).ppf(0.9), rel=0.02)
    error, mass = np.array([0.5, 6.0]), np.array([3.0, 1.0])
    mixed = judge(error, mass)
    assert np.average(MODEL.chance_beyond(error, mixed.reach), weights=mass) == pytest.approx(0.1, abs=0.005)


def test_light_places_hardly_count():
    error, rules = np.array([50.0, 0.2]), VerdictRules()
    assert judge(error, np.array([1e-6, 1.0])).kind == FOUND
    assert judge(error, np.array([1.0, 1e-6])).kind == LOST
    assert judge(error, np.array([2 * rules.few, 1 - 2 * rules.few])).kind == PARTLY
