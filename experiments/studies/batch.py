"""Morph many pairs of maps, each as experiments.run does, and show them in one table and on one page.

python -m experiments.studies.batch --pairs=list.csv --out_dir=runs/batch
python -m experiments.studies.batch --pairs=list.csv --out_dir=runs/batch --share=2/8
                                                          a share of the pairs, on one of 8 hosts
srun python -m experiments.studies.batch --pairs=list.csv --out_dir=runs/batch --distributed
                                                          a share on each of several hosts, which JAX finds
python -m experiments.studies.batch --pairs=list.csv --out_dir=runs/batch --table_only
                                                          the table and the page of what is done

The list has a row for each pair, with the columns initial and target, which name maps, and as needed name,
initial_resolution, target_resolution, model, reference, mask, target_mask and other flags of experiments.run. Flags of
experiments.run on the command line hold for all pairs. The same command goes on after a stop.
"""

import sys
from pathlib import Path

from absl import flags

from .. import flags as shared
from .. import log, paths, ranges, run
from ..main import command_of
from ..usage import group

FLAGS = flags.FLAGS
COMMON = ("pairs", "out_dir", "at_once", "share", "overwrite", "table_only")
OF_ONE_RUN = (  # flags of a run that a batch sets itself, or that make no sense for it
    "initial", "target", "config", "out_dir", "overwrite", "resume", "fetch", "max_gb", "emdb_api", "emdb_files",
    "pdb_files",
)  # fmt: skip
HOSTS = "distributed", "coordinator", "processes", "process"  # flags of the batch itself that a run has too
AT_ONCE = ranges.Range(1, 1000, "each pair is a separate process")


class ShareParser(flags.ArgumentParser[str]):
    """Parser of a share K/N: the K-th of N, from 1."""

    def parse(self, argument: str) -> str:
        """Return the text; raise ValueError where it is not two such numbers."""
        number, _, of = argument.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise ValueError("is not K/N, with K from 1 to N, such as 2/8 (begin SLURM's arrays at 1: --array=1-8)")
        return argument


def define_flags() -> None:
    """Define the flags of this command: its own, and those of a run that may be different for each pair."""
    run.define_flags()
    for name in OF_ONE_RUN:
        delattr(FLAGS, name)
    define_batch()


@group("Batch")
def define_batch() -> None:
    """Define the flags of a batch itself."""
    paths.define_path("pairs", None, "LIST: the table of pairs, CSV, see above. Must be given.", required=True)
    paths.define_path("out_dir", "runs/batch", "FOLDER: for a folder of each pair, the table and the page.")
    ranges.whole_number("at_once", 1, "Number of pairs that are morphed at the same time, if memory allows.", AT_ONCE)
    flags.DEFINE(
        ShareParser(),
        "share",
        None,
        "K/N: morph only the K-th of N shares of the pairs, for several hosts or an array of jobs.",
        serializer=flags.ArgumentSerializer(),
    )
    flags.DEFINE_bool(
        "overwrite", False, "Replace results of other inputs or settings; those of the same are kept in any case."
    )
    flags.DEFINE_bool("table_only", False, "Morph nothing; make the table and the page of what is done.")


def main() -> None:
    """Morph the pairs that are not done; write the table and the page."""
    from .. import run_folder
    from . import batch_list, batch_state, batch_table

    own_share, options = share(), run_options()
    pairs = batch_list.read_list(Path(FLAGS.pairs), options, with_files=not FLAGS.table_only)
    out_dir = Path(FLAGS.out_dir).absolute()
    run_folder.make_folder(out_dir)
    batch_state.check_links(out_dir, pairs)
    not_done = {} if FLAGS.table_only else morph(batch_list.by_size(pairs)[own_share], options, out_dir)
    rows = batch_table.write(pairs, out_dir)
    log.info(f"{batch_table.summary(rows)} Open {out_dir / 'index.html'} in a browser")
    if not_done or (FLAGS.table_only and any("failed" in row for row in rows)):
        sys.exit(1)


def share() -> slice:
    """Which of the pairs, in the order of their sizes, are morphed here: those of --share, or of this process.

    Raises:
        InputError: both are given, or the processes cannot be joined.
    """
    if not any(FLAGS[name].value for name in HOSTS):
        number, of = map(int, (FLAGS.share or "1/1").split("/"))
        return slice(number - 1, None, of)
    import jax

    from cryotrans_jax.io.files import InputError

    from .. import hosts, settings

    if FLAGS.share:
        raise InputError(f"--share={FLAGS.share} contradicts processes that JAX connects: leave one of them out")
    jax.config.update("jax_platforms", "cpu")  # devices are for the runs, each a process of its own
    hosts.join(settings.from_flags(settings.HostSettings))
    return slice(jax.process_index(), None, jax.process_count())


def morph(pairs: list, options: dict[str, flags.Flag], out_dir: Path) -> dict[str, str]:
    """Morph these pairs that are not done; return why pairs are not done, by their names."""
    from . import batch_runs
    from .batch_state import Plan

    batch = batch_runs.Batch(Plan(out_dir, options, FLAGS.overwrite, FLAGS.at_once))
    batch.run(pairs)
    return batch.not_done


def run_options() -> dict[str, flags.Flag]:
    """The flags of a run that may be given; where they name files, these are named from the root."""
    modules = FLAGS.flags_by_module_dict()
    every = (flag for home in (run, shared) for flag in modules.get(home.__name__, []))
    found = {flag.name: flag for flag in every if flag.name not in HOSTS}
    for flag in found.values():
        if flag.present and isinstance(flag.parser, paths.PathParser) and Path(flag.value).exists():
            flag.value = str(Path(flag.value).absolute())
    return found


command = command_of(main, define_flags)

if __name__ == "__main__":
    command()
