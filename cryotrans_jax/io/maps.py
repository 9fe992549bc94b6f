"""Read and write density maps in MRC format. No other module knows that MRC stores z, y, x.

Format: Cheng et al., MRC2014, Journal of Structural Biology 192 (2015).
"""

import importlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
from jaxtyping import Array, Float
from mrcfile.dtypes import HEADER_DTYPE
from scipy import ndimage

from cryotrans_jax.io.files import InputError, open_unpacked, whole_file
from cryotrans_jax.io.mrc import (
    check_volume,
    file_axes,
    format_sides,
    format_vector,
    header_voxel_size,
    read_header,
    read_values,
    skewed_steps,
)

WRITTEN = (".mrc", ".map", ".ccp4")
# Further formats, by suffix: the module whose read(path, voxel_size: three numbers in Å, or None) returns the Map.
READERS: dict[str, str] = {}
SUFFIXES = (*WRITTEN, *READERS)
COMPRESSION = {".gz": "gzip", ".bz2": "bzip2"}
SMALLEST, LARGEST = 1e-14, 1e14  # of densities: a sum of squares of a billion of them stays within float32
VOXELS = 1e-2, 1e3  # Å: from the finest diffraction maps to the coarsest tomograms
FARTHEST = 1e6  # Å: largest distance from 0, at which float32 still resolves 0.1 Å
MAX_GROWTH = 16  # times the voxels of a skewed map that its orthogonal grid may have
GROWTH_FREE = 1 << 22  # voxels that the orthogonal grid may have in any case


Position = Sequence[float | int] | Float[np.ndarray, "3"]  # Å
VoxelSize = float | int | Sequence[float | int] | Float[np.ndarray, "3"]  # Å, for all axes or for each


@dataclass(frozen=True, repr=False, init=False)
class Map:
    """A density on a grid of voxels whose axes are x, y, z.

    An array of NumPy or JAX becomes a map by `Map(array, voxel_size)`. Axis k of it is coordinate k. An array that was
    read from an MRC file by other means, such as mrcfile, has its axes the other way round: give its transpose.

    Attributes:
        density: real numbers, voxel (i, j, k) at `origin + voxel_size * (i, j, k)`.
        voxel_size: Å along each axis; may be given as one number for all.
        origin: position of the centre of voxel (0, 0, 0), Å; (0, 0, 0) if not given.
    """

    density: Float[np.ndarray, "x y z"]
    voxel_size: Float[np.ndarray, "3"]
    origin: Float[np.ndarray, "3"]

    def __init__(self, density: Array | np.ndarray, voxel_size: VoxelSize, origin: Position = (0.0, 0.0, 0.0)):
        """Make a map of an array; raise InputError if it has not three axes, or no possible voxel size or origin."""
        values, place = np.asarray(density), np.array(origin, np.float64)
        if values.ndim != 3 or values.dtype.kind in "cOSU":
            raise InputError(f"an array of {values.dtype} and shape {values.shape} is no map: give three axes, x, y, z")
        if place.shape != (3,) or not np.isfinite(place).all():
            raise InputError(f"the origin {origin} is not three numbers in Å: give the centre of the first voxel")
        object.__setattr__(self, "density", values if values.dtype.kind == "f" else values.astype(np.float32))
        object.__setattr__(self, "voxel_size", _given_size("the map", voxel_size))
        object.__setattr__(self, "origin", place)

    def __repr__(self) -> str:
        """Describe the grid, without the densities."""
        return f"Map({describe(self)})"

    def interpolate(self, xyz: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
        """Density at positions in Å, interpolated linearly between voxels; 0 outside the box."""
        return ndimage.map_coordinates(self.density, ((xyz - self.origin) / self.voxel_size).T, order=1)


MapLike = Map | str | os.PathLike  # a map, or the path of a map file


def is_one_map(given: Any) -> bool:
    """Whether one map is given, and not several; an array counts as one, which `as_map` then refuses."""
    return isinstance(given, MapLike) or hasattr(given, "shape")


def as_map(given: MapLike) -> Map:
    """Return the map itself, or read it from the file at that path.

    Raises:
        InputError: as by `read_map`, or it is an array without a voxel size.
    """
    if isinstance(given, str | os.PathLike):
        return read_map(given)
    if not isinstance(given, Map):
        what = f"an array of shape {np.shape(given)}" if hasattr(given, "shape") else f"a {type(given).__name__}"
        raise InputError(f"{what} is given as a map: give the path of a map, or cryotrans_jax.Map(array, voxel_size)")
    _check_values("the map", given.density)
    _check_placement("the map", given.voxel_size, given.origin)
    return given if given.density.dtype == np.float32 else replace(given, density=given.density.astype(np.float32))


def read_map(path: str | os.PathLike, voxel_size: VoxelSize | None = None) -> Map:
    """Read a map from an MRC or CCP4 file, plain or compressed (gzip, bzip2), in any axis order and real mode.

    The voxel size is the cell divided by its sampling. The origin is ORIGIN where that is set, otherwise the start in
    voxels. Old headers (no MAP stamp, wrong machine stamp, unset axis order or cell angles) are accepted. Bytes
    (mode 0) are signed, unless IMOD's flags or the header's extremes show that they are unsigned. Memory use is bounded
    by the data in the file. A map on a skewed cell (of a crystal) is resampled on an orthogonal grid, see `orthogonal`.
    A file whose suffix is in READERS is read by the module that is named there.

    Args:
        path: path of the file.
        voxel_size: Å, one number or one for each of x, y, z; None for the header's. ORIGIN, which is in Å, does not
            change with it.

    Returns:
        The map, with its density in float32.

    Raises:
        InputError: the file is missing, not an MRC map, truncated, a stack, an image, complex, has an impossible cell,
            no voxel size or an origin too far from 0, or its values are constant, not finite, or too large or small to
            compute with.
    """
    path, given = Path(path), None if voxel_size is None else _given_size(path, voxel_size)
    if not path.is_file():
        raise InputError(f"{path} {'is a folder' if path.is_dir() else 'does not exist'}: give the path of a map")
    if (module := READERS.get(path.suffix.lower())) is not None:
        found = importlib.import_module(module).read(path, given)
        _check_values(path, found.density)
        _check_placement(path, found.voxel_size, found.origin)
        return found
    with open_unpacked(path) as (stream, most):
        header = read_header(path, stream.read(HEADER_DTYPE.itemsize))
        check_volume(path, header)
        values = read_values(path, header, stream, most)
    axes = np.argsort(file_axes(header))  # file axis of each of x, y, z
    density = np.ascontiguousarray(values.transpose(axes), np.float32)
    _check_values(path, density)
    return _placed(path, header, density, axes, given)


def has_voxel_size(path: str | os.PathLike) -> bool:
    """Whether the header of a map file gives a voxel size; further formats are asked by their reader."""
    if Path(path).suffix.lower() in READERS:
        return False
    with open_unpacked(path) as (stream, _):
        header = read_header(path, stream.read(HEADER_DTYPE.itemsize))
    return _is_size(header_voxel_size(header))


def orthogonal(
    density: Float[np.ndarray, "x y z"], steps: Float[np.ndarray, "3 3"], origin: Float[np.ndarray, "3"]
) -> Map:
    """Resample a density from a skewed cell on an orthogonal grid, with cubic splines.

    No axis changes its length: layers only slide along one another.

    Args:
        density: values on the skewed grid.
        steps: the columns are the steps between voxels along each axis, Å. An upper triangle: a along x and b in the
            plane of x and y (the PDB's convention). Its diagonal is the new voxel size.
        origin: position of voxel (0, 0, 0) of the density, Å.

    Returns:
        The map, zero outside the skewed box.
    """
    size = np.diag(steps).copy()
    ends = np.array(list(np.ndindex(2, 2, 2))) * (np.array(density.shape) - 1)
    corners = ends @ steps.T / size
    low = np.floor(corners.min(0) + 1e-6)
    shape = tuple(int(n) for n in np.ceil(corners.max(0) - 1e-6) - low + 1)
    back = np.linalg.inv(steps)
    sheared = ndimage.affine_transform(
        density, back * size, back @ (low * size), shape, np.float32, order=3, mode="grid-constant"
    )
    return Map(sheared, size, origin + low * size)


def write_map(path: str | os.PathLike, map: Map) -> None:
    """Write the map as MRC2014 in float32, compressed if the name ends in .gz or .bz2.

    Where the origin is a whole number of voxels, the start in voxels is set too, for programs that ignore ORIGIN. The
    file appears whole or not at all.

    Args:
        path: path of the file; its name ends in .mrc, .map or .ccp4, with .gz or .bz2 if it is to be compressed. A file
            that exists is replaced.
        map: the map.

    Raises:
        InputError: the name is not that of a map, or a value is not finite.
        OSError: the file cannot be written, or is not valid as written.
    """
    path = Path(path)
    check_output(path, overwrite=True)
    if not np.isfinite(map.density).all():
        raise InputError(f"{path} was not written: the map holds values that are not finite numbers")
    start = np.rint(map.origin / map.voxel_size)
    whole = np.allclose(start * map.voxel_size, map.origin, rtol=0, atol=1e-3 * map.voxel_size.min())
    with whole_file(path) as temporary:
        with mrcfile.new(temporary, compression=COMPRESSION.get(path.suffix), overwrite=True) as file:
            file.set_data(np.ascontiguousarray(map.density.T, np.float32))
            file.header.dmean = file.data.mean(dtype=np.float64)  # float32 loses the mean of large values of both signs
            file.set_volume()  # ISPG 1, mz = nz
            file.voxel_size = tuple(map.voxel_size)
            file.header.origin = tuple(map.origin)
            file.nstart = tuple(start.astype(int)) if whole else 0
            file.header.label[0] = "Written by cryotrans_jax"  # mrcfile's own label has the time: bytes would differ
        if not mrcfile.validate(temporary, print_file=(complaints := io.StringIO())):
            raise OSError(f"{path} was not written: {complaints.getvalue().strip()}")


def check_output(path: str | os.PathLike, overwrite: bool = False) -> None:
    """Check that a map can be written at this path.

    Args:
        path: path of the file to be written.
        overwrite: whether a file that exists may be replaced.

    Raises:
        InputError: the name does not have the suffix of a map, or the file exists.
    """
    path = Path(path)
    if Path(path.name.removesuffix(".gz").removesuffix(".bz2")).suffix.lower() not in WRITTEN:
        raise InputError(f"{path} is not a map's name: end it in .mrc, .map, .ccp4 or .mrc.gz")
    if path.exists() and not overwrite:
        raise InputError(f"{path} is already there: choose another output, or add --overwrite")


def describe(map: Map) -> str:
    """Describe the size, voxel size and origin of a map in words."""
    sides, size, origin = format_sides(map.density.shape), format_vector(map.voxel_size), format_vector(map.origin)
    return f"{sides} voxels of {size} Å, origin {origin} Å"


def frequencies(shape: Sequence[int], voxel_size: float | Float[np.ndarray, "3"]) -> tuple[np.ndarray, ...]:
    """Frequencies [1/Å] along each axis of a real Fourier transform, as arrays to be broadcast.

    Args:
        shape: number of voxels along each axis.
        voxel_size: Å, of all axes or of each.
    """
    steps = np.broadcast_to(voxel_size, 3)
    axes = [np.fft.fftfreq(n, d) for n, d in zip(shape[:2], steps[:2], strict=True)]
    return tuple(np.meshgrid(*axes, np.fft.rfftfreq(shape[2], steps[2]), indexing="ij", sparse=True))


def radial_frequency(shape: Sequence[int], voxel_size: float | Float[np.ndarray, "3"]) -> Float[np.ndarray, "x y half"]:
    """Magnitude [1/Å] of the frequency of each coefficient; arguments are as for `frequencies`."""
    return np.sqrt(sum(along**2 for along in frequencies(shape, voxel_size)))


def same_grid(a: Map, b: Map) -> str | None:
    """Compare the grids of two maps.

    Voxel sizes may differ by 0.1 %, origins and far ends by a tenth of a voxel.

    Returns:
        None if the two share one grid, otherwise the difference in words.
    """
    if a.density.shape != b.density.shape:
        return f"{format_sides(a.density.shape)} against {format_sides(b.density.shape)} voxels"
    drift = np.abs(a.voxel_size - b.voxel_size) * a.density.shape  # between the far ends of the two boxes, Å
    if np.any(drift > 0.1 * a.voxel_size) or not np.allclose(a.voxel_size, b.voxel_size, rtol=1e-3, atol=0):
        return f"voxels of {format_vector(a.voxel_size)} against {format_vector(b.voxel_size)} Å"
    if np.any(np.abs(a.origin - b.origin) > 0.1 * a.voxel_size):
        return f"origin {format_vector(a.origin)} against {format_vector(b.origin)} Å"
    return None


def _check_values(path, density):
    """Raise InputError unless the density is finite and varies."""
    bad = density.size - np.count_nonzero(np.isfinite(density))
    if bad:
        raise InputError(f"{path} holds {bad} values that are NaN or infinite: set them to 0 first")
    if density.min() == density.max():
        raise InputError(f"{path} has the value {density.flat[0]:g} throughout: give a map with a density")
    largest = max(-density.min(), density.max())
    if not SMALLEST <= largest <= LARGEST:
        raise InputError(f"{path} has values of up to {largest:g}, which cannot be squared: scale them to about 1")


def _given_size(path, voxel_size: VoxelSize) -> Float[np.ndarray, "3"]:
    """Check the voxel size that the caller gives. Raises InputError unless it is one or three positive numbers."""
    numbers = np.atleast_1d(np.asarray(voxel_size, np.float64))
    if numbers.shape not in ((1,), (3,)) or not _is_size(numbers):
        raise InputError(f"the voxel size {voxel_size} for {path} is not one positive number in Å, or three")
    return np.broadcast_to(numbers, 3).copy()


def _is_size(voxel_size: np.ndarray) -> bool:
    """Whether numbers may be a voxel size in some unit."""
    return bool(np.all(np.isfinite(voxel_size) & (voxel_size > 0)))


def _checked_size(path, header, given: Float[np.ndarray, "3"] | None) -> Float[np.ndarray, "3"]:
    """The given voxel size, or else the header's. Raises InputError where it is missing or impossible."""
    voxel_size = header_voxel_size(header) if given is None else given
    if not _is_size(voxel_size):
        cell = format_vector(header["cella"].item())
        raise InputError(
            f"{path} has no voxel size (its cell is {cell} Å): give it with --voxel_size, or --target_voxel_size for "
            "a target, or set it in the header"
        )
    return voxel_size


def _check_placement(path, voxel_size: Float[np.ndarray, "3"], origin: Float[np.ndarray, "3"]) -> None:
    """Raise InputError unless voxel size and origin are of a map of a molecule, both in Å."""
    if voxel_size.min() < VOXELS[0] or voxel_size.max() > VOXELS[1]:
        found = ", ".join(f"{size:g}" for size in voxel_size)
        raise InputError(
            f"{path} has voxels of {found} Å, outside {VOXELS[0]:g} to {VOXELS[1]:g}: give their size in Å with "
            "--voxel_size, or --target_voxel_size for a target"
        )
    if np.abs(origin).max() > FARTHEST:
        found = ", ".join(f"{x:g}" for x in origin)
        raise InputError(f"{path} lies at ({found}) Å by its header: set its origin, to 0 if in doubt")


def _placed(path, header, density, axes, given: Float[np.ndarray, "3"] | None) -> Map:
    """Make a map of the density: with voxel size and origin, on an orthogonal grid."""
    voxel_size, origin = _checked_size(path, header, given), np.array(header["origin"].item(), np.float64)
    start = np.array([header[key] for key in ("nxstart", "nystart", "nzstart")], np.float64)[axes]
    angles = np.array(header["cellb"].item(), np.float64)
    right = not angles.any() or np.allclose(angles, 90, rtol=0, atol=0.1)
    steps = np.diag(voxel_size) if right else skewed_steps(path, voxel_size, angles)
    origin = origin if np.isfinite(origin).all() and origin.any() else steps @ start
    _check_placement(path, voxel_size, origin)
    if right:
        return Map(density, voxel_size, origin)
    sides = np.ceil(np.abs(steps / np.diag(steps)[:, None]) @ density.shape)
    if sides.prod() > max(MAX_GROWTH * density.size, GROWTH_FREE):
        box = format_sides(sides.astype(int))
        raise InputError(f"{path} has too skewed a cell: a box of {box} voxels would hold it: resample it")
    return orthogonal(density, steps, origin)
