"""Flags that name files and folders.

A leading ~ is the user's home, also after the = of --initial=~/a.mrc. Lists are separated by commas; a comma is part of
a path where a file of that name exists, or where the path is in double quotes.
"""

import os
from typing import Any

from absl import flags

flags.disclaim_key_flags()  # flags belong to the module that defines them by these functions


class PathParser(flags.ArgumentParser[str]):
    """Parser of the path of a file or a folder."""

    def parse(self, argument: str) -> str:
        """Replace a leading ~ by the user's home."""
        return expand(argument)


class PathsParser(flags.ListParser):
    """Parser of paths that are separated by commas."""

    def parse(self, argument: str | list[str]) -> list[str]:
        """Split the list, and replace a leading ~ of each path by the user's home."""
        return argument if isinstance(argument, list) else split(argument)


def define_path(name: str, default: str | None, help: str, **more: Any) -> None:
    """Define a flag that is one path."""
    flags.DEFINE(PathParser(), name, default, help, **more)


def define_paths(name: str, default: list[str] | None, help: str, **more: Any) -> None:
    """Define a flag that is several paths, separated by commas."""
    flags.DEFINE(PathsParser(), name, default, help, serializer=flags.CsvListSerializer(","), **more)


def expand(path: str) -> str:
    """Replace a leading ~ by the user's home, unless a file of that very name exists."""
    return path if os.path.lexists(path) else os.path.expanduser(path)


def split(text: str) -> list[str]:
    """Split a text at commas into paths.

    Pieces that together are an existing path stay together; pieces in double quotes are not split.
    """
    if '"' in text:
        return [expand(path) for path in flags.ListParser.parse(flags.ListParser(), text)]
    pieces, found = text.split(",") if text else [], []
    while pieces:
        ends = range(len(pieces), 1, -1)
        end = next((end for end in ends if os.path.exists(expand(",".join(pieces[:end])))), 1)
        found.append(expand(",".join(pieces[:end]) if end > 1 else pieces[0].strip()))
        pieces = pieces[end:]
    return found
