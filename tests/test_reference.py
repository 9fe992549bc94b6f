"""The results are those of the day on which they were stored, on any machine and with any version of what is used.

`python tests/reference/make.py` made them.
"""

import json

import numpy as np
import pytest
from reference.make import CONFIG, PATH, measured


@pytest.fixture(scope="module")
def pair():
    """What is measured now, and what was stored."""
    return measured(), json.loads(PATH.read_text())


def test_maps_and_threshold_are_the_stored_ones(pair):
    """Sums in double precision of densities in single: their last digits, 6e-8 each, depend on the processor."""
    now, then = pair
    assert now["shape"] == then["shape"]
    for name in ("mass", "threshold", "correlation_before"):
        assert now[name] == pytest.approx(then[name], rel=1e-5)


def test_losses_are_the_stored_ones(pair):
    """Another order of additions in single precision changes a gradient by some 1e-6 of it; Adam, which divides by the
    gradient's size, makes of that a like part of each step, and 24 steps add up to less than 1e-3 of the loss.
    """
    now, then = pair
    assert len(now["losses"]) == len(then["losses"]) == CONFIG.stages[0].steps
    np.testing.assert_allclose(now["losses"][0], then["losses"][0], rtol=1e-5)  # before any step
    np.testing.assert_allclose(now["losses"], then["losses"], rtol=2e-3)
    assert then["losses"][-1] < then["losses"][0]


def test_the_motion_is_the_stored_one(pair):
    """The parameters follow the losses; of the motion, whose square the loss is, the tolerance is larger by as much."""
    now, then = pair
    assert now["displacement_rms"] == pytest.approx(then["displacement_rms"], rel=1e-2)
