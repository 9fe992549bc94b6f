"""Squared entropic Wasserstein distance between two volumes on one grid (paper, eq. 3), by ott-jax's Sinkhorn.

The cost is the squared distance in the unit box. `VoxelGrid` replaces the kernel of ott's `Grid`, which builds an array
of n⁴ numbers, by sums over shifted slices along one axis after another.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ott.geometry.grid import Grid
from ott.problems.linear import linear_problem
from ott.solvers.linear import sinkhorn

Volume = Float[Array, "x y z"]

TAPS_AT_ONCE = 16  # slices in one fused loop
LN2 = 0.6931471805599453
EXP2 = (0.99999926, 0.69312181, 0.24024745, 0.055917860, 0.0095701006)  # coefficients of 2^x for |x| ≤ 1/2, to 3e-6
TINY = 1e-20  # mass of an empty voxel, so that its logarithm is finite (paper)


@jax.tree_util.register_pytree_node_class
class VoxelGrid(Grid):
    """Voxel centres of a volume as an ott-jax geometry, with the squared distance as cost.

    Args:
        shape: number of voxels along each axis, known at compile time.
        voxel: distances between voxel centres along the three axes, in unit boxes.
        epsilon: entropic regularisation, in unit boxes squared.
        window: how many voxels away along each axis mass may be coupled to, known at compile time; None: the whole
            grid. The kernel is exact within the window and omits what lies beyond. This changes nothing once the window
            is wider than the motion by a few sqrt(epsilon).
    """

    def __init__(self, shape, voxel, epsilon, window=None):
        """Make the geometry; see the class."""
        axes = [jnp.arange(n) * voxel[k] for k, n in enumerate(shape)]
        super().__init__(x=axes, epsilon=epsilon)
        self.voxel, self.window = voxel, window

    def apply_lse_kernel(self, f, g, eps, vec=None, axis=0):
        """eps * log Σ_j exp((g_j − c_ij) / eps) for every voxel i (with f for g when axis is 0); see ott's `Grid`."""
        if vec is not None:
            raise NotImplementedError("VoxelGrid applies its kernel to potentials only (vec=None)")
        h = jnp.reshape(f if axis == 0 else g, self.grid_size) / eps
        for k in range(3):
            h = lse_along(h, k, self.voxel[k] ** 2 / eps, self.window)
        return eps * h.ravel(), jnp.ones(())

    def tree_flatten(self):
        """Leaves and static parts, for JAX."""
        return (self.voxel, self._epsilon_init), (self.grid_size, self.window)

    @classmethod
    def tree_unflatten(cls, static, leaves):
        """Rebuild the geometry from `tree_flatten`, for JAX."""
        return cls(static[0], leaves[0], leaves[1], static[1])


def lse_along(h: Volume, axis: int, scale: Float[Array, ""] | float, window: int | None = None) -> Volume:
    """log Σ_k exp(h[i + k] − scale k²) along one axis, k from −window to window, as shifted slices.

    Two passes, first the largest term and then the sum. Each takes a few slices at a time, so that the compiler fuses
    them into one loop and forms no array larger than h.
    """
    n = h.shape[axis]
    reach = n - 1 if window is None else min(window, n - 1)
    taps = min(2 * reach + 1, TAPS_AT_ONCE)
    groups = -(-(2 * reach + 1) // taps)
    # Base 2 from here on. XLA computes h anew, with the passes that it came from, wherever it is used, unless its
    # last operation counts as expensive. A division does, as long as XLA can neither fold its divisor into what comes
    # before (hence the barrier) nor invert it for this use alone (hence the second use, in the last line).
    log_of_2 = jax.lax.optimization_barrier(jnp.asarray(LN2, h.dtype))
    h, scale = h / log_of_2, scale / LN2
    pad = [(0, 0)] * h.ndim
    pad[axis] = (reach, groups * taps - reach - 1)
    padded = jnp.pad(h, pad, constant_values=-jnp.inf)

    def terms(group):
        slices = jax.lax.dynamic_slice_in_dim(padded, group * taps, n + taps - 1, axis)
        for t in range(taps):
            k = group * taps + t - reach
            yield jax.lax.slice_in_dim(slices, t, t + n, axis=axis) - scale * k * k

    def update_maximum(group, top):
        for term in terms(group):
            top = jnp.maximum(top, term)
        return top

    def update_sum(group, total):
        for term in terms(group):
            total = total + exp2_below_zero(term - top)
        return total

    top = loop_over_groups(groups, update_maximum, h)
    return log_of_2 * top + jnp.log(loop_over_groups(groups, update_sum, jnp.zeros_like(h)))


def exp2_below_zero(t: Float[Array, "..."]) -> Float[Array, "..."]:
    """2^t for t ≤ 0, at least 2^-126, to a relative error of 3e-6.

    On a CPU this is a polynomial and the exponent's bits, which takes half the time of the general function.
    """
    if t.dtype != jnp.float32 or jax.default_backend() != "cpu":
        return jnp.exp2(t)
    t = jnp.maximum(t, -126.0)
    # The sum of 1.5 2^23 and a small number, as a float, has the nearest integer in its last bits.
    whole = jax.lax.bitcast_convert_type(t + 1.5 * 2**23, jnp.int32) - 0x4B400000
    polynomial = jnp.float32(EXP2[-1])
    for coefficient in EXP2[-2::-1]:
        polynomial = polynomial * (t - whole) + jnp.float32(coefficient)
    return jax.lax.bitcast_convert_type(
        (whole << 23) + jax.lax.bitcast_convert_type(polynomial, jnp.int32), jnp.float32
    )


def loop_over_groups(groups: int, body, start):
    """`fori_loop` over the groups, without a loop where there is only one."""
    return body(0, start) if groups == 1 else jax.lax.fori_loop(0, groups, body, start)


def potentials(
    a: Volume, b: Volume, voxel, epsilon: float, iterations: int = 5, window: int | None = None
) -> tuple[Volume, Volume]:
    """Dual potentials (φ, ψ) of the transport of a onto b: the gradients of the distance with respect to a and b.

    Runs exactly `iterations` Sinkhorn iterations in the log domain, from zero potentials. Both potentials are soft
    c-transforms, finite and smooth in empty voxels too: ott's potentials minus epsilon times the log of the mass.

    Args:
        a: mass in each voxel, total 1. Another total T adds −epsilon log T to the potentials.
        b: likewise.
        voxel: distances between voxel centres along the three axes, in unit boxes.
        epsilon: entropic regularisation, in unit boxes squared (1e-4 in the paper).
        iterations: number of Sinkhorn iterations (5 in the paper).
        window: see `VoxelGrid`.

    Returns:
        φ and ψ on the grid, in unit boxes squared.
    """
    a, b = (jnp.maximum(m, TINY) for m in (a, b))
    geometry = VoxelGrid(a.shape, voxel, epsilon, window)
    solver = sinkhorn.Sinkhorn(
        lse_mode=True,
        inner_iterations=iterations,
        min_iterations=iterations,
        max_iterations=iterations,
    )
    out = solver(linear_problem.LinearProblem(geometry, a.ravel(), b.ravel()))
    f, g = out.f.reshape(a.shape), out.g.reshape(b.shape)
    return f - epsilon * jnp.log(a), g - epsilon * jnp.log(b)


def w2(a: Volume, b: Volume, voxel, epsilon: float, iterations: int = 5, window: int | None = None) -> Float[Array, ""]:
    """Squared entropic Wasserstein distance of a to b per mass, <φ, a> + <ψ, b>, in unit boxes squared (paper, eq. 3).

    The dual with frozen potentials: its gradient is the potential itself (envelope theorem), and no derivative is taken
    through the iterations. a and b are assumed to have equal mass, in any unit. Arguments are as for `potentials`.
    """
    return w2_and_error(a, b, voxel, epsilon, iterations, window)[0]


def w2_and_error(
    a: Volume, b: Volume, voxel, epsilon: float, iterations: int = 5, window: int | None = None
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`w2`, and the bound of `window_error` on the change that the window may have caused, in epsilon."""
    total = jax.lax.stop_gradient(jnp.sum(b))
    a, b = a / total, b / total
    fixed = jax.lax.stop_gradient((a, b))
    phi, psi = potentials(*fixed, voxel, epsilon, iterations, window)
    error = jnp.zeros(()) if window is None else window_error(phi, psi, *fixed, voxel, epsilon, window)
    return jnp.vdot(phi, a) + jnp.vdot(psi, b), error


def window_error(
    phi: Volume, psi: Volume, a: Volume, b: Volume, voxel, epsilon: float, window: int
) -> Float[Array, ""]:
    """Upper bound, in epsilon, on how much the kernel's window changes a potential where there is mass.

    The n terms b_j exp((ψ_j − c_ij) / ε) that voxel i omits have c_ij ≥ (window + 1)² voxel². Together they are at most
    T = n max_j b_j exp(ψ_j / ε) exp(−(window + 1)² voxel² / ε), while the terms kept sum to exp(−φ_i / ε). So the
    potential is wrong by at most log(1 + T exp(φ_i / ε)) epsilon, for the last iteration given the one before. The same
    with a and b exchanged.
    """
    shortest = ((window + 1) * jnp.min(jnp.asarray(voxel))) ** 2 / epsilon

    def bound(one, other, mass, others):
        left_out = jnp.max(other / epsilon + jnp.log(jnp.maximum(others, TINY))) + jnp.log(one.size) - shortest
        kept = jnp.max(jnp.where(mass > 0, one / epsilon, -jnp.inf))
        return jax.nn.softplus(left_out + kept)

    return jnp.maximum(bound(phi, psi, a, b), bound(psi, phi, b, a))


def window_for(motion: float, voxel: float, epsilon: float) -> int:
    """Window in voxels for mass that moves by up to `motion`: that and 6 sqrt(epsilon/2), all in unit boxes."""
    return int(np.ceil((motion + 6 * np.sqrt(epsilon / 2)) / voxel))
