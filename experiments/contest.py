"""Score frames of any method between two maps; write the table, the curves and the figures."""

import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gemmi
import numpy as np

from cryotrans_jax import plots
from cryotrans_jax.density import similarity, simulation
from cryotrans_jax.density.align import resampled
from cryotrans_jax.io import atoms
from cryotrans_jax.io.files import InputError, write_file
from cryotrans_jax.io.maps import Map
from cryotrans_jax.scores import metrics

from . import exchange, paths, run_folder

BLOCK = 4.0  # Å at least, side of a block; mass may move to the neighbouring blocks from frame to frame
MOST_BLOCKS = 4000  # with more filled blocks the search for appearing mass takes minutes
KNOWN = 20  # models of a known path, evenly picked, that maps are compared with, at most
COLUMNS = (  # key, head, description, style
    ("correlation_with_target", "CC target", "correlation of the last frame with the target", "{:.3f}"),
    ("fsc_with_target", "FSC target", "FSC = 0.5 of the last frame against the target [Å]", "{:.2f}"),
    ("correlation_with_truth", "CC truth", "correlation of the last frame with the truth", "{:.3f}"),
    ("fsc_with_truth", "FSC truth", "FSC = 0.5 of the last frame against the truth [Å]", "{:.2f}"),
    (
        "detail_halfway",
        "detail",
        "power of the frame half way at 0.35 to 0.45 cycles a voxel, as a share of all its power, relative to the mean "
        "of that of the two maps",
        "{:.2f}",
    ),
    (
        "detail_end",
        "detail end",
        "the same of the last frame",
        "{:.2f}",
    ),
    (
        "mass_halfway",
        "mass",
        "mass above the initial map's contour in the frame half way, relative to the mean of the first and the last "
        "frame's: below 1 if density fades on its way",
        "{:.2f}",
    ),
    (
        "between",
        "between",
        "share of the mass of the frame half way where neither map has density above its contour: moving density "
        "passes there, a blend has none",
        "{:.3f}",
    ),
    (
        "fleeting",
        "fleeting",
        "mass above the contour that appears or vanishes along the path without having moved, mean of both, "
        f"relative to the initial map's; between two frames it may move to the next block of {BLOCK:g} Å, or more "
        "in large molecules",
        "{:.3f}",
    ),
    ("path_correlation", "CC path", "mean over a known path of the best correlation with any frame", "{:.3f}"),
    ("path", "path [Å]", "mean over a known path of the least RMSD of CA atoms to any frame", "{:.2f}"),
    ("seconds", "seconds", "to make the frames, start-up and compilation included", "{:.0f}"),
)


@dataclass
class Comparison:
    """The input of all methods, on one grid, and the truth that they are scored against, if it is known.

    Attributes:
        initial: the initial map.
        target: the target map.
        level: display contour of the initial map.
        times: times of the frames, from 0 to 1.
        resolution: resolution of the initial map, Å.
        inside: voxels where one of the maps has density above its contour, bool.
        truth: a sharp map of the target state.
        models: models of both states.
        path: models of the path between the states.
    """

    initial: Map
    target: Map
    level: float
    times: np.ndarray
    resolution: float
    inside: np.ndarray
    truth: Map | None = None
    models: tuple[gemmi.Structure, gemmi.Structure] | None = None
    path: list[gemmi.Structure] = field(default_factory=list)


@dataclass
class Entry:
    """Scores of a method, its curves along the path (times, values), the FSC of its last frame, the frame half way."""

    name: str
    scores: dict[str, float]
    along: dict[str, tuple[np.ndarray, np.ndarray]]
    fsc: dict[str, plots.Curve]
    halfway: np.ndarray | None


class Judge:
    """Score the frames of one comparison; the known path's maps are made once."""

    def __init__(self, comparison: Comparison):
        """Compute the reference values of the comparison."""
        self.comparison = comparison
        self.detail = (metrics.detail(comparison.initial.density) + metrics.detail(comparison.target.density)) / 2
        filled = comparison.initial.density >= comparison.level
        self.block = max(round(BLOCK / comparison.initial.voxel_size.min()), 1)
        while np.count_nonzero(filled) > MOST_BLOCKS * self.block**3:
            self.block += 1
        known = comparison.path[:: -(-len(comparison.path) // KNOWN)] if comparison.path else []
        maps = [simulation.simulate(model, comparison.resolution, like=comparison.initial).density for model in known]
        self.known = np.stack([_standard(density) for density in maps]) if maps else None

    def entry(
        self,
        name: str,
        frames: Sequence[Map],
        times: np.ndarray,
        seconds: float | None = None,
        path: float | None = None,
    ) -> Entry:
        """Score the frames of a method.

        Args:
            frames: its frames; the last is its prediction of the target state. With fewer than three, scores of the
                frame half way are left out.
            path: distance (Å) of the known path from its models.
        """
        scores, curves = self.score_end(frames[-1])
        course, along, halfway = self.score_course(frames, times)
        scores |= course
        if self.known is not None:
            found = self.known @ np.stack([_standard(frame.density) for frame in frames], -1)
            scores["path_correlation"] = float(found.max(1).mean())
        scores |= {key: value for key, value in (("path", path), ("seconds", seconds)) if value is not None}
        return Entry(name, scores, along, curves, halfway)

    def score_end(self, last: Map) -> tuple[dict[str, float], dict[str, plots.Curve]]:
        """Correlations of the last frame, where its FSC falls to 0.5 (Å), and the FSC."""
        goals = {"target": self.comparison.target, "truth": self.comparison.truth}
        known = {name: goal for name, goal in goals.items() if goal is not None}
        scores = {f"correlation_with_{n}": similarity.correlation(last.density, g.density) for n, g in known.items()}
        curves = {name: metrics.map_fsc(last, goal) for name, goal in known.items()}
        return scores | {
            f"fsc_with_{name}": metrics.resolution_at(*curve, 0.5) for name, curve in curves.items()
        }, curves

    def score_course(
        self, frames: Sequence[Map], times: np.ndarray
    ) -> tuple[dict[str, float], dict, np.ndarray | None]:
        """Scores and curves of detail, mass and correlations along the path, and the frame half way."""
        comparison, scale = self.comparison, 1.0
        if len(frames) > 1:  # other programs may scale the density differently
            first = frames[0].density
            scale = float(np.vdot(first, comparison.initial.density) / np.vdot(first, first))
        details = np.array([metrics.detail(frame.density) for frame in frames]) / self.detail
        masses = np.array([metrics.visible_mass(scale * frame.density, comparison.level) for frame in frames])
        along = {"detail": (times, details), "mass": (times, masses / max(masses[0], 1e-30))}
        for end, other in (("initial", comparison.initial), ("target", comparison.target)):
            values = [similarity.correlation(frame.density, other.density) for frame in frames]
            along[f"correlation with the {end} map"] = times, np.array(values)
        scores = {"detail_end": float(details[-1])}
        if len(frames) < 3:
            return scores, along, None
        middle = int(np.argmin(np.abs(times - 0.5)))
        shown = [np.where(scale * f.density >= comparison.level, scale * f.density, 0) for f in frames]
        steps = [metrics.appearing_mass(*pair, self.block) for pair in zip(shown[:-1], shown[1:], strict=True)]
        visible = metrics.visible_mass(comparison.initial.density, comparison.level)
        lost = np.concatenate([[0.0], np.cumsum(np.mean(steps, 1))]) / visible
        along["fleeting mass"] = times, lost
        scores["detail_halfway"] = float(details[middle])
        scores["mass_halfway"] = float(masses[middle] / max((masses[0] + masses[-1]) / 2, 1e-30))
        scores["between"] = metrics.share_between(frames[middle].density, comparison.inside)
        scores["fleeting"] = float(lost[-1])
        return scores, along, frames[middle].density


def path_distance(comparison: Comparison, frames: Sequence[gemmi.Structure]) -> float | None:
    """Distance (Å) of the known path from frames of models; None if no path is known."""
    if not comparison.path:
        return None
    every = atoms.common_ca(*frames, *comparison.path)
    return metrics.path_distance(np.stack(every[: len(frames)]), np.stack(every[len(frames) :]))


def write(entries: Sequence[Entry], comparison: Comparison, about: dict, folder: Path) -> None:
    """Write the table as text, JSON and CSV, the curves as CSV, and the figures into the folder."""
    run_folder.write_json(folder / "compare.json", about | {"scores": {e.name: e.scores for e in entries}})
    keys = [key for key, *_ in COLUMNS if any(key in e.scores for e in entries)]
    rows = [{"method": e.name} | {key: e.scores.get(key, "") for key in keys} for e in entries]
    run_folder.write_rows(folder / "compare.csv", rows)
    curves = [
        {"method": e.name, "quantity": name, "time": float(t), "value": float(v)}
        for e in entries
        for name, curve in e.along.items()
        for t, v in zip(*curve, strict=True)
    ]
    run_folder.write_rows(folder / "along.csv", curves)
    write_file(folder / "compare.txt", table(entries))
    for name, drawing in figures(entries, comparison).items():
        exchange.write_drawing(folder, name, drawing)


def table(entries: Sequence[Entry]) -> str:
    """Format the scores, a line for each method, with a legend of the columns."""
    used = [column for column in COLUMNS if any(column[0] in e.scores for e in entries)]
    width = max(len(e.name) for e in entries)
    lines = [" " * width + "".join(f"  {head:>10s}" for _, head, _, _ in used)]
    for e in entries:
        cells = [style.format(e.scores[key]) if key in e.scores else "" for key, _, _, style in used]
        lines.append(f"{e.name:{width}s}" + "".join(f"  {cell:>10s}" for cell in cells))
    return "\n".join([*lines, "", *(f"{head}: {what}" for _, head, what, _ in used)]) + "\n"


def figures(entries: Sequence[Entry], comparison: Comparison) -> dict[str, plots.Drawing]:
    """Draw the figures: curves along the path, FSC of the last frames, slices of the frames half way."""
    names = [name for name in ("detail", "mass", "fleeting mass") if any(name in e.along for e in entries)]
    titles = {
        "detail": "detail kept",
        "mass": "mass above the contour, to that at t = 0",
        "fleeting mass": "mass that has appeared or vanished",
    }
    panels = {titles[name]: {e.name: e.along[name] for e in entries if name in e.along} for name in names}
    ends = ("correlation with the initial map", "correlation with the target map")
    panels |= {name: {e.name: e.along[name] for e in entries} for name in ends}
    drawn = {"along": plots.panels_drawing(panels, "time along the path", floor=0.0)}
    against = {"target": "the target map", "truth": "the truth"}
    fsc = {
        f"FSC of the last frame against {against[kind]}": {
            e.name: (e.fsc[kind][0][1:], e.fsc[kind][1][1:]) for e in entries if kind in e.fsc
        }
        for kind in against
        if any(kind in e.fsc for e in entries)
    }
    drawn["ends"] = plots.panels_drawing(fsc, "spatial frequency [1/Å]", floor=0.0)
    frames = {e.name: e.halfway for e in entries if e.halfway is not None}
    volumes = {"initial": comparison.initial.density} | frames | {"target": comparison.target.density}
    drawn["halfway"] = plots.slices_drawing(volumes, comparison.initial.voxel_size)
    return drawn


def on_grid(frame: Map, like: Map, name: str) -> Map:
    """Resample another program's frame on the maps' grid."""
    moved = resampled(frame, like)
    if moved is not frame and not moved.density.any():
        raise InputError(f"{name} lies outside of the initial map's box: write it on that map's grid, or in its frame")
    return moved


def _standard(density: np.ndarray) -> np.ndarray:
    """Flatten the density, with mean 0 and norm 1, so that products of two are correlations."""
    flat = density.ravel() - density.mean(dtype=np.float64).astype(np.float32)
    return flat / np.float32(np.sqrt(np.sum(flat**2, dtype=np.float64)))


def find_frames(texts: Iterable[str]) -> dict[str, list[Path]]:
    """Find the files of each NAME:FILES, those of a pattern sorted by name; texts with the same name are combined."""
    found: dict[str, list[Path]] = {}
    for text in texts:
        name, _, patterns = text.partition(":")
        if not (name and patterns):
            raise InputError(f"--frames_of={text} is not NAME:FILES: give a name and files, such as MorphOT:out/*.mrc")
        for pattern in paths.split(patterns):
            files = sorted(glob.glob(pattern))
            if not files:
                raise InputError(f"--frames_of={text}: there is no file {pattern}; give frames in MRC format")
            found.setdefault(name, []).extend(map(Path, files))
    return found
