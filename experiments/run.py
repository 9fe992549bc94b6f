"""The main job: two density maps in; the morph between them, the generated map and its scores out.

python -m experiments.run                                    the built-in pair, nothing else needed
python -m experiments.run --target=6RAI_5A.mrc               from 6RAH_3A.mrc to 6RAI_5A.mrc in data/
python -m experiments.run --initial=A.mrc --target=B.mrc --out_dir=DIR
"""

from pathlib import Path

from absl import flags

from experiments import flags as shared
from experiments.main import run

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Nothing; the flags of this job are there."""
    shared.define_maps()
    shared.define_fit()
    shared.define_output()
    flags.DEFINE_string("out_dir", None, "Folder for the results; runs/<initial>_to_<target> if not given.")
    flags.DEFINE_list(
        "reference", None, "Model or map of the target state to score against; one, or one for each target."
    )


def main() -> None:
    """Nothing; writes the run's folder."""
    from experiments import inputs, results

    out_dir = results.claim(FLAGS.out_dir or default_folder(), FLAGS.overwrite)
    if FLAGS.initial or FLAGS.target:
        case = inputs.from_flags(FLAGS, out_dir)
        results.check_kept(case, out_dir, FLAGS.overwrite, range(len(case.targets)))
    else:
        case = inputs.built_in_pair(out_dir)
    results.write(results.fit_case(case, FLAGS), case, FLAGS, out_dir, range(len(case.targets)))


def default_folder() -> Path:
    """runs/<initial>_to_<target>, or runs/demo for the built-in pair."""
    from experiments.inputs import INITIAL

    if not (FLAGS.initial or FLAGS.target):
        return Path("runs/demo")
    name = "_".join(Path(t).name.split(".")[0] for t in FLAGS.target or [])
    return Path("runs") / f"{Path(FLAGS.initial or INITIAL).name.split('.')[0]}_to_{name}"


if __name__ == "__main__":
    define_flags()
    run(main)
