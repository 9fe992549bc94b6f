"""Images of a density from any side, and the density from such images: by slices of its Fourier transform.

The transform of a projection is the central slice, across the direction of view, of the transform of the density. All
is about voxel n // 2 along each axis, n even. Transforms are sampled more finely than the box asks for, so that linear
interpolation between samples will do; what that multiplies a density by, on average, is divided out.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from cryotrans_jax.programs import program
from cryotrans_jax.splat import gather, splat

READ, PUT = 4, 2  # times as finely, where slices are read and where they are inserted
BATCH = 32  # images at a time
FLOOR = 1e-3  # of a shell's mean weight: added to all weights, some of which are zero

Turns = Float[Array | np.ndarray, "images 3 3"]
Images = Float[Array, "images n n"]


class Sums(NamedTuple):
    """What images add up to: Σ w S and Σ w on a transform's samples, S a slice's values and w their trilinear weights.

    Sums of several sets of images are added; `images` is their number.
    """

    signal: Complex[Array, "m m m"]
    weight: Float[Array, "m m m"]
    images: Float[Array, ""]

    def __add__(self, other: "Sums") -> "Sums":  # type: ignore[override]  # a tuple's would be of any two
        """Those of both sets of images."""
        return Sums(*(a + b for a, b in zip(self, other, strict=True)))


@program
def project(density: Float[Array, "n n n"], turns: Turns) -> Images:
    """The density turned by each rotation x -> R x and summed along its third axis.

    Nothing beyond the Nyquist frequency is kept in the corners of the images' transforms.
    """
    n = density.shape[0]
    padded = jnp.pad(density / decay(n, READ), (READ - 1) * n // 2)
    whole, (k, inside) = transform(padded), disc(n)

    def one(turn):
        at = place(k, turn, n, READ)
        read = [gather(part, at, *UNIT) for part in (whole.real, whole.imag)]
        slice_ = jnp.zeros((n, n), whole.dtype).at[inside].set(read[0] + 1j * read[1])
        return back(slice_).real

    return jax.lax.map(one, jnp.asarray(turns, density.dtype), batch_size=BATCH)


@program
def inserted(images: Images, turns: Turns) -> Sums:
    """The sums of the images' slices, where `project` reads them: its adjoint, with the weights to divide by."""
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
        at = jax.vmap(lambda turn: place(k, turn, n, PUT))(turns).reshape(-1, 3)
        values = (jax.vmap(lambda image: transform(image)[inside])(images) * real[:, None]).ravel()
        weights = jnp.repeat(real, len(k))
        put = [splat(at, rho.astype(jnp.float32), (PUT * n,) * 3, *UNIT) for rho in (values.real, values.imag, weights)]
        return (sums[0] + put[0], sums[1] + put[1], sums[2] + put[2]), None

    none = jnp.zeros((PUT * n,) * 3, jnp.float32)
    (real_, imaginary, weight), _ = jax.lax.scan(
        further, (none, none, none), (each[0], each[1].astype(jnp.float32), real)
    )
    return Sums(real_ + 1j * imaginary, weight, jnp.float32(count))


def back_projected(sums: Sums, noise: Float[np.ndarray, "shells"]) -> Float[Array, "n n n"]:
    """The density whose projections the images are: Σ w S / (Σ w + ridge) transformed back.

    The ridge of a shell, from 0 on up to Nyquist, is its `noise` times its mean weight: Wiener's filter, where that is
    the ratio of noise to signal of the density (0: no filter, but for what keeps unseen samples at 0).
    """
    n = sums.weight.shape[0] // PUT
    shell = shells(n)  # by NumPy: as constants of a compiled program these would take minutes to fold
    mean = np.bincount(shell.ravel(), np.asarray(sums.weight).ravel()) / np.bincount(shell.ravel())
    ridge = np.where(shell < n // 2, (mean * (noise + FLOOR))[shell] + 1e-12, np.inf).astype(np.float32)
    return divided(sums, ridge)


@program
def divided(sums: Sums, ridge: Float[Array, "m m m"]) -> Float[Array, "n n n"]:
    """The density of these sums with a ridge for each sample, infinite where that is to be 0."""
    n = ridge.shape[0] // PUT
    first = (PUT - 1) * n // 2
    return back(sums.signal / (sums.weight + ridge)).real[(slice(first, first + n),) * 3] / decay(n, PUT)


def noise_of(correlation: Float[np.ndarray, "shells"]) -> Float[np.ndarray, "shells"]:
    """The ratio of noise to signal, in each shell, of maps from two halves of the images that correlate so.

    (1 − FSC) / FSC; halve it for the map of all images.
    """
    held = np.clip(correlation, 1e-3, 1.0)
    return ((1 - held) / held).astype(np.float32)


UNIT = jnp.full(3, -0.5), jnp.ones(3)  # corner and voxel of a volume whose places are its indices


def disc(n: int) -> tuple[Float[np.ndarray, "samples 2"], tuple[np.ndarray, np.ndarray]]:
    """The frequencies within Nyquist of an image's transform, in samples from its middle, and where they stand."""
    k = np.argwhere(np.ones((n, n))) - n // 2
    k = k[(k**2).sum(1) < (n // 2) ** 2]
    return k.astype(np.float32), tuple((k + n // 2).T)


def place(k: Float[np.ndarray, "samples 2"], turn: Float[Array, "3 3"], n: int, finer: int):
    """Where (samples, 3) a slice's frequencies are among the finer samples of the transform of n voxels a side."""
    return finer * jnp.matmul(k, turn[:2], precision="highest") + finer * n // 2


def shells(n: int) -> np.ndarray:
    """The shell, n // 2 at most, of each sample of the transform into which slices are inserted."""
    k = (np.arange(PUT * n) - PUT * n // 2) / PUT
    radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(k, k, k, indexing="ij", sparse=True)))
    return np.minimum(np.rint(radius), n // 2).astype(np.int32)


def decay(n: int, finer: int) -> Float[np.ndarray, "n n n"]:
    """What linear interpolation between the finer samples of a transform multiplies a density by, on average."""
    along = np.sinc((np.arange(n) - n // 2) / (finer * n)) ** 2
    return np.einsum("i,j,k->ijk", along, along, along).astype(np.float32)


def transform(values: Array) -> Array:
    """The Fourier transform about the middle, of all axes, its zero in the middle."""
    return jnp.fft.fftshift(jnp.fft.fftn(jnp.fft.ifftshift(values)))


def back(values: Array) -> Array:
    """The inverse of that."""
    return jnp.fft.fftshift(jnp.fft.ifftn(jnp.fft.ifftshift(values)))
