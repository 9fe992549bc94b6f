"""Write tables in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def markdown(heads: Sequence[str], lines: Iterable[Iterable[object]]) -> str:
    """Table with these heads and lines of cells."""
    rule = "|" + "---|" * len(heads)
    return "\n".join([row(heads), rule, *map(row, lines)]) + "\n"


def row(texts: Iterable[object]) -> str:
    """One line of a table."""
    return "| " + " | ".join(map(str, texts)) + " |"


def styled(rows: Iterable[dict], styles: Mapping[str, str], heads: Sequence[str] | None = None) -> str:
    """Table of rows that are dicts.

    Args:
        styles: format of each column, by its key; the order of the columns.
        heads: of the columns; the keys if not given.
    """
    return markdown(heads or [*styles], (cells(each, styles) for each in rows))


def styled_row(values: dict, styles: Mapping[str, str]) -> str:
    """One line of a table as `styled` writes it."""
    return row(cells(values, styles))


def cells(values: dict, styles: Mapping[str, str]) -> list[str]:
    """Values as texts in these formats, by key; empty where there is no value."""
    return [style.format(values[key]) if key in values else "" for key, style in styles.items()]


def parted(page: Path, begin: str, end: str) -> tuple[str, str, str]:
    """Split a page at two lines.

    Returns:
        The text up to and with `begin`, the text between, and the text from `end` on.
    """
    from cryotrans_jax.io.files import InputError

    text = page.read_text()
    before, begun, rest = text.partition(begin)
    inside, ended, after = rest.partition(end)
    if not begun or not ended:
        raise InputError(f"{page} has no lines {begin} and {end}, between which the table goes: put them in")
    return before + begun, inside, ended + after
