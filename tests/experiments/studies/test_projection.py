"""Projections are central slices, and images from all sides give the density back."""

import jax
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from cryotrans_jax.density.fsc import fsc
from cryotrans_jax.scores import metrics
from experiments.studies import projection

N = 20


def gaussian(centre, sigma, n=N):
    """A Gaussian of unit mass about a place in voxels from the middle."""
    x = np.stack(np.meshgrid(*[np.arange(n) - n // 2] * 3, indexing="ij"), -1) - centre
    return np.exp(-0.5 * (x**2).sum(-1) / sigma**2).astype(np.float32) / (2 * np.pi * sigma**2) ** 1.5


@pytest.fixture(scope="module")
def density():
    """Blobs without any symmetry, well inside the box."""
    rng = np.random.default_rng(1)
    return sum(m * gaussian(c, 1.5) for m, c in zip(rng.uniform(1, 3, 6), rng.uniform(-4, 4, (6, 3)), strict=True))


def turns(count, seed=0):
    return Rotation.random(count, np.random.default_rng(seed)).as_matrix().astype(np.float32)


def test_projections_of_a_gaussian_are_gaussians():
    """Of the same width, where its centre is seen: the marginal of an isotropic Gaussian."""
    centre, sigma = np.array([3.0, -2.0, 2.0]), 1.6
    views = turns(5)
    seen = projection.project(gaussian(centre, sigma), views)
    x = np.stack(np.meshgrid(*[np.arange(N) - N // 2] * 2, indexing="ij"), -1)
    for image, view in zip(seen, views, strict=True):
        wanted = np.exp(-0.5 * ((x - (view @ centre)[:2]) ** 2).sum(-1) / sigma**2) / (2 * np.pi * sigma**2)
        np.testing.assert_allclose(image, wanted, atol=0.03 * wanted.max())  # linear interpolation


def test_straight_projections_are_sums_along_the_axis(density):
    """And their transforms the central slice; within what interpolation is expected to lose, and here does not."""
    (image,) = projection.project(density, np.eye(3, dtype=np.float32)[None])
    np.testing.assert_allclose(image, density.sum(2), atol=0.03 * density.sum(2).max())
    whole, plane = (projection.centred_fft(jax.numpy.asarray(a)) for a in (density, image))
    np.testing.assert_allclose(plane, whole[:, :, N // 2], atol=0.03 * abs(plane).max())


def test_noiseless_projections_give_the_density_back(density):
    views = turns(200)
    sums = projection.insert_slices(projection.project(density, views), views)
    found = projection.reconstruct(sums, np.zeros(N // 2 + 1, np.float32))
    _, correlation = fsc(np.asarray(found), density, 1.0)
    assert correlation[: N // 3].min() > 0.99
    np.testing.assert_allclose(found, density, atol=0.05 * density.max())


@pytest.mark.slow
def test_sums_of_two_sets_of_images_are_those_of_all(density):
    views = turns(50)
    images = projection.project(density, views)
    both = projection.insert_slices(images[:25], views[:25]) + projection.insert_slices(images[25:], views[25:])
    every = projection.insert_slices(images, views)
    np.testing.assert_allclose(both.signal, every.signal, atol=1e-4 * float(abs(every.signal).max()))
    assert float(both.images) == float(every.images) == 50
    # each image has as many samples, and each sample weighs 1, but where it reaches past the last one, at Nyquist
    assert float(every.weight.sum()) == pytest.approx(50 * len(projection.disc(N)[0]), rel=1e-3)


@pytest.mark.slow
def test_fewer_noisy_images_resolve_less(density):
    """And Wiener's filter brings each map nearer to the truth."""
    found = []
    for count in (300, 40):
        views = turns(count)
        images = projection.project(density, views)
        images = images + 3 * images.std() * jax.random.normal(jax.random.key(0), images.shape)
        halves = [projection.insert_slices(images[k::2], views[k::2]) for k in (0, 1)]
        plain = np.zeros(N // 2 + 1, np.float32)
        curve = fsc(*(np.asarray(projection.reconstruct(half, plain)) for half in halves), 1.0)
        noise = projection.noise_to_signal(curve[1]) / 2
        raw, quiet = (projection.reconstruct(halves[0] + halves[1], each) for each in (plain, noise))
        off = [float(((a - density) ** 2).sum()) for a in (raw, quiet)]
        assert off[1] < off[0]
        found.append((metrics.resolution_at(*curve, 0.143), off[1]))
    assert found[0][0] < found[1][0] and found[0][1] < found[1][1]


def test_noise_over_signal_is_what_halves_with_it_correlate_by():
    """Signal s and noise n in each half correlate by s / (s + n); curves beyond 0 and 1 are rounding and chance."""
    ratio = np.array([0.01, 0.5, 1.0, 7.0], np.float32)
    np.testing.assert_allclose(projection.noise_to_signal(1 / (1 + ratio)), ratio, rtol=1e-4)
    none, some, *much = projection.noise_to_signal(np.array([1.0 + 1e-6, 1.0 - 1e-3, 0.0, -0.3]))
    assert none == 0 < some < 0.0011 and much == pytest.approx([999, 999])


def test_nothing_is_put_in_for_what_no_image_shows(density):
    """Beyond Nyquist, and in the cone that images about one axis leave out: zero, and no noise is blown up there."""
    views = Rotation.from_rotvec(np.linspace(-0.5, 0.5, 20)[:, None] * [1.0, 0, 0]).as_matrix().astype(np.float32)
    sums = projection.insert_slices(projection.project(density, views), views)
    found = projection.reconstruct(sums, np.zeros(N // 2 + 1, np.float32))
    spectrum = np.abs(np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(found))))
    k = np.stack(np.meshgrid(*[np.arange(N) - N // 2] * 3, indexing="ij"))
    unseen = (np.abs(k[2]) > 2 + 2 * np.abs(k[1])) | (np.linalg.norm(k, axis=0) > N // 2 + 1)
    assert spectrum[unseen].max() < 0.02 * spectrum.max()


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_nothing_is_amplified_where_few_images_are(noise):
    """Weights from a ten-thousandth on: the density has no more power than the quotient of the sums (Parseval)."""
    rng, m = np.random.default_rng(3), projection.PUT * N
    weight = (10 ** rng.uniform(-4, 0, (m, m, m))).astype(np.float32)
    values = np.asarray(projection.centred_fft(jax.numpy.asarray(rng.normal(size=(m, m, m)), dtype=np.float32)))
    sums = projection.Sums(jax.numpy.asarray(values * weight), jax.numpy.asarray(weight), np.float32(1))
    found = np.asarray(projection.reconstruct(sums, np.full(N // 2 + 1, noise, np.float32)))
    power = ((found * projection.interpolation_decay(N, projection.PUT)) ** 2).sum()
    assert np.isfinite(power) and power < (np.abs(values) ** 2).sum() / m**3
