"""Write a fit's settings as plain JSON values and read them back: schedule, network, supervision, and all within."""

import dataclasses
import importlib
from typing import Any

from flax import linen

from cryotrans_jax.io.files import InputError

KIND = "is"  # key of a settings object's class
SAME_AS_DEFAULT = ("parent", "name")  # fields that flax adds to a network


def to_plain(value: Any) -> Any:
    """Settings as JSON values: a dataclass becomes an object of its fields, with its class under "is"."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hidden = SAME_AS_DEFAULT if isinstance(value, linen.Module) else ()
        names = [field.name for field in dataclasses.fields(value) if field.name not in hidden]
        return {KIND: kind_of(type(value))} | {name: to_plain(getattr(value, name)) for name in names}
    if isinstance(value, list | tuple):
        return [to_plain(each) for each in value]
    return value.item() if hasattr(value, "item") else value


def from_plain(plain: Any) -> Any:
    """Settings from the JSON values of `to_plain`.

    Raises:
        InputError: a class is unknown, or has no such field.
    """
    if isinstance(plain, list):
        return tuple(from_plain(each) for each in plain)
    if not isinstance(plain, dict):
        return plain
    kind = find_kind(plain.get(KIND, ""))
    values = {name: from_plain(value) for name, value in plain.items() if name != KIND}
    try:
        return kind(**values)
    except TypeError as error:
        raise InputError(f"the settings of {plain[KIND]} do not fit it ({error}): see its attributes") from None


def kind_of(kind: type) -> str:
    """Name of a class: "fit.stage.Stage" for one of the package, "module:Name" for others."""
    inside = kind.__module__.removeprefix("cryotrans_jax.")
    return f"{kind.__module__}:{kind.__qualname__}" if inside == kind.__module__ else f"{inside}.{kind.__qualname__}"


def find_kind(name: str) -> type:
    """The class of this name from `kind_of`; raise InputError if there is none."""
    module, _, own = name.rpartition(":") if ":" in name else (f"cryotrans_jax.{name}").rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), own)
    except (ImportError, AttributeError, ValueError):
        kind = None
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise InputError(f'{name!r} names no settings: expected {{"{KIND}": "fit.stage.Stage", ...}} or the like')
    return kind
