"""How functions become programs: `jax.jit`, told to compile quickly where that is worth more than what it costs."""

import functools
from collections.abc import Callable
from typing import Any

import jax

# By `jax.default_backend`. On a CPU: XLA's older way of making loops, which compiles in two thirds of the time into
# steps that are no slower. On a GPU: no kernel is chosen by timing it, and none is written where cuBLAS has one,
# which halves a whole run in which nothing is compiled yet.
COMPILER_OPTIONS = {
    "cpu": {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1},
    "gpu": {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False},
}


@functools.cache
def compiler_options() -> dict[str, Any] | None:
    """What XLA is told on this kind of device (QUICK); None on others, and for an XLA that knows no such options."""
    quick = COMPILER_OPTIONS.get(jax.default_backend())
    if quick is None:
        return None
    try:
        jax.jit(lambda: 0, compiler_options=quick).lower().compile()
    except Exception:  # whatever an XLA to come has to say to options that it no longer has
        return None
    return quick


class Program:
    """A function compiled by `jax.jit` with these settings and `options`, the first time that it is called.

    Not before, as that would take hold of the devices. It is for calls from Python: within another program the
    function itself belongs.
    """

    def __init__(self, function: Callable, **settings: Any):
        """Nothing is compiled yet."""
        functools.update_wrapper(self, function)
        self.function, self.settings = function, settings

    @functools.cached_property
    def jitted(self) -> Any:
        """What `jax.jit` makes of the function."""
        return jax.jit(self.function, compiler_options=compiler_options(), **self.settings)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """What the function gives."""
        return self.jitted(*arguments, **named)

    def lower(self, *arguments: Any, **named: Any) -> Any:
        """The program for arguments such as these, to be compiled by its `compile()`."""
        return self.jitted.lower(*arguments, **named)


def program(function: Callable | None = None, **settings: Any) -> Any:
    """A decorator as `jax.jit` is, and with the same settings, that makes a `Program`."""
    return functools.partial(Program, **settings) if function is None else Program(function, **settings)
