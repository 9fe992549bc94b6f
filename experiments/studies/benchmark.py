"""Measure time and memory on this machine, in one run.

python -m experiments.studies.benchmark --out_dir=runs/benchmark
python -m experiments.studies.benchmark --sections=kernel,step --baseline=runs/earlier/benchmark.json

Sections: run (where the time of a whole run goes, with nothing compiled and once more), kernel (one application against
ott-jax's stock Grid), sinkhorn (five iterations on a real problem, cropped and windowed, against the stock Grid on a
cube), step (one training step by part), stages (compile and step time of each recipe's stages, those of the default one
with lower bounds), scaling (boxes, points, targets), recipes (time to the same FSC). If they are named, also many
(targets on several devices of one process, and several processes, against a process for each core) and device (a GPU's
sizes: the paper's step, the default recipe, several targets; each with its lower bound).

Section recipes runs the whole default recipe twice. It also runs every step of the paper's recipe, but with our kernel:
the potentials are the same (section sinkhorn), and so is the FSC after each step. The time stated for that recipe is
the number of its steps times the time of a step with ott's stock Grid, measured here, without compilation.
--paper_by_stock fits all its steps with the stock Grid, which takes hours on a CPU.
"""

import importlib
import os
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from .. import paths, ranges, tables
from ..main import command_of

FLAGS = flags.FLAGS
SECTIONS = {  # with the last word of the name of each one's file
    "run": "run",
    "kernel": "kernels",
    "sinkhorn": "kernels",
    "step": "steps",
    "stages": "steps",
    "scaling": "steps",
    "recipes": "recipes",
    "many": "many",
    "device": "device",
}
PADS = ranges.Range(0, 1024, "it is added to the sides of a box in voxels")
POINTS = ranges.Range(1, 100_000_000, "it is a number of points that fit into memory")
TARGETS = ranges.Range(1, 10_000, "it is a number of targets fitted at once")
SECONDS = ranges.Range(0.01, 3600, "steps are counted for as long, in seconds")
PEAK = ranges.Range(1, 1e21, "it is counted in single operations or bytes a second")


def define_flags() -> None:
    """Define the flags of this command."""
    flags.DEFINE_list("sections", list(SECTIONS)[:-2], f"What to measure, of {', '.join(SECTIONS)}.")
    paths.define_path("out_dir", "runs/benchmark", "Folder for benchmark.json and benchmark.md; and for run.md.")
    flags.DEFINE_string("baseline", None, "A benchmark.json of an earlier run to compare with.")
    paths.define_path(
        "data_dir", None, "Folder of pairs (see experiments.studies.validate); the built-in pair if not given."
    )
    flags.DEFINE_string("pair", "adk", "The pair in --data_dir.")
    ranges.number("resolution", 7.0, "Resolution of the target map, Å.", ranges.RESOLUTION)
    ranges.number("voxel_size", 1.0, "Voxel size of the built-in pair's maps, Å.", ranges.VOXEL_SIZE)
    ranges.whole_number("repeats", 7, "Number of timings of each call; the median is reported.", ranges.COUNT)
    ranges.whole_numbers("sizes", [44, 64, 88], "Sides of the cubes of section kernel, in voxels.", ranges.SIDE)
    ranges.whole_number(
        "cube", None, "Side of the stock Grid's cube in section sinkhorn; the box's longest if not given.", ranges.SIDE
    )
    ranges.whole_numbers("pads", [0, 32, 96], "Voxels added to the box's sides in section scaling.", PADS)
    ranges.whole_numbers("points", [1000, 4000, 16000, 64000], "Numbers of points in section scaling.", POINTS)
    ranges.whole_numbers("targets", [1, 2, 4, 8], "Numbers of targets in section scaling.", TARGETS)
    ranges.number("steps", 1.0, "Multiplies both recipes' steps in section recipes.", ranges.STEPS)
    flags.DEFINE_bool("paper_by_stock", False, "Fit the paper's recipe with the stock Grid in section recipes.")
    ranges.whole_number("many_devices", 8, "Devices, and targets, of one process in section many.", TARGETS)
    ranges.number("many_seconds", 20.0, "Seconds that section many counts steps.", SECONDS)
    ranges.whole_number("side", 160, "Side in voxels of the cube of section device.", ranges.SIDE)
    ranges.whole_number("device_targets", 16, "Number of targets in section device.", TARGETS)
    ranges.number("device_steps", 1.0, "Multiplies the default recipe's steps in section device.", ranges.STEPS)
    ranges.number("peak_flops", None, "float32 operations a second of the device, where unknown.", PEAK)
    ranges.number("peak_bandwidth", None, "Bytes a second of the device, where unknown.", PEAK)
    flags.DEFINE_string("run", "", "Flags of experiments.run for section run; the built-in pair if not given.")
    flags.DEFINE_bool("overwrite", False, "Replace the results that the output folder holds.")


def main() -> None:
    """Run the sections; print and write the table, updated after every section."""
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # so that compilation is measured
    from cryotrans_jax.io.files import InputError, write_file

    from .. import run_folder

    out_dir = Path(FLAGS.out_dir)
    if unknown := [name for name in FLAGS.sections if name not in SECTIONS]:
        raise InputError(f"there is no section {unknown[0]!r}: choose among {', '.join(SECTIONS)}")
    if (out_dir / "benchmark.json").exists() and not FLAGS.overwrite:
        raise InputError(f"{out_dir} holds a benchmark: give another --out_dir, or --overwrite to replace it")
    earlier = read_rows(FLAGS.baseline) if FLAGS.baseline else {}
    rows: dict[str, float] = {}
    with run_folder.growing(out_dir, "benchmark") as growing:
        for section in FLAGS.sections:
            for label, value in rows_of(section):
                rows[label] = value
                print(tables.row(cells(label, value, earlier)), flush=True)
            run_folder.write_json(growing / "benchmark.json", {"machine": machine(), "rows": rows})
            lines = (cells(label, value, earlier) for label, value in rows.items())
            write_file(growing / "benchmark.md", tables.markdown(("what", "value", "earlier", "ratio"), lines))
            if section == "run":
                from .benchmark_run import table

                write_file(growing / "run.md", parts := table(rows))
                print(parts, end="", flush=True)


def rows_of(section: str) -> Iterator[tuple[str, float]]:
    """Rows of a section, and the peak memory after it."""
    import jax

    from cryotrans_jax.io import memory

    yield from getattr(importlib.import_module(f".benchmark_{SECTIONS[section]}", __package__), section)()
    yield f"{section}: peak memory of the host so far [MiB]", memory.peak() / 2**20
    if (stats := jax.local_devices()[0].memory_stats()) and "peak_bytes_in_use" in stats:
        yield f"{section}: peak memory of the device so far [MiB]", stats["peak_bytes_in_use"] / 2**20


def read_rows(path: str) -> dict[str, float]:
    """Read the rows of an earlier run."""
    from cryotrans_jax.io.files import InputError, read_json

    try:
        rows = read_json(path)["rows"]
        return {label: float(value) for label, value in rows.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise InputError(f"{path} is no benchmark: give the benchmark.json of an earlier run") from None


def cells(label: str, value: float, earlier: dict[str, float]) -> list[str]:
    """A row of the table; the ratio is new / earlier."""
    before = earlier.get(label)
    return [label, f"{value:.4g}", *((f"{before:.4g}", f"{value / before:.2f}") if before else ("", ""))]


def machine() -> dict:
    """Device, cores and versions of the measurement."""
    import jax

    from cryotrans_jax.io import cores

    from ..record import PACKAGES, version

    device = jax.devices()[0]
    return {"device": device.device_kind, "devices": jax.device_count(), "cores": cores.usable()} | {
        name: version(name) for name in PACKAGES
    }


command = command_of(main, define_flags)

if __name__ == "__main__":
    command()
