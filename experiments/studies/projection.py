"""Project a density in any direction, and reconstruct it from such images, by slices of its Fourier transform.

The transform of a projection is the central slice, perpendicular to the direction of view, of the density's transform.
The centre is voxel n // 2 along each axis, n even. Transforms are oversampled so that linear interpolation between
samples is accurate; the mean factor by which the interpolation multiplies a density is divided out.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from cryotrans_jax.core.splat import gather, splat
from cryotrans_jax.io.programs import program

READ, PUT = 4, 2  # oversampling of the transforms that slices are read from and inserted into
BATCH = 32  # images at a time
FLOOR = 1e-3  # of a shell's mean weight: added to all weights, because some are zero

Turns = Float[Array | np.ndarray, "images 3 3"]
Images = Float[Array, "images n n"]


class Sums(NamedTuple):
    """Sums of inserted slices, from which a density is reconstructed; sums of several sets of images are added.

    Attributes:
        signal: Σ w S on a transform's samples, with the values S of the slices and their trilinear weights w.
        weight: Σ w on the samples.
        images: number of images.
    """

    signal: Complex[Array, "m m m"]
    weight: Float[Array, "m m m"]
    images: Float[Array, ""]

    def __add__(self, other: "Sums") -> "Sums":  # type: ignore[override]  # a tuple's adds any two tuples
        """Add the sums of two sets of images."""
        return Sums(*(a + b for a, b in zip(self, other, strict=True)))


@program
def project(density: Float[Array, "n n n"], turns: Turns) -> Images:
    """Rotate a density by each rotation x -> R x and sum it along its third axis.

    Frequencies beyond Nyquist, in the corners of the images' transforms, are zero.
    """
    n = density.shape[0]
    padded = jnp.pad(density / interpolation_decay(n, READ), (READ - 1) * n // 2)
    whole, (k, inside) = centred_fft(padded), disc(n)

    def one(turn):
        at = slice_positions(k, turn, n, READ)
        read = [gather(part, at, *UNIT) for part in (whole.real, whole.imag)]
        slice_ = jnp.zeros((n, n), whole.dtype).at[inside].set(read[0] + 1j * read[1])
        return centred_ifft(slice_).real

    return jax.lax.map(one, jnp.asarray(turns, density.dtype), batch_size=BATCH)


@program
def insert_slices(images: Images, turns: Turns) -> Sums:
    """Insert the slices of images where `project` reads them: its adjoint, with the weights to divide by."""
    count, n = images.shape[:2]
    k, inside = disc(n)
    extra = -count % BATCH
    real = jnp.concatenate([jnp.ones(count), jnp.zeros(extra)]).reshape(-1, BATCH)
    padded = [
        jnp.concatenate([a, jnp.broadcast_to(a[:1], (extra, *a.shape[1:]))]) for a in (images, jnp.asarray(turns))
    ]
    each = [a.reshape(-1, BATCH, *a.shape[1:]) for a in padded]

    def further(sums, batch):
        images, turns, real = batch
        at = jax.vmap(lambda turn: slice_positions(k, turn, n, PUT))(turns).reshape(-1, 3)
        values = (jax.vmap(lambda image: centred_fft(image)[inside])(images) * real[:, None]).ravel()
        weights = jnp.repeat(real, len(k))
        put = [splat(at, rho.astype(jnp.float32), (PUT * n,) * 3, *UNIT) for rho in (values.real, values.imag, weights)]
        return (sums[0] + put[0], sums[1] + put[1], sums[2] + put[2]), None

    none = jnp.zeros((PUT * n,) * 3, jnp.float32)
    (real_, imaginary, weight), _ = jax.lax.scan(
        further, (none, none, none), (each[0], each[1].astype(jnp.float32), real)
    )
    return Sums(real_ + 1j * imaginary, weight, jnp.float32(count))


def reconstruct(sums: Sums, noise: Float[np.ndarray, "shells"]) -> Float[Array, "n n n"]:
    """Reconstruct the density whose projections are the images: Σ w S / (Σ w + ridge), transformed back.

    The ridge of a shell is its `noise` times its mean weight: a Wiener filter.

    Args:
        noise: ratio of noise to signal of the density in each shell from 0 to Nyquist; 0 for no filter, except that
            samples without data stay at 0.
    """
    n = sums.weight.shape[0] // PUT
    shell = shells(n)  # in NumPy, because XLA would take minutes to fold these constants
    mean = np.bincount(shell.ravel(), np.asarray(sums.weight).ravel()) / np.bincount(shell.ravel())
    ridge = np.where(shell < n // 2, (mean * (noise + FLOOR))[shell] + 1e-12, np.inf).astype(np.float32)
    return divide_weights(sums, ridge)


@program
def divide_weights(sums: Sums, ridge: Float[Array, "m m m"]) -> Float[Array, "n n n"]:
    """Density of sums with a ridge for each sample; infinity sets a sample to 0."""
    n = ridge.shape[0] // PUT
    first = (PUT - 1) * n // 2
    padded = centred_ifft(sums.signal / (sums.weight + ridge)).real
    return padded[(slice(first, first + n),) * 3] / interpolation_decay(n, PUT)


def noise_to_signal(correlation: Float[np.ndarray, "shells"]) -> Float[np.ndarray, "shells"]:
    """Ratio of noise to signal in each shell, from the FSC of two half-maps: (1 − FSC) / FSC.

    Halve it for the map of all images.
    """
    fsc = np.clip(correlation, 1e-3, 1.0)
    return ((1 - fsc) / fsc).astype(np.float32)


UNIT = jnp.full(3, -0.5), jnp.ones(3)  # corner and voxel size of a volume whose positions are its indices


def disc(n: int) -> tuple[Float[np.ndarray, "samples 2"], tuple[np.ndarray, np.ndarray]]:
    """Frequencies within Nyquist of an image's transform, in samples from its centre, and their indices."""
    k = np.argwhere(np.ones((n, n))) - n // 2
    k = k[(k**2).sum(1) < (n // 2) ** 2]
    return k.astype(np.float32), tuple((k + n // 2).T)


def slice_positions(k: Float[np.ndarray, "samples 2"], turn: Float[Array, "3 3"], n: int, finer: int):
    """Positions (samples, 3) of a slice's frequencies in the oversampled transform of n voxels a side."""
    return finer * jnp.matmul(k, turn[:2], precision="highest") + finer * n // 2


def shells(n: int) -> np.ndarray:
    """Shell, at most n // 2, of each sample of the transform into which slices are inserted."""
    k = (np.arange(PUT * n) - PUT * n // 2) / PUT
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(k, k, k, indexing="ij", sparse=True)))
    return np.minimum(np.rint(radius), n // 2).astype(np.int32)


def interpolation_decay(n: int, finer: int) -> Float[np.ndarray, "n n n"]:
    """Mean factor by which linear interpolation between samples of an oversampled transform multiplies a density."""
    along = np.sinc((np.arange(n) - n // 2) / (finer * n)) ** 2
    return np.einsum("i,j,k->ijk", along, along, along).astype(np.float32)


def centred_fft(values: Array) -> Array:
    """Fourier transform about the centre over all axes, with zero frequency in the centre."""
    return jnp.fft.fftshift(jnp.fft.fftn(jnp.fft.ifftshift(values)))


def centred_ifft(values: Array) -> Array:
    """Inverse Fourier transform about the centre."""
    return jnp.fft.fftshift(jnp.fft.ifftn(jnp.fft.ifftshift(values)))
