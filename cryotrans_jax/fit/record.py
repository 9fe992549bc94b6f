"""Write a fit's settings as plain JSON values and read them back: schedule, network, supervision, and all within."""

import contextlib
import dataclasses
import importlib
import sys
from typing import Any

import numpy as np
from flax import linen

from cryotrans_jax.io.files import InputError

PLAIN = str | int | float | bool | None  # values that JSON holds as they are
KIND = "is"  # key of a settings object's class
SAME_AS_DEFAULT = ("parent", "name")  # fields that flax adds to a network


def to_plain(value: Any, name: str = "the value") -> Any:
    """Settings as JSON values: a dataclass becomes an object of its fields, with its class under "is".

    Args:
        value: the settings.
        name: what they are, for the message.

    Raises:
        InputError: a field, within them as well, holds what `from_plain` could not give back.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hidden = SAME_AS_DEFAULT if isinstance(value, linen.Module) else ()
        kind, names = kind_of(type(value)), [field.name for field in dataclasses.fields(value)]
        own = [each for each in names if each not in hidden]
        return {KIND: kind} | {each: to_plain(getattr(value, each), f"{each} of {kind}") for each in own}
    if isinstance(value, list | tuple):
        return [to_plain(each, name) for each in value]
    number = value.item() if isinstance(value, np.generic) else value
    if isinstance(number, PLAIN):
        return number
    shown = f"an array of shape {value.shape}" if hasattr(value, "shape") else repr(value)
    raise InputError(f"{name} is {shown}, which no record can hold: give text, numbers, tuples or dataclasses of these")


def plain_values(value: Any) -> Any:
    """Numbers and arrays of NumPy, in nested dicts, lists and tuples, as JSON values."""
    if isinstance(value, dict):
        return {key: plain_values(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(each) for each in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def from_plain(plain: Any) -> Any:
    """Settings from the JSON values of `to_plain`.

    Raises:
        InputError: a class is unknown, or has no such field.
    """
    if isinstance(plain, list):
        return tuple(from_plain(each) for each in plain)
    if not isinstance(plain, dict):
        return plain
    kind = find_kind(plain.get(KIND))
    values = {name: from_plain(value) for name, value in plain.items() if name != KIND}
    try:
        return kind(**values)
    except TypeError as error:
        raise InputError(f"the settings of {plain[KIND]} do not fit it ({error}): see its attributes") from None


def kind_of(kind: type) -> str:
    """Name of a class: "fit.stage.Stage" for one of the package, "module:Name" for others."""
    inside = kind.__module__.removeprefix("cryotrans_jax.")
    return f"{kind.__module__}:{kind.__qualname__}" if inside == kind.__module__ else f"{inside}.{kind.__qualname__}"


def find_kind(name: Any) -> type:
    """The class of this name from `kind_of`.

    Modules outside the package are not imported here, because a file by a stranger may name any.

    Raises:
        InputError: there is no such class of settings.
    """
    module, _, own = str(name).partition(":")
    if not own:
        module, _, own = f"cryotrans_jax.{name}".rpartition(".")
        with contextlib.suppress(ImportError, ValueError):
            importlib.import_module(module)
    kind = getattr(sys.modules.get(module), own, None)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return kind
    raise InputError(
        f"{name!r} names no settings: expected a class such as fit.stage.Stage, or module:Name of an imported module"
    )
