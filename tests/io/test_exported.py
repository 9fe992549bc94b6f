"""Programs that were traced are kept with what decides them: nothing else is taken for them, and they give the same."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drift, fit_problem

from cryotrans_jax.core.flow import Field
from cryotrans_jax.core.velocity import Velocity
from cryotrans_jax.fit import trajectory
from cryotrans_jax.fit.stage import Config, Stage
from cryotrans_jax.fit.terms import L2, Matched
from cryotrans_jax.io import exported, programs

FIELD = Field(Velocity(width=4, depth=1), 2)
POINTS = jnp.linspace(0.2, 0.8, 21).reshape(7, 3)


@dataclasses.dataclass(frozen=True)
class Foreign(Field):
    """A motion that is not the package's, and may change without notice."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder where programs are kept, as by a command with an empty cache."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    monkeypatch.setattr(exported, "_keep", True)
    exported.opened.cache_clear()
    yield tmp_path / "programs"
    jax.config.update("jax_compilation_cache_dir", before)
    exported.opened.cache_clear()


@pytest.fixture
def traced(monkeypatch):
    """Names of the programs that are traced, from now on."""
    names, trace = [], programs.Program.trace

    def noted(self, *given):
        names.append(self.function.__name__)
        return trace(self, *given)

    monkeypatch.setattr(programs.Program, "trace", noted)
    return names


def new_process():
    """Forget the programs of this process."""
    exported.opened.cache_clear()


def carried(field=FIELD, points=POINTS, seed=0):
    """Points along a flow."""
    return trajectory.forward(field, field.init(jax.random.key(seed)), points)


def test_a_fit_with_kept_programs_traces_none_and_is_the_same(problem, folder, traced):
    config = Config((Stage((L2(),), 3, 1e-3, 1e-3, bin=4, sampling=4),), FIELD)
    first, losses = fit_problem(problem, config)
    assert {"train_steps", "initial_parameters"} <= set(traced)
    traced.clear()
    new_process()
    state, same = fit_problem(problem, config)
    assert traced == []
    jax.tree.map(np.testing.assert_array_equal, (state.params, same), (first.params, losses))


def test_kept_programs_give_what_others_give(problem, folder, monkeypatch):
    config = Config((Stage((Matched(),), 3, 1e-3, 1e-3, bin=4, sampling=4),), FIELD)
    kept, _ = fit_problem(problem, config)
    monkeypatch.setattr(exported, "_keep", False)
    for a, b in zip(*map(jax.tree.leaves, (kept.params, fit_problem(problem, config)[0].params)), strict=True):
        np.testing.assert_allclose(a, b, atol=drift(config))


@pytest.mark.parametrize(
    "changed",
    [
        {"field": dataclasses.replace(FIELD, steps=3)},
        {"field": dataclasses.replace(FIELD, network=Velocity(width=4, depth=2))},
        {"points": POINTS[:6]},
    ],
)
def test_another_setting_or_shape_is_another_program(folder, traced, changed):
    carried()
    new_process()
    carried(**changed)
    assert traced == ["forward", "forward"] and len(list(folder.iterdir())) == 2


def test_other_numbers_are_the_same_program(folder, traced):
    carried()
    carried(seed=1, points=0.5 * POINTS)
    assert traced == ["forward"]


def test_another_source_is_another_program(folder, traced, monkeypatch):
    carried()
    new_process()
    monkeypatch.setattr(exported, "circumstances", lambda: ("another source",))
    carried()
    assert traced == ["forward", "forward"] and len(list(folder.iterdir())) == 2


def test_a_program_of_what_may_change_without_notice_is_not_kept(folder, traced):
    """But it need not be traced twice by one process."""
    for _ in range(2):
        carried(Foreign(FIELD.network, FIELD.steps))
    assert traced == ["forward"] and not folder.exists()


@pytest.mark.parametrize("value", [lambda x: x, jnp.zeros(2), np.zeros(2), Foreign, {1: object()}, carried])
def test_what_may_change_without_notice_is_not_described(value):
    with pytest.raises(exported.UnknownError):
        exported.described((1, value))


@pytest.mark.parametrize("spoil", [lambda text: text[: len(text) // 2], lambda text: b"nothing", lambda text: b""])
def test_a_spoilt_file_is_traced_and_written_anew(folder, traced, spoil):
    found = carried()
    (file,) = folder.iterdir()
    content = file.read_bytes()
    file.write_bytes(spoil(content))
    new_process()
    np.testing.assert_array_equal(carried(), found)
    assert traced == ["forward", "forward"] and len(file.read_bytes()) == len(content)


def test_what_jax_cannot_export_is_compiled_and_not_kept(folder, monkeypatch):
    found = carried()

    def refused(_):
        raise ValueError("Cannot serialize code with custom calls")

    new_process()
    for file in folder.iterdir():
        file.unlink()
    monkeypatch.setattr(programs.export, "export", refused)
    np.testing.assert_allclose(carried(), found, atol=1e-6)
    assert not list(folder.iterdir())


def test_a_full_disk_stops_nothing(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exported, "write_file", full)
    assert carried().shape == (3, 7, 3)


def test_those_not_used_for_long_are_removed_first(folder, traced, monkeypatch):
    for count in (7, 6, 5):
        carried(points=POINTS[:count])
        for age, file in enumerate(sorted(folder.iterdir(), key=lambda each: -each.stat().st_mtime_ns)):
            os.utime(file, (0, 10**9 - 100 * age))
    new_process()
    carried(points=POINTS)  # the oldest is used again
    monkeypatch.setattr(exported, "LIMIT", 2.5 * max(file.stat().st_size for file in folder.iterdir()))
    new_process()
    traced.clear()
    carried(points=POINTS), carried(points=POINTS[:5])
    assert traced == []
    carried(points=POINTS[:6])
    assert traced == ["forward"]


def test_nothing_is_kept_where_jax_keeps_nothing(folder, traced):
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        carried()
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert traced == [] and not folder.exists()


def test_only_commands_keep_programs():
    assert exported.in_use() is None
