"""Compile functions by `jax.jit`, with options for quick compilation where these save more than they cost."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import export

from cryotrans_jax.io import exported

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
    """A function that is compiled by `jax.jit` with `compiler_options` when it is first called.

    It is not compiled before, as that would initialise the devices. It is for calls from Python: inside another program
    use the function itself. Commands keep what they traced for later runs (`io.exported`).
    """

    def __init__(self, function: Callable, static_argnames: str | Sequence[str] = ()):
        """Wrap the function, whose arguments of these names are settings; nothing is compiled yet."""
        functools.update_wrapper(self, function)
        self.function, self.signature = function, inspect.signature(function)
        self.static = (static_argnames,) if isinstance(static_argnames, str) else tuple(static_argnames)

    @functools.cached_property
    def jitted(self) -> Any:
        """The function after `jax.jit`."""
        return jax.jit(self.function, static_argnames=self.static, compiler_options=compiler_options())

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the compiled function."""
        if (kept := exported.in_use()) is None:
            return self.jitted(*arguments, **named)
        leaves, compiled, result = self.look_up(kept, arguments, named)
        return result.unflatten(compiled(leaves))

    def compile(self, *arguments: Any, **named: Any) -> Any:
        """Compile the program for arguments of these shapes, for the next call; return what JAX says of it."""
        if (kept := exported.in_use()) is None:
            return self.lower(*arguments, **named).compile()
        return self.look_up(kept, arguments, named)[1]

    def lower(self, *arguments: Any, **named: Any) -> Any:
        """Lower the program for arguments of these shapes, as `jax.jit` does."""
        return self.jitted.lower(*arguments, **named)

    def look_up(self, kept: exported.Folder, arguments: tuple, named: dict[str, Any]) -> tuple[list, Any, Any]:
        """Find the program for the shapes of some arguments: compiled before, kept, or traced now.

        Returns:
            The arrays among the arguments, the compiled program, which takes and returns such lists, and the structure
            of its result.
        """
        given = self.signature.bind(*arguments, **named)
        given.apply_defaults()
        settings = tuple(given.arguments.pop(name) for name in self.static)
        tree: Any
        leaves, tree = jax.tree.flatten(given.arguments)
        shapes = tuple((kind.shape, kind.dtype.name, kind.weak_type) for kind in map(jax.typeof, leaves))
        key = self.function, settings, tree, shapes
        if key not in kept.compiled:
            file = kept.file(self.function, settings, tree.unflatten(shapes))
            found = file and kept.load(file)
            traced, structure = found or self.trace(leaves, tree, settings)
            if file and not found and isinstance(traced, export.Exported):
                kept.keep(file, traced, structure)
            kept.compiled[key] = self.compile_traced(traced, leaves), structure
        return leaves, *kept.compiled[key]

    def trace(
        self, leaves: list, tree: Any, settings: tuple[Any, ...]
    ) -> tuple[export.Exported | Callable[[list], list], Any]:
        """Trace the program that takes and returns lists of arrays.

        Returns:
            The program, or the function itself where JAX cannot export it, and the structure of its result.
        """
        structure: list[Any] = []

        def flat(leaves: list) -> list:
            named = tree.unflatten(leaves) | dict(zip(self.static, settings, strict=True))
            arrays, found = jax.tree.flatten(self.function(**named))
            structure[:] = [found]
            return arrays

        flat.__name__ = self.function.__name__
        try:
            return export.export(jax.jit(flat))(leaves), structure[0]
        except ValueError:  # JAX does not export custom calls without a guarantee of compatibility
            jax.eval_shape(flat, leaves)
            return flat, structure[0]

    def compile_traced(self, traced: export.Exported | Callable[[list], list], leaves: list) -> Any:
        """Compile a program as `trace` returns it."""

        def flat(leaves: list) -> list:
            return traced.call(leaves) if isinstance(traced, export.Exported) else traced(leaves)

        flat.__name__ = self.function.__name__
        return jax.jit(flat, compiler_options=compiler_options()).lower(leaves).compile()


def program(function: Callable | None = None, **settings: Any) -> Any:
    """Decorator that makes a `Program`; `static_argnames` as for `jax.jit`."""
    return functools.partial(Program, **settings) if function is None else Program(function, **settings)


def mapped(function: Callable, each: Any) -> Any:
    """function of each row of some arrays, inside a program: in turn on a CPU, at once on an accelerator."""
    return jax.lax.map(function, each) if jax.default_backend() == "cpu" else jax.vmap(function)(each)
