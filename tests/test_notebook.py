"""The worked notebook runs as it stands, and shows what it says."""

import ast
import inspect
import os
from pathlib import Path

import nbclient
import nbformat
import pytest

import cryotrans_jax as ct

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "morph.ipynb"
QUICK = {  # one short stage
    "steps = 1.0": "steps = 0.005",
    "options = ct.Options(": "from cryotrans_jax.fit.recipes import Paper\n\noptions = ct.Options(Paper(4), ",
}


def executed(changes, monkeypatch):
    """The notebook run in a new kernel from the repository's root, with these changes to its code."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for old, new in changes.items():
        (cell,) = (cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source)
        cell.source = cell.source.replace(old, new)
    nbclient.NotebookClient(notebook, timeout=600).execute()
    return notebook


def printed(notebook):
    """Numbers in what the notebook prints, by the words before them."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    lines = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout").splitlines()
    return dict(line.split(": ", 1) for line in lines)


def kinds(notebook):
    """For each code cell, the kinds in which its result is shown."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [sorted(kind for o in cell.outputs for kind in o.get("data", {})) for cell in cells]


@pytest.mark.slow
def test_the_notebook_runs_and_shows_what_is_kept_in_it(monkeypatch):
    found, kept = executed(QUICK, monkeypatch), nbformat.read(NOTEBOOK, as_version=4)
    assert kinds(found) == kinds(kept) and sum("image/svg+xml" in kind for kind in kinds(kept)) == 4
    assert printed(found).keys() == printed(kept).keys()
    assert any("\rstage " in o.get("text", "") for cell in found.cells for o in cell.get("outputs", []))  # the bar


def test_what_the_notebook_calls_exists_and_takes_what_it_is_given():
    """Every call of a function of the package, by its name and its arguments."""
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    calls = [node for cell in cells for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Call)]
    public = [call for call in calls if ast.unparse(call.func).startswith("ct.")]
    assert len(public) > 8
    for call in public:
        function = ct
        for name in ast.unparse(call.func).split(".")[1:]:
            function = getattr(function, name)
        given = [None for a in call.args if not isinstance(a, ast.Starred)], {k.arg: None for k in call.keywords}
        inspect.signature(function).bind_partial(*given[0], **given[1])
    assert {ast.unparse(call.func) for call in calls} >= {"fit.generated", "fit.frames", "fit.move"} and all(
        hasattr(ct.Fit, name) for name in ("generated", "frames", "move")
    )


@pytest.mark.slow
def test_the_whole_fit_comes_to_what_the_notebook_tells(monkeypatch):
    """Within what another processor's rounding changes."""
    found, kept = (printed(each) for each in (executed({}, monkeypatch), nbformat.read(NOTEBOOK, as_version=4)))
    for label, text in found.items():
        for value, was in zip(numbers(text), numbers(kept[label]), strict=True):
            assert value == pytest.approx(was, abs=0.15), label  # Å


def numbers(text):
    """The numbers in a text like "8.12 Å before, 0.06 Å after"."""
    return [float(word) for word in text.split() if word[0].isdigit()]


def test_the_notebook_is_small_and_keeps_no_progress():
    assert NOTEBOOK.stat().st_size < 1e6
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(o.get("name") == "stderr" for cell in notebook.cells for o in cell.get("outputs", []))
