"""Snapshots: everything needed to resume a fit, as one value and as one orbax checkpoint."""

import os
from collections.abc import Iterable
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
            "scores": to_numbered(state.scores),
            "history": to_numbered(self.history),
            "labels": to_numbered(smallest_type(each.labels) for each in self.partitions),
        }
        plain = {
            "optimiser": to_plain(state.optimiser.settings),
            "stage": state.stage,
            "step": state.step,
            "rivals": [*state.rivals],
            "refined": state.refined,
            "setbacks": [*state.setbacks],
            "failed": [*state.failed],
            "kept": watch.kept is not None,
            "grids": [[each.voxel_size.tolist(), each.origin.tolist()] for each in self.partitions],
            "label_types": [str(each.labels.dtype) for each in self.partitions],
            "bodies_rms": self.bodies_rms,
            "finished": self.finished,
        }
        full, empty = split_empty(jax.device_get(arrays))
        checkpoints.save(path, full, {"fit": plain, "empty": empty, "told": described or {}})

    @classmethod
    def load(cls, path: str | os.PathLike) -> tuple["Snapshot", dict[str, Any]]:
        """Load the snapshot saved under `path`, and its description.

        Raises:
            FileNotFoundError: there is none.
            InputError: it is damaged, or of another version.
        """
        full, described = checkpoints.restore(path)
        with checkpoints.version_errors(path, "a state of a fit"):
            return cls._of(full, described), described["told"]

    @classmethod
    def _of(cls, full: PyTree, described: dict[str, Any]) -> "Snapshot":
        """The snapshot with these arrays and this description."""
        plain, found = described["fit"], join_empty(full, described["empty"])
        watch = found["watch"]
        state = State(
            params=found["params"],
            optimiser=optimiser_state(plain["optimiser"], found["params"], from_numbered(found.get("optimiser", {}))),
            stage=plain["stage"],
            step=plain["step"],
            watch=Watch(**{name: watch[name] for name in WATCH}, kept=watch["kept"] if plain["kept"] else None),
            rivals=tuple(plain["rivals"]),
            scores=from_numbered(found.get("scores", {})),
            refined=plain["refined"],
            setbacks=tuple(plain["setbacks"]),
            failed=tuple(plain["failed"]),
        )
        labels = zip(from_numbered(found.get("labels", {})), plain["label_types"], plain["grids"], strict=True)
        partitions = tuple(Partition(a.astype(kind), *map(np.array, grid)) for a, kind, grid in labels)
        rms = tuple(map(tuple, plain["bodies_rms"]))
        history = from_numbered(found.get("history", {}))
        return cls(state, history, partitions, rms, plain["finished"])


def optimiser_state(settings: Any, params: PyTree, leaves: tuple[np.ndarray, ...]) -> Optimiser:
    """State of an optimiser, whose settings are JSON values, with these arrays."""
    structure = jax.tree.structure(jax.eval_shape(partial(begin_optimiser.function, from_plain(settings)), params))
    return jax.tree.unflatten(structure, leaves)


def to_numbered(arrays: Iterable) -> dict[str, Any]:
    """A dict of the arrays whose keys sort in their order."""
    return {f"{number:03d}": array for number, array in enumerate(arrays)}


def from_numbered(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """The arrays of a dict from `to_numbered`."""
    return tuple(arrays[key] for key in sorted(arrays))


def smallest_type(labels: np.ndarray) -> np.ndarray:
    """The labels in the smallest integer type that holds them."""
    return labels.astype(np.min_scalar_type(int(labels.max())))


def split_empty(tree: PyTree, path: tuple[str, ...] = ()) -> tuple[dict, list]:
    """Split a nested dict into the arrays that orbax takes, and those of size 0 as (path, shape, type)."""
    full: dict[str, Any] = {}
    empty: list[list] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            inside, none = split_empty(value, (*path, key))
            full, empty = full | ({key: inside} if inside else {}), empty + none
        elif np.size(value):
            full[key] = np.asarray(value)
        else:
            empty.append([[*path, key], list(np.shape(value)), str(np.asarray(value).dtype)])
    return full, empty


def join_empty(full: PyTree, empty: list) -> dict:
    """Undo `split_empty`."""
    for path, shape, kind in empty:
        place = full
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = np.zeros(shape, kind)
    return full
