"""Measure whether predicted errors and verdicts hold, and fit the constants of the prediction.

python -m experiments.studies.calibrate --results=runs/validate             how well they hold on these cases
python -m experiments.studies.calibrate --results=runs/validate --fit       with constants fitted on them
python -m experiments.studies.calibrate --results=tests/reference/errors.npz --fit   on what the tests keep

The cases are those of experiments.studies.validate --as_deposited, whose rows have the evidence and the true error of
every residue. Without --fit they are judged by the program's constants, which were fitted on the cases that the tests
keep. With --fit the constants that fit all cases are printed, and each case is judged by constants that were fitted
without its molecule.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from .. import flags as shared
from .. import paths, tables
from ..main import command_of

if TYPE_CHECKING:
    from cryotrans_jax.plots import Drawing

    from .calibration import Judged, Row

FLAGS = flags.FLAGS
KINDS = "found", "partly found", "not found"
MARKS = "<!-- errors: begin -->", "<!-- errors: end -->"
COLUMNS = {
    "residues of": "{}",
    "cases": "{}",
    "within 50 %": "{:.2f}",
    "within 90 %": "{:.2f}",
    "within 95 %": "{:.2f}",
    "AUROC 2 Å": "{:.2f}",
    "AUROC 4 Å": "{:.2f}",
    "Spearman": "{:.2f}",
}
VERDICTS = ("cases", *(f"{what}, called {kind}" for what in ("failed", "succeeded") for kind in KINDS))


def define_flags() -> None:
    """Define the flags of this command."""
    paths.define_paths(
        "results",
        None,
        "FOLDER|FILE.npz,...: of experiments.studies.validate --as_deposited, or as from --pack.",
        required=True,
    )
    flags.DEFINE_bool(
        "fit",
        False,
        "Fit the constants, print them, and judge each case by constants that were fitted without its molecule.",
    )
    with shared.group("Output"):
        paths.define_path("out_dir", "runs/calibrate", "FOLDER: for calibrate.md, calibrate.json and the figure.")
        paths.define_path(
            "readme", None, "A Markdown file; the tables replace the text between its marks of predicted errors."
        )
        paths.define_path(
            "pack", None, "FILE.npz: for evidence and true errors of all residues, as the tests keep them."
        )
        flags.DEFINE_bool("overwrite", False, "Replace the results that the output folder holds.")


def main() -> None:
    """Print the tables, and write them with the figure."""
    import numpy as np

    from cryotrans_jax.io.files import whole_file, write_file
    from cryotrans_jax.scores.confidence import ErrorModel

    from .. import exchange, run_folder
    from . import calibration

    out_dir = Path(FLAGS.out_dir)
    run_folder.check_unused(out_dir, "calibration", "a calibration", FLAGS.overwrite)
    rows = read_rows([Path(folder) for folder in FLAGS.results])
    if FLAGS.fit:
        print(calibration.fit_model(rows))
    cases = calibration.cross_validated(rows) if FLAGS.fit else calibration.judged_by(rows, ErrorModel())
    text = table(cases)
    print(text)
    with run_folder.claimed(out_dir, kinds=["calibration"]), run_folder.replacing(out_dir, "calibration"):
        run_folder.write_json(out_dir / "calibrate.json", figures(cases))
        write_file(out_dir / "calibrate.md", text)
        exchange.write_drawing(out_dir, "reliability", drawing(cases))
    if FLAGS.pack:
        with whole_file(FLAGS.pack) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **calibration.pack(rows))
    if FLAGS.readme:
        insert(Path(FLAGS.readme), text)


def read_rows(folders: Sequence[Path]) -> "list[Row]":
    """Read the rows that have evidence from the results of studies.

    Raises:
        InputError: a folder has no such results, or none of the rows has evidence.
    """
    from cryotrans_jax.io.files import InputError
    from cryotrans_jax.scores.confidence import Evidence

    from . import calibration

    rows: list[Row] = []
    for folder in folders:
        path = folder if folder.suffix == ".npz" else folder / "validate.json"
        try:
            found = read_packed(path) if path == folder else json.loads(path.read_bytes())
        except (OSError, ValueError, KeyError):
            raise InputError(
                f"{path} has no results of experiments.studies.validate: give the folder of a finished study"
            ) from None
        rows += [row for row in found if isinstance(row, dict) and "residues" in row]
    wanted = {calibration.TRUE, *Evidence._fields}
    if any(lacking := wanted - row["residues"].keys() for row in rows):
        raise InputError(
            f"{', '.join(map(str, folders))}: rows without {', '.join(sorted(lacking))}, of an earlier version: run "
            "experiments.studies.validate --as_deposited again, with --overwrite"
        )
    if len({row["pair"].partition("_")[0] for row in rows}) < 2:
        raise InputError(
            f"{', '.join(map(str, folders))}: fewer than two molecules with predicted errors: give results of "
            "experiments.studies.validate --as_deposited on pairs of several molecules"
        )
    return rows


def read_packed(path: Path) -> "list[Row]":
    """Read the rows that --pack wrote."""
    import numpy as np

    from . import calibration

    with np.load(path) as arrays:
        return calibration.unpack(arrays)


def figures(cases: "Sequence[Judged]") -> list[dict]:
    """How well errors and verdicts hold for each group of cases."""
    from . import calibration

    return [
        {"residues of": name} | calibration.measure(some) | named(calibration.outcomes(some))
        for name, some in calibration.groups(cases).items()
    ]


def named(counts: dict[tuple[bool, str], int]) -> dict[str, int]:
    """Numbers of cases under the names of the table's columns."""
    return {f"{('succeeded', 'failed')[failed]}, called {kind}": count for (failed, kind), count in counts.items()}


def table(cases: "Sequence[Judged]") -> str:
    """The tables of errors and of verdicts in Markdown."""
    found = figures(cases)
    verdicts = [[row["residues of"], *(row[name] for name in VERDICTS[1:])] for row in found]
    return f"{tables.styled(found, COLUMNS)}\n{tables.markdown(VERDICTS, verdicts)}"


def drawing(cases: "Sequence[Judged]") -> "Drawing":
    """The reliability diagram: the share of residues within the bound of each fraction, by resolution."""
    from cryotrans_jax import plots

    from . import calibration

    curves = {
        name: (calibration.CURVE, calibration.reliability(some))
        for name, some in calibration.groups(cases).items()
        if name == "all" or name.startswith("targets")
    }
    curves["perfect"] = calibration.CURVE, calibration.CURVE
    return plots.panels_drawing({"share of residues within the bound": curves}, "fraction that the bound is for", 0.0)


def insert(path: Path, text: str) -> None:
    """Replace the text between the marks in a file by the tables and the command that makes them."""
    from cryotrans_jax.io.files import write_file

    before, _, after = tables.parted(path, *MARKS)
    given = f"--results={','.join(FLAGS.results)}{' --fit' * FLAGS.fit} --readme={path.as_posix()}"
    command = f"    python -m experiments.studies.calibrate {given}"
    write_file(path, f"{before}\n{command}\n\n{text}{after}")


command = command_of(main, define_flags)

if __name__ == "__main__":
    command()
