"""Cubic convolution on a control lattice: exact for quadratics, of third order, blind to what is inactive."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import rounding

from cryotrans_jax.core.flow import Field
from cryotrans_jax.core.train import carry
from cryotrans_jax.core.velocity import Velocity
from cryotrans_jax.fit.levels import Sampling, make_levels
from cryotrans_jax.motion.lattice import batch_lattices, interpolate, make_lattice, to_dense

SHAPE = (11, 8, 13)
CORNER = np.array([-0.1, 0.2, 0.05])
VOXEL = np.array([0.04, 0.05, 0.045])
SPACING = 2.7  # no whole number of voxels


@pytest.fixture(scope="module")
def wanted():
    return np.random.default_rng(0).uniform(size=SHAPE) < 0.1


@pytest.fixture(scope="module")
def lattice(wanted):
    return make_lattice(wanted, CORNER, VOXEL, SPACING)


def centres(wanted):
    return CORNER + (np.argwhere(wanted) + 0.5) * VOXEL


QUADRATIC = np.random.default_rng(1).normal(size=(3, 3, 3))
LINEAR = np.random.default_rng(2).normal(size=(3, 3))
FIELDS = {
    "constant": lambda x: np.ones_like(x) * [1.0, -2.0, 3.0],
    "linear": lambda x: x @ LINEAR + 1,
    "quadratic": lambda x: np.einsum("ni,ijk,nj->nk", x, QUADRATIC, x) + x @ LINEAR,
}


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
def test_interpolation_is_exact_for(field, lattice, wanted):
    values = jnp.asarray(field(np.asarray(lattice.nodes, np.float64)), jnp.float32)
    found, exact = jax.jit(interpolate)(lattice, values), field(centres(wanted))
    inside = np.ones(len(exact), bool)
    if field is FIELDS["quadratic"]:  # the rim is extrapolated, exactly for affine fields only
        inside = ~leans_on_the_rim(lattice)
        assert 10 < inside.sum() < len(inside)
    # float32; weights and positions are rounded too, and some weights are negative
    np.testing.assert_allclose(found[inside], exact[inside], atol=rounding(np.abs(exact).max(), 64))


def leans_on_the_rim(lattice):
    shape = tuple(w.shape[1] for w in lattice.weights)
    rim = np.zeros(shape)
    rim.ravel()[np.asarray(lattice.rim)] = 1
    weights = [np.abs(np.asarray(w)) for w in lattice.weights]
    return np.einsum("xa,yb,zc,abc->xyz", *weights, rim, optimize=True).ravel()[np.asarray(lattice.voxels)] > 0


def test_interpolation_converges_at_third_order():
    """Keys 1981: the error of a = -1/2 is O(h^3), so halving the spacing divides it by about 8."""
    inside = np.ones((16, 17, 18), bool)
    k = 2 * np.pi / (np.array([40, 44, 48]) * VOXEL)  # waves 40 to 48 voxels long

    def wave(x):
        return np.sin(x @ k[:, None] + np.arange(3.0))

    x, errors = centres(inside), []
    for spacing in (3.0, 1.5):
        lattice = make_lattice(inside, CORNER, VOXEL, spacing)
        found = jax.jit(interpolate)(lattice, jnp.asarray(wave(np.asarray(lattice.nodes, np.float64)), jnp.float32))
        errors.append(np.sqrt(np.mean((found - wave(x)) ** 2)))
    # where voxels stand between nodes differs a little from one spacing to the other
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.25)


def test_nodes_are_equally_far_apart_along_all_axes(lattice):
    nodes = np.asarray(lattice.nodes)
    for axis in range(3):
        gaps = np.diff(np.unique(np.round(nodes[:, axis], 5)))
        np.testing.assert_allclose(gaps, SPACING * VOXEL.min(), atol=2e-5)  # rounding above


def test_inactive_nodes_never_matter(lattice):
    """The dense lattice with anything at its inactive nodes interpolates to the same values."""
    values = jax.random.normal(jax.random.key(0), lattice.nodes.shape)
    shape = tuple(w.shape[1] for w in lattice.weights)
    assert len(lattice.nodes) < np.prod(shape)
    anything = np.random.default_rng(3).normal(size=(*shape, 3)) * 1e3
    everywhere = anything.reshape(-1, 3)
    used = np.concatenate([lattice.active, lattice.rim])
    everywhere[used] = np.asarray(to_dense(lattice, values)).reshape(-1, 3)[used]
    wx, wy, wz = lattice.weights
    full = np.einsum("xa,yb,zc,abck->xyzk", wx, wy, wz, everywhere.reshape(*shape, 3), optimize=True)
    found = np.asarray(jax.jit(interpolate)(lattice, values))
    np.testing.assert_allclose(
        found, full.reshape(-1, 3)[np.asarray(lattice.voxels)], atol=rounding(4.0, 64)
    )  # 64 nodes
    inactive = np.delete(np.asarray(to_dense(lattice, values)).reshape(-1, 3), used, axis=0)
    assert not inactive.any()


def test_carried_points_agree_with_the_plain_flow(problem):
    """Nodes 5 Å apart carry voxels of 2 Å to within a tenth of a voxel of where a bending flow takes them."""
    field = Field(Velocity(width=100, centre=0.5))
    params = jax.jit(field.init)(jax.random.key(0))
    params = jax.tree.map(lambda p: 12 * p, params)
    params["params"]["Dense_0"]["bias"] = jax.random.uniform(jax.random.key(1), (100,), minval=-0.3, maxval=0.3)
    level = make_levels(problem, field, Sampling(spacing=5.0))[0]
    moved, exact = jax.jit(carry)(params, level.scene).x, jax.jit(field.ends)(params, level.points)
    motion = np.linalg.norm(exact - level.points, axis=1) * problem.frame.edge
    difference = np.linalg.norm(moved - exact, axis=1) * problem.frame.edge
    assert motion.max() - motion.min() > 2  # not just a translation
    assert difference.max() < 0.1 * problem.voxel_size.min()


def test_lattices_abreast_interpolate_as_each_by_itself(wanted, lattice):
    """Of two parts of one box, one with fewer nodes and voxels; what pads them is laid out nowhere."""
    few = make_lattice(wanted & (np.arange(SHAPE[0]) < 4)[:, None, None], CORNER, VOXEL, SPACING)
    assert len(few.nodes) < len(lattice.nodes) and len(few.voxels) < len(lattice.voxels)
    both, values = batch_lattices([few, lattice]), np.full((2, len(lattice.nodes), 3), 1e3, np.float32)
    rng = np.random.default_rng(5)
    for number, one in enumerate((few, lattice)):
        values[number, : len(one.nodes)] = rng.normal(size=one.nodes.shape)
    found = jax.jit(jax.vmap(interpolate))(both, jnp.asarray(values))
    for number, one in enumerate((few, lattice)):
        np.testing.assert_array_equal(both.nodes[number, : len(one.nodes)], one.nodes)
        alone = jax.jit(interpolate)(one, values[number, : len(one.nodes)])
        np.testing.assert_allclose(found[number, : len(one.voxels)], alone, atol=rounding(4.0, 64))
