"""Lower bound on the time of a computation on a device: operations / peak rate, and bytes / bandwidth."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

# float32 operations a second outside the tensor cores, and bytes a second, as stated by the makers
PEAKS = {
    "NVIDIA H200": (67e12, 4.8e12),
    "NVIDIA H100 80GB HBM3": (67e12, 3.35e12),
    "NVIDIA A100-SXM4-80GB": (19.5e12, 2.04e12),
    "NVIDIA A100-SXM4-40GB": (19.5e12, 1.56e12),
    "NVIDIA L4": (30.3e12, 0.3e12),
    "NVIDIA GeForce RTX 4090": (82.6e12, 1.01e12),
    "Tesla V100-SXM2-16GB": (15.7e12, 0.9e12),
    "Tesla T4": (8.1e12, 0.32e12),
}


class Cost(NamedTuple):
    """Floating-point operations (a transcendental function counts as one) and bytes read and written."""

    operations: float
    bytes: float

    def add(self, other: "Cost", times: float = 1.0) -> "Cost":
        """Sum of this and `times` the other."""
        return Cost(self.operations + times * other.operations, self.bytes + times * other.bytes)

    def seconds(self, peaks: tuple[float, float]) -> float:
        """Least time (s) at the peak rate and bandwidth, if both are reached at once."""
        return max(self.operations / peaks[0], self.bytes / peaks[1])


def cost(function: Callable, *arguments) -> Cost:
    """Cost of the compiled function by XLA's cost analysis, with loops.

    That analysis counts the body of a loop once; here each body is also compiled separately and counted as often as it
    runs. A loop whose number of rounds is known only at run time counts as one round.
    """
    return _cost(jax.make_jaxpr(function)(*arguments), {})


def _cost(jaxpr: core.ClosedJaxpr, known: dict[str, Cost]) -> Cost:
    """Cost with loops; `known` caches the cost of bodies by their text."""
    total = _counted_once(jaxpr, known)
    for body, rounds in _loops(jaxpr.jaxpr):
        total = total.add(_cost(body, known), rounds).add(_counted_once(body, known), -1)
    return total


def _counted_once(jaxpr: core.ClosedJaxpr, known: dict[str, Cost]) -> Cost:
    """Cost by XLA's own count."""
    text = str(jaxpr)
    if text not in known:
        shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in jaxpr.jaxpr.invars]
        analysis = jax.jit(core.jaxpr_as_fun(jaxpr)).lower(*shapes).compile().cost_analysis()
        analysis = analysis[0] if isinstance(analysis, list) else analysis
        operations = analysis.get("flops", 0.0) + analysis.get("transcendentals", 0.0)
        known[text] = Cost(max(operations, 0.0), max(analysis.get("bytes accessed", 0.0), 0.0))
    return known[text]


def _loops(jaxpr: core.Jaxpr):
    """Yield body and number of rounds of each outermost loop."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation.params["jaxpr"], equation.params["length"]
        elif equation.primitive.name != "while":
            for value in equation.params.values():
                if isinstance(value, core.ClosedJaxpr):
                    yield from _loops(value.jaxpr)
                elif isinstance(value, core.Jaxpr):
                    yield from _loops(value)


def peaks(operations: float | None, bandwidth: float | None) -> tuple[float, float, str]:
    """Peak rates of this device: as given, else from the table, else measured by a matrix product and a copy.

    Args:
        operations: operations a second; None if not given.
        bandwidth: bytes a second; None if not given.

    Returns:
        Operations a second, bytes a second, and the source of the figures.
    """
    kind = jax.devices()[0].device_kind
    known = PEAKS.get(kind)
    if operations and bandwidth:
        return operations, bandwidth, "as given"
    if known:
        return operations or known[0], bandwidth or known[1], f"as stated for {kind}"
    square, long = jnp.ones((2048, 2048)), jnp.ones(2**26)
    reached = (
        2 * 2048**3 / _least(lambda a: a @ a, square),
        8 * 2**26 / _least(lambda a: a + 1, long),
    )
    return operations or reached[0], bandwidth or reached[1], f"measured on {kind}"


def _least(function: Callable, argument) -> float:
    """Seconds of the fastest of five calls."""
    compiled = jax.jit(function)
    jax.block_until_ready(compiled(argument))
    spent = []
    for _ in range(5):
        begin = time.perf_counter()
        jax.block_until_ready(compiled(argument))
        spent.append(time.perf_counter() - begin)
    return float(np.min(spent))
