"""Simulate a rare conformation with few particles, and measure the gain from morphing the common conformation.

python -m experiments.studies.imbalance                            the built-in pair
python -m experiments.studies.imbalance --pair=PAIRS/adk --particles=20000 --rare=0.05 --out_dir=DIR

Particles are projections of two conformations' maps from all directions with white noise. The particles of each
conformation are back-projected with known poses to two half-maps and a map, which are filtered by the half-maps' FSC.
The common conformation's map is morphed into the rare one, with its half-maps, and all three maps are compared with
the truth. A pair is a folder with two models and a pair.json, as for experiments.studies.validate.
"""

from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from .. import flags as shared
from .. import paths, ranges, tables
from ..main import command_of

FLAGS = flags.FLAGS
COLUMNS = {  # resolution (of the map's own half-maps), FSC = 0.5 and 0.143, CA RMSD: all in Å
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
PARTICLES_SEED = ranges.SEED._replace(most=2**30 - 1)  # each class has its own
PADDING = 8.0  # Å about the molecule, in every orientation


class Class(NamedTuple):
    """Map of one conformation's particles, its half-maps, and their FSC."""

    whole: Any  # a Map; its module is imported only after the flags are read
    halves: tuple
    curve: tuple


def define_flags() -> None:
    """Define the flags of this command."""
    with shared.group("Particles"):
        paths.define_path(
            "pair", None, "FOLDER: of a pair of models and its pair.json; the built-in pair if not given."
        )
        ranges.whole_number("particles", 4000, "Number of particles of both conformations.", PARTICLES)
        ranges.number("rare", 0.05, "Share of the particles that show the rare conformation.", RARE)
        ranges.number(
            "signal_to_noise",
            0.1,
            "Variance of the noise-free pixels of the particles divided by that of the noise.",
            SIGNAL_TO_NOISE,
        )
        ranges.number("voxel_size", 2.0, "Å: of pixels and voxels.", PIXEL)
        ranges.whole_number("particles_seed", 0, "Seed of poses and noise.", PARTICLES_SEED)
    shared.define_fit()
    with shared.group("Output"):
        paths.define_path("out_dir", "runs/imbalance", "FOLDER: for the table, the figure and the maps.")
        flags.DEFINE_bool("overwrite", False, "Replace the results that the output folder holds.")


def main() -> None:
    """Run the study; print the table, and write it with the figure and the maps."""
    from cryotrans_jax.io.files import InputError

    from .. import run_folder

    out_dir = Path(FLAGS.out_dir)
    run_folder.check_unused(out_dir, "imbalance", "a study", FLAGS.overwrite)
    rare = round(FLAGS.rare * FLAGS.particles)
    if rare < 4:
        raise InputError(f"{rare} particles of the rare conformation make no two half-maps: give more --particles")
    run_folder.make_folder(out_dir)
    models = load_pair()
    truths = [simulate_truth(model, models) for model in models]
    counts = FLAGS.particles - rare, rare
    classes = [
        reconstruct_class(map_, count, FLAGS.signal_to_noise, 2 * FLAGS.particles_seed + k)
        for k, (map_, count) in enumerate(zip(truths, counts, strict=True))
    ]
    fit = fit_rare(*classes)
    with run_folder.claimed(out_dir, kinds=["imbalance"]), run_folder.replacing(out_dir, "imbalance"):
        write(fit, models, truths[1], dict(zip(("common", "rare"), classes, strict=True)), counts, out_dir)


def load_pair() -> tuple:
    """Load the models of both conformations, in one frame."""
    from cryotrans_jax.density.demo import hinge_pair

    if FLAGS.pair is None:
        return hinge_pair()
    from ..pairs import load_models

    return load_models(Path(FLAGS.pair))


def simulate_truth(model, models):
    """Simulate a model's map at twice the voxel size, in a cube with room for all models in every orientation."""
    import numpy as np
    import scipy.fft

    from cryotrans_jax.density import simulation
    from cryotrans_jax.io import atoms

    xyz = np.concatenate([atoms.positions(one) for one in models])
    middle = (xyz.min(0) + xyz.max(0)) / 2
    radius = np.linalg.norm(xyz - middle, axis=1).max() + PADDING
    n = 2 * scipy.fft.next_fast_len(int(np.ceil(radius / FLAGS.voxel_size)), real=True)
    origin = middle - n // 2 * FLAGS.voxel_size
    return simulation.simulate_map(model, (n, n, n), FLAGS.voxel_size, origin, 2 * FLAGS.voxel_size)


def reconstruct_class(map_, count: int, signal_to_noise: float, seed: int) -> Class:
    """Reconstruct a class from noisy projections of a map, uniform over all directions, with known poses.

    Args:
        signal_to_noise: variance of the noise-free pixels divided by that of the noise.
    """
    from dataclasses import replace

    import jax
    import numpy as np
    from scipy.spatial.transform import Rotation

    from cryotrans_jax.scores import metrics

    from . import projection

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


def fit_rare(common: Class, rare: Class):
    """Fit the common conformation's map to the rare one's, whose half-maps show its noise."""
    from cryotrans_jax.fit.morph import morph
    from cryotrans_jax.fit.options import Options
    from cryotrans_jax.fit.progress import Progress
    from cryotrans_jax.fit.recipes import Paper

    recipe = Paper(FLAGS.bin) if FLAGS.recipe == "paper" else FLAGS.recipe
    with Progress() as progress:
        return morph(
            common.whole,
            rare.whole,
            Options(recipe, seed=FLAGS.seed, steps=FLAGS.steps, align="none"),
            halves=None if isinstance(recipe, Paper) else rare.halves,
            progress=progress,
        )


def write(fit, models, truth, classes: dict[str, Class], counts, out_dir: Path) -> None:
    """Write table, figure and maps into the folder, and print the table."""
    from cryotrans_jax import plots
    from cryotrans_jax.io.files import write_file
    from cryotrans_jax.io.maps import write_map
    from cryotrans_jax.scores import metrics

    from .. import exchange
    from ..run_folder import write_json

    maps = {name: each.whole for name, each in classes.items()} | {"generated": fit.generated()}
    compared, curves = score_maps(maps, truth)
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
    exchange.write_drawing(out_dir, "fsc", plots.named_drawing(lines))
    table = tables.styled(rows, COLUMNS)
    write_file(out_dir / "imbalance.md", table)
    for name, map_ in (maps | {"truth": truth}).items():
        write_map(out_dir / f"{name}.mrc", map_)
    print(table + f"Table, figure (fsc.png) and maps are in {out_dir}")


def score_maps(maps: dict, truth) -> tuple[dict[str, dict], dict]:
    """Scores and FSC curves of the maps against the rare conformation's truth, within one soft mask around it."""
    from dataclasses import replace

    from cryotrans_jax.density import similarity, thresholds
    from cryotrans_jax.fit import trajectory
    from cryotrans_jax.scores import metrics

    mask = trajectory.soft_support(truth.density, thresholds.choose_threshold(truth.density), truth.voxel_size)
    inside = replace(truth, density=truth.density * mask)
    curves, scores = {}, {}
    for name, map_ in maps.items():
        masked = replace(map_, density=map_.density * mask)
        curves[name] = metrics.map_fsc(masked, inside)
        scores[name] = {
            "fsc": metrics.resolution_at(*curves[name], 0.5),
            "fsc_0.143": metrics.resolution_at(*curves[name], 0.143),
            "correlation": similarity.correlation(masked.density, inside.density),
        }
    return scores, curves


command = command_of(main, define_flags)

if __name__ == "__main__":
    command()
