"""Numbers for the page's script: volumes, frames and positions, packed as bytes."""

import zlib
from base64 import b64encode
from collections.abc import Sequence

import numpy as np

from cryotrans_jax.io.maps import Map
from cryotrans_jax.plots import black_level

from .film import Frame, resampled

LOWEST, HIGHEST = 0.5, 8.0  # times the run's contour: the range in which the page's contours can be chosen
ROOM = 7_000_000  # characters of all frames' densities on a page, at most


def pack_volumes(volumes: dict[str, np.ndarray]) -> dict[str, dict]:
    """Pack volumes for the page's script, a byte per voxel: on a square-root scale, or signed for the difference.

    The entry `black` of each is the density, or difference, that slices show as black, or in full colour.
    """
    packed = {}
    for name, volume in volumes.items():
        if name == "difference":
            high = max(float(np.abs(volume).max()), 1e-9)
            values = (np.rint(volume / high * 127) + 128).astype(np.uint8)
            meta = {"high": high, "signed": True}
        else:
            low = float(np.percentile(volume, 0.1)) if name == "target" else 0.0
            high = max(float(volume.max()), low + 1e-9)
            values = quantise(volume, low, high)
            meta = {"low": low, "high": high, "signed": False}
        packed[name] = meta | {"black": black_level(volume), "data": compress(values)}
    return packed


def pack_frames(frames: Sequence[Frame], level: float, top: float) -> dict:
    """Pack the frames' densities and what colours them for the page's script, a byte per voxel.

    Frames of much noise, which cannot be compressed, are resampled on a coarser grid.

    Args:
        level: the run's display contour; densities are kept up to twice the page's highest contour.
        top: displacement at the end of the colour key (Å), above which displacements are cut off.
    """
    highest = max(float(frame.density.density.max()) for frame in frames)
    high, shown = max(min(2 * HIGHEST * level, highest), level), [frame.density for frame in frames]
    packed = [compress(quantise(map_.density, 0.0, high)) for map_ in shown]
    while sum(map(len, packed)) > ROOM:
        shown = [resampled(map_, map_.density.size // 2) for map_ in shown]
        packed = [compress(quantise(map_.density, 0.0, high)) for map_ in shown]
    codes = [
        {
            "displacement": compress(linear_codes(frame.displacement.density, top)),
            "body": compress(frame.body),
            "error": compress(frame.error),
        }
        for frame in frames
    ]
    return {
        "grid": grid(shown[0]),
        "colours": grid(frames[0].displacement),
        "low": 0.0,
        "high": high,
        "signed": False,
        "top": top,
        "frames": [
            {"name": frame.name, "time": frame.time, "data": data} | own
            for frame, data, own in zip(frames, packed, codes, strict=True)
        ],
    }


def quantise(density: np.ndarray, low: float, high: float) -> np.ndarray:
    """Quantise densities from `low` to `high` to bytes on a square-root scale, which is finer towards the low end."""
    return np.rint(255 * np.sqrt(np.clip((density - low) / (high - low), 0, 1))).astype(np.uint8)


def linear_codes(values: np.ndarray, top: float) -> np.ndarray:
    """Quantise values from 0 to `top` to bytes."""
    return np.rint(255 * np.clip(values / top, 0, 1)).astype(np.uint8)


def grid(map_: Map) -> dict:
    """Grid of a map, as the page's script reads it."""
    return {
        "shape": list(map_.density.shape),
        "voxel": map_.voxel_size.tolist(),
        "origin": map_.origin.tolist(),
    }


def compress(values: np.ndarray) -> str:
    """Compress an array, and encode it as base64."""
    return encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 6))


def encode(data: bytes | np.ndarray) -> str:
    """Encode bytes as base64."""
    return b64encode(data).decode()
