"""The documentation: the messages that it explains are those that the code has, and its files hang together."""

import ast
import functools
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
LISTED = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)


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


def says(listed):
    """What tells of a text whether it is the page's message: the same words, and anything where they vary."""
    return re.compile(".*".join(re.escape(part) for part in listed.split("…")), re.DOTALL).fullmatch


@pytest.mark.parametrize("listed", LISTED)
def test_a_message_on_the_page_of_troubles_is_in_the_code(listed):
    assert any(map(says(listed), texts())), "change the page: the code says this no longer"


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


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_code_that_a_page_names_is_in_the_package(page):
    """`file.function` or `Class.method`, and not the name of a file of results."""
    named = re.findall(r"`(?:[\w.]+\.)?(\w+)\.(\w+)(?:\(.*?\))?`", page.read_text())
    ours = {(home, name) for home, name in named if home in defined()}
    files = {"csv", "json", "mrc", "cif", "pdb", "md", "py", "png", "svg", "gif", "xml", "html", "cxc"}
    assert not [f"{h}.{n}" for h, n in ours if n not in defined()[h] | files]


def test_examples_of_how_to_extend_the_method_run():
    """One after the other, as a reader would enter them; what they make is what the page says of it."""
    text, names = (ROOT / "docs/extend.md").read_text(), {}
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


def test_no_message_is_listed_twice():
    assert LISTED and len(LISTED) == len(set(LISTED))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_links_lead_to_files(page):
    """As GitHub follows them; within the site Sphinx checks them, and the anchors too."""
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        assert "://" in link or (page.parent / link).exists(), link


def test_every_page_is_in_the_table_of_contents():
    listed = re.findall(r"^(\w+)$", (ROOT / "docs" / "index.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(page.stem for page in PAGES if page.stem != "index")


def test_pictures_are_small():
    sizes = [path.stat().st_size for path in (ROOT / "docs" / "figures").iterdir()]
    assert sizes and max(sizes) < 200_000 and sum(sizes) < 1_000_000


def test_only_code_in_backticks_is_markup_in_a_docstring():
    """For reStructuredText: nothing in bare text starts emphasis or a reference, and code may end within a word."""
    spec = importlib.util.spec_from_file_location("docstrings", ROOT / "docs" / "_ext" / "docstrings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.plain("F_a F_b* and |x| of a_ but `w * |x|_` stays") == (
        r"F_a F_b\* and \|x\| of a\_ but `w * |x|_` stays"
    )
    assert module.plain("N(0, `s`²), x`y`, (`z`): `t`.") == r"N(0, `s`\ ²), x\ `y`, (`z`): `t`."
    assert module.plain("plain words, 3-4") == "plain words, 3-4"
