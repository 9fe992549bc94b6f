"""Snapshots: everything needed to resume a fit, as one value and as one orbax checkpoint."""

import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PyTree

from cryotrans_jax.fit.optimisers import Optimiser
from cryotrans_jax.fit.record import from_plain, to_plain
from cryotrans_jax.fit.state import State, Watch, begin_optimiser
from cryotrans_jax.io import checkpoints
from cryotrans_jax.io.checkpoints import from_numbered, to_numbered
from cryotrans_jax.motion.partition import Partition

WATCH = ("best", "stale", "skipped", "scores", "slowed")


@dataclass(frozen=True)
class Snapshot:
    """State of a fit from which it can be resumed.

    Attributes:
        state: of the trainer.
        history: the losses (steps, targets) of each stage so far.
        partitions: for each target the parts that the state's fields move; empty before they are found.
        bodies_rms: for each target the RMS deviations (Å) from rigid-body motion with one body, two and so on; empty
            before they are found.
        finished: whether the fit has ended.
    """

    state: State
    history: tuple[Float[np.ndarray, "_ _"], ...] = ()
    partitions: tuple[Partition, ...] = ()
    bodies_rms: tuple[tuple[float, ...], ...] = ()
    finished: bool = False

    def save(self, path: str | os.PathLike, described: dict[str, Any] | None = None) -> None:
        """Save the snapshot with a description (plain JSON values) for `Snapshot.load(path)`."""
        state, watch = self.state, self.state.watch
        arrays = {
            "params": state.params,
            "optimiser": to_numbered(jax.tree.leaves(state.optimiser)),
            "watch": {name: getattr(watch, name) for name in WATCH} | ({"kept": watch.kept} if watch.kept else {}),
            "history": to_numbered(self.history),
            "labels": to_numbered(smallest_type(each.labels) for each in self.partitions),
        }
        plain = {
            "optimiser": to_plain(state.optimiser.settings),
            "stage": state.stage,
            "step": state.step,
            "starts": [*state.starts],
            "refined": state.refined,
            "setbacks": [*state.setbacks],
            "failed": [*state.failed],
            "kept": watch.kept is not None,
            "grids": [[each.voxel_size.tolist(), each.origin.tolist()] for each in self.partitions],
            "label_types": [str(each.labels.dtype) for each in self.partitions],
            "bodies_rms": self.bodies_rms,
            "finished": self.finished,
        }
        checkpoints.save(path, jax.device_get(arrays), {"fit": plain, "described": described or {}})

    @classmethod
    def load(cls, path: str | os.PathLike) -> tuple["Snapshot", dict[str, Any]]:
        """Load the snapshot saved under `path`, and its description.

        Raises:
            FileNotFoundError: there is none.
            InputError: it is damaged, or of another version.
        """
        arrays, saved = checkpoints.restore(path)
        with checkpoints.version_errors(path, "a state of a fit"):
            return cls._of(arrays, saved["fit"]), saved["described"]

    @classmethod
    def _of(cls, found: PyTree, plain: dict[str, Any]) -> "Snapshot":
        """The snapshot with these arrays and plain values."""
        watch = found["watch"]
        state = State(
            params=found["params"],
            optimiser=optimiser_state(plain["optimiser"], found["params"], from_numbered(found["optimiser"])),
            stage=plain["stage"],
            step=plain["step"],
            watch=Watch(**{name: watch[name] for name in WATCH}, kept=watch["kept"] if plain["kept"] else None),
            starts=tuple(plain["starts"]),
            refined=plain["refined"],
            setbacks=tuple(plain["setbacks"]),
            failed=tuple(plain["failed"]),
        )
        labels = zip(from_numbered(found["labels"]), plain["label_types"], plain["grids"], strict=True)
        partitions = tuple(Partition(a.astype(kind), *map(np.array, grid)) for a, kind, grid in labels)
        rms = tuple(map(tuple, plain["bodies_rms"]))
        history = from_numbered(found["history"])
        return cls(state, history, partitions, rms, plain["finished"])


def optimiser_state(settings: Any, params: PyTree, leaves: tuple[np.ndarray, ...]) -> Optimiser:
    """State of an optimiser, whose settings are JSON values, with these arrays."""
    structure = jax.tree.structure(jax.eval_shape(partial(begin_optimiser.function, from_plain(settings)), params))
    return jax.tree.unflatten(structure, leaves)


def smallest_type(labels: np.ndarray) -> np.ndarray:
    """The labels in the smallest integer type that holds them."""
    return labels.astype(np.min_scalar_type(int(labels.max())))
