"""The displacement of the density as data for other programs: vectors at points of mass, and maps of components."""

from pathlib import Path

import gemmi
import numpy as np
from jaxtyping import Float
from scipy.spatial import cKDTree

from cryotrans_jax.fit.errors import Errors
from cryotrans_jax.fit.result import Fit
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import whole_file
from cryotrans_jax.io.maps import Map, write_map
from cryotrans_jax.motion.displacement import mass_points, values_map

from . import finished

VECTORS, AXES = "displacement.npz", "xyz"


def write(fit: Fit, errors: Errors | None, generated: Map, folder: Path) -> None:
    """Write displacement.npz, and displacement_x.mrc, _y.mrc and _z.mrc on the grid of the generated map.

    Args:
        fit: of one target.
        errors: its predicted errors; None leaves them out.
        generated: the generated map.
        folder: where to write.
    """
    if errors is None:
        points, mass = mass_points(fit.require_initial(), fit.threshold)
        ends = fit.carry(points, [1.0])[0]
    else:
        points, mass, ends = errors.points, errors.mass, errors.ends
    part = np.zeros(len(points), np.int16) if fit.partition() is None else fit.partition().part_at(points)
    arrays = {"points": points, "vectors": ends - points, "mass": mass, "body": part + 1}
    if errors is not None:
        arrays |= {"error": errors.error, "supported": errors.supported}
    with whole_file(folder / VECTORS) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    for axis, name in enumerate(AXES):
        write_map(folder / f"displacement_{name}.mrc", values_map(ends, (ends - points)[:, axis], generated))


def errors_of_atoms(folder: Path, model: gemmi.Structure) -> Float[np.ndarray, "atoms"] | None:
    """Predicted error (Å) of each atom of the initial state's model, from the folder of a run; None if it has none.

    Raises:
        InputError: displacement.npz is not as the run wrote it.
    """
    if not finished.has(folder, VECTORS):  # as in runs of before
        return None
    with np.load(finished.verify(folder, VECTORS)) as arrays:
        if "error" not in arrays:
            return None
        points, error = arrays["points"], arrays["error"]
    return error[cKDTree(points).query(atoms.positions(model))[1]]
