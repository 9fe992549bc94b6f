"""What a fit makes small: squared differences at matched resolution, and rigidity (W2 is in `transport`)."""

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from scipy import special

Points = Float[Array, "points 3"]
Scalar = float | Float[Array, ""]
Volume = Float[Array, "x y z"]
Blur = tuple[Float[Array, "nx nx"], Float[Array, "ny ny"], Float[Array, "nz nz"]]
Blurs = tuple[Float[Array, "targets nx nx"], Float[Array, "targets ny ny"], Float[Array, "targets nz nz"]]


def l2(a: Volume, b: Volume) -> Float[Array, ""]:
    """Sum of squared voxel differences of a and b, relative to that of b with zero."""
    return jnp.sum((a - b) ** 2) / jnp.sum(b**2)


def unscaled_l2(a: Volume, b: Volume, power: Scalar) -> Float[Array, ""]:
    """The least of l2(s a, b) over all factors s, relative to the power Σ b² of b's signal, less that of its noise.

    It does not depend on the scale of either volume. `power` is Σ b² where b has no noise.
    """
    return 1 - jnp.sum(a * b) ** 2 / (jnp.sum(a**2) * power)


def found(carried: Volume, target: Volume) -> Volume:
    """How much of a carried volume the target has, 0 to 1 in every voxel, with the scale that suits both best.

    Both blurred alike, so that small displacements do not count.
    """
    here, there = jnp.maximum(carried, 0), jnp.maximum(target, 0)
    here = here * jnp.sum(here * there) / jnp.maximum(jnp.sum(here**2), 1e-30)
    return jnp.clip(there / jnp.maximum(here, 1e-6 * here.max() + 1e-30), 0, 1)


def huber(moved: Points, ends: Points, weight: Float[Array, "points"], reach: Scalar) -> Float[Array, ""]:
    """Weighted mean of Huber's loss of the distances between points and where they belong, in units of `reach`.

    Half the square of distances below `reach`, linear in those above it.
    """
    distance = jnp.sqrt(jnp.sum((moved - ends) ** 2, axis=-1) + (1e-3 * reach) ** 2)
    return jnp.vdot(weight, optax.losses.huber_loss(distance / reach)) / jnp.sum(weight)


def blur(volume: Volume, kernel: Blur) -> Volume:
    """The volume blurred along each axis by the kernel's matrices."""
    kx, ky, kz = kernel
    volume = jnp.einsum("zc,xyc->xyz", kz, volume)
    volume = jnp.einsum("yb,xbz->xyz", ky, volume)
    return jnp.einsum("xa,ayz->xyz", kx, volume)


def gaussian_blur(shape: tuple[int, int, int], voxel_size: np.ndarray, sigma: float) -> Blur:
    """Matrices of a Gaussian blur of width `sigma` for a volume; voxel_size and sigma in Å.

    Mass blurred over the edge of the box is lost.
    """
    return tuple(
        jnp.asarray(gaussian_matrix(n, sigma / float(v)), jnp.float32) for n, v in zip(shape, voxel_size, strict=True)
    )


def gaussian_matrix(n: int, sigma: float) -> np.ndarray:
    """Toeplitz matrix (n, n) of a discrete Gaussian of variance sigma² (in voxels²) whose infinite rows sum to one.

    Samples of the Gaussian where it is wide; below one voxel, where these neither sum to one nor have its variance, the
    kernel of diffusion on the grid, exp(-σ²) I_k(σ²), which does both for any width.
    """
    i = np.arange(n)
    if sigma < 1:
        kernel = special.ive(i, sigma**2)
    else:
        kernel = np.exp(-0.5 * (i / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
    return kernel[np.abs(i[:, None] - i[None])]


def rigidity(
    moved: Float[Array, "nodes 3"],
    tetrahedra: Int[Array, "tetrahedra 4"],
    edges: Float[Array, "3"],
    share: Float[Array, "tetrahedra"] | None = None,
    slip: float = 0.0,
) -> Float[Array, ""]:
    """Mean over tetrahedra of Σ_i (σ_i(F)² − 1)² = ‖FᵀF − I‖², F the affine map of each (paper, eq. 13).

    With `slip`, each tetrahedron's strain s counts as slip · log(1 + s / slip): beyond `slip` more strain costs
    little, so that domains may shear along their borders and move as bodies within.

    A tetrahedron is a node and its next nodes along x, y and z, at distances `edges` before the flow; `moved` are the
    nodes after it. No singular value is needed: zero for a rigid motion, 3 (s² − 1)² for a scaling by s.
    """
    corner = moved[tetrahedra]
    f = (corner[:, 1:] - corner[:, :1]) / edges[:, None]  # rows are the columns of F
    gram = jnp.einsum("tik,tjk->tij", f, f)
    strain = jnp.sum((gram - jnp.eye(3)) ** 2, axis=(1, 2))
    if slip:
        strain = slip * jnp.log1p(strain / slip)
    return jnp.mean(strain) if share is None else jnp.vdot(share, strain)
