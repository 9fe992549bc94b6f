"""Functions become programs when they are called, with what XLA is told where it knows that."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cryotrans_jax.core.flow import Field
from cryotrans_jax.core.velocity import Velocity
from cryotrans_jax.fit.stage import Config, Stage, stage_inputs
from cryotrans_jax.fit.terms import L2, Matched, Rigidity
from cryotrans_jax.io import programs
from experiments.studies import benchmark_cases


def test_programs_compiled_in_tests_are_kept_no_longer_than_the_tests():
    assert Path(jax.config.jax_compilation_cache_dir).name.startswith("cryotrans-jax-tests-")


@pytest.fixture
def anew():
    """What XLA is told is found out anew, before and after."""
    programs.compiler_options.cache_clear()
    yield
    programs.compiler_options.cache_clear()


def test_a_program_is_what_jit_makes(anew):
    made = programs.program(static_argnames="k")(lambda x, k: k * x)
    assert made(jnp.arange(3.0), k=2).tolist() == [0, 2, 4]
    assert made.lower(jnp.arange(3.0), k=3).compile()(jnp.arange(3.0)).tolist() == [0, 3, 6]


def test_each_kind_of_device_is_told_to_compile_quickly(anew):
    assert programs.compiler_options() == programs.COMPILER_OPTIONS.get(jax.default_backend())


@pytest.mark.parametrize("kind", programs.COMPILER_OPTIONS)
def test_the_xla_at_hand_knows_what_it_would_be_told(anew, monkeypatch, kind):
    """On a CPU, too, XLA says so if it has no such option for a GPU."""
    monkeypatch.setattr(programs.jax, "default_backend", lambda: kind)
    assert programs.compiler_options() == programs.COMPILER_OPTIONS[kind]


def test_an_xla_that_knows_no_such_options_does_without(anew, monkeypatch):
    monkeypatch.setattr(programs, "COMPILER_OPTIONS", {jax.default_backend(): {"xla_gone_by_now": True}})
    assert programs.compiler_options() is None
    assert programs.program(lambda x: x + 1)(1.0) == 2


def test_nothing_is_asked_of_the_devices_before_the_first_call(anew, monkeypatch):
    monkeypatch.setattr(programs, "compiler_options", lambda: pytest.fail("asked"))
    programs.program(lambda x: x)


def test_the_benchmark_calls_the_training_step_as_it_is(problem):
    """Its own tests, which are slow, have a stand-in for that."""
    stage = Stage((L2(),), 1, 1e-3, 1e-3, bin=4, sampling=4)
    config = Config((stage,), Field(Velocity(width=4, depth=1), 1))
    steps = benchmark_cases.compile_steps(problem, config, stage, targets=2, count=1)
    assert steps.call()[2].shape == (2, 1) and np.isfinite(steps.call()[2]).all() and steps.compilation > 0


def test_stages_that_differ_in_numbers_alone_share_a_program(problem):
    """As those of the default recipe do, of which each would otherwise be compiled for many seconds."""

    def shapes(lighten, blur, weight, balanced):
        terms = Matched(blur, lighten, 1.0), Rigidity(weight, 0.03, balanced)
        inputs = stage_inputs(problem, Field(), Stage(terms, 1, 1e-3, 1e-3, bin=2, sampling=2))
        return jax.tree.map(jax.typeof, inputs)

    assert shapes(0.0, 2.0, 1.0, False) == shapes(1.0, 1.0, 2.0, True)
