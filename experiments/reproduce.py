"""Fit one of the paper's systems and compare its scores with the published ones.

python -m experiments.reproduce --list                     all systems, and what is missing here
python -m experiments.reproduce --system=TmrAB --resolution=7 --recipe=paper --fetch

Entries are looked up in --data_dir, or fetched. Files that no archive has are found there by names like
Arp23_initial.mrc and 70S_target.mrc, or given as --initial and --target. If the paper simulates its maps from models,
or if the files are models (the frames of a simulation), the maps are simulated. Flags that are given take precedence
over the paper's values. In addition to the files of experiments.run, reproduce.md and reproduce.json are written.
"""

import contextlib
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from absl import flags

from . import log, ranges, systems, tables
from . import run as job
from .main import run
from .score_rows import SCORES
from .systems import System
from .usage import group

FLAGS = flags.FLAGS
COMPARED = ("fsc", "fsc_0.143", "fsc_with_target", "correlation_matched", "rmsd", "moved_rmsd")


@group("System")
def define_system() -> None:
    """Define the flags that choose a system."""
    names = ", ".join(system.name for system in systems.SYSTEMS)
    flags.DEFINE_bool("list", False, "Show all systems, and what is missing of each in --data_dir; fit nothing.")
    flags.DEFINE_string("system", None, f"SYSTEM: one of {names}.")
    ranges.number("resolution", None, "Å: of a simulated target; 7 if not given.", ranges.RESOLUTION)
    ranges.whole_number(
        "box",
        None,
        "VOXELS: side of simulated maps; as published if not given, 0 for the smallest possible box.",
        ranges.SIDE._replace(least=0),
    )


def define_flags() -> None:
    """Define the flags of this command, and all of experiments.run."""
    define_system()
    job.define_flags()


def main() -> None:
    """Fit a system and write its table, or list all systems."""
    from cryotrans_jax.io.files import InputError

    from . import system_inputs

    if FLAGS.list:
        log.info(systems.table())
        for system in systems.SYSTEMS:
            log.info(f"{system.name}: {system_inputs.describe_missing(system, FLAGS.data_dir)}")
        return
    if not FLAGS.system:
        raise InputError("no system is named: give --system, or --list to see all of them")
    system = systems.find_system(FLAGS.system)
    from . import hosts, settings

    hosts.join(settings.from_flags(settings.HostSettings))
    given = {"initial": FLAGS.initial, "target": FLAGS.target and FLAGS.target[0]}
    files = system_inputs.collect(system, given, FLAGS.data_dir, settings.archives() if FLAGS.fetch else None)
    resolution = system_inputs.simulated_resolution(files, FLAGS.resolution)
    where = f"_{resolution:g}A" if resolution else ""
    out_dir = Path(FLAGS.out_dir or f"runs/{system.slug}{where}_{FLAGS.recipe}")
    with contextlib.ExitStack() as claims:
        hosts.after_first(lambda: claim(out_dir, claims))
        reproduce(system, files, resolution, out_dir)


def claim(out_dir: Path, claims: contextlib.ExitStack) -> None:
    """Lock the folder until `claims` are closed, if its results may be replaced."""
    import jax

    from . import run_folder

    claims.enter_context(run_folder.claimed(out_dir, jax.process_index()))
    run_folder.check_free(out_dir, FLAGS.overwrite)


def reproduce(system: System, files: dict[str, Path], resolution: float | None, out_dir: Path) -> None:
    """Fit the system and write its table.

    Args:
        system: the system.
        files: its files by role.
        resolution: resolution (Å) of a simulated target; None if both states are maps.
        out_dir: folder for the results.
    """
    set_defaults(out_dir=str(out_dir))
    recipe = system.recipe(resolution)
    if recipe and FLAGS.recipe == "paper":
        first, second = recipe.thresholds
        set_defaults(initial_threshold=first, target_threshold=second, schedule=recipe.flag, width=recipe.width)
    found, check = prepare_inputs(system, files, resolution, out_dir / "inputs")
    FLAGS.initial, FLAGS.target = found.pop("initial"), found.pop("target")
    set_defaults(**found)
    if system.parts and FLAGS.parts == "auto":
        log.info(f"the paper divides this map into {system.parts} parts, which are not published: give --parts")
    begin = time.perf_counter()
    job.main()
    seconds = time.perf_counter() - begin
    if (out_dir / "metrics.json").is_file():  # otherwise another process writes it
        write_table(system, resolution, seconds, check, out_dir)


def prepare_inputs(
    system: System, files: dict[str, Path], resolution: float | None, folder: Path
) -> tuple[dict[str, Any], Path | None]:
    """Write the files that the fit needs into the folder.

    Returns:
        Values of the flags that name them, and a second model of the target state to score against, if there is one.
    """
    from . import system_inputs

    if not resolution:
        reading = FLAGS.target_voxel_size, FLAGS.all_models
        return system_inputs.align_models(system, files, folder, FLAGS.align, *reading)
    side = system.box if FLAGS.box is None else FLAGS.box
    reading = FLAGS.voxel_size, FLAGS.all_models
    return system_inputs.simulate_pair(files, resolution, folder, side, *reading, system.one_chain), None


def set_defaults(**values: Any) -> None:
    """Set the flags that were not given to these values; None leaves a flag as it is."""
    for name, value in values.items():
        if value is not None and not FLAGS[name].present:
            FLAGS[name].value = value


def score_check(model: Path, generated, config: dict) -> float:
    """Resolution (Å) at FSC = 0.5 of the generated map against a second model of the target state."""
    from cryotrans_jax.density.align import Transform
    from cryotrans_jax.io import atoms
    from cryotrans_jax.scores import metrics

    there = atoms.read_model(model, FLAGS.all_models)
    if alignment := config.get("alignment"):
        there = Transform.from_matrix(alignment["transform"]).move(there)
    at = FLAGS.initial_resolution or systems.INITIAL_RESOLUTION
    return metrics.resolution_at(*metrics.model_map_fsc(generated, there, at), 0.5)


def write_table(system: System, resolution: float | None, seconds: float, check: Path | None, out_dir: Path) -> None:
    """Print the table of a finished run, and write reproduce.md and reproduce.json into its folder.

    Args:
        system: that was fitted.
        resolution: of a simulated target (Å).
        seconds: that the run took.
        check: a second model of the target state, if there is one.
        out_dir: the run's folder.
    """
    from cryotrans_jax.io.files import write_file

    from . import finished, run_folder

    scores, config = finished.read_scores(out_dir), finished.read_config(out_dir)
    generated = finished.load_map(out_dir, "generated.mrc")
    rows = score_rows(system, resolution, scores, check and score_check(check, generated, config))
    rows += setting_rows(system, resolution, config, scores, seconds, generated)
    at = f" at {resolution:g} Å" if resolution else ""
    lines = [
        f"# {system.name}{at}: {systems.describe_states(system)}, recipe {FLAGS.recipe}",
        "",
        tables.styled(rows, dict.fromkeys(rows[0], "{}")),
    ]
    lines += system.remarks
    lines += [f'"{systems.UNKNOWN}": not among the published facts that this table is made from.']
    text = "\n".join(lines) + "\n"
    log.info(text)
    write_file(out_dir / "reproduce.md", text)
    about = {"system": asdict(system), "resolution": resolution, "recipe": FLAGS.recipe}
    run_folder.write_json(out_dir / "reproduce.json", about | {"rows": rows, "metrics": scores})


def row(quantity: str, before: str = "", ours: str | int = "", published: str = systems.UNKNOWN) -> dict:
    """Make one row of the table."""
    return {"quantity": quantity, "initial map": before, "ours": ours, "published": published}


def score_rows(system: System, resolution: float | None, scores: dict, check: float | None) -> list[dict]:
    """Rows of scores; the published one is against a model of the target state."""
    rows = []
    styles = {key: (label, style) for label, key, style in SCORES}
    for key in COMPARED:
        label, style = styles[key]
        known = systems.format_published(system.result(resolution)) if key == "fsc" else systems.UNKNOWN
        if f"{key}_after" in scores:
            rows.append(row(label, *(style.format(scores[f"{key}_{when}"]) for when in ("before", "after")), known))
        elif key == "fsc":
            rows.append(row(label, ours="no --reference", published=known))
    if check is not None:
        known = systems.format_published(system.result(resolution))
        rows.append(row(f"FSC = 0.5 against {system.check} [Å]", ours=f"{check:.2f}", published=known))
    return rows


def setting_rows(
    system: System, resolution: float | None, config: dict, scores: dict, seconds: float, generated
) -> list[dict]:
    """Rows of the settings of the fit, here and in the paper."""
    from cryotrans_jax.fit.record import from_plain

    published, schedule = systems.format_published, systems.describe_schedule
    recipe, chosen, ends = system.recipe(resolution), config["chosen"], config["resolutions"]
    used = from_plain(config["recipe"])
    made = tuple((stage.label, stage.steps, stage.learning_rate) for stage in used.stages)
    levels = chosen["initial"]["threshold"], chosen["targets"][0]["threshold"]
    sharpness = join_numbers([ends["initial"], *ends["targets"]], "estimated")
    known = join_numbers([system.initial.resolution, resolution or system.target.resolution], systems.UNKNOWN)
    speed = systems.SPEED if system.box == systems.SPEED_BOX else systems.UNKNOWN
    size = " × ".join(f"{d:.4g}" for d in dict.fromkeys(generated.voxel_size.tolist()))
    at = recipe and "{:g}, {:g}".format(*recipe.thresholds)
    return [
        row("resolutions [Å]", "", sharpness, known),
        row("steps", "", schedule(systems.Recipe(made, levels)), schedule(recipe)),
        row("width of the network", "", used.field.network.width, published(recipe and recipe.width)),
        row("thresholds", "", "{:.4g}, {:.4g}".format(*levels), published(at)),
        row("box [voxels]", "", " × ".join(map(str, generated.density.shape)), published(system.box, "{}³")),
        row("voxel size [Å]", "", size),
        row("FSC = 0.5 of both maps with their models [Å]", "", "", systems.describe_model_fsc(system)),
        row("parts", "", max(1, len(scores.get("parts", []))), published(system.parts, "{}, by hand")),
        row("time", "", f"{seconds:.0f} s in all", speed),
        row("figure of the paper", published=published(system.figure)),
    ]


def join_numbers(values: list, otherwise: str) -> str:
    """Join numbers by commas, with `otherwise` for None."""
    return ", ".join(otherwise if value is None else f"{value:g}" for value in values)


def command() -> None:
    """Run the command with the flags of the command line."""
    define_flags()
    run(main)


if __name__ == "__main__":
    command()
