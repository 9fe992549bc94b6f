"""Terms of the loss. Each is an object that is called with the carried points; the objective is their sum.

The functions that they call are pure functions of volumes and points.
"""

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int
from scipy import special

from cryotrans_jax.core.splat import gather, splat
from cryotrans_jax.core.transport import w2_and_error

Points = Float[Array, "points 3"]
Scalar = float | Float[Array, ""]
Volume = Float[Array, "x y z"]
Matrix = Array | np.ndarray
Blur = tuple[Float[Matrix, "nx nx"], Float[Matrix, "ny ny"], Float[Matrix, "nz nz"]]
Leaf = Any  # an array; while JAX takes a tree apart, whatever it puts in an array's place


class Carried(NamedTuple):
    """What a motion has made of the points of mass, in the unit box.

    Attributes:
        x: the points.
        rho: their mass.
        nodes: the points at which the flow was integrated.
    """

    x: Float[Array, "*times points 3"]
    rho: Float[Array, "*times points"]
    nodes: Float[Array, "*times nodes 3"]


class Term:
    """A term of the loss. Subclasses are pytrees (`flax.struct.dataclass`) and define `__call__`, or `with_error`."""

    def __call__(self, carried: Carried) -> Float[Array, ""]:
        """Value of the term for the carried points."""
        return self.with_error(carried)[0]

    def with_error(self, carried: Carried) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Value of the term, and a bound on what an approximation in it may change, in the term's own unit."""
        return self(carried), jnp.zeros(())

    def weigh(self, carried: Carried, left: Float[Array, ""]) -> Float[Array, "*times points"]:
        """Mass with which points count in the next steps.

        Args:
            carried: the carried points with all their mass.
            left: fraction of the stage's annealing that is left, from 1 to 0.
        """
        return carried.rho


def total(terms: Sequence[Term], carried: Carried) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of the terms, and the largest of their errors."""
    values, errors = zip(*(term.with_error(carried) for term in terms), strict=True)
    return reduce(add, values), reduce(jnp.maximum, errors)


def weighed(terms: Sequence[Term], carried: Carried, left: Float[Array, ""]) -> Carried:
    """The carried points with the mass that the terms give them; see `Term.weigh`."""
    for term in terms:
        carried = carried._replace(rho=term.weigh(carried, left))
    return carried


@struct.dataclass
class OnGrid(Term):
    """A term that compares the carried mass with a target on a grid.

    Attributes:
        target: the target (x, y, z).
        corner: outer corner of the grid's first voxel (3,), unit box.
        voxel: sides of a voxel (3,), in unit boxes.
    """

    target: Leaf
    corner: Leaf
    voxel: Leaf

    def carried_map(self, carried: Carried) -> Volume:
        """Mass of the carried points on the grid (paper, eq. 6)."""
        return splat(carried.x, carried.rho, self.target.shape, self.corner, self.voxel)


@struct.dataclass
class W2(OnGrid):
    """Squared entropic Wasserstein distance to the target (paper, eq. 3).

    Attributes:
        epsilon: entropic regularisation, in unit boxes squared.
        iterations: Sinkhorn iterations.
        window: of the kernel, in voxels; None: the whole grid.
    """

    epsilon: float = struct.field(pytree_node=False)
    iterations: int = struct.field(pytree_node=False, default=5)
    window: int | None = struct.field(pytree_node=False, default=None)

    def with_error(self, carried: Carried) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The distance in unit boxes squared, and what the window may change, in epsilon."""
        here = self.carried_map(carried)
        return w2_and_error(here, self.target, self.voxel, self.epsilon, self.iterations, self.window)


@struct.dataclass
class L2(OnGrid):
    """Squared differences from the target (the paper's L2 stage)."""

    def __call__(self, carried: Carried) -> Float[Array, ""]:
        """Sum of squared differences, relative to that of the target's squares."""
        return l2(self.carried_map(carried), self.target)


@struct.dataclass
class Matched(OnGrid):
    """Squared differences from the target at matched resolution, whatever the scale of the two maps.

    Attributes:
        power: sum of squares of the target, without that of its noise.
        blur: matrices that blur the carried map to the target's resolution; None: no blur.
        nearby: matrices of the blur within which the target is searched for mass that it may not have; None: all mass
            counts.
        lighten: power of the target's fraction by which points are weighed at the start of a stage, and at its end.
    """

    power: Leaf
    blur: Leaf
    nearby: Leaf
    lighten: Leaf = (0.0, 0.0)

    def carried_map(self, carried: Carried) -> Volume:
        """Mass of the carried points on the grid, at the target's resolution."""
        here = super().carried_map(carried)
        return here if self.blur is None else blur(here, self.blur)

    def __call__(self, carried: Carried) -> Float[Array, ""]:
        """Least squared differences over all scales of the carried map, relative to the signal's power."""
        return scale_invariant_l2(self.carried_map(carried), self.target, self.power)

    def weigh(self, carried: Carried, left: Float[Array, ""]) -> Float[Array, "points"]:
        """Reduce the mass of points for which the target has no density.

        Each point's mass is multiplied by (target / carried map)^power at its carried position, both blurred by
        `nearby` and the ratio at most 1. A domain that the target does not have is so removed and attracts nothing;
        mass that is not yet in place comes back as it arrives. A power that rises during the stage leaves all mass in
        the first steps, which find the motion.
        """
        if self.nearby is None:
            return carried.rho
        first, last = self.lighten
        power = last + left * (first - last)
        both = self.carried_map(carried), self.target
        fraction = fraction_in_target(*(blur(volume, self.nearby) for volume in both))
        return carried.rho * gather(fraction, carried.x, self.corner, self.voxel) ** power


@struct.dataclass
class Rigidity(Term):
    """Rigidity of the motion (paper, eq. 13); see `rigidity`.

    Attributes:
        weight: factor of the term.
        tetrahedra: numbers of the four nodes of each (tetrahedra, 4).
        edges: distances between neighbouring nodes before the motion (3,), in unit boxes.
        share: weight of each tetrahedron.
        slip: strain beyond which the term hardly grows; None: the published term.
    """

    weight: Leaf
    tetrahedra: Leaf
    edges: Leaf
    share: Leaf
    slip: Leaf | None = None

    def __call__(self, carried: Carried) -> Float[Array, ""]:
        """Weighted mean over the tetrahedra."""
        strain = rigidity(carried.nodes, self.tetrahedra, self.edges, self.share, self.slip)
        return self.weight * strain


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
    each = (gaussian_matrix(n, sigma / float(v)) for n, v in zip(shape, voxel_size, strict=True))
    kx, ky, kz = (np.asarray(matrix, np.float32) for matrix in each)
    return kx, ky, kz


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
    share: Float[Array, "tetrahedra"] | None = None,
    slip: Scalar | None = None,
) -> Float[Array, ""]:
    """Rigidity of the flow: mean over tetrahedra of Σ_i (σ_i(F)² − 1)² = ‖FᵀF − I‖² (paper, eq. 13).

    F is the affine map that the flow makes of a tetrahedron: a node and its next nodes along x, y and z. No singular
    value is computed. The value is 0 for a rigid motion and 3 (s² − 1)² for a scaling by s.

    Args:
        moved: nodes after the flow, unit box.
        tetrahedra: indices of the four nodes of each.
        edges: distances between neighbouring nodes before the flow along x, y and z, in unit boxes.
        share: weight of each tetrahedron; None weighs all alike.
        slip: the strain e of a tetrahedron counts as slip · log(1 + e / slip). More strain than `slip` then costs
            little: domains may shear along their borders and move as rigid bodies within. None is the published term.
    """
    corner = moved[tetrahedra]
    f = (corner[:, 1:] - corner[:, :1]) / edges[:, None]  # rows are the columns of F
    gram = jnp.einsum("tik,tjk->tij", f, f)
    strain = jnp.sum((gram - jnp.eye(3)) ** 2, axis=(1, 2))
    if slip is not None:
        strain = slip * jnp.log1p(strain / slip)
    return jnp.mean(strain) if share is None else jnp.vdot(share, strain)
