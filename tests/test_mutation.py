"""The mutation run makes the changes that it says, leaves the source alone, and finds few that tests let through."""

import ast
import subprocess
import sys

import pytest

from tests.tools import mutate


def changes(text):
    """What is changed in a text, statement by statement."""
    return [one.change for one in mutate.mutants("any", text)]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a < b", ["a < b -> a <= b"]),
        ("a + 2", ["a + 2 -> a - 2", "a + 2 -> a + 3"]),
        ("x = 0.5", ["x = 0.5 -> x = 1.0"]),
        ("x = 1e-30", ["x = 1e-30 -> x = 1.0"]),
        ("x[-1]", ["x[-1] -> x[1]"]),
        ("not a", ["not a -> a"]),
        ("f(x, axis=1)", ["f(x, axis=1) -> pass", "f(x, axis=1) -> f(x)", "f(x, axis=1) -> f(x, axis=2)"]),
        ("y = min(x)", ["min(x) -> max(x)"]),
        ("x += y", ["x += y -> pass", "x += y -> x -= y"]),
        ("if a:\n    b", ["if a: -> if not a:"]),
        ("def f(x: int = 1) -> int:\n    '''One.'''", ["def f(x: int=1) -> int: -> def f(x: int=2) -> int:"]),
        ("zip(x, strict=True)", ["zip(x, strict=True) -> pass"]),  # which checks the code itself
    ],
)
def test_each_kind_of_change_is_made(text, expected):
    assert changes(text) == expected


@pytest.mark.parametrize("module", ["metrics", "lattice"])
def test_a_mutant_is_one_change_and_leaves_the_others_as_they_were(module):
    text = mutate.module_text(module)
    plain = ast.unparse(ast.parse(text))
    made = [one.source() for one in mutate.mutants(module, text)[::10]]
    assert plain not in made and len(set(made)) == len(made) > 5
    assert mutate.mutants(module, text)[0].source() != plain  # and the tree is as it was before
    for source in made:
        pairs = zip(source.splitlines(), plain.splitlines(), strict=False)
        assert sum(a != b for a, b in pairs) == 1 or source.count("\n") != plain.count("\n")


def test_a_sample_is_spread_over_the_modules_and_is_that_of_its_seed():
    one, again, other = (mutate.sample(["flow", "mask", "metrics"], 30, seed) for seed in (0, 0, 1))
    assert [len(some) for some in one.values()] == [10, 10, 10]
    assert list(map(str, one["flow"])) == list(map(str, again["flow"])) != list(map(str, other["flow"]))


def test_mutants_that_are_called_equivalent_are_there_and_have_a_reason():
    for (module, statement, change), reason in mutate.equivalents().items():
        every = mutate.mutants(module, mutate.module_text(module))
        assert any((one.statement, one.change) == (statement, change) for one in every), f"{module}: {change}"
        assert len(reason) > 10


@pytest.mark.slow
def test_few_changes_to_quick_modules_survive():
    before = mutate.module_text("mask")
    command = [
        sys.executable,
        "-m",
        "tests.tools.mutate",
        "--count=40",
        "--seed=1",
        "--modules=mask,metrics,splat,flow",
    ]
    printed = subprocess.run(command, cwd=mutate.ROOT, check=True, capture_output=True, text=True).stdout
    share = float(printed.split("Survived: ")[1].split("%")[0])
    assert share <= 15  # 10 % of 300, and what chance does to 40
    assert mutate.module_text("mask") == before
