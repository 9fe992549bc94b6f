"""Morph one density map into another: write the frames between them, the generated map and its scores.

python -m experiments.run                                  the built-in pair
python -m experiments.run A.mrc B.mrc --out_dir=DIR        from the initial map A to the target B
python -m experiments.run --initial=A.mrc --target=B.mrc   the same
python -m experiments.run --target=6RAI_5A.mrc             from 6RAH_3A.mrc in data/
python -m experiments.run A.mrc B.mrc C.mrc                to two targets
python -m experiments.run A.mrc B.mrc C.mrc --distributed
                                                           in each process of a cluster
"""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from . import flags as shared
from . import log, paths, ranges
from .main import SomeFailed, command_of
from .signals import catch_signals

if TYPE_CHECKING:
    from .case import Case
    from .resume import Keeper
    from .settings import InputSettings

FLAGS = flags.FLAGS
NAMES = ("initial", "target")  # the flags for which names without a flag stand
COMMON = (  # flags that nearly everyone needs, in the order in which --help begins with them
    "initial", "target", "out_dir", "initial_resolution", "target_resolution", "model", "reference", "mass_kda",
    "frames", "overwrite",
)  # fmt: skip


def define_flags() -> None:
    """Define the flags of this command."""
    shared.define_maps()
    shared.define_alignment()
    define_still()
    shared.define_contour()
    shared.define_models()
    with shared.group("Atomic models"):
        paths.define_paths(
            "reference",
            None,
            "MODEL|MAP,...: the target state, if it is known, to score the result against; in the target map's frame. "
            "One, or one for each target.",
        )
    shared.define_fit()
    shared.define_symmetry()
    shared.define_schedule()
    define_seeds_and_parts()
    define_trust()
    with shared.group("Output"):
        paths.define_path("out_dir", None, "FOLDER: for the results; runs/<initial>_to_<target> if not given.")
        flags.DEFINE_bool(
            "report",
            True,
            "Write report.html, which shows and explains the run, and its pictures beside the results.",
        )
    shared.define_output()
    shared.define_resume()
    shared.define_machine()
    shared.define_hosts()
    shared.define_archives()


@shared.group("Alignment")
def define_still() -> None:
    """Define the flag that decides in which frame the result is."""
    flags.DEFINE_string(
        "still",
        "auto",
        "What stays still in the result: auto, the largest rigid body, unless --align=none or --symmetry keeps the "
        "frame of the maps; chains or residues of --model (A:1-200,B); none, nothing, in the frame of the alignment.",
    )


@shared.group("Fit")
def define_seeds_and_parts() -> None:
    """Define the flags of several seeds, of waypoints, and of parts with velocity fields of their own."""
    paths.define_path(
        "config",
        None,
        "FILE: config.json of another run, which is repeated: its inputs, settings and whole schedule. Other flags of "
        "this command replace its settings; stages can be edited in the file.",
    )
    ranges.whole_number(
        "seeds",
        1,
        "Number of seeds to fit from, starting at --seed. Results are those of the first; seed_spread.mrc shows "
        "by how many Å the others carry the density elsewhere.",
        ranges.SEEDS,
    )
    flags.DEFINE_multi_string(
        "waypoint",
        [],
        "FILE@TIME,...: a map that the flow has to pass on its way to a single target, at a time between 0 and 1. "
        "Several are separated by commas, or given with a flag each.",
    )
    flags.DEFINE_string(
        "parts",
        "auto",
        "Parts of the initial map, each with a velocity field of its own: auto, the rigid bodies that are found in "
        "the flow once it has the motion; none, one field for all; a label map (LABELS.mrc), a mask for each part "
        "(A.mrc,B.mrc), or chains or residues of --model (A:1-320;A:321-650,B).",
    )
    ranges.numbers(
        "part_rigidity",
        None,
        "FACTOR,...: factors of the rigidity's weight, one for each part, such as 1,3. With the recipe paper they are "
        "the weights λ themselves (eq. 13 and 15 of the paper), one for each part, or a single one without --parts; if "
        "not given there is no rigidity.",
        ranges.WEIGHT,
    )


@shared.group("Trust")
def define_trust() -> None:
    """Define the flags that decide how the result is tested."""
    flags.DEFINE_bool(
        "error",
        True,
        "Predict by how many Å each place of the result is wrong, and judge by it whether the motion was found.",
    )
    flags.DEFINE_multi_string(
        "withhold",
        [],
        "SELECTION|MASK: residues of --model (A:120-180) or a mask of the target, whose density is hidden from a "
        "second fit, to see whether that puts it in the same place and how far it claims to be right. May be repeated.",
    )
    flags.DEFINE_bool("check", False, "The same with two regions at random, of a tenth of the molecule each.")


def main() -> None:
    """Fit the targets of this process, and write the run's folder."""
    from . import hosts, settings

    hosts.join(settings.from_flags(settings.HostSettings))
    catch_signals()  # a cluster's runtime may have installed handlers of its own
    from . import repeat, resume

    repeated = repeat.apply(FLAGS, Path(FLAGS.config)) if FLAGS.config else None
    given = settings.inputs()
    if repeated:
        given = replace(given, preparation=repeated.preparation)
    out_dir = Path(FLAGS.out_dir or default_folder(given))
    keeper = resume.Keeper(out_dir, FLAGS)
    with contextlib.ExitStack() as claims:
        case = hosts.after_first(lambda: claim_and_prepare(given, out_dir, keeper, claims))
        if case is not None and repeated:
            case.config = repeated.config
        share = hosts.share(len(case.targets)) if case else ()
        if not share:
            log.no_target()
            return
        failed = fit_and_write(case, keeper, out_dir, share)
    if failed:
        reasons = "; ".join(f"{name} ({why})" for name, why in failed.items())
        raise SomeFailed(
            f"{len(failed)} of {len(share) + len(case.failed)} targets failed, the others are done: {reasons}"
        )


def claim_and_prepare(
    given: "InputSettings", out_dir: Path, keeper: "Keeper", claims: contextlib.ExitStack
) -> "Case | None":
    """Lock the folder until `claims` are closed, and prepare the case; None if this process has no target."""
    import jax

    from . import find, hosts, run_folder

    if not hosts.share(max(len(given.target), 1)):  # the built-in pair has one
        return None
    claims.enter_context(run_folder.claimed(out_dir, jax.process_index(), find.unique_stems(given.target)))
    return prepare(given, out_dir, keeper)


def prepare(given: "InputSettings", out_dir: Path, keeper: "Keeper") -> "Case":
    """Load a case, after checking that this process may write to the folder.

    Of several targets those that cannot be used are left out.
    """
    from . import find, hosts, inputs, load, parse, prechecks, result_frame, results, run_folder, settings, withhold

    last = f"--seed={FLAGS.seed} with --seeds={FLAGS.seeds}: the last seed"
    parse.in_range(FLAGS.seed + FLAGS.seeds - 1, ranges.SEED, last, int)
    used, failed = load.without_unusable_targets(given)
    settings.record_targets(used)
    replacing = keeper.can_resume() or FLAGS.overwrite
    if 0 in hosts.share(1):  # the folder itself belongs to the first target
        run_folder.check_free(out_dir, replacing)
    case = inputs.built_in_pair(out_dir) if used.built_in else load.load_case(used, out_dir)
    load.add_parts(case, used)
    load.add_symmetry(case, settings.from_flags(settings.SymmetrySettings), used)
    result_frame.add_still(case, used)
    withhold.check_flags(FLAGS.withhold, FLAGS.check, case)
    case.schedule = parse.parse_schedule(FLAGS.schedule, FLAGS.width, FLAGS.steps)
    share = hosts.share(len(case.targets))
    if not used.built_in:
        stems = find.unique_stems(given.target)
        case.failed, case.target_names = failed, [stem for stem in stems if stem not in failed]
        results.check_replaceable(case, out_dir, replacing, share)
    keeper.begin(case)
    case.contours = load.contours(case, used)
    case.doubts = prechecks.doubts(case, used.target or case.target_names, used.model)
    prechecks.warn(case.doubts)
    results.check_disk_space(case, settings.from_flags(settings.OutputSettings), out_dir, len(share))
    results.check_memory(case, len(share))
    return case


def fit_and_write(case: "Case", keeper: "Keeper", out_dir: Path, share: Sequence[int]) -> dict[str, str]:
    """Fit the targets with these numbers and write their results; return why targets failed, by their names."""
    from . import record, results, withhold
    from .frames import with_render
    from .settings import FitSettings, OutputSettings, from_flags

    with keeper.guard():
        fits, fit_settings = [], from_flags(FitSettings)
        for seed_number in range(FLAGS.seeds):
            fits.append(results.fit_case(case, fit_settings, share, seed_number, keeper))
            keeper.finish_seed()
        first, *others = [with_render(fit, FLAGS.render) for fit in fits]
        about = record.describe(first, case, FLAGS)
        testing = bool(FLAGS.withhold or FLAGS.check) and not any(first.failed)
        withheld = withhold.test(FLAGS.withhold, FLAGS.check, first, case, fit_settings) if testing else []
        failed = results.write(first, case, from_flags(OutputSettings), about, out_dir, share, others, withheld)
    keeper.finish()
    return failed


def default_folder(given: "InputSettings") -> Path:
    """Name of the run's folder: runs/<initial>_to_<target>, or runs/demo for the built-in pair."""
    if given.built_in:
        return Path("runs/demo")
    name = "_".join(Path(t).name.split(".")[0] for t in given.target)
    return Path("runs") / f"{Path(given.initial_name).name.split('.')[0]}_to_{name}"


command = command_of(main, define_flags, NAMES)

if __name__ == "__main__":
    command()
