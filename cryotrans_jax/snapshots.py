"""All that it takes to go on with a fit that stopped, as one value, and as one orbax checkpoint."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, PyTree

from cryotrans_jax import checkpoints, train
from cryotrans_jax.partition import Partition

ADAM = ("count", "mu", "nu")  # the parts of its state
WATCH = ("best", "stale", "skipped", "scores", "slowed")


@dataclass(frozen=True)
class Snapshot:
    """Where a fit stands: the trainer's state, and the losses (steps, targets) of each stage so far.

    `partitions` are the parts that the state's fields move, one for each target, and `bodies_rms` what was found when
    they were sought, both empty before that.
    """

    state: train.State
    history: tuple[Float[np.ndarray, "_ _"], ...] = ()
    partitions: tuple[Partition, ...] = ()
    bodies_rms: tuple[tuple[float, ...], ...] = ()
    finished: bool = False

    def save(self, path: str | os.PathLike, described: dict[str, Any] | None = None) -> None:
        """Nothing; `Snapshot.load(path)` gives this one back. The description (plain JSON values) goes with it."""
        state, watch = self.state, self.state.watch
        arrays = {
            "params": state.params,
            "optimiser": {name: getattr(state.optimiser, name) for name in ADAM},
            "watch": {name: getattr(watch, name) for name in WATCH} | ({"kept": watch.kept} if watch.kept else {}),
            "scores": numbered(state.scores),
            "history": numbered(self.history),
            "labels": numbered(small(each.labels) for each in self.partitions),
        }
        plain = {
            "stage": state.stage,
            "step": state.step,
            "rivals": [*state.rivals],
            "window": state.window,
            "setbacks": [*state.setbacks],
            "failed": [*state.failed],
            "kept": watch.kept is not None,
            "grids": [[each.voxel_size.tolist(), each.origin.tolist()] for each in self.partitions],
            "label_types": [str(each.labels.dtype) for each in self.partitions],
            "bodies_rms": self.bodies_rms,
            "finished": self.finished,
        }
        full, empty = parted(jax.device_get(arrays))
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
        plain, found = described["fit"], joined(full, described["empty"])
        watch = found["watch"]
        state = train.State(
            params=found["params"],
            optimiser=type(train.ADAM.init({}))(**found["optimiser"]),
            stage=plain["stage"],
            step=plain["step"],
            watch=train.Watch(**{name: watch[name] for name in WATCH}, kept=watch["kept"] if plain["kept"] else None),
            rivals=tuple(plain["rivals"]),
            scores=in_order(found.get("scores", {})),
            window=plain["window"],
            setbacks=tuple(plain["setbacks"]),
            failed=tuple(plain["failed"]),
        )
        labels = zip(in_order(found.get("labels", {})), plain["label_types"], plain["grids"], strict=True)
        partitions = tuple(Partition(a.astype(kind), *map(np.array, grid)) for a, kind, grid in labels)
        rms = tuple(map(tuple, plain["bodies_rms"]))
        history = in_order(found.get("history", {}))
        return cls(state, history, partitions, rms, plain["finished"])


class Recorder:
    """Collects the losses of a fit as it goes on, and hands on a snapshot after every chunk of steps."""

    def __init__(self, begun: Snapshot | None = None, keep: Callable[[Snapshot], None] | None = None):
        """From where `begun` stands."""
        self.chunks: dict[int, list[np.ndarray]] = {n: [a] for n, a in enumerate(begun.history)} if begun else {}
        self.partitions, self.bodies_rms = (begun.partitions, begun.bodies_rms) if begun else ((), ())
        self.keep = keep

    def __call__(self, state: train.State, losses: np.ndarray) -> None:
        """Nothing; the losses (steps, targets) of a chunk are those of the state's stage."""
        self.chunks.setdefault(state.stage, []).append(losses)
        if self.keep:
            self.keep(self.snapshot(state))

    def snapshot(self, state: train.State) -> Snapshot:
        """Where the fit stands with this state."""
        return Snapshot(state, self.history, self.partitions, self.bodies_rms)

    @property
    def history(self) -> tuple[np.ndarray, ...]:
        """The losses (steps, targets) of each stage."""
        return tuple(np.concatenate(self.chunks[stage]) for stage in sorted(self.chunks))


def numbered(arrays: Iterator | tuple) -> dict[str, Any]:
    """A dict of the arrays whose keys sort in their order."""
    return {f"{number:03d}": array for number, array in enumerate(arrays)}


def in_order(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """The arrays of such a dict."""
    return tuple(arrays[key] for key in sorted(arrays))


def small(labels: np.ndarray) -> np.ndarray:
    """Labels in as few bytes as hold them."""
    return labels.astype(np.min_scalar_type(int(labels.max())))


def parted(tree: PyTree, path: tuple[str, ...] = ()) -> tuple[dict, list]:
    """The nested dict without its arrays of no size, which orbax does not take, and those: path, shape, type."""
    full: dict[str, Any] = {}
    empty: list[list] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            inside, none = parted(value, (*path, key))
            full, empty = full | ({key: inside} if inside else {}), empty + none
        elif np.size(value):
            full[key] = np.asarray(value)
        else:
            empty.append([[*path, key], list(np.shape(value)), str(np.asarray(value).dtype)])
    return full, empty


def joined(full: PyTree, empty: list) -> dict:
    """The nested dict that was parted so."""
    for path, shape, kind in empty:
        place = full
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = np.zeros(shape, kind)
    return full
