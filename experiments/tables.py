"""Tables in Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def markdown(heads: Sequence[str], lines: Iterable[Iterable[object]]) -> str:
    """A table of lines of cells under their heads."""
    rule = "|" + "---|" * len(heads)
    return "\n".join([row(heads), rule, *map(row, lines)]) + "\n"


def row(texts: Iterable[object]) -> str:
    """A line of a table."""
    return "| " + " | ".join(map(str, texts)) + " |"


def styled(rows: Iterable[dict], styles: Mapping[str, str], heads: Sequence[str] | None = None) -> str:
    """A table of rows by key, whose columns have these styles."""
    return markdown(heads or [*styles], (cells(each, styles) for each in rows))


def styled_row(values: dict, styles: Mapping[str, str]) -> str:
    """One line of such a table."""
    return row(cells(values, styles))


def cells(values: dict, styles: Mapping[str, str]) -> list[str]:
    """Values by key as text in these styles, empty where there is none."""
    return [style.format(values[key]) if key in values else "" for key, style in styles.items()]


def parted(page: Path, begin: str, end: str) -> tuple[str, str, str]:
    """What stands in a page up to the line `begin`, from there to the line `end`, and from that on.

    Raises InputError where it lacks one of them.
    """
    from cryotrans_jax.io.files import InputError

    text = page.read_text()
    before, begun, rest = text.partition(begin)
    inside, ended, after = rest.partition(end)
    if not begun or not ended:
        raise InputError(f"{page} has no lines {begin} and {end}, between which the table goes: put them in")
    return before + begun, inside, ended + after
