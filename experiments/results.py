"""From a case (maps, perhaps models) to a fit, and from a fit to the files and scores of a run's folder."""

import csv
import json
import platform
import re
import resource
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import gemmi
import jax
import numpy as np

from cryotrans_jax import atoms, metrics, trajectory
from cryotrans_jax.align import IDENTITY, Alignment, Transform, resampled
from cryotrans_jax.files import InputError, checksum, whole_file
from cryotrans_jax.maps import Map, read_map, same_grid, write_map
from cryotrans_jax.morph import Fit, morph
from cryotrans_jax.prepare import carried_mass
from experiments.progress import Progress

PACKAGES = (
    "cryotrans-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "ott-jax",
    "gemmi",
    "mrcfile",
    "numpy",
    "scipy",
)
FRAMES = re.compile(r"frame_\d+\.mrc|model_\d+\.cif|generated\.(mrc|cif|pdb)")  # what a run, or predict, makes of a fit
RECORDS = re.compile(r"(config|metrics|transform)\.json|loss\.csv|seed_spread\.mrc")  # what a run writes about itself


@dataclass
class Case:
    """What a run works on: maps on one grid, their names and files, and what there is to score against.

    `references` holds, for each target, a model or a map of the target state, or None; resolutions in Å or None.
    `alignments` tells how each target came to lie over the initial map, and `boxes` on which grid it was before; both
    are empty where the maps were made for one another.
    """

    initial: Map
    targets: list[Map]
    files: dict[str, Path]
    target_names: list[str]
    initial_resolution: float | None
    target_resolutions: list[float | None]
    model: gemmi.Structure | None = None
    references: list[gemmi.Structure | Map | None] = field(default_factory=list)
    alignments: list[Alignment] = field(default_factory=list)
    boxes: list[Map] = field(default_factory=list)


@dataclass(frozen=True)
class View:
    """The frame in which results are written, where that is not the initial map's: the grid, and the way there."""

    grid: Map
    transform: Transform

    def map(self, map_: Map) -> Map:
        """A map on the initial map's grid, brought to this one."""
        return resampled(map_, self.grid, self.transform)

    def model(self, model: gemmi.Structure) -> gemmi.Structure:
        """A model in the initial map's frame, brought to this one."""
        return self.transform.moved(model)


def claim(out_dir: str | Path, overwrite: bool) -> Path:
    """The folder for a run's results, made if needed. Raises InputError where it holds another run's."""
    out_dir = Path(out_dir)
    if out_dir.exists() and not out_dir.is_dir():
        raise InputError(f"{out_dir} is a file, not a folder: give another --out_dir")
    check_free(out_dir, overwrite)
    out_dir.mkdir(parents=True, exist_ok=True)
    return out_dir


def check_free(folder: Path, overwrite: bool) -> None:
    """Nothing; raises InputError where the folder holds results that may not be replaced."""
    if not overwrite and (made_in(folder) or (folder / "checkpoint").exists()):
        raise InputError(f"{folder} holds another run: give another --out_dir, or --overwrite to replace its results")


def made_in(folder: Path, *kinds: re.Pattern) -> list[Path]:
    """The files in a folder whose names are those of results; of FRAMES and RECORDS if no kind is given."""
    if not folder.is_dir():
        return []
    return [p for p in folder.iterdir() if any(kind.fullmatch(p.name) for kind in kinds or (FRAMES, RECORDS))]


def folders(case: Case, out_dir: Path) -> list[Path]:
    """Where each target's results go: `out_dir` itself, or for several targets a folder with the target's name."""
    return [out_dir / name if len(case.targets) > 1 else out_dir for name in case.target_names]


def earlier(case: Case, out_dir: Path, share: Sequence[int]) -> list[Path]:
    """What is there of an earlier run and is replaced by fits of these targets, or by those of all if of the first."""
    own = {folders(case, out_dir)[number] for number in share}
    found = [path for folder in own for path in made_in(folder)]
    if 0 in share and out_dir not in own:  # a run of one target leaves its files in `out_dir` itself
        found += made_in(out_dir)
        found += [out_dir / "checkpoint"] if (out_dir / "checkpoint" / "arrays").is_dir() else []
    return found


def check_kept(case: Case, out_dir: Path, overwrite: bool, share: Sequence[int]) -> None:
    """Nothing; raises InputError where fits of these targets would replace an input, or another run unasked."""
    for number in share:
        check_free(folders(case, out_dir)[number], overwrite)
    replaced = {path.resolve() for path in earlier(case, out_dir, share)}
    for path in case.files.values():
        if path.resolve() in replaced:
            raise InputError(f"the input {path} is a result in the folder to be overwritten: give another --out_dir")


def fit_case(case: Case, settings: Any, share: Sequence[int] | None = None, another: int = 0) -> Fit:
    """The fit of a case with the settings of the flags (recipe, seed, steps, thresholds, bin), showing progress.

    Of the targets of these numbers only, if `share` is given; from `another` seed, so many after that of the flags.
    """
    with Progress() as progress:
        return morph(
            case.initial,
            case.targets,
            settings.recipe,
            seed=settings.seed + another,
            steps=settings.steps,
            initial_threshold=settings.initial_threshold,
            target_threshold=settings.target_threshold,
            initial_resolution=case.initial_resolution,
            target_resolution=case.target_resolutions,
            bin=settings.bin,
            share=share,
            progress=progress,
            prepared=print_report if jax.process_index() == another == 0 else lambda report: None,  # it is of all
        )


def write(
    fit: Fit, case: Case, settings: Any, out_dir: Path, share: Sequence[int], others: Sequence[Fit] = ()
) -> list[dict]:
    """Scores of each target, also printed; each target's folder holds its files, and so is a run by itself.

    `fit` is that of the targets of the numbers in `share`, and `others` are the same from other seeds. Files of an
    earlier run are removed only now that there is something to put in their place.
    """
    description = describe(fit, case, settings)
    for path in earlier(case, out_dir, share):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    scores = []
    for place, number in enumerate(share):
        one, name, folder = fit.select([place]), case.target_names[number], folders(case, out_dir)[number]
        folder.mkdir(parents=True, exist_ok=True)
        view, about = view_of(case, number, settings.frame), described_alignment(case, number, settings.frame)
        write_json(folder / "config.json", {"target": name} | about | description)
        if about:
            write_json(folder / "transform.json", about["alignment"])
        one.save(folder / "checkpoint")
        write_losses(folder / "loss.csv", one, name)
        last = write_frames(one, case.initial, case.model, settings.frames, settings.render, folder, view)
        scores.append(score(one, case, number, last))
        if others:
            scores[-1] |= write_spread(one, [other.select([place]) for other in others], case.initial, folder, view)
        scores[-1]["peak_mib"] = peak_mib()
        write_json(folder / "metrics.json", scores[-1])
        print_scores(name, scores[-1])
    print(f"Results are in {out_dir}")
    return scores


def write_frames(
    fit: Fit,
    initial: Map,
    model: gemmi.Structure | None,
    frames: int,
    render: str,
    folder: Path,
    view: View | None = None,
) -> Map:
    """The last frame; all frames, the generated map and the carried models of a fit of one target are in the folder.

    What is written is brought to the view, if one is given; what is returned is on the initial map's grid.
    """
    times = trajectory.frame_times(frames)
    width = max(2, len(str(frames - 1)))  # so that names sort by time
    for number, frame in enumerate(fit.frames(initial, times, render=render)):
        write_map(folder / f"frame_{number:0{width}d}.mrc", view.map(frame) if view else frame)
    copy_whole(folder / f"frame_{number:0{width}d}.mrc", folder / "generated.mrc")
    if model is not None:
        for number, carried in enumerate(fit.move(model, times)):
            carried = view.model(carried) if view else carried
            atoms.write_model(folder / f"model_{number:0{width}d}.cif", carried)
        atoms.write_model(folder / "generated.cif", carried)
        if all(not chain.name.strip() for chain in carried[0]):  # mmCIF has no blank chains: keep them in a PDB as well
            atoms.write_model(folder / "generated.pdb", carried)
    return frame


def write_spread(fit: Fit, others: Sequence[Fit], initial: Map, folder: Path, view: View | None = None) -> dict:
    """Median and 95th percentile (Å) of the spread over seeds, which is a map in the folder."""
    spread, apart = fit.spread(others, initial)
    write_map(folder / "seed_spread.mrc", view.map(spread) if view else spread)
    return {"seed_spread_median": float(np.median(apart)), "seed_spread_95": float(np.percentile(apart, 95))}


def box(map_: Map) -> Map:
    """The grid of a map, as a map without density, which takes no memory."""
    return Map(np.broadcast_to(np.float32(0), map_.density.shape), map_.voxel_size, map_.origin)


def view_of(case: Case, number: int, frame: str) -> View | None:
    """The view in which the results of a target are written; None for the initial map's frame.

    The target's box, with its own voxels or, where these are finer, the initial map's.
    """
    if frame == "initial" or not case.boxes:
        return None
    target, transform = case.boxes[number], case.alignments[number].transform
    if transform is IDENTITY and same_grid(target, case.initial) is None:
        return None
    size = np.minimum(target.voxel_size, case.initial.voxel_size)
    shape = np.ceil(np.array(target.density.shape) * target.voxel_size / size - 1e-6).astype(int)
    grid = Map(np.broadcast_to(np.float32(0), tuple(shape.tolist())), size, target.origin)
    return View(grid, transform.inverse)


def described_alignment(case: Case, number: int, frame: str) -> dict:
    """How a target was laid over the initial map, as config.json and transform.json tell it; empty if it was not."""
    if not case.alignments:
        return {}
    found = case.alignments[number]
    told = found._asdict() | {
        "transform": found.transform.matrix.tolist(),
        "transform_is": "4 x 4 matrix from the target's frame to the initial map's, Å",
        "chimerax": found.transform.chimerax,
        "rotation": found.transform.angle,
        "wrong_hand": found.wrong_hand if found.mirrored is not None else None,
        "frame": frame,
    }
    if view := view_of(case, number, frame):
        grid = {"shape": view.grid.density.shape, "voxel_size": view.grid.voxel_size, "origin": view.grid.origin}
        told["grid"] = {key: np.asarray(value).tolist() for key, value in grid.items()}
    return {"alignment": told}


def saved_view(config: dict) -> View | None:
    """The view in which a run's results were written, by its config.json."""
    told = config.get("alignment", {})
    if "grid" not in told:
        return None
    size, origin = (np.array(told["grid"][key], np.float64) for key in ("voxel_size", "origin"))
    matrix = np.array(told["transform"], np.float64)
    grid = Map(np.broadcast_to(np.float32(0), tuple(told["grid"]["shape"])), size, origin)
    return View(grid, Transform(matrix[:3, :3], matrix[:3, 3]).inverse)


def copy_whole(source: Path, destination: Path) -> None:
    """Nothing; the destination is a whole copy of the source."""
    with whole_file(destination) as temporary:
        shutil.copyfile(source, temporary)


def score(fit: Fit, case: Case, number: int, generated: Map) -> dict:
    """Scores of the initial map ("before") and of the generated one ("after") against what there is.

    `fit` is that of the case's target `number` alone. Always the correlation with the target map. With a reference,
    FSC against it (a model is simulated at the initial map's resolution, 3 Å if unknown) at 0.5 and 0.143 in Å; with
    a model of both states, CA displacement in Å.
    """
    target, reference = case.targets[number], case.references[number] if case.references else None
    out: dict[str, Any] = {
        "target": case.target_names[number],
        "mass_kept": mass_kept(case.initial, generated, fit),
    }
    truth = None if reference is None else reference_map(reference, generated, case.initial_resolution)
    start = trajectory.carried_part(case.initial, fit.threshold)  # as the generated map has it, without the solvent
    for when, map_ in (("before", start), ("after", generated)):
        out[f"correlation_with_target_{when}"] = metrics.correlation(map_.density, target.density)
        curve = metrics.map_fsc(map_, target)
        out[f"fsc_with_target_{when}"] = metrics.resolution_at(*curve, 0.5)
        if truth is not None:
            curve = metrics.map_fsc(map_, truth)
            out[f"fsc_{when}"] = metrics.resolution_at(*curve, 0.5)
            out[f"fsc_0.143_{when}"] = metrics.resolution_at(*curve, 0.143)
            out[f"correlation_{when}"] = metrics.correlation(map_.density, truth.density)
    if case.model is not None and isinstance(reference, gemmi.Structure):
        moved = fit.move(case.model, [1.0])[0]
        found = metrics.ca_displacement(moved, reference, case.model)
        names = {
            "initial_rmsd": "rmsd_before",
            "rmsd": "rmsd_after",
            "median": "median_after",
            "max": "max_after",
        }
        names |= {
            "moved_rmsd": "moved_rmsd_after",
            "moved_initial_rmsd": "moved_rmsd_before",
            "moved_n": "moved_n",
        }
        out |= {name: found[key] for key, name in names.items() if key in found}
    return out


def reference_map(reference: gemmi.Structure | Map, like: Map, resolution: float | None) -> Map:
    """The reference as a map on the grid of `like`."""
    if isinstance(reference, Map):
        return reference
    return atoms.simulate_map(reference, like.density.shape, like.voxel_size, like.origin, resolution or 3.0)


def mass_kept(initial: Map, generated: Map, fit: Fit) -> float:
    """Positive mass of the generated map relative to that of the initial map's part that was carried."""
    carried = carried_mass(initial.density, fit.threshold).sum(dtype=np.float64)
    left = carried_mass(generated.density, fit.threshold).sum(dtype=np.float64)
    return float(left / carried)


def describe(fit: Fit, case: Case, settings: Any) -> dict:
    """Everything that decided this run: settings, versions, inputs with their checksums, what was chosen by rule."""
    report = {key: value for key, value in fit.report.items() if key != "origin"}
    return {
        "command": sys.argv,
        "settings": settings_of(settings),
        "recipe": asdict(fit.config),
        "initial": next(iter(case.files)),
        "targets": case.target_names,
        "inputs": {n: {"file": str(p.resolve()), "sha256": checksum(p)} for n, p in case.files.items()},
        "resolutions": {"initial": case.initial_resolution, "targets": case.target_resolutions},
        "chosen": report,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "processes": jax.process_count(),
        "device": jax.local_devices()[0].device_kind,
    }


def settings_of(settings: Any) -> dict:
    """Our own flags and their values, without those that libraries bring along."""
    modules = settings.flags_by_module_dict()
    own = [name for name in modules if name.startswith("experiments") or name in ("__main__", sys.argv[0])]
    return {flag.name: flag.value for name in own for flag in modules[name]}


def version(package: str) -> str:
    """A package's installed version, or "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def write_json(path: Path, content: Any) -> None:
    """Nothing; the file holds the content as JSON."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, default=str) + "\n")


def write_losses(path: Path, fit: Fit, name: str) -> None:
    """Nothing; the file has a row for each step: stage, loss's name, step, and the loss under the target's name."""
    with whole_file(path) as temporary, temporary.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["stage", "loss", "step", name])
        for number, (stage, history) in enumerate(zip(fit.config.stages, fit.history, strict=True)):
            for step, (value,) in enumerate(history):
                rows.writerow([number, stage.loss, step, f"{value:.8g}"])


def peak_mib() -> float:
    """Peak memory of this process so far in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def print_report(report: dict) -> None:
    """Nothing; prints the contour levels used, what they keep, and the blur between the maps."""
    for name, used in [("initial", report["initial"]), *(("target", t) for t in report["targets"])]:
        print(
            f"{name} map: contour level {used['threshold']:.4g} ({used['threshold_chosen']}) keeps "
            f"{100 * used['share_of_mass']:.1f} % of the mass in {used['volume']:.0f} Å³"
        )
    for variance in report["quieting_variance"]:
        if variance:
            print(f"the target map is noisy: its mass is taken from it blurred by a Gaussian of {variance**0.5:.1f} Å")
    for variance in report["blur_variance"]:
        blurred = "target is the initial map" if variance >= 0 else "initial map is the target"
        print(f"by their resolutions or spectra, the {blurred} blurred by a Gaussian of {abs(variance) ** 0.5:.2f} Å")


def print_scores(name: str, scores: dict) -> None:
    """Nothing; prints a small table of scores before and after."""
    rows = [
        ("correlation with the target map", "correlation_with_target", "{:.3f}"),
        ("FSC = 0.5 against the target map [Å]", "fsc_with_target", "{:.2f}"),
        ("FSC = 0.5 against the reference [Å]", "fsc", "{:.2f}"),
        ("FSC = 0.143 against the reference [Å]", "fsc_0.143", "{:.2f}"),
        ("CA RMSD to the reference [Å]", "rmsd", "{:.2f}"),
        ("the same, over what moves more than 3 Å", "moved_rmsd", "{:.2f}"),
    ]
    print(f"{name:42s} {'before':>8s} {'after':>8s}")
    for label, key, style in rows:
        if f"{key}_after" in scores:
            before, after = (style.format(scores[f"{key}_{when}"]) for when in ("before", "after"))
            print(f"  {label:40s} {before:>8s} {after:>8s}")
    if "seed_spread_median" in scores:
        label = "spread over seeds: median, 95 % [Å]"
        print(f"  {label:40s} {scores['seed_spread_median']:8.2f} {scores['seed_spread_95']:8.2f}")


def load_reference(path: Path, initial: Map, transform: Transform = IDENTITY) -> gemmi.Structure | Map:
    """A model or, where the suffix is a map's, a map on the initial map's grid; both moved as the target was."""
    if path.name.lower().endswith((".mrc", ".map", ".ccp4", ".mrc.gz", ".map.gz", ".mrc.bz2", ".map.bz2")):
        reference = read_map(path)
        if transform is IDENTITY and same_grid(initial, reference) is None:
            return reference
        return resampled(reference, initial, transform)
    model = atoms.read_model(path)
    return model if transform is IDENTITY else transform.moved(model)
