"""Makes the reference results beside it that tests/test_reference.py compares with.

python tests/reference/make.py

To be run, and its changes read, where a change of the fit is meant; never to make a test pass.
"""

import json
from pathlib import Path

import jax
import numpy as np

from cryotrans_jax.core.flow import Field
from cryotrans_jax.core.velocity import Velocity
from cryotrans_jax.density import similarity, simulation
from cryotrans_jax.density.demo import hinge_pair
from cryotrans_jax.fit import prepare, schedule
from cryotrans_jax.fit.options import Resolutions
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.fit.stage import Config, Stage
from cryotrans_jax.fit.terms import Matched
from cryotrans_jax.io import atoms

PATH = Path(__file__).with_name("fit.json")
RESOLUTION, VOXEL = 12.0, np.array([5.0, 5.5, 6.0])  # Å
CONFIG = Config((Stage((Matched(),), 24, 3e-3, 3e-4),), Field(Velocity(width=16, centre=0.5), 4), seed=3)


def measured() -> dict:
    """Losses and scores of a fit of 24 steps of the built-in pair at 12 Å, and of its two maps."""
    start, end = hinge_pair()
    grid = simulation.common_grid([start, end], VOXEL, RESOLUTION, padding=6.0)
    initial, target = (simulation.simulate_map(model, *grid, RESOLUTION) for model in (start, end))
    problem = prepare.prepare(initial, [target], Resolutions(RESOLUTION, [RESOLUTION]))
    fitting = schedule.run(schedule.Fitting.begin(problem, CONFIG))
    threshold = problem.report["initial"]["threshold"]
    params = jax.tree.map(np.asarray, fitting.state.params)
    fit = Fit(CONFIG, CONFIG.field, params, problem.frame, threshold, initial=initial)
    displacement = np.linalg.norm(atoms.positions(fit.move(start)) - atoms.positions(start), axis=-1)
    return {
        "shape": list(initial.density.shape),
        "mass": float(initial.density.sum(dtype=np.float64)),
        "threshold": float(threshold),
        "correlation_before": float(similarity.correlation(initial.density, target.density)),
        "losses": fitting.history[0][:, 0].tolist(),
        "displacement_rms": float(np.sqrt(np.mean(displacement**2))),
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(measured(), indent=1) + "\n")
    print(PATH)
