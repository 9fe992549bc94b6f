"""Headers and values of MRC files, as they are stored: axes are columns, rows and sections.

Format: Cheng et al., MRC2014, Journal of Structural Biology 192 (2015).
"""

import os

import gemmi
import numpy as np
from jaxtyping import Float
from mrcfile.dtypes import HEADER_DTYPE

from cryotrans_jax.io.files import InputError, foreign_format, read_bytes

MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
IMOD_STAMP, IMOD_SIGNED = 1146047817, 1  # IMOD's stamp in a header, and the flag bit for signed bytes
IMOD_EXTRA = 40  # offset of the stamp, which the flags follow, in the header's `extra2`


def read_header(path, head: bytes) -> np.void:
    """Parse the header in the byte order that gives possible sizes (old machine stamps are often wrong)."""
    if len(head) == HEADER_DTYPE.itemsize:
        for order in "<>":
            header = np.frombuffer(head, HEADER_DTYPE.newbyteorder(order))[0]
            # a size under 2^16 is over 2^16, or negative, in the other byte order
            if all(0 < header[key] < 2**16 for key in ("nx", "ny", "nz")) and 0 <= header["mode"] < 128:
                return header
    if found := foreign_format(head, "map"):
        raise InputError(f"{path} {found}")
    raise InputError(f"{path} is not an MRC file: give a map in MRC or CCP4 format")


def check_volume(path, header):
    """Raise InputError unless the header describes one real volume."""
    size = [int(header[key]) for key in ("nx", "ny", "nz")]
    mode, group = int(header["mode"]), int(header["ispg"])
    if mode in (3, 4):
        raise InputError(f"{path} holds complex numbers (mode {mode}), a transform: give the real-space map")
    if mode not in MODES:
        raise InputError(f"{path} has MRC mode {mode}, not one of {sorted(MODES)}: convert it to mode 2")
    if min(size) == 1:
        raise InputError(f"{path} is a 2D image of {format_sides(size)} voxels: give a 3D map")
    if group > 400 and header["mz"] != size[2]:
        raise InputError(f"{path} is a stack of volumes (space group {group}): give a file with one volume")
    if group == 0 and header["mz"] == 1:
        raise InputError(f"{path} is a stack of {size[2]} images, no volume: if it is one, set mz to nz")
    if sorted(file_axes(header)) != [0, 1, 2]:
        raise InputError(f"{path} has axis order {raw_axes(header)}: expected 1, 2, 3 in some order")


def raw_axes(header) -> tuple[int, int, int]:
    """The header's axis order as stored: 1, 2, 3 for x, y, z of columns, rows and sections."""
    return int(header["mapc"]), int(header["mapr"]), int(header["maps"])


def file_axes(header) -> list[int]:
    """Axis (0, 1, 2 for x, y, z) of columns, rows and sections; in that order where the header does not set it."""
    return [axis - 1 for axis in raw_axes(header)] if any(raw_axes(header)) else [0, 1, 2]


def read_values(path, header, stream, most: int | None) -> np.ndarray:
    """Read the stored numbers with axes columns, rows, sections, from at most `most` bytes of the stream."""
    size = [int(header[key]) for key in ("nx", "ny", "nz")]
    stored = "u1" if unsigned(header) else MODES[int(header["mode"])]
    kind = np.dtype(stored).newbyteorder(header.dtype["mode"].byteorder)
    skipped, length = max(int(header["nsymbt"]), 0), int(np.prod(size, dtype=object)) * kind.itemsize
    if most is not None and HEADER_DTYPE.itemsize + skipped + length > most:
        raise InputError(
            f"{path} is compressed and would unpack to {skipped + length} bytes by its header, {format_sides(size)} "
            "voxels: if that is right, unpack it first, with gunzip or bunzip2"
        )
    stream.seek(skipped, os.SEEK_CUR)  # a compressed file is unpacked piece by piece here, and the pieces dropped
    data = read_bytes(stream, length)
    if len(data) < length:
        raise InputError(
            f"{path} is truncated: its header promises {format_sides(size)} voxels, {length} bytes, "
            f"and {len(data)} are there: copy it again"
        )
    return np.frombuffer(data, kind).reshape(size[::-1]).T


def unsigned(header) -> bool:
    """Whether values of mode 0 are from 0 to 255: by IMOD's flags, or by a maximum above that of signed bytes."""
    if header["mode"] != 0:
        return False
    stamp, flags = np.frombuffer(header["extra2"].tobytes(), header.dtype["mode"], 2, IMOD_EXTRA)
    if stamp == IMOD_STAMP:
        return not flags & IMOD_SIGNED
    return bool(header["dmin"] >= 0 and header["dmax"] > 127)


def header_voxel_size(header) -> Float[np.ndarray, "3"]:
    """Voxel size [Å] of the header: the cell divided by its sampling, or by the grid where the sampling is not set."""
    cell = np.array(header["cella"].item(), np.float64)
    sampling = np.array([header[key] for key in ("mx", "my", "mz")], np.float64)
    sides = np.array([header[key] for key in ("nx", "ny", "nz")], np.float64)[np.argsort(file_axes(header))]
    return cell / np.where(sampling > 0, sampling, sides)


def skewed_steps(path, voxel_size, angles) -> np.ndarray:
    """Steps [Å] from voxel to voxel, as columns, in a cell of these angles (degrees)."""
    possible = bool(np.all((angles > 0) & (angles < 180)))
    between = np.cos(np.radians(angles if possible else [0.0, 0.0, 0.0]))
    volume = 1 - between @ between + 2 * between.prod()  # squared volume of a cell with edges of 1
    if not (possible and volume > 1e-3):
        found = ", ".join(f"{angle:.1f}" for angle in angles)
        raise InputError(f"{path} has an impossible cell (angles {found}°): set them in the header, 90 if in doubt")
    return np.array(gemmi.UnitCell(*voxel_size, *angles).orth.mat.tolist())


def format_sides(shape) -> str:
    """Format the shape of a grid."""
    return " x ".join(str(n) for n in shape)


def format_vector(values) -> str:
    """Format a position or size, to three decimals."""
    return "(" + ", ".join(f"{value:.3f}".rstrip("0").rstrip(".") for value in values) + ")"
