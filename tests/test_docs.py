"""The documentation: its links, code and command lines are valid, and messages that it quotes are in the code."""

import ast
import functools
import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_made" not in path.parts)
TEXTS = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
COMMAND = re.compile(r"(?:(?:python -m )?experiments\.|cryotrans )(?:studies\.)?(\w+)( .*)?")


def name(page):
    return str(page.relative_to(ROOT))


def template(node):
    """A message's text where `node` makes one, … for what varies; None where it makes none."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [template(side) for side in (node.left, node.right)]
        return "".join(part or "…" for part in parts) if any(parts) else None
    return None


@functools.cache
def texts():
    """Every text in the code that may be a message."""
    found = set()
    for path in [*(ROOT / "cryotrans_jax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]:
        nodes = ast.walk(ast.parse(path.read_text()))
        found |= {template(node) for node in nodes if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp)}
    return {re.sub(r"\\?\s+", " ", message) for message in found - {None}}


@functools.cache
def quoted():
    """Messages that the page on troubleshooting quotes: the code in the lines that say what a user sees."""
    text = (DOCS / "use" / "troubleshooting.md").read_text()
    seen = re.findall(r"^- \*\*You see:\*\*(.*)$", text, re.MULTILINE)
    return [message for part in seen for message in re.findall(r"`([^`]+)`", part)]


def test_messages_quoted_in_troubleshooting_are_in_the_code():
    assert len(quoted()) > 20
    for message in quoted():
        words = re.compile(".*".join(re.escape(part) for part in message.split("…")), re.DOTALL)
        assert any(map(words.search, texts())), f"change the page: the code no longer says {message!r}"


@functools.cache
def defined():
    """Names that each file of the package defines, and each of its classes."""
    found = {}
    for path in (ROOT / "cryotrans_jax").rglob("*.py"):
        for node in ast.walk(tree := ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef | ast.Module):
                inside = {name for each in node.body for name in names_of(each)}
                found.setdefault(path.stem if node is tree else node.name, set()).update(inside)
    return found


def names_of(statement):
    """Names that a statement defines."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    targets = getattr(statement, "targets", [getattr(statement, "target", None)])
    return {target.id for target in targets if isinstance(target, ast.Name)}


@pytest.mark.parametrize("page", TEXTS, ids=name)
def test_code_that_a_page_names_is_in_the_package(page):
    """`file.function` or `Class.method`, and not the name of a file of results."""
    named = re.findall(r"`(?:[\w.]+\.)?(\w+)\.(\w+)(?:\(.*?\))?`", page.read_text())
    ours = {(home, name) for home, name in named if home in defined()}
    files = {
        "csv",
        "json",
        "mrc",
        "cif",
        "pdb",
        "md",
        "py",
        "png",
        "svg",
        "gif",
        "mp4",
        "xml",
        "html",
        "cxc",
        "npz",
        "eff",
    }
    assert not [f"{h}.{n}" for h, n in ours if n not in defined()[h] | files]


def test_examples_of_how_to_extend_the_method_run():
    """One after the other, as a reader would enter them; what they make is what the page says of it."""
    text, names = (DOCS / "api" / "extend.md").read_text(), {}
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(block, names)
    fit, (kept,) = names["fit"], names["seen"]
    assert fit.history[0][-1] < fit.history[0][0]
    assert kept.density.shape == fit.generated().density.shape and not np.array_equal(
        kept.density, fit.generated().density
    )
    assert names["by_lion"].config.optimiser.largest == 1 and names["by_lion"].history[0][-1] != fit.history[0][-1]
    assert np.abs(names["moved"][:, 2]).max() < 1e-4 < np.abs(names["moved"][:, :2] - [[0, 0], [10, 5]]).max()
    assert names["strain"].shape == (3, 3) and names["speeds"].shape == (5, 3)


@functools.cache
def anchors(page):
    """Anchors of a page: those of its headings, as GitHub and MyST make them, and those that it sets itself."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    return slugs | set(re.findall(r'<a id="([^"]+)"', text))


@pytest.mark.parametrize("page", [*TEXTS, ROOT / "chimerax" / "README.md"], ids=name)
def test_links_lead_to_files_and_headings(page):
    """Relative ones, as a file browser follows them."""
    for link, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        if "://" not in link:
            target = (page.parent / link).resolve() if link else page
            assert target.is_file(), link
            assert not anchor or anchor in anchors(target), f"{link}#{anchor}"


def commands(text):
    """Commands with arguments in a page, and whether each has a line of its own; two blanks begin a comment."""
    text = re.sub(r"\\\n\s*", "", text)
    lines = re.findall(r"^(?: {4})?((?:python -m experiments\.|cryotrans ).*)$", text, re.MULTILINE)
    within = re.findall(r"`([^`\n]+)`", text)
    for line, whole in [*((re.split(r"  +", line)[0], True) for line in lines), *((line, False) for line in within)]:
        if (match := COMMAND.fullmatch(line)) and match[2] and "…" not in line:
            yield match[1], shlex.split(match[2]), whole


@pytest.mark.parametrize("page", TEXTS, ids=name)
def test_command_lines_in_a_page_can_be_parsed(page, job, monkeypatch):
    """Within a sentence, flags that a command needs may be left out."""
    for command, arguments, whole in commands(page.read_text()):
        home = "experiments" if (ROOT / "experiments" / f"{command}.py").is_file() else "experiments.studies"
        monkeypatch.setattr(importlib.import_module(f"{home}.{command}"), "main", lambda: None)
        status, _, error = job(command, *arguments)
        assert not error or (not whole and "is missing" in error), error
        assert status == 0 or error


def test_the_index_lists_every_page_by_its_group():
    listed = re.findall(r"^(\w+/\w+)$", (DOCS / "index.md").read_text(), re.MULTILINE)
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in PAGES} - {"index"}
    assert len(listed) == len(set(listed)) and set(listed) == pages


def test_pictures_are_small():
    sizes = [path.stat().st_size for path in (DOCS / "figures").iterdir()]
    assert sizes and max(sizes) < 200_000 and sum(sizes) < 1_000_000


def test_only_code_in_backticks_is_markup_in_a_docstring():
    """For reStructuredText: nothing in bare text starts emphasis or a reference, and code may end within a word."""
    spec = importlib.util.spec_from_file_location("docstrings", DOCS / "_ext" / "docstrings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.plain("F_a F_b* and |x| of a_ but `w * |x|_` stays") == (
        r"F_a F_b\* and \|x\| of a\_ but `w * |x|_` stays"
    )
    assert module.plain("N(0, `s`²), x`y`, (`z`): `t`.") == r"N(0, `s`\ ²), x\ `y`, (`z`): `t`."
    assert module.plain("plain words, 3-4") == "plain words, 3-4"
