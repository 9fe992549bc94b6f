"""Settings of a fit written as JSON are the same settings when they are read back."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cryotrans_jax.fit.morph import configure
from cryotrans_jax.fit.optimisers import Adam, OptimiserSettings
from cryotrans_jax.fit.options import Options
from cryotrans_jax.fit.recipes import Schedule, default, paper
from cryotrans_jax.fit.record import from_plain, to_plain
from cryotrans_jax.fit.stage import Action, Config, Stage
from cryotrans_jax.fit.terms import TermSettings
from cryotrans_jax.io.files import InputError
from cryotrans_jax.motion.symmetric import Symmetric
from cryotrans_jax.motion.waypoints import Timed

OPERATORS = ((1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0),)


def read_again(settings):
    """The settings after they were written to a file."""
    return from_plain(json.loads(json.dumps(to_plain(settings))))


def test_settings_read_back_are_the_same(problem):
    schedule = Schedule((("w2", 70, 3e-3), ("l2", 80, 2e-4)), width=30)
    recipes = default(problem, seed=3), paper(problem, bin=2), paper(problem, schedule=schedule)
    settings = [*recipes, *(recipe.scaled(0.1) for recipe in recipes), recipes[0].without_division()]
    settings += [Symmetric(recipes[0].field, OPERATORS), Timed(Symmetric(recipes[0].field, OPERATORS), (0.25, 0.5))]
    for each in settings:
        found = read_again(each)
        assert found == each and hash(found) == hash(each)  # as compiled programs are found by
    assert read_again(default(problem, seed=3)) != default(problem, seed=4)


def test_what_is_changed_in_the_file_is_changed_in_the_settings(problem):
    config = default(problem)
    plain = to_plain(config)
    plain["supervision"]["max_restarts"], plain["field"]["field"]["network"]["depth"] = 7, 3
    found = from_plain(plain)
    assert (found.supervision.max_restarts, found.field.net.depth) == (7, 3)
    supervision = replace(config.supervision, max_restarts=7)
    field = replace(config.field.field, network=config.field.net.clone(depth=3))
    screw = replace(config.field, field=field)
    assert found == replace(config, supervision=supervision, field=screw)


@dataclass(frozen=True)
class Springs(TermSettings):
    """A term of a user's own."""

    pairs: tuple[tuple[int, int], ...]
    stiffness: float = 1.0
    label = "springs"


@dataclass(frozen=True)
class Rest(Action):
    """An action of a user's own."""

    for_whom: str | None = None


def test_settings_of_a_users_own_classes_come_back():
    own = Config((Stage((Springs(((0, 1), (2, 5)), 0.5),), 5, 1e-3, 1e-3), Rest(), Rest("all")))
    assert read_again(own) == own


@pytest.mark.parametrize(
    "held, shown",
    [
        (Path("pairs.txt"), "PosixPath|WindowsPath"),
        (np.zeros((2, 3)), r"an array of shape \(2, 3\)"),
        (jnp.float32(2.0), r"an array of shape \(\)"),
        (print, "built-in function print"),
        ({"a": 1}, "{'a': 1}"),
        (((0, 1), (2j, 3)), "2j"),
    ],
    ids=repr,
)
def test_what_no_record_can_hold_is_refused_by_the_name_of_its_field(unchecked, held, shown):
    """Before the fit begins, and within a stage as well."""
    own = Config((Stage((Springs(held),), 5, 1e-3, 1e-3),))
    sentence = rf"^pairs of .*:Springs is .*({shown}).*, which no record can hold"
    for given in (own, own.schedule):
        with pytest.raises(InputError, match=sentence) as refused:
            to_plain(given)
        assert "\n" not in str(refused.value)
    assert read_again(Springs(((np.int64(0), 1),), np.float32(0.5))) == Springs(((0, 1),), 0.5)
    with pytest.raises(InputError, match="^pairs of .*:Springs is "):
        configure(None, Options(own))


@dataclass(frozen=True)
class Descent(OptimiserSettings):
    """Gradient descent with momentum, an optimiser of a user's own."""

    momentum: float = 0.0

    def make(self):
        return optax.trace(self.momentum)


def test_the_optimiser_is_part_of_the_settings(unchecked):
    for optimiser in (Adam(), Adam(b2=0.99), Descent(0.9)):
        own = Config((), optimiser=optimiser)
        found = read_again(own)
        assert found == own and hash(found) == hash(own) and found.optimiser == optimiser
    with pytest.raises(TypeError, match=r"the optimiser is .*: give settings such as `fit.optimisers.Adam"):
        Config((), optimiser=optax.adam(1e-3))


def test_no_module_is_imported_because_a_file_names_it(tmp_path, monkeypatch):
    (tmp_path / "stranger.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="stranger:Gift"):
        from_plain({"is": "stranger:Gift"})
    assert "stranger" not in sys.modules


@pytest.mark.parametrize(
    "plain",
    [
        {},
        {"steps": 5},
        *({"is": name} for name in (None, 3, [], {}, "", ".", ":", "a:", ":b", "fit.stage", "fit.stage.Step", "a b.c")),
        *({"is": name} for name in (".fit.stage:Stage", "os:path", "json:dumps", "fit.terms.np", "core.losses.total")),
        {"is": "fit.stage.Stage"},
        {"is": "fit.stage.Stage", "loss": "l2"},
        {"is": "core.velocity.Velocity", "breadth": 3},
        [[{"is": "fit.stage.Supervision", "chunk": 5, "chunks": 5}]],
    ],
    ids=repr,
)
def test_what_is_no_settings_is_refused_in_one_sentence(plain):
    with pytest.raises(InputError, match="names no settings|do not fit it") as refused:
        from_plain(plain)
    assert "\n" not in str(refused.value)
