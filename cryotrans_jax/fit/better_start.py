"""Keep the better of two starts: an action after the first stage."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from cryotrans_jax.core.batch import Batch
from cryotrans_jax.core.losses import Term
from cryotrans_jax.core.train import carry
from cryotrans_jax.fit.schedule import Fitting, first_state
from cryotrans_jax.fit.stage import Action, Stage
from cryotrans_jax.fit.state import failed_targets, lower_losses, where_target, with_starts
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.programs import program


@dataclass(frozen=True)
class KeepBetterStart(Action):
    """Try another first stage for targets whose flow is torn, and keep what the next stage makes more of.

    A flow is torn if it cannot follow the correspondences (parts that look alike, too much noise). The next stage's
    loss after some steps decides.

    Attributes:
        other: the other first stage.
        distance: mass that ends further from its match than this many times the reach is misplaced.
        mass: fraction of misplaced mass from which on a flow is torn; 0: the other start is tried for every target.
        trial_steps: steps of the next stage that decide.
    """

    other: Stage
    distance: float = 3.0
    mass: float = 0.02
    trial_steps: int = 50

    def scaled(self, factor: float) -> "KeepBetterStart":
        """The action with `factor` times the steps of the other stage."""
        return replace(self, other=self.other.scaled(factor))

    def __call__(self, fitting: Fitting) -> Fitting:
        """Choose a start for each target; the others keep theirs, as they would alone."""
        assert fitting.inputs is not None
        doubted = np.asarray(misplaced_fraction(fitting.state.params, fitting.inputs, self.distance)) >= self.mass
        return self.choose(fitting, doubted) if doubted.any() else fitting

    def choose(self, fitting: Fitting, doubted: np.ndarray) -> Fitting:
        """Choose a start for the targets that are doubted (bool)."""
        state, following = fitting.state, fitting.next_stage
        trial = replace(following.shortened(self.trial_steps), patience=0)
        other = first_state(fitting.problem, fitting.config, fitting.field)
        ((other, _),) = fitting.try_stage(self.other, [other])
        ends = [losses[-1] for _, losses in fitting.try_anew(trial, (state, other))]
        better = doubted & lower_losses(*ends) & ~failed_targets(other)
        chosen = state._replace(params=where_target(better, other.params, state.params))
        first = fitting.config.stages[0].label
        return replace(fitting, state=with_starts(chosen, better, self.other.label, first))


@program(static_argnames="distance")
def misplaced_fraction(params: PyTree, batch: Batch, distance: float) -> Float[Array, "targets"]:
    """For each target, the fraction of the mass that the flow leaves far from its ends, at the worst of the times."""

    def of_terms(params: PyTree, own: list) -> Float[Array, ""]:
        scene, terms = batch.join(batch.shared, own)
        return correspondences(terms).misplaced(carry(params, scene), distance)

    return jax.vmap(of_terms)(params, batch.own)


def correspondences(terms: Sequence[Term]):
    """The term among these that knows where points belong; raise InputError if there is none."""
    for term in terms:
        if hasattr(term, "misplaced"):
            return term
    raise InputError(
        "KeepBetterStart follows a stage without correspondences: put it after a stage with the term Correspondences"
    )
