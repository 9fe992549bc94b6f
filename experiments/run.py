"""The main job: two density maps in; the morph between them, the generated map and its scores out.

python -m experiments.run                                  the built-in pair
python -m experiments.run --target=6RAI_5A.mrc             from 6RAH_3A.mrc in data/
python -m experiments.run --initial=A.mrc --target=B.mrc --out_dir=DIR
python -m experiments.run --initial=A.mrc --target=B.mrc,C.mrc --distributed
                                                           in each process of a cluster
"""

from pathlib import Path

from absl import flags

from . import flags as shared
from .main import SomeFailed, catch_signals, run

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Nothing; the flags of this job are there."""
    shared.define_maps()
    shared.define_alignment()
    shared.define_contour()
    shared.define_models()
    with shared.group("Atomic models"):
        flags.DEFINE_list(
            "reference",
            None,
            "MODEL|MAP,...: of the target state, if it is known, in the target map's frame, to score the result "
            "against; one, or one for each target.",
        )
    shared.define_fit()
    shared.define_symmetry()
    shared.define_schedule()
    with shared.group("Fit"):
        flags.DEFINE_integer(
            "seeds",
            1,
            "Fit from so many seeds, from --seed on. Results are those of the first; seed_spread.mrc shows where, and "
            "by how many Å, the others carry the density elsewhere.",
            lower_bound=1,
        )
        flags.DEFINE_multi_string(
            "waypoint",
            [],
            "FILE@TIME,...: a map that the flow is to pass on its way to the one target, at a time between 0 and 1. "
            "Several, separated by commas or each with a flag of its own.",
        )
        flags.DEFINE_string(
            "parts",
            "auto",
            "Parts of the initial map, each with a velocity field of its own: auto, the bodies that the flow moves "
            "nearly rigidly once it has found the motion; none, one field for all; a map of labels (LABELS.mrc), a "
            "mask for each (A.mrc,B.mrc), or chains or residues of --model (A:1-320;A:321-650,B).",
        )
        flags.DEFINE_list(
            "part_rigidity", None, "FACTOR,...: of the rigidity's weight, one for each part, such as 1,3."
        )
    with shared.group("Output"):
        flags.DEFINE_string("out_dir", None, "FOLDER: for the results; runs/<initial>_to_<target> if not given.")
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


def main() -> None:
    """Nothing; writes the run's folder."""
    from . import hosts

    hosts.join(FLAGS)
    catch_signals()  # a cluster's runtime may have taken them
    from . import results, resume

    out_dir = Path(FLAGS.out_dir or default_folder())
    keeper = resume.Keeper(out_dir, FLAGS)
    case = hosts.after_first(lambda: load(out_dir, keeper) if hosts.share(targets_named()) else None)
    share = hosts.share(targets_named())
    if case is None or not share:
        print("there are more processes than targets: none is left for this one")
        return
    with keeper.guarded():
        fits = []
        for another in range(FLAGS.seeds):
            fits.append(results.fit_case(case, FLAGS, share, another, keeper))
            keeper.finished(another)
        first, *others = fits
        failed = results.write(first, case, FLAGS, out_dir, share, others, keeper.aside)
    keeper.done()
    if failed:
        told = "; ".join(f"{name} ({why})" for name, why in failed.items())
        raise SomeFailed(
            f"{len(failed)} of {len(share) + len(case.failed)} targets failed, the others are done: {told}"
        )


def targets_named() -> int:
    """How many targets there are."""
    return len(FLAGS.target or ["built in"])


def load(out_dir: Path, keeper):
    """The case that the flags name, once it is certain that fits of this process's targets may go to the folder.

    Where several targets are named, those that cannot be used are not among them any more.
    """
    from . import hosts, inputs, prechecks, results

    replacing = keeper.expected() or FLAGS.overwrite
    if 0 in hosts.share(targets_named()):  # the folder itself is the first target's
        results.claim(out_dir, replacing)
    stems = inputs.unique_stems(FLAGS.target or [])
    failed = inputs.leave_out_unusable(FLAGS)
    share = hosts.share(targets_named())
    given = bool(FLAGS.initial or FLAGS.target)
    case = inputs.from_flags(FLAGS, out_dir) if given else inputs.built_in_pair(out_dir)
    inputs.add_parts(case, FLAGS)
    inputs.add_symmetry(case, FLAGS)
    case.schedule = inputs.schedule_in(FLAGS)
    if given:
        case.failed, case.target_names = failed, [stem for stem in stems if stem not in failed]
        results.check_kept(case, out_dir, replacing, share)
    keeper.begin(case)
    case.contours = inputs.contours(case, FLAGS)
    case.doubts = prechecks.doubts(case, FLAGS)
    prechecks.warn(case.doubts)
    results.check_room(case, FLAGS, out_dir, len(share))
    results.check_memory(case, len(share))
    return case


def default_folder() -> Path:
    """runs/<initial>_to_<target>, or runs/demo for the built-in pair."""
    from .inputs import INITIAL

    if not (FLAGS.initial or FLAGS.target):
        return Path("runs/demo")
    name = "_".join(Path(t).name.split(".")[0] for t in FLAGS.target or [])
    return Path("runs") / f"{Path(FLAGS.initial or INITIAL).name.split('.')[0]}_to_{name}"


def command() -> None:
    """Nothing; the job is done as the command line says."""
    define_flags()
    run(main)


if __name__ == "__main__":
    command()
