"""Docstrings as they are written in the code: prose with `code`, in which nothing else is markup."""

import re

CODE = re.compile(r"(`[^`]+`)")
MARKUP = re.compile(r"([*|]|(?<=\w)_(?!\w))")
BEFORE, AFTER = re.compile(r"(?<![\s(\[{<'\"/:-])$"), re.compile(r"^(?![\s.,:;!?)\]}>'\"/-])(?=.)")
NOTHING = "\\\\ "  # with which reStructuredText ends a word where there is no space


def escape(app, what, name, obj, options, lines: list[str]) -> None:
    """Lets stars, bars and trailing underscores of a docstring stand for themselves, and code end within a word."""
    lines[:] = [plain(line) for line in lines if not line.startswith("Alias for field number")]


def plain(line: str) -> str:
    """A docstring's line, of which only code in single backticks is markup."""
    parts = CODE.split(line)
    last = len(parts) - 1
    for k in range(0, len(parts), 2):
        text = MARKUP.sub(r"\\\1", parts[k])
        text = AFTER.sub(NOTHING, text) if k else text
        parts[k] = BEFORE.sub(NOTHING, text) if k < last and parts[k] else text
    return "".join(parts)


def setup(app) -> dict:
    """What Sphinx asks of an extension."""
    app.connect("autodoc-process-docstring", escape, priority=400)  # before napoleon reads the sections
    return {"parallel_read_safe": True}
