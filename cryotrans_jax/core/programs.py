"""Compile functions by `jax.jit`, with options for quick compilation where these save more than they cost."""

import functools
from collections.abc import Callable
from typing import Any

import jax

# By `jax.default_backend`. CPU: the older loop emitter compiles in two thirds of the time, and steps are no slower.
# GPU: without autotuning and generated matrix products, a run with nothing compiled takes half the time.
COMPILER_OPTIONS = {
    "cpu": {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 1},
    "gpu": {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False},
}


@functools.cache
def compiler_options() -> dict[str, Any] | None:
    """XLA's options for this kind of device; None for other devices, and for an XLA without these options."""
    quick = COMPILER_OPTIONS.get(jax.default_backend())
    try:
        jax.jit(lambda: 0, compiler_options=quick).lower().compile()
    except Exception:  # a future XLA may reject options in any way
        return None
    return quick


class Program:
    """A function that is compiled by `jax.jit` with these settings and `compiler_options` when it is first called.

    It is not compiled before, as that would initialise the devices. It is for calls from Python: inside another program
    use the function itself.
    """

    def __init__(self, function: Callable, **settings: Any):
        """Wrap the function; nothing is compiled yet."""
        functools.update_wrapper(self, function)
        self.function, self.settings = function, settings

    @functools.cached_property
    def jitted(self) -> Any:
        """The function after `jax.jit`."""
        return jax.jit(self.function, compiler_options=compiler_options(), **self.settings)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the compiled function."""
        return self.jitted(*arguments, **named)

    def lower(self, *arguments: Any, **named: Any) -> Any:
        """Lower the program for arguments of these shapes; its `compile()` compiles it."""
        return self.jitted.lower(*arguments, **named)


def program(function: Callable | None = None, **settings: Any) -> Any:
    """Decorator like `jax.jit`, with the same settings, that makes a `Program`."""
    return functools.partial(Program, **settings) if function is None else Program(function, **settings)


def mapped(function: Callable, each: Any) -> Any:
    """function of each row of some arrays, inside a program: in turn on a CPU, at once on an accelerator."""
    return jax.lax.map(function, each) if jax.default_backend() == "cpu" else jax.vmap(function)(each)
