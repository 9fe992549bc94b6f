"""Keep the start where the end is no better: an action after the last stage."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
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
    left that counts. Here all mass counts. With half-maps the comparison is with the second ones, which no gradient
    has seen.

    Attributes:
        gain: fraction of the initial map's loss by which a flow has to reduce it.
    """

    gain: float = 0.02

    def __call__(self, fitting: Fitting) -> Fitting:
        """Compare each target's end with its start."""
        state, stage = fitting.state, fitting.config.stages[fitting.state.stage]
        still = jax.tree.map(jnp.zeros_like, state.params)  # a field of no weights moves nothing
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
    """How unlike each target the carried map is, by the terms of a stage that compare, with all its mass.

    With half-maps the comparison is with the second ones, which no gradient sees.

    Args:
        fitting: the fit, with its parameters.
        problem: the prepared maps, divided into the parts that the parameters are for.
        stage: the stage.
    """
    matching = tuple(term for term in stage.terms if term.matches)
    inputs = stage_inputs(problem, fitting.field, replace(stage, terms=matching))
    return np.asarray(losses_of(fitting.state.params, inputs.validation or inputs.steps, fitting.layout))


def whole_losses(fitting: Fitting, stage: Stage) -> Float[np.ndarray, "targets"]:
    """The loss of each target by a stage, with all mass: `data_losses`, and the terms that do not compare."""
    losses, others = data_losses(fitting, fitting.problem, stage), tuple(t for t in stage.terms if not t.matches)
    if others:
        inputs = stage_inputs(fitting.problem, fitting.field, replace(stage, terms=others))
        losses = losses + np.asarray(losses_of(fitting.state.params, inputs.steps, fitting.layout))
    return losses
