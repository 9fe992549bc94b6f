"""The training step for many targets: across devices, in batches on each device, as memory allows."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from cryotrans_jax.core.batch import Batch
from cryotrans_jax.core.train import objective, optimise
from cryotrans_jax.fit.optimisers import Optimiser
from cryotrans_jax.io import memory
from cryotrans_jax.io.files import InputError
from cryotrans_jax.io.programs import program

MEMORY_RESERVE = 0.2  # fraction of an accelerator's memory for what XLA does not count, and for the other stages' maps


@dataclass(frozen=True)
class DeviceLayout:
    """How a function of one target is applied to all: across devices, and in batches on each device.

    Attributes:
        mesh: has one axis, "targets", whose devices share the targets evenly (the number of targets must be a multiple
            of theirs); None: everything runs on the default device.
        batch: targets computed at once on a device; None: all of them, or as many as fit into `memory`. 1 is fastest on
            a CPU, as many as fit into memory on a GPU.
        memory: bytes that a device can hold; None: unknown.
    """

    mesh: jax.sharding.Mesh | None = None
    batch: int | None = None
    memory: int | None = None

    @classmethod
    def automatic(cls, targets: int) -> "DeviceLayout":
        """Share targets over all devices of this host: as many at once as memory holds, one where that is unknown."""
        devices = jax.local_devices()
        mesh = jax.sharding.Mesh(np.array(devices), ("targets",)) if min(len(devices), targets) > 1 else None
        limits = [(device.memory_stats() or {}).get("bytes_limit") or 0 for device in devices]
        return cls(mesh, None, min(limits)) if all(limits) else cls(mesh, 1)

    @property
    def devices(self) -> int:
        """Number of devices that share the targets."""
        return 1 if self.mesh is None else self.mesh.size

    def map(self, function: Callable, shared: PyTree, each: PyTree) -> PyTree:
        """function(shared, one) for every target; leaves of `each` and of the result have a leading axis of targets."""
        if self.mesh is None:
            return self.map_on_device(function, shared, each)
        along, whole = jax.sharding.PartitionSpec("targets"), jax.sharding.PartitionSpec()
        local = partial(self.map_on_device, function)
        sharded = jax.shard_map(local, mesh=self.mesh, in_specs=(whole, along), out_specs=along, check_vma=False)
        return sharded(shared, each)

    def map_on_device(self, function: Callable, shared: PyTree, each: PyTree) -> PyTree:
        """`map` on one device."""
        count = jax.tree.leaves(each)[0].shape[0]
        if self.batch == 1:  # also for a single target: a batch of one is slower to trace, and no faster to run
            return jax.lax.map(partial(function, shared), each)
        if self.batch is None or self.batch >= count:
            return jax.vmap(partial(function, shared))(each)
        return jax.lax.map(partial(function, shared), each, batch_size=self.batch)


@program(static_argnames="layout")
def train_steps(
    count: Int[Array, ""],
    rates: Float[Array, "targets most"],
    left: Float[Array, "targets"],
    params: PyTree,
    optimiser: Optimiser,
    batch: Batch,
    layout: DeviceLayout = DeviceLayout(),
) -> tuple[PyTree, Optimiser, Float[Array, "targets most"], Float[Array, "targets"]]:
    """Run steps of the optimiser for every target in one compiled loop; see `core.train.optimise`.

    Args:
        count: number of steps, at most the number of columns of `rates`.
        rates: learning rates.
        left: fraction of the stage's annealing that is left.
        params: parameters of the motions.
        optimiser: the optimiser and its states.
        batch: (scene, terms) of each target.
        layout: how targets are laid out over devices.

    Returns:
        Parameters, the optimiser's states, the loss of each step, and the largest error of a term.
    """

    def steps(shared, one):
        count, leaves = shared
        *state, own = one
        return optimise(count, *state, *batch.join(leaves, own))

    return layout.map(steps, (count, batch.shared), (rates, left, params, optimiser, batch.own))


@program(static_argnames="layout")
def losses_of(params: PyTree, batch: Batch, layout: DeviceLayout = DeviceLayout()) -> Float[Array, "targets"]:
    """The loss of every target."""

    def loss(leaves, one):
        params, own = one
        return objective(params, *batch.join(leaves, own))[0]

    return layout.map(loss, batch.shared, (params, batch.own))


def targets_at_once(limit: float, fixed: float, per_target: float, targets: int) -> int:
    """Number of targets for which `fixed` and `per_target` bytes fit into `limit`, with MEMORY_RESERVE left."""
    free = (1 - MEMORY_RESERVE) * limit - fixed
    if not free > per_target:  # true also where a need is unknown (nan)
        return 1
    return min(targets, int(free / per_target)) if per_target > 0 else targets


def memory_needed(layout: DeviceLayout, *call) -> tuple[float, float]:
    """Memory of `train_steps(*call, layout)` on a device, by XLA's count.

    Returns:
        Bytes of arguments and results, and of working space. Infinite where the program is too large to be compiled,
        nan where XLA does not say.
    """
    try:
        return compiled_memory(train_steps.compile(*call, layout))
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return math.inf, math.inf


def compiled_memory(compiled: Any) -> tuple[float, float]:
    """`memory_needed` of a compiled program."""
    analysis = compiled.memory_analysis()
    argument, output, alias, temporary = (
        float(getattr(analysis, f"{kind}_size_in_bytes", math.nan)) for kind in ("argument", "output", "alias", "temp")
    )
    return argument + output - alias, temporary


def fit_to_memory(layout: DeviceLayout, *call) -> DeviceLayout:
    """Reduce the layout's batch until `train_steps(*call, layout)` fits into `layout.memory`.

    All targets at once are tried first: this costs only the compilation that is needed anyway. Otherwise the need of
    each target is the difference between programs for two and for one.
    """
    if layout.memory is None:
        return layout
    whole_batch = replace(layout, memory=None)
    count_of_steps, *each, batch = call
    count = len(each[0]) // layout.devices

    def subset(n: int) -> tuple:
        few = partial(jax.tree.map, lambda a: jax.ShapeDtypeStruct((n, *a.shape[1:]), a.dtype))
        return count_of_steps, *few(each), batch.replace(own=few(batch.own))

    if count == 1 or sum(memory_needed(whole_batch, *call)) < (1 - MEMORY_RESERVE) * layout.memory:
        return whole_batch
    one, two = (memory_needed(DeviceLayout(), *subset(n)) for n in (1, 2))
    resident, working = two[0] - one[0], two[1] - one[1]
    fixed = one[0] + (count - 1) * resident + one[1] - working
    size = targets_at_once(float(layout.memory), fixed, working, count)
    while size > 1 and not sum(memory_needed(replace(whole_batch, batch=size), *call)) < (
        (1 - MEMORY_RESERVE) * layout.memory
    ):
        size //= 2  # the loop over batches needs some memory as well
    return replace(whole_batch, batch=size)


def check_memory(stage: int, required: float, layout: DeviceLayout) -> None:
    """Raise InputError if a stage's steps need more bytes than the device has, or than this machine has left.

    Memory that this process holds already counts as left: earlier stages give it back.
    """
    free, where = memory.available() + memory.resident(), "the machine"
    if layout.memory is not None:
        free, where = layout.memory, "the device"
    if required > free:  # false where XLA does not say (nan)
        wider = (required / free) ** (1 / 3)
        raise InputError(
            f"stage {stage + 1} needs {required / 2**30:.1f} GiB and {where} has {free / 2**30:.1f} GiB: use voxels "
            f"{wider:.2f} times as wide, crop the maps to the molecule, or use a larger bin with the recipe paper"
        )
