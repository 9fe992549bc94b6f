"""The documentation: the messages that it explains are those that the code has, and its files hang together."""

import ast
import functools
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
INTERNAL = {
    "benchmark",
    "validate",
    "floor",
    "fuzz",
    "waypoints",
    "reliability",
}  # jobs for those who measure the program; their messages need no page
LISTED = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
FIXED = 12  # letters of a message that do not vary, at least, for it to be told from others


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
    """Every text in the code that may be a message, and those that an InputError or a caution always is."""
    every, errors = set(), {}
    for path in [*(ROOT / "cryotrans_jax").glob("*.py"), *(ROOT / "experiments").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            every |= {template(node)} if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp) else set()
            name = ast.unparse(node.func).split(".")[-1] if isinstance(node, ast.Call) else None
            place = {"InputError": 0, "_stop": 0, "Caution": 1}.get(name)
            if place is None or path.stem in INTERNAL:
                continue
            branches = [node.args[place]]
            if isinstance(branches[0], ast.IfExp):
                branches = [branches[0].body, branches[0].orelse]
            errors |= {said: f"{path.name}:{node.lineno}" for b in branches if (said := template(b))}
    return every - {None}, {said: where for said, where in errors.items() if fixed(said) >= FIXED}


def fixed(message):
    """How many letters of a message do not vary."""
    return len(re.findall(r"\w", message.replace("…", "")))


def says(listed, message):
    """Whether the page's message is that of the code: the same words, and anything where they vary."""
    words = re.sub(r"\\?\s+", " ", message)
    return re.fullmatch(".*".join(re.escape(part) for part in listed.split("…")), words, re.DOTALL)


@pytest.mark.parametrize("listed", LISTED)
def test_a_message_on_the_page_of_troubles_is_in_the_code(listed):
    assert any(says(listed, text) for text in texts()[0]), "change the page: the code says this no longer"


def test_every_message_to_the_user_is_on_that_page():
    known = [listed for listed in LISTED if fixed(listed) >= FIXED]
    missing = {said: where for said, where in texts()[1].items() if not any(says(listed, said) for listed in known)}
    assert not missing, "list these in docs/troubleshooting.md, with what to do"
    assert len(texts()[1]) > 90  # the code was read


def test_no_message_is_listed_twice():
    assert len(LISTED) == len(set(LISTED)) > 90


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
