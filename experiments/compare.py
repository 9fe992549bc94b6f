"""Compare our morph with other methods on the same two maps, all scored in the same way.

python -m experiments.compare A.mrc B.mrc "--frames_of=MorphOT:morphot/*.mrc"
python -m experiments.compare --data_dir=PAIRS --pair=adk --target_resolution=7

Methods (--methods): ours, the default recipe; blend, a linear mixture of the maps, as in ChimeraX's volume morph;
barycentre, entropic optimal transport, as in MorphOT; l2, our flow by squared difference alone, without
correspondences; paper, the published schedule (slow); models, the straight line between models of both states, if they
are given: this method knows the answer. --frames_of adds frames of other programs.

A --pair is a folder in --data_dir with models of both states, as for experiments.studies.validate. Its target map is
simulated with noise, so that its Fourier shell correlation with the truth falls to 0.5 at its resolution, as in a real
map. A map without noise is blurred, but no information is lost.
"""

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from . import flags as shared
from . import log, paths, ranges
from .main import command_of

if TYPE_CHECKING:
    import gemmi

    from .case import Case
    from .contest import Comparison, Entry

FLAGS = flags.FLAGS
NAMES = ("initial", "target")  # the flags for which names without a flag stand
METHODS = ("ours", "blend", "barycentre", "l2", "paper", "models")
DEFAULT_METHODS = ("ours", "blend", "barycentre", "l2", "models")


def define_flags() -> None:
    """Define the flags of this command."""
    shared.define_maps()
    with shared.group("Maps"):
        flags.DEFINE_string(
            "pair", None, "NAME: simulate both maps from a folder in --data_dir, as experiments.studies.validate does."
        )
        flags.DEFINE_bool(
            "noise",
            True,
            "Add noise to the target of a --pair, so that its FSC with the truth is 0.5 at its resolution.",
        )
    shared.define_alignment()
    shared.define_contour()
    with shared.group("Atomic models"):
        paths.define_path("model", None, "MODEL: of the initial state.")
        paths.define_path("target_model", None, "MODEL: of the target state, used only by the method models.")
        paths.define_paths(
            "reference", None, "MODEL|MAP: of the target state, to score against; --target_model if not given."
        )
    shared.define_all_models()
    with shared.group("Methods"):
        flags.DEFINE_list("methods", list(DEFAULT_METHODS), f"NAME,...: which of {', '.join(METHODS)}.")
        flags.DEFINE_multi_string(
            "frames_of",
            [],
            "NAME:FILES: frames of another program (MorphOT:out/*.mrc, or MorphOT:a.mrc,b.mrc,c.mrc), equally spaced "
            "in time, those of a pattern sorted by name; or its last frame alone.",
        )
        ranges.whole_number("seed", 0, "Seed of the network's first weights.", ranges.SEED)
        ranges.number("steps", 1.0, "FACTOR: multiplies the number of steps of every stage.", ranges.STEPS)
    with shared.group("Output"):
        ranges.whole_number("frames", 11, "Number of frames, from 0 to 1 in time.", ranges.FRAMES._replace(least=3))
        flags.DEFINE_bool("keep_frames", False, "Write the frames of the methods computed here as well.")
        paths.define_path("out_dir", None, "FOLDER: for the results; runs/compare_<name> if not given.")
        flags.DEFINE_bool("overwrite", False, "Replace the results that the output folder holds.")
    shared.define_machine()
    shared.define_archives()


def main() -> None:
    """Score the methods; print the table and write it with its figures."""
    from cryotrans_jax.io.files import InputError

    from . import contest, methods, record, run_folder

    if unknown := [name for name in FLAGS.methods if name not in METHODS]:
        raise InputError(f"there is no method {unknown[0]}: choose of {', '.join(METHODS)}")
    files = contest.find_frames(FLAGS.frames_of)
    name = FLAGS.pair or Path((FLAGS.target or ["none"])[0]).name.split(".")[0]
    out_dir = Path(FLAGS.out_dir or Path("runs") / f"compare_{name}")
    run_folder.check_unused(out_dir, "comparison", "a comparison", FLAGS.overwrite)
    with contextlib.ExitStack() as claims:
        claims.enter_context(run_folder.claimed(out_dir, inside=FLAGS.methods, kinds=["comparison", "frames"]))
        claims.enter_context(run_folder.replacing(out_dir, "comparison"))
        for method in FLAGS.methods if FLAGS.keep_frames else ():
            claims.enter_context(run_folder.replacing(out_dir / method, "frames"))
        case, path = load_pair() if FLAGS.pair else load_maps(out_dir)
        levels = FLAGS.initial_threshold, FLAGS.target_threshold
        comparison = methods.make_comparison(case, path, levels, FLAGS.frames)
        entries = score_methods(case, comparison, files, out_dir)
        about = {"settings": record.settings_of(FLAGS), "inputs": methods.describe_inputs(case, files)}
        contest.write(entries, comparison, about, out_dir)
    log.info(contest.table(entries))
    log.info(f"results: {out_dir}")


def score_methods(case: "Case", comparison: "Comparison", files: dict[str, list[Path]], out_dir: Path) -> "list[Entry]":
    """Score the methods and the frames from files, one after the other; write frames if --keep_frames."""
    from cryotrans_jax.fit import trajectory
    from cryotrans_jax.io.maps import read_map

    from . import contest, methods
    from .settings import FitSettings, from_flags

    judge, entries = contest.Judge(comparison), []
    for method in FLAGS.methods:
        if method == "models" and comparison.models is None:
            log.info("straight line between models: left out, as models of both states are not known")
            continue
        log.info(f"{method} ...")
        begin = time.perf_counter()
        frames, far = methods.method_frames(method, case, comparison, from_flags(FitSettings))
        entries.append(judge.entry(method, frames, comparison.times, time.perf_counter() - begin, far))
        if FLAGS.keep_frames:
            methods.write_frames(frames, out_dir / method)
    for name, given in files.items():
        maps = ((str(path), read_map(path, FLAGS.voxel_size)) for path in given)
        frames = [contest.on_grid(map_, comparison.initial, path) for path, map_ in maps]
        entries.append(judge.entry(name, frames, trajectory.frame_times(len(frames))))
    return entries


def load_pair() -> "tuple[Case, list[gemmi.Structure]]":
    """Load the case of a pair's folder, with noise on its target if --noise, and models of the path."""
    from . import methods, pairs

    folder = pairs.pair_folder(FLAGS.data_dir, FLAGS.pair)
    resolution = FLAGS.target_resolution or 7.0
    case = pairs.load_pair(folder, resolution)
    if FLAGS.noise:
        case.targets = [methods.with_noise(case.targets[0], resolution)]
    return case, pairs.known_path(folder, case.model)


def load_maps(out_dir: Path) -> "tuple[Case, list[gemmi.Structure]]":
    """Load the case that the flags name; there are no models of the path."""
    from cryotrans_jax.io import atoms
    from cryotrans_jax.io.files import InputError

    from . import find, load, prechecks, settings

    if not FLAGS.target or len(FLAGS.target) > 1:
        raise InputError("give --initial and one --target, or a --pair of models")
    given = settings.inputs()
    if FLAGS.target_model and not given.reference:
        given = dataclasses.replace(given, reference=[FLAGS.target_model])
    case = load.load_case(given, out_dir)
    prechecks.warn(prechecks.doubts(case, given.target, given.model))
    if FLAGS.target_model:
        found = find.existing_file(FLAGS.target_model, FLAGS.data_dir)
        model = atoms.read_model(found, FLAGS.all_models)
        case.references = [*case.references, case.alignments[0].transform.move(model)]
    return case, []


command = command_of(main, define_flags, NAMES)

if __name__ == "__main__":
    command()
