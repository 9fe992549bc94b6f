"""The whole way as one function: two maps in, a fit out, from which frames and moved models are had."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import gemmi
import jax
import numpy as np
from jaxtyping import PyTree

from cryotrans_jax import atoms, checkpoints, prepare, recipes, train, trajectory
from cryotrans_jax.files import InputError
from cryotrans_jax.maps import Map, same_grid


@dataclass(frozen=True)
class Fit:
    """Velocity fields that carry one initial map onto each of its targets, and what is needed to use them.

    `params` have a leading axis of targets; `threshold` is the initial map's; `history` holds, for each stage, the
    losses (steps, targets); `report` what was chosen by rule.
    """

    config: train.Config
    params: PyTree
    frame: prepare.Frame
    threshold: float
    history: tuple[np.ndarray, ...] = ()
    report: dict | None = None

    def of(self, target: int) -> PyTree:
        """The parameters for one target."""
        return jax.tree.map(lambda p: p[target], self.params)

    def select(self, targets: Sequence[int]) -> "Fit":
        """The same fit with the targets of these numbers, in this order; `report` still tells of all."""
        chosen = list(targets)
        params = jax.tree.map(lambda p: p[chosen], self.params)
        return replace(self, params=params, history=tuple(losses[:, chosen] for losses in self.history))

    def frames(
        self, initial: Map, times: trajectory.Times, target: int = 0, render: str = "pull_back"
    ) -> Iterator[Map]:
        """Maps at the times (0 to 1), on the initial map's grid, by "pull_back" (sharp) or "splat" (keeps mass)."""
        how = {"pull_back": trajectory.pull_back, "splat": trajectory.push_forward}[render]
        return how(self.config, self.of(target), self.frame, initial, self.threshold, times)

    def spread(self, others: Sequence["Fit"], initial: Map, target: int = 0) -> tuple[Map, np.ndarray]:
        """How far apart (Å) this fit and others from other seeds carry the same density: `trajectory.spread`."""
        each = [fit.of(target) for fit in (self, *others)]
        return trajectory.spread(self.config, each, self.frame, initial, self.threshold)

    def move(self, model: gemmi.Structure, times: trajectory.Times, target: int = 0) -> list[gemmi.Structure]:
        """Models at the times, each atom carried by the flow."""
        xyz = trajectory.move(self.config, self.of(target), self.frame, atoms.positions(model), times)
        return [atoms.moved(model, at) for at in xyz]

    def save(self, path) -> None:
        """Nothing; `Fit.load(path)` gives this fit back, without its history."""
        described = {
            "config": asdict(self.config),
            "corner": self.frame.corner.tolist(),
            "edge": self.frame.edge,
            "threshold": self.threshold,
        }
        checkpoints.save(path, self.params, described)

    @classmethod
    def load(cls, path) -> "Fit":
        """The fit saved under `path`. Raises FileNotFoundError where there is none."""
        params, saved = checkpoints.restore(path)
        settings = saved["config"]
        stages = tuple(train.Stage(**stage) for stage in settings.pop("stages"))
        rival = train.Stage(**rival) if (rival := settings.pop("rival", None)) else None
        return cls(
            config=train.Config(stages=stages, rival=rival, **settings),
            params=params,
            frame=prepare.Frame(np.array(saved["corner"]), saved["edge"]),
            threshold=saved["threshold"],
        )


def morph(
    initial: Map,
    targets: Map | Sequence[Map],
    recipe: str = "default",
    *,
    seed: int = 0,
    steps: float = 1.0,
    initial_threshold: float | None = None,
    target_threshold: float | None = None,
    initial_resolution: float | None = None,
    target_resolution: float | Sequence[float | None] | None = None,
    bin: int = 1,
    share: Sequence[int] | None = None,
    progress: Any = None,
    spread: train.Spread | None = None,
    prepared: Callable[[dict], None] = lambda report: None,
) -> Fit:
    """A fit of the flow that carries `initial` onto each of the targets, all on one grid.

    `recipe` is "default" or "paper"; `steps` multiplies every stage's number of steps; thresholds are densities
    and resolutions Å, both chosen or estimated where they are None; `bin` is for the paper's recipe.
    `share` are the numbers of the targets to fit (None: all), which the fit then holds alone, in that order; the crop,
    the contour levels and the schedule are those for all, so that parts fitted apart are parts of one fit.
    `progress(config, stage, step, losses)` is called every few steps. Several targets are shared by all devices of
    this host, or as `spread` says. `prepared(report)` is told the contour levels before the first step.

    Raises InputError where the grids differ, nothing is above a threshold, or there is no such recipe or target.
    """
    if recipe not in recipes.RECIPES:
        raise InputError(f"there is no recipe {recipe!r}: choose one of {', '.join(recipes.RECIPES)}")
    if bin != 1 and recipe != "paper":
        raise InputError(f"bin={bin} is for the recipe paper: the recipe {recipe} chooses its own")
    targets = [targets] if isinstance(targets, Map) else list(targets)
    for target in targets:
        if difference := same_grid(initial, target):
            raise InputError(
                f"the initial and the target map lie on different grids ({difference}): bring the target onto the "
                "initial map's first, with align.onto"
            )
    share = [*range(len(targets))] if share is None else [*share]
    if not share or not set(share) <= set(range(len(targets))):
        raise InputError(f"share={share} names no targets, or others than the {len(targets)} given, counted from 0")
    count, spread = len(share), spread or train.Spread.automatic(len(share))
    given = isinstance(target_resolution, list | tuple)
    resolutions = target_resolution if given else [target_resolution] * len(targets)
    problem = prepare.prepare(
        initial,
        targets,
        initial_threshold=initial_threshold,
        target_threshold=target_threshold,
        initial_resolution=initial_resolution,
        target_resolutions=resolutions,
        whole_box=recipe == "paper",
    )
    variances = {"blur_variance": problem.blurs.tolist(), "quieting_variance": problem.quieting.tolist()}
    report = problem.report | variances
    prepared(report)
    if recipe == "paper":
        known = initial_resolution and resolutions[0]
        config = recipes.paper(problem, seed, bin, (initial_resolution, resolutions[0]) if known else None)
    else:
        config = recipes.default(problem, seed)
    rival = train.scaled((config.rival,), steps)[0] if config.rival else None
    config = replace(config, stages=train.scaled(config.stages, steps), rival=rival)
    call = (lambda *at: progress(config, *at)) if progress else (lambda *at: None)
    rows = share + share[-1:] * (-count % spread.devices)  # copies fill up the last devices
    state, history = train.fit(problem.select(rows), config, progress=call, spread=spread)
    how, rivals = ("correspondences", "transport"), state.rivals[:count] or (config.stages[0].loss == "w2",) * count
    return Fit(
        config=config,
        params=jax.tree.map(lambda p: np.asarray(p)[:count], state.params),
        frame=problem.frame,
        threshold=problem.report["initial"]["threshold"],
        history=tuple(losses[:, :count] for losses in history),
        report=report | {"start": [how[rival] for rival in rivals]},
    )
