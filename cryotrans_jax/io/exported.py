"""Keep traced programs on disk, named by what decides them, so that a later run need not trace them again.

JAX's own cache knows a compiled program by its text, and to write that text a program has to be traced and lowered.
Here the text is kept (`jax.export`) under what decides it: the sources of this package, the versions of the libraries,
JAX's settings, and the shapes and settings among the program's arguments.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import pickle
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryotrans_jax.io.files import write_file

PACKAGE = Path(__file__).parents[1]
LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "optax", "ott-jax")
SETTINGS = (
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_numpy_dtype_promotion",
    "jax_threefry_partitionable",
)
# Modules whose source or version goes into a program's file name.
KNOWN = ("builtins", "cryotrans_jax", "flax", "jax", "jaxlib", "numpy", "optax")
LIMIT = 2**28  # bytes in the folder, above which those not used for the longest time are removed


class Folder:
    """A folder of traced programs.

    Attributes:
        path: of the folder, which is made when something is kept.
        compiled: programs that this process has had, with the structure of their results.
    """

    def __init__(self, path: Path):
        """Use this folder."""
        self.path = path
        self.compiled: dict[Any, tuple[Any, Any]] = {}

    def file(self, function: Callable, settings: tuple[Any, ...], arguments: Any) -> Path | None:
        """File of a program.

        Args:
            function: the function that was traced.
            settings: what decides the program besides that and the arrays.
            arguments: the other arguments, with shapes in place of arrays.

        Returns:
            The file; None where the program is not made of this package and its libraries alone.
        """
        try:
            text = circumstances(), described(function), described(settings), described(arguments)
        except (UnknownError, importlib.metadata.PackageNotFoundError):
            return None
        return self.path / f"{function.__name__}-{hashlib.sha256(repr(text).encode()).hexdigest()[:40]}"

    def load(self, file: Path) -> tuple[Any, Any] | None:
        """The program in a file, which takes and returns a list of arrays, and the structure of its result.

        None if there is no such file, or it cannot be used.
        """
        import jax
        from jax import export

        with contextlib.suppress(Exception):  # whatever is wrong with it, the program can be traced
            text, result = pickle.loads(file.read_bytes())
            os.utime(file)
            return export.deserialize(text), jax.tree.structure(result)
        return None

    def keep(self, file: Path, exported: Any, structure: Any) -> None:
        """Write a traced program and the structure of its result, if that can be done."""
        with contextlib.suppress(Exception):  # not every program can be written, and disks are full
            content = pickle.dumps((exported.serialize(), structure.unflatten(range(structure.num_leaves))))
            self.path.mkdir(parents=True, exist_ok=True)
            write_file(file, content)

    def shrink(self) -> None:
        """Remove the programs that were not used for the longest time, if all of them take more than LIMIT."""
        found = sorted(((each.stat(), each) for each in self.path.iterdir()), key=lambda one: -one[0].st_mtime_ns)
        total = 0
        for stat, each in found:
            total += stat.st_size
            if total > LIMIT:
                each.unlink(missing_ok=True)


class UnknownError(Exception):
    """Something that a program depends on may change without notice."""


def described(value: Any) -> Any:
    """What a value is, in text, numbers and tuples of these.

    Raises:
        UnknownError: it is none of these, no container, dataclass or structure of these, and no function or class of
            KNOWN modules.
    """
    from jax.tree_util import PyTreeDef

    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    if isinstance(value, dict):
        return described(type(value)), *((described(key), described(each)) for key, each in value.items())
    if isinstance(value, tuple | list):
        return described(type(value)), *map(described, value)
    if isinstance(value, PyTreeDef):
        return "structure", described(value.unflatten(range(value.num_leaves)))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = ((field.name, described(getattr(value, field.name))) for field in dataclasses.fields(value))
        return described(type(value)), *fields
    named = isinstance(value, type | types.FunctionType) and "<" not in value.__qualname__  # not made by a function
    if named and value.__module__.partition(".")[0] in KNOWN:
        return f"{value.__module__}.{value.__qualname__}"
    raise UnknownError(repr(value))


_keep = False


def keep_traced() -> None:
    """Keep programs from now on, and look for kept ones, where JAX's own cache is on.

    This is for commands: a program is known by its source in this package's files, not by functions put in their place.
    """
    global _keep
    _keep = True


def in_use() -> Folder | None:
    """The folder where programs are kept; None: nowhere. Programs of several devices are not."""
    import jax

    settings: Any = jax.config
    path = settings.jax_compilation_cache_dir
    on = _keep and path and "://" not in path and settings.jax_enable_compilation_cache
    return opened(path) if on and jax.device_count() == 1 else None


@functools.cache
def opened(path: str) -> Folder:
    """The folder of programs in that of JAX's cache."""
    folder = Folder(Path(path) / "programs")
    with contextlib.suppress(OSError):  # there is none yet, or another process removes files too
        folder.shrink()
    return folder


@functools.cache
def circumstances() -> tuple[Any, ...]:
    """What decides all programs alike."""
    import jax

    sources = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        sources.update(path.read_bytes())
    versions = [importlib.metadata.version(name) for name in LIBRARIES]
    return sources.hexdigest(), versions, [getattr(jax.config, name, None) for name in SETTINGS], jax.default_backend()
