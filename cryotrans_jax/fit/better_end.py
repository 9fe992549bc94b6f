"""Keep the start where the end is no better: an action after the last stage."""

from dataclasses import dataclass, replace

import jax
import numpy as np
from jaxtyping import Float

from cryotrans_jax.density.problem import Problem
from cryotrans_jax.fit.devices import losses_of
from cryotrans_jax.fit.schedule import Fitting
from cryotrans_jax.fit.stage import Action, Stage, stage_inputs
from cryotrans_jax.fit.state import failed_targets, where_target


@dataclass(frozen=True)
class KeepStart(Action):
    """Give the initial map back unmoved to targets that the carried map fits no better.

    The stages may weigh down mass that the target does not have, and so end with a small loss where hardly any mass is
    left that counts. Here all mass counts.

    Attributes:
        gain: fraction of the initial map's loss by which a flow has to reduce it.
    """

    gain: float = 0.02

    def __call__(self, fitting: Fitting) -> Fitting:
        """Compare each target's end with its start."""
        state, stage = fitting.state, fitting.config.stages[fitting.state.stage]
        still = jax.tree.map(np.zeros_like, jax.device_get(state.params))  # a field of no weights moves nothing
        start, end = (
            data_losses(replace(fitting, state=state._replace(params=params)), fitting.problem, stage)
            for params in (still, state.params)
        )
        worse = ~(end < (1 - self.gain) * start) & ~failed_targets(state)
        for target in np.flatnonzero(worse[: fitting.targets]):
            fitting.callbacks.on_setback(
                int(target),
                f"no motion was found that fits the target better than the initial map does as it is (loss "
                f"{start[target]:.3g} before, {end[target]:.3g} after): the map is given back unmoved",
            )
        return replace(fitting, state=state._replace(params=where_target(worse, still, state.params)))


def data_losses(fitting: Fitting, problem: Problem, stage: Stage) -> Float[np.ndarray, "targets"]:
    """How unlike each target the carried map is: `stage_losses` by the terms of the stage that compare."""
    return stage_losses(fitting, problem, replace(stage, terms=tuple(term for term in stage.terms if term.matches)))


def stage_losses(fitting: Fitting, problem: Problem, stage: Stage) -> Float[np.ndarray, "targets"]:
    """The loss of each target by the terms of a stage, with all its mass.

    Args:
        fitting: the fit, with its parameters.
        problem: the prepared maps, divided into the parts that the parameters are for.
        stage: the stage.
    """
    return np.asarray(losses_of(fitting.state.params, stage_inputs(problem, fitting.field, stage), fitting.layout))
