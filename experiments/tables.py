"""Tables in Markdown."""

from collections.abc import Iterable, Mapping, Sequence


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
