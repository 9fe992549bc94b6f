"""Show the progress of a fit: a bar in a terminal or a notebook, lines in a log."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

EVERY = 10.0  # seconds between lines in a log
ProgressCallback = Callable[[Any, int, int, np.ndarray], object]  # config, stage, steps of it done, last losses


class Progress:
    """Callback of `morph`, called every few steps; as a context manager it closes the bar."""

    def __init__(self):
        """Show no bar before the first call."""
        self.bar, self.begin, self.printed, self.first = None, time.perf_counter(), 0.0, None

    def __enter__(self):
        """Return this object."""
        return self

    def __exit__(self, kind, *_):
        """Close the bar, filled unless an error was raised: stages may end before their last step."""
        if self.bar is not None:
            self.bar.update(0 if kind else self.bar.total - self.bar.n)
            self.bar.close()

    def __call__(self, config, stage: int, step: int, losses: np.ndarray) -> None:
        """Show the progress.

        Args:
            config: of the fit.
            stage: index of the current stage.
            step: number of steps of the stage that are done.
            losses: the last losses, of each step and target.
        """
        now, total = time.perf_counter(), sum(s.steps for s in config.stages)
        done = sum(s.steps for s in config.stages[:stage]) + step
        name = f"stage {stage + 1}/{len(config.stages)} {config.stages[stage].label}"
        finite = losses[-1][np.isfinite(losses[-1])]  # `train` reports targets that diverged
        loss = f"loss {finite.mean() if finite.size else np.nan:.4g}"
        self.first = done - len(losses) if self.first is None else self.first  # not 0 in a resumed fit
        if sys.stderr.isatty() or in_notebook():
            from tqdm.auto import tqdm  # for a notebook or a terminal

            self.bar = self.bar or tqdm(total=total, unit="step", dynamic_ncols=True)
            self.bar.set_description(name, refresh=False)
            self.bar.set_postfix_str(loss, refresh=False)
            self.bar.update(done - self.bar.n)
        elif now - self.printed > EVERY or done == total or step == config.stages[stage].steps:
            self.printed = now
            left = (now - self.begin) * (total - done) / max(done - self.first, 1)
            message = f"{name}, step {step}/{config.stages[stage].steps}: {loss}, about {left:.0f} s left"
            print(message, file=sys.stderr, flush=True)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    kernels = sys.modules.get("ipykernel.kernelapp")
    return kernels is not None and kernels.IPKernelApp.initialized()


@contextlib.contextmanager
def reporting(progress: bool | ProgressCallback) -> Iterator[ProgressCallback]:
    """The function to call after every chunk of steps: the given one, or for True a bar that is closed at the end."""
    if progress is True:
        with Progress() as bar:
            yield bar
    else:
        yield progress if callable(progress) else lambda config, stage, step, losses: None
