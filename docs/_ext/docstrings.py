"""Convert docstrings to reStructuredText: prose with `code` in single backticks and no other markup."""

import re

CODE = re.compile(r"(`[^`]+`)")
MARKUP = re.compile(r"([*|]|(?<=\w)_(?!\w))")
BEFORE, AFTER = re.compile(r"(?<![\s(\[{<'\"/:-])$"), re.compile(r"^(?![\s.,:;!?)\]}>'\"/-])(?=.)")
NOTHING = "\\\\ "  # ends a word in reStructuredText without a space


def escape(app, what, name, obj, options, lines: list[str]) -> None:
    """Escape stars, bars and trailing underscores of a docstring, and allow code to end within a word."""
    lines[:] = [plain(line) for line in lines if not line.startswith("Alias for field number")]


def plain(line: str) -> str:
    """Escape one line of a docstring, except code in single backticks."""
    parts = CODE.split(line)
    last = len(parts) - 1
    for k in range(0, len(parts), 2):
        text = MARKUP.sub(r"\\\1", parts[k])
        text = AFTER.sub(NOTHING, text) if k else text
        parts[k] = BEFORE.sub(NOTHING, text) if k < last and parts[k] else text
    return "".join(parts)


def setup(app) -> dict:
    """Register the extension with Sphinx."""
    app.connect("autodoc-process-docstring", escape, priority=400)  # before napoleon reads the sections
    return {"parallel_read_safe": True}
