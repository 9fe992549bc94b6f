"""Terms of the loss: squared differences, correspondences and rigidity. W2 is in `transport`."""

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
    """Sum of squared voxel differences of a and b, divided by Σ b² (the paper's L2 stage)."""
    return jnp.sum((a - b) ** 2) / jnp.sum(b**2)


def scale_invariant_l2(a: Volume, b: Volume, power: Scalar) -> Float[Array, ""]:
    """Least l2(s a, b) over all factors s, relative to the power of the signal in b.

    It does not depend on the scale of either volume.

    Args:
        a: the carried map.
        b: the target.
        power: Σ b² without the contribution of the noise in b.
    """
    return 1 - jnp.sum(a * b) ** 2 / (jnp.sum(a**2) * power)


def fraction_in_target(carried: Volume, target: Volume) -> Volume:
    """Fraction of a carried map's density that the target has, from 0 to 1 in each voxel.

    The carried map is scaled to the target by least squares. Both should be blurred alike, so that small displacements
    do not count.
    """
    here, there = jnp.maximum(carried, 0), jnp.maximum(target, 0)
    here = here * jnp.sum(here * there) / jnp.maximum(jnp.sum(here**2), 1e-30)
    return jnp.clip(there / jnp.maximum(here, 1e-6 * here.max() + 1e-30), 0, 1)


def huber(moved: Points, ends: Points, weight: Float[Array, "points"], reach: Scalar) -> Float[Array, ""]:
    """Weighted mean of the Huber loss of the distances between points and their ends, in units of `reach`.

    Half the square of distances below `reach`, linear above.

    Args:
        moved: points after the flow, unit box.
        ends: where they belong, unit box.
        weight: weight of each point.
        reach: distance from which the loss is linear, in unit boxes.
    """
    distance = jnp.sqrt(jnp.sum((moved - ends) ** 2, axis=-1) + (1e-3 * reach) ** 2)
    return jnp.vdot(weight, optax.losses.huber_loss(distance / reach)) / jnp.sum(weight)


def blur(volume: Volume, kernel: Blur) -> Volume:
    """Blur a volume along each axis by the matrices of a kernel; see `gaussian_blur`."""
    kx, ky, kz = kernel
    volume = jnp.einsum("zc,xyc->xyz", kz, volume)
    volume = jnp.einsum("yb,xbz->xyz", ky, volume)
    return jnp.einsum("xa,ayz->xyz", kx, volume)


def gaussian_blur(shape: tuple[int, int, int], voxel_size: np.ndarray, sigma: float) -> Blur:
    """Matrices of a Gaussian blur, one for each axis. Mass blurred over the edge of the box is lost.

    Args:
        shape: number of voxels along each axis.
        voxel_size: Å.
        sigma: standard deviation of the Gaussian, Å.
    """
    return tuple(
        jnp.asarray(gaussian_matrix(n, sigma / float(v)), jnp.float32) for n, v in zip(shape, voxel_size, strict=True)
    )


def gaussian_matrix(n: int, sigma: float) -> np.ndarray:
    """Toeplitz matrix (n, n) of a discrete Gaussian of variance sigma² (voxels²) whose infinite rows sum to one.

    Samples of the Gaussian where it is wide. Below one voxel the samples neither sum to one nor have the right
    variance; there it is the kernel of diffusion on the grid, exp(-σ²) I_k(σ²), which has both for any width.
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
    mass_fraction: Float[Array, "tetrahedra"] | None = None,
    slip: float = 0.0,
) -> Float[Array, ""]:
    """Rigidity of the flow: mean over tetrahedra of Σ_i (σ_i(F)² − 1)² = ‖FᵀF − I‖² (paper, eq. 13).

    F is the affine map that the flow makes of a tetrahedron: a node and its next nodes along x, y and z. No singular
    value is computed. The value is 0 for a rigid motion and 3 (s² − 1)² for a scaling by s.

    Args:
        moved: nodes after the flow, unit box.
        tetrahedra: indices of the four nodes of each.
        edges: distances between neighbouring nodes before the flow along x, y and z, in unit boxes.
        mass_fraction: weight of each tetrahedron; None weighs all alike.
        slip: with a value above 0, the strain e of a tetrahedron counts as slip · log(1 + e / slip). More strain than
            `slip` then costs little: domains may shear along their borders and move as rigid bodies within. 0 is the
            published term.
    """
    corner = moved[tetrahedra]
    f = (corner[:, 1:] - corner[:, :1]) / edges[:, None]  # rows are the columns of F
    gram = jnp.einsum("tik,tjk->tij", f, f)
    strain = jnp.sum((gram - jnp.eye(3)) ** 2, axis=(1, 2))
    if slip:
        strain = slip * jnp.log1p(strain / slip)
    return jnp.mean(strain) if mass_fraction is None else jnp.vdot(mass_fraction, strain)
