"""Flags that name files and folders.

A leading ~ is the user's home, also after the = of --initial=~/a.mrc. Lists are separated by commas; a comma may be
part of a path where a file of that name is there, or where the path is in double quotes.
"""

import os
from typing import Any

from absl import flags

flags.disclaim_key_flags()  # flags belong to the module that defines them by these functions


class PathParser(flags.ArgumentParser[str]):
    """Parser of the path of a file or a folder."""

    def parse(self, argument: str) -> str:
        """The path, with the user's home for ~."""
        return expanded(argument)


class PathsParser(flags.ListParser):
    """Parser of paths that are separated by commas."""

    def parse(self, argument: str | list[str]) -> list[str]:
        """The paths, each with the user's home for ~."""
        return argument if isinstance(argument, list) else split(argument)


def define_path(name: str, default: str | None, help: str, **more: Any) -> None:
    """Define a flag that is one path."""
    flags.DEFINE(PathParser(), name, default, help, **more)


def define_paths(name: str, default: list[str] | None, help: str, **more: Any) -> None:
    """Define a flag that is several paths, separated by commas."""
    flags.DEFINE(PathsParser(), name, default, help, serializer=flags.CsvListSerializer(","), **more)


def expanded(path: str) -> str:
    """The path with the user's home for a leading ~, unless a file of that very name is there."""
    return path if os.path.lexists(path) else os.path.expanduser(path)


def split(text: str) -> list[str]:
    """The paths in a text, which commas separate.

    Pieces that together are the path of what exists are one; pieces in double quotes are taken as they stand.
    """
    if '"' in text:
        return [expanded(path) for path in flags.ListParser.parse(flags.ListParser(), text)]
    pieces, found = text.split(",") if text else [], []
    while pieces:
        ends = range(len(pieces), 1, -1)
        end = next((end for end in ends if os.path.exists(expanded(",".join(pieces[:end])))), 1)
        found.append(expanded(",".join(pieces[:end]) if end > 1 else pieces[0].strip()))
        pieces = pieces[end:]
    return found
