"""The sine that a CPU evaluates for many numbers at once is the sine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cryotrans_jax.core.sine import sine


@pytest.mark.parametrize("largest", [2.0, 50.0, 1000.0])
def test_sine_and_its_derivatives_are_exact_in_single_precision(largest):
    x = np.linspace(-largest, largest, 200_001).astype(np.float32)
    values, slopes = jax.jit(lambda x: jax.jvp(sine, (x,), (jnp.full_like(x, 3),)))(x)
    bends = jax.jit(jax.vmap(jax.grad(jax.grad(sine))))(x)
    exact = x.astype(np.float64)
    for found, expected in ((values, np.sin(exact)), (slopes, 3 * np.cos(exact)), (bends, -np.sin(exact))):
        np.testing.assert_allclose(found, expected, atol=6e-6)


def test_sine_of_small_numbers_is_relatively_exact():
    x = np.float32(np.logspace(-30, -1, 100))
    np.testing.assert_allclose(jax.jit(sine)(x), np.sin(x.astype(np.float64)), rtol=2e-6)


def test_sine_in_double_precision_is_exact():
    with jax.enable_x64(True):
        x = jnp.linspace(-100.0, 100.0, 1001)
        value, slope = jax.jvp(sine, (x,), (jnp.ones_like(x),))
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, np.sin(np.asarray(x)), atol=1e-13)
        np.testing.assert_allclose(slope, np.cos(np.asarray(x)), atol=1e-13)


def test_sine_of_huge_numbers_is_bounded():
    x = np.float32([1e5, 1e8, 1e12, -1e20, 3e38])
    for value in jax.jit(lambda x: jax.jvp(sine, (x,), (jnp.ones_like(x),)))(x):
        assert np.all(np.abs(value) <= 1 + 1e-6)
