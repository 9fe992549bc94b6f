"""Progress of a fit: a bar where there is a terminal or a notebook, and lines that a log can hold elsewhere."""

import functools
import sys
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np

EVERY = 10.0  # seconds between lines in a log
P = ParamSpec("P")
Fitted = TypeVar("Fitted")
Told = Callable[[Any, int, int, np.ndarray], object]  # called with config, stage, steps done of it, and last losses


class Progress:
    """Called by `morph` every few steps; a context manager that closes the bar."""

    def __init__(self):
        """Nothing is shown before the first call."""
        self.bar, self.begin, self.told, self.first = None, time.perf_counter(), 0.0, None

    def __enter__(self):
        """Itself."""
        return self

    def __exit__(self, kind, *_):
        """Nothing; the bar is closed, and full unless something was raised: stages may end before their last step."""
        if self.bar is not None:
            self.bar.update(0 if kind else self.bar.total - self.bar.n)
            self.bar.close()

    def __call__(self, config, stage: int, step: int, losses: np.ndarray) -> None:
        """Nothing; shows that `step` steps of a stage are done, with the last losses."""
        now, total = time.perf_counter(), sum(s.steps for s in config.stages)
        done = sum(s.steps for s in config.stages[:stage]) + step
        name = f"stage {stage + 1}/{len(config.stages)} {config.stages[stage].loss}"
        sound = losses[-1][np.isfinite(losses[-1])]  # others are told of by themselves
        loss = f"loss {sound.mean() if sound.size else np.nan:.4g}"
        self.first = done - len(losses) if self.first is None else self.first  # where a fit that was stopped goes on
        if sys.stderr.isatty() or in_notebook():
            from tqdm.auto import tqdm  # the notebook's kind, or the terminal's

            self.bar = self.bar or tqdm(total=total, unit="step", dynamic_ncols=True)
            self.bar.set_description(name, refresh=False)
            self.bar.set_postfix_str(loss, refresh=False)
            self.bar.update(done - self.bar.n)
        elif now - self.told > EVERY or done == total or step == config.stages[stage].steps:
            self.told = now
            left = (now - self.begin) * (total - done) / max(done - self.first, 1)
            message = f"{name} step {step}/{config.stages[stage].steps} {loss} about {left:.0f} s left"
            print(message, file=sys.stderr, flush=True)


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    kernels = sys.modules.get("ipykernel.kernelapp")
    return kernels is not None and kernels.IPKernelApp.initialized()


def shown(fitting: Callable[P, Fitted]) -> Callable[P, Fitted]:
    """The function, with a `Progress` that is closed at the end where it is called with `progress=True`."""

    @functools.wraps(fitting)
    def told(*args: P.args, **kwargs: P.kwargs) -> Fitted:
        if kwargs.get("progress") is not True:
            return fitting(*args, **kwargs)
        with Progress() as kwargs["progress"]:
            return fitting(*args, **kwargs)

    return told
