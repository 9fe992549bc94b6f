"""How alike two maps are."""

import numpy as np
from jaxtyping import Float


def correlation(a: Float[np.ndarray, "x y z"], b: Float[np.ndarray, "x y z"]) -> float:
    """Pearson correlation of two maps on one grid, over all voxels."""
    a, b = (v - v.mean(dtype=np.float64).astype(v.dtype) for v in (a, b))
    aa, ab, bb = (np.sum(u * v, dtype=np.float64) for u, v in ((a, a), (a, b), (b, b)))
    return float(ab / np.sqrt(aa * bb))
