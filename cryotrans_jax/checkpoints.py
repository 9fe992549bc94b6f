"""Save and restore a fit: arrays and their description in one orbax checkpoint, written whole or not at all."""

import os
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from jaxtyping import PyTree


def save(path: str | os.PathLike, arrays: PyTree, description: dict[str, Any]) -> None:
    """Nothing; the folder `path` holds the arrays (nested dicts) and the description (plain JSON values).

    A checkpoint already there is replaced once the new one is whole.
    """
    with ocp.Checkpointer(handler()) as checkpointer:
        parts = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), description=ocp.args.JsonSave(description))
        checkpointer.save(Path(path).absolute(), args=parts, force=True)


def restore(path: str | os.PathLike) -> tuple[PyTree, dict[str, Any]]:
    """The arrays (numpy, nested dicts) and the description saved under `path`.

    Raises:
        FileNotFoundError: there is no whole checkpoint.
    """
    path = Path(path).absolute()
    if not (path / "arrays").is_dir() or not (path / "description").is_dir():
        raise FileNotFoundError(2, "no checkpoint here", str(path))
    with ocp.Checkpointer(handler()) as checkpointer:
        parts = ocp.args.Composite(arrays=ocp.args.StandardRestore(), description=ocp.args.JsonRestore())
        restored = checkpointer.restore(path, args=parts)
    return restored["arrays"], restored["description"]


def handler() -> ocp.CompositeCheckpointHandler:
    """Orbax's handler for the two parts of a checkpoint."""
    return ocp.CompositeCheckpointHandler(
        arrays=ocp.StandardCheckpointHandler(), description=ocp.JsonCheckpointHandler()
    )
