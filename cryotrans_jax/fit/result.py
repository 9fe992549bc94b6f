"""The result of a fit: it makes frames and carries models."""

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import overload

import gemmi
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from cryotrans_jax.core.flow import FieldMotion, Scalar
from cryotrans_jax.core.grid import Frame
from cryotrans_jax.density.align import Alignment
from cryotrans_jax.density.outliers import without_outliers
from cryotrans_jax.fit import strain, trajectory
from cryotrans_jax.fit.record import from_plain, plain_values, to_plain
from cryotrans_jax.fit.stage import Config
from cryotrans_jax.fit.target_flow import Flow
from cryotrans_jax.io import atoms, checkpoints
from cryotrans_jax.io.checkpoints import from_numbered, to_numbered
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.maps import Map, MapLike, as_map, describe, same_grid
from cryotrans_jax.motion.partition import Partition
from cryotrans_jax.motion.still import ALIGNED, StillBody

RENDERS = "pull_back", "splat"  # ways to make frames: keep the detail, or the mass


@dataclass(frozen=True, repr=False, eq=False)  # hashed by identity, so that JAX can compile its functions
class Fit:
    """Result of a fit: the velocity fields that carry the initial map onto each target.

    In all methods `target` is the number of the target, from 0. Maps, models and positions are in the frame in which
    the target's `still` body stays where the initial map has it, at all times. Methods that need the initial map raise
    InputError if the fit was loaded without it.

    Attributes:
        config: schedule and network; `target_steps` of a stage are those of all targets of the call to `morph`.
        field: the motion by one velocity field, with waypoints and symmetry.
        params: parameters of the fields, with a leading axis of targets, and a second one of parts where there are
            parts.
        frame: the unit box.
        threshold: the initial map's.
        history: for each stage the losses (steps, targets).
        report: thresholds, blurs and other values that were chosen by rule.
        partitions: for each target its parts; empty: one field for the whole.
        initial: the initial map; None in a fit that was loaded without it.
        alignments: how each target is placed on the initial map in the frame of the result: as `morph` aligned it, and
            by the inverse of the still body's motion.
        failed: for each target why it was given up ("" for the others), in which case its parameters are of no use;
            empty: none was.
        still: for each target the body that stays still in its result; empty: the frame is the alignment's, in which
            the flow was fitted.
    """

    config: Config
    field: FieldMotion
    params: PyTree
    frame: Frame
    threshold: float
    history: tuple[np.ndarray, ...] = ()
    report: dict | None = None
    partitions: tuple[Partition, ...] = ()
    initial: Map | None = None
    alignments: tuple[Alignment, ...] = ()
    failed: tuple[str, ...] = ()
    still: tuple[StillBody, ...] = ()

    def __repr__(self) -> str:
        """Summary of the fit in a few lines."""
        count, stages = len(jax.tree.leaves(self.params)[0]), self.config.stages
        plural = "s" * (count > 1)
        lines = [f"Fit of {count} target{plural}: {len(stages)} stages of {sum(s.steps for s in stages)} steps at most"]
        grid = "not there" if self.initial is None else describe(self.initial)
        lines.append(f"initial map: {grid}; moved where above {self.threshold:.4g}")
        for target in range(count):
            parts = self.partition(target)
            facts = [self.alignments[target].summary] if self.alignments else []
            facts += [f"{parts.count} parts" if parts else "one flow for all"]
            facts += [f"last loss {self.history[-1][-1, target]:.4g}"] if self.history else []
            facts += [f"frame in which {self.still[target].text}"] if self.flow(target).still.present else []
            facts += [f"given up: {self.failed[target]}"] if self.failed and self.failed[target] else []
            lines.append(f"target {target}: {'; '.join(facts)}")
        return "\n  ".join(lines)

    def target_params(self, target: int) -> PyTree:
        """Parameters for one target."""
        return jax.tree.map(lambda p: p[target], self.params)

    def flow(self, target: int = 0) -> Flow:
        """A target's flow as one value."""
        still = self.still[target] if self.still else ALIGNED
        return Flow(self.field, self.target_params(target), self.frame, self.partition(target), still)

    def partition(self, target: int = 0) -> Partition | None:
        """Parts of a target's flow; None where it is one field."""
        return self.partitions[target] if self.partitions else None

    def select(self, targets: Sequence[int]) -> "Fit":
        """The same fit with the targets of these numbers, in this order; `report` still describes all."""
        chosen = list(targets)
        params = jax.tree.map(lambda p: p[chosen], self.params)
        history = tuple(losses[:, chosen] for losses in self.history)
        partitions = tuple(self.partitions[target] for target in chosen) if self.partitions else ()
        alignments = tuple(self.alignments[target] for target in chosen) if self.alignments else ()
        failed = tuple(self.failed[target] for target in chosen) if self.failed else ()
        still = tuple(self.still[target] for target in chosen) if self.still else ()
        return replace(
            self,
            params=params,
            history=history,
            partitions=partitions,
            alignments=alignments,
            failed=failed,
            still=still,
        )

    def require_initial(self) -> Map:
        """The initial map; raises InputError if the fit was loaded without it."""
        if self.initial is None:
            raise InputError("the fit was loaded without its initial map: load it as Fit.load(path, initial)")
        return self.initial

    def frames(self, times: int | trajectory.Times = 11, target: int = 0, render: str | None = None) -> Iterator[Map]:
        """Maps of the pseudo-trajectory, one after the other, on the initial map's grid (paper, eq. 7).

        Args:
            times: from 0 to 1; or a number of equally spaced frames, from the initial map to the end.
            target: number of the target.
            render: "pull_back", which keeps the detail, or "splat", which keeps the mass (paper, eq. 6); None: as the
                recipe has it.

        Raises:
            InputError: times or `render` are invalid.
        """
        render = render or self.config.render
        if render not in RENDERS:
            raise InputError(f"frames cannot be made by {render!r}: choose one of {', '.join(RENDERS)}")
        times = trajectory.as_times(times)
        start = self.flow(target), self.require_initial(), self.threshold, times
        if render == "splat":
            return trajectory.push_forward(*start)
        return trajectory.pull_back(*start, self.config.pull_back)

    def generated(self, target: int = 0, render: str | None = None) -> Map:
        """The generated map: the initial map carried to the target's conformation, which is the last frame."""
        return next(self.frames([1.0], target, render))

    def consistency(self, target: int = 0) -> float:
        """RMS distance (Å) of density from its start after it was carried to the end and back."""
        return trajectory.consistency(self.flow(target), self.require_initial(), self.threshold)

    def spread(self, others: Sequence["Fit"], target: int = 0) -> tuple[Map, np.ndarray]:
        """How far apart (Å) this fit and others from other seeds carry the same density; see `trajectory.spread`.

        All are compared in frames in which the body stays still that does in this fit.
        """
        flows, still = [fit.flow(target).aligned for fit in (self, *others)], self.flow(target).still
        if still.present:
            body = still.path[0], still.mass, still.text
            flows = [replace(flow, still=trajectory.follow(flow, *body)) for flow in flows]
        carries = [partial(trajectory.move, flow) for flow in flows]
        return trajectory.spread(carries, self.frame, self.require_initial(), self.threshold)

    @overload
    def move(self, model: gemmi.Structure, times: None = None, target: int = 0) -> gemmi.Structure: ...

    @overload
    def move(self, model: gemmi.Structure, times: int | trajectory.Times, target: int = 0) -> list[gemmi.Structure]: ...

    def move(
        self, model: gemmi.Structure, times: int | trajectory.Times | None = None, target: int = 0
    ) -> gemmi.Structure | list[gemmi.Structure]:
        """Carry the initial state's model, atom by atom.

        Args:
            model: in the initial map's frame.
            times: as for `frames`; None: the end.
            target: number of the target. With parts, each atom moves by the field of its residue's part.

        Returns:
            The carried model, or with `times` a list of models.
        """
        if times is None:
            return self.move(model, [1.0], target)[0]
        parts = self.partition(target)
        part = None if parts is None else parts.of_atoms(model)
        each = trajectory.move(self.flow(target), atoms.positions(model), trajectory.as_times(times), part)
        return [atoms.with_positions(model, at) for at in each]

    def carry(self, xyz: np.ndarray, times: int | trajectory.Times, target: int = 0) -> np.ndarray:
        """Carry positions by the flow.

        Args:
            xyz: positions (n, 3), Å.
            times: as for `frames`.
            target: number of the target.

        Returns:
            Positions (times, n, 3), Å.
        """
        return trajectory.move(self.flow(target), xyz, trajectory.as_times(times))

    def __call__(
        self, x: Float[Array | np.ndarray, "*points 3"], t: Scalar = 1.0, target: int = 0
    ) -> Float[Array, "*points 3"]:
        """Positions (Å) to which the flow carries x (Å) by time t, as a pure function for JAX; see `carry`."""
        return self.flow(target).position(jnp.asarray(x), t)

    def velocity(
        self, x: Float[Array | np.ndarray, "*points 3"], t: Scalar = 0.0, target: int = 0
    ) -> Float[Array, "*points 3"]:
        """Velocity at positions x (Å) and time t, in Å per unit time, as a pure function for JAX.

        It is that of the network, less the rigid-body motion of the still body; both in the frame of the result.
        """
        return self.flow(target).velocity(jnp.asarray(x), t)

    def volume_change(self, xyz: np.ndarray, target: int = 0) -> np.ndarray:
        """Factor by which the flow changes volume at positions xyz (n, 3) in Å; at or below 0 the flow folds."""
        return strain.volume_change(self.flow(target), xyz)

    def stretched_fraction(self, target: int = 0) -> float:
        """Fraction of the carried mass that the flow extends or compresses by more than a quarter."""
        return strain.stretched_fraction(self.flow(target), self.require_initial(), self.threshold)

    def parts_map(self, target: int = 0) -> Map:
        """Label map: the part (1, 2, ...) of each voxel that is carried, 0 elsewhere; 1 where there are no parts."""
        initial, parts = self.require_initial(), self.partition(target)
        skin = self.config.pull_back.skin
        carried = trajectory.soft_support(initial.density, self.threshold, initial.voxel_size, skin) > 0
        if parts is None:
            parts = Partition(np.ones(carried.shape, np.int16), initial.voxel_size, initial.origin)
        return parts.to_map(carried)

    def save(self, path: str | os.PathLike) -> None:
        """Save the fit, without the initial map, for `Fit.load(path, initial)`."""
        described = {
            "config": to_plain(self.config),
            "field": to_plain(self.field),
            "corner": self.frame.corner.tolist(),
            "edge": self.frame.edge,
            "threshold": float(self.threshold),
            "report": plain_values(self.report),
            "grids": plain_values([(each.voxel_size, each.origin) for each in self.partitions]),
            "alignments": plain_values([each.to_plain() for each in self.alignments]),
            "failed": self.failed,
            "still": [each.text for each in self.still],
        }
        if self.initial is not None:
            shape, size, origin = self.initial.density.shape, self.initial.voxel_size, self.initial.origin
            described["grid"] = plain_values({"shape": shape, "voxel_size": size, "origin": origin})
        arrays = {
            "params": self.params,
            "labels": to_numbered(each.labels for each in self.partitions),
            "history": to_numbered(self.history),
            "still_path": to_numbered(each.path for each in self.still),
            "still_mass": to_numbered(each.mass for each in self.still),
        }
        checkpoints.save(path, arrays, described)

    @classmethod
    def load(cls, path: str | os.PathLike, initial: MapLike | None = None) -> "Fit":
        """Load the fit saved under `path`.

        Args:
            path: the checkpoint's folder.
            initial: the initial map; without it only atoms can be moved.

        Raises:
            FileNotFoundError: there is no fit.
            InputError: the checkpoint is damaged, or the map is not on the grid of the initial one.
        """
        arrays, saved = checkpoints.restore(path)
        with checkpoints.version_errors(path, "a fit"):
            return cls._of(arrays, saved, None if initial is None else read_repaired(initial), path)

    @classmethod
    def _of(cls, arrays: dict, saved: dict, initial: Map | None, path: str | os.PathLike) -> "Fit":
        """The fit with these arrays and this description, read from `path`."""
        if initial and (grid := saved.get("grid")):
            original = Map(np.broadcast_to(0.0, grid["shape"]), grid["voxel_size"], grid["origin"])
            if difference := same_grid(initial, original):
                raise InputError(f"the map is not that of the fit under {path} ({difference}): give its initial map")
        labels = zip(from_numbered(arrays["labels"]), saved["grids"], strict=True)
        still = arrays.get("still_path", {}), arrays.get("still_mass", {})  # a fit of before is in its own frame
        return cls(
            config=from_plain(saved["config"]),
            field=from_plain(saved["field"]),
            params=arrays["params"],
            frame=Frame(np.array(saved["corner"]), saved["edge"]),
            threshold=saved["threshold"],
            history=from_numbered(arrays["history"]),
            report=saved["report"],
            partitions=tuple(Partition(each, *map(np.array, grid)) for each, grid in labels),
            initial=initial,
            alignments=tuple(Alignment.from_plain(each) for each in saved["alignments"]),
            failed=tuple(saved["failed"]),
            still=tuple(map(StillBody, saved.get("still", ()), *map(from_numbered, still))),
        )


def read_repaired(given: MapLike) -> Map:
    """The given map, or that of the file, without outliers; warns of those found."""
    map_, outliers = without_outliers(as_map(given))
    if outliers is not None:
        warnings.warn(f"{outliers}: each is set to the median of the voxels around it", stacklevel=3)
    return map_
