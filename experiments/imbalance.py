"""Simulates what a rare conformation suffers from, too few particles, and what a morph of the common one makes good.

python -m experiments.imbalance                            the built-in pair
python -m experiments.imbalance --pair=PAIRS/adk --particles=20000 --rare=0.05 --out_dir=DIR

Particles are projections of two conformations' maps from all sides with white noise. Those of each conformation, with
the poses known, are back-projected to two half-maps and a map, filtered by what the half-maps' FSC says is signal. The
common conformation's map is morphed onto the rare one's, with its half-maps, and all three maps are compared with the
truth. A pair is a folder with two models and a pair.json, as for experiments.validate.
"""

from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from . import flags as shared
from . import paths, ranges, tables
from .main import run

FLAGS = flags.FLAGS
COLUMNS = {
    "map": "{}",
    "particles": "{:.0f}",
    "resolution": "{:.1f}",
    "fsc": "{:.1f}",
    "fsc_0.143": "{:.1f}",
    "correlation": "{:.3f}",
    "rmsd": "{:.2f}",
}
PARTICLES = ranges.COUNT._replace(least=8)
RARE = ranges.Range(0, 0.5, "the rare conformation has half of the particles at most")
SIGNAL_TO_NOISE = ranges.Range(1e-6, 1e6, "particles have about 0.1")
PIXEL = ranges.VOXEL_SIZE._replace(least=0.1)
PARTICLES_SEED = ranges.SEED._replace(most=2**30 - 1)  # both classes have one of their own
ROOM = 8.0  # Å about the molecule, from whatever side it is seen


class Class(NamedTuple):
    """Maps of one conformation's particles: of all, of both halves; and the halves' FSC."""

    whole: Any  # a Map, whose file is not imported before the flags are read
    halves: tuple
    curve: tuple


def define_flags() -> None:
    """Nothing; the flags of this job are there."""
    with shared.group("Particles"):
        paths.define_path(
            "pair", None, "FOLDER: of a pair of models and its pair.json; the built-in pair if not given."
        )
        ranges.whole_number("particles", 4000, "Number of particles of both conformations.", PARTICLES)
        ranges.number("rare", 0.05, "Share of the particles that show the rare conformation.", RARE)
        ranges.number(
            "signal_to_noise",
            0.1,
            "Variance of the particles' pixels without noise over that of the noise.",
            SIGNAL_TO_NOISE,
        )
        ranges.number("voxel_size", 2.0, "Å: of pixels and voxels.", PIXEL)
        ranges.whole_number("particles_seed", 0, "Seed of poses and noise.", PARTICLES_SEED)
    shared.define_fit()
    with shared.group("Output"):
        paths.define_path("out_dir", "runs/imbalance", "FOLDER: for the table, the figure and the maps.")
        flags.DEFINE_bool("overwrite", False, "Replace the results that the output folder holds.")


def main() -> None:
    """Nothing; prints the table, and writes it with the figure and the maps."""
    from cryotrans_jax.files import InputError

    from . import run_folder

    out_dir = Path(FLAGS.out_dir)
    if (out_dir / "imbalance.json").exists() and not FLAGS.overwrite:
        raise InputError(f"{out_dir} holds a study: give another --out_dir, or --overwrite to replace it")
    rare = round(FLAGS.rare * FLAGS.particles)
    if rare < 4:
        raise InputError(f"{rare} particles of the rare conformation make no two half-maps: give more --particles")
    run_folder.make_folder(out_dir)
    models = pair()
    truths = [truth(model, models) for model in models]
    counts = FLAGS.particles - rare, rare
    classes = [
        reconstructed(map_, count, FLAGS.signal_to_noise, 2 * FLAGS.particles_seed + k)
        for k, (map_, count) in enumerate(zip(truths, counts, strict=True))
    ]
    fit = morphed(*classes)
    with run_folder.claimed(out_dir, kinds=["imbalance"]), run_folder.replacing(out_dir, "imbalance"):
        write(fit, models, truths[1], dict(zip(("common", "rare"), classes, strict=True)), counts, out_dir)


def pair() -> tuple:
    """The models of both conformations, in one frame."""
    from cryotrans_jax.demo import hinge_pair

    if FLAGS.pair is None:
        return hinge_pair()
    from .validate import load_models

    return load_models(Path(FLAGS.pair))


def truth(model, models):
    """A model's map at twice the voxel size, in a cube with room for all models from whatever side they are seen."""
    import numpy as np
    import scipy.fft

    from cryotrans_jax import atoms

    xyz = np.concatenate([atoms.positions(one) for one in models])
    middle = (xyz.min(0) + xyz.max(0)) / 2
    radius = np.linalg.norm(xyz - middle, axis=1).max() + ROOM
    n = 2 * scipy.fft.next_fast_len(int(np.ceil(radius / FLAGS.voxel_size)), real=True)
    origin = middle - n // 2 * FLAGS.voxel_size
    return atoms.simulate_map(model, (n, n, n), FLAGS.voxel_size, origin, 2 * FLAGS.voxel_size)


def reconstructed(map_, count: int, signal_to_noise: float, seed: int) -> Class:
    """The maps that so many noisy particles of a map give, seen from all sides alike, with the poses known."""
    from dataclasses import replace

    import jax
    import numpy as np
    from scipy.spatial.transform import Rotation

    from cryotrans_jax import metrics, projection

    turns = Rotation.random(count, np.random.default_rng(seed)).as_matrix().astype(np.float32)
    images = projection.project(map_.density, turns)
    noise = jax.random.normal(jax.random.key(seed), images.shape) * (images.var() / signal_to_noise) ** 0.5
    images = images + noise
    sums = [projection.insert_slices(images[half::2], turns[half::2]) for half in (0, 1)]

    def maps(noise, of):
        density = np.asarray(projection.reconstruct(of, noise.astype(np.float32)))
        return replace(map_, density=density)

    plain = np.zeros(map_.density.shape[0] // 2 + 1)
    curve = metrics.map_fsc(*(maps(plain, half) for half in sums))
    unsure = projection.noise_to_signal(curve[1])
    return Class(maps(unsure / 2, sums[0] + sums[1]), tuple(maps(unsure, half) for half in sums), curve)


def morphed(common: Class, rare: Class):
    """The fit of the common conformation's map to the rare one's, judged by the latter's half-maps."""
    from cryotrans_jax.morphing import morph
    from cryotrans_jax.progress import Progress

    with Progress() as progress:
        return morph(
            common.whole,
            rare.whole,
            FLAGS.recipe,
            align="none",
            halves=rare.halves,
            seed=FLAGS.seed,
            steps=FLAGS.steps,
            bin=FLAGS.bin,
            progress=progress,
        )


def write(fit, models, truth, classes: dict[str, Class], counts, out_dir: Path) -> None:
    """Nothing; the folder holds table, figure and maps, and the table is printed."""
    from cryotrans_jax import metrics, plots
    from cryotrans_jax.files import write_file
    from cryotrans_jax.maps import write_map

    from .run_folder import write_json

    maps = {name: each.whole for name, each in classes.items()} | {"generated": fit.generated()}
    compared, curves = scored(maps, truth)
    for name, each, count in zip(classes, classes.values(), counts, strict=True):
        compared[name] |= {"particles": count, "resolution": metrics.resolution_at(*each.curve, 0.143)}
    compared["common"]["rmsd"] = metrics.ca_displacement(*models)["rmsd"]
    compared["generated"]["rmsd"] = metrics.ca_displacement(fit.move(models[0]), models[1])["rmsd"]
    rows = [{"map": name} | compared[name] for name in maps]
    names = ("pair", "particles", "rare", "signal_to_noise", "voxel_size", "particles_seed", "recipe", "steps", "seed")
    about = {name: FLAGS[name].value for name in names}
    write_json(out_dir / "imbalance.json", {"settings": about, "rows": rows})
    lines = {f"{name} map": curves[name] for name in maps}
    lines |= {f"half-maps, {name}": each.curve for name, each in classes.items()}
    drawing = plots.named_drawing(lines)
    files = {
        "imbalance.md": table(rows).encode(),
        "fsc.png": plots.png(drawing),
        "fsc.svg": plots.svg(drawing).encode(),
    }
    for name, content in files.items():
        write_file(out_dir / name, content)
    for name, map_ in (maps | {"truth": truth}).items():
        write_map(out_dir / f"{name}.mrc", map_)
    print(table(rows) + f"Table, figure (fsc.png) and maps are in {out_dir}")


def scored(maps: dict, truth) -> tuple[dict[str, dict], dict]:
    """Each map's scores against the rare conformation's truth, all within one soft mask about that, and FSC curves."""
    from dataclasses import replace

    from cryotrans_jax import metrics, prepare, trajectory

    mask = trajectory.soft_support(truth.density, prepare.choose_threshold(truth.density), truth.voxel_size)
    inside = replace(truth, density=truth.density * mask)
    curves, scores = {}, {}
    for name, map_ in maps.items():
        masked = replace(map_, density=map_.density * mask)
        curves[name] = metrics.map_fsc(masked, inside)
        scores[name] = {
            "fsc": metrics.resolution_at(*curves[name], 0.5),
            "fsc_0.143": metrics.resolution_at(*curves[name], 0.143),
            "correlation": metrics.correlation(masked.density, inside.density),
        }
    return scores, curves


def table(rows: list[dict]) -> str:
    """The rows in Markdown: resolution (of the map's own half-maps), FSC = 0.5 and 0.143, and CA RMSD in Å."""
    return tables.styled(rows, COLUMNS)


def command() -> None:
    """Nothing; the job is done as the command line says."""
    define_flags()
    run(main)


if __name__ == "__main__":
    command()
