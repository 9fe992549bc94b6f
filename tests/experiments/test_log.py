"""The lines that the product commands print: all in one file, each as a user reads it."""

import ast
from pathlib import Path

import pytest

import cryotrans_jax as ct
from experiments import log
from experiments.score_rows import Score, score_rows

EXPERIMENTS = Path(log.__file__).parent
PRODUCT = sorted({path.stem for path in EXPERIMENTS.glob("*.py")} - {"log", "usage"})  # which prints for the manual
FOLDER, GIB = Path("runs/demo"), 2**30
LINES = [  # function, arguments, what goes to stdout, what to stderr
    ("built_in_pair", (FOLDER,), "input: no maps given, built-in pair written to runs/demo\n", ""),
    ("target_skipped", ("b.mrc", "it is empty"), "", "warning: target b.mrc skipped: it is empty\n"),
    (
        "resolution_doubtful",
        ("a.mrc", 1.5, "is finer than 2 Å, the Nyquist limit of its voxels of 1 Å", "--initial_resolution"),
        "",
        "warning: resolution of a.mrc, 1.5 Å, is finer than 2 Å, the Nyquist limit of its voxels of 1 Å: if it is "
        "another, give it as --initial_resolution\n",
    ),
    (
        "micelle_removed",
        ("a.mrc", 0.314, Path("mask.mrc")),
        "a.mrc: micelle removed, 31 % of the density (mask: mask.mrc; --micelle=keep to keep it)\n",
        "",
    ),
    ("alignment", ("b.mrc", "taken as it lies", None, None), "alignment of b.mrc: taken as it lies\n", ""),
    (
        "alignment",
        ("b.mrc", "aligned", 0.81549, 10.0),
        "alignment of b.mrc: aligned, overlap with the initial map at 10 Å: 0.815\n",
        "",
    ),
    (
        "alignment_motion",
        (30.04, 11.36, 0.4),
        "  rotation 30.0°, translation 11.4 Å, overlap before: 0.400\n",
        "",
    ),
    (
        "alignment_poor",
        ("b.mrc", 0.123, 7.6),
        "",
        "warning: b.mrc fits the initial map poorly in any pose (correlation 0.12 at 8 Å): check its voxel size and "
        "its hand (--check_hand)\n",
    ),
    (
        "mass_outside_box",
        ("b.mrc", 0.755),
        "",
        "warning: only 76 % of the mass of b.mrc lies in the initial map's box: pad the initial map\n",
    ),
    (
        "hand",
        ("b.mrc", True, 0.9, 0.456),
        "",
        "warning: the mirror image of b.mrc fits the initial map clearly better (correlation 0.90, the map itself "
        "0.46): flip the map's hand\n",
    ),
    (
        "hand",
        ("b.mrc", False, 0.3, 0.9),
        "hand of b.mrc: consistent with the initial map (mirror image: correlation 0.30, the map itself 0.90)\n",
        "",
    ),
    ("memory", (0.84 * GIB, 1.6 * GIB, 22 * GIB), "memory needed: 0.8 to 1.6 GiB (22.0 GiB available)\n", ""),
    (
        "memory_short",
        (0.84 * GIB, 1.6 * GIB, GIB, "fit fewer targets at once"),
        "",
        "warning: memory needed: 0.8 to 1.6 GiB, of which 1.0 GiB are available: if the run is killed, fit fewer "
        "targets at once\n",
    ),
    (
        "map_levels",
        ("target map", log.Level(0.048571, "by rule", 12315.4, 0.98)),
        "target map:\n  threshold:        0.04857 (by rule), 98.0 % of the mass in 12300 Å³\n",
        "",
    ),
    (
        "map_levels",
        ("initial map", log.Level(2.0, "given", 987.6, 0.98), log.Level(1.0, "by histogram", 1.6e6, 1.0)),
        "initial map:\n  threshold:        2 (given), 98.0 % of the mass in 988 Å³\n"
        "  display contour:  1 (by histogram), 100.0 % of the mass in 1600000 Å³\n",
        "",
    ),
    (
        "molecular_volume",
        (15997.0, 8.0, 13.22),
        "  molecular volume: 16000 Å³ at 8 Å resolution, 13.2 kDa of protein\n",
        "",
    ),
    (
        "map_doubtful",
        ("target map", "solvent is moved"),
        "",
        "warning: target map: solvent is moved: give --mask, --mass_kda or another threshold\n",
    ),
    ("symmetry", ("C3", (-0.01, 2.0, 3.06)), "symmetry: C3 about (0.0, 2.0, 3.1) Å, kept by the flow\n", ""),
    (
        "target_filtered",
        ("target map", 2.0, True),
        "target map: noisy, low-pass filtered by a Gaussian of 2.0 Å before its mass is taken\n",
        "",
    ),
    ("blur", ("target map", 2.0), "blur of the target map: Gaussian of 1.41 Å relative to the initial map\n", ""),
    ("blur", ("target map", -2.0), "blur of the initial map: Gaussian of 1.41 Å relative to the target map\n", ""),
    (
        "target_sharpened",
        ("target map", 1.42),
        "sharpening of the target map: Gaussian of 1.42 Å deconvolved for the fit, as its noise is low\n",
        "",
    ),
    ("no_target", (), "targets of this process: 0, as there are more processes than targets\n", ""),
    (
        "run_resumed",
        ("step 325 of stage 4", 0, FOLDER),
        "Run resumed from step 325 of stage 4 (seed 0, runs/demo).\n",
        "",
    ),
    (
        "checkpoint_failed",
        ("No space left on device: somewhere",),
        "",
        "warning: the state of the fit could not be saved (No space left on device: somewhere): free disk space, the "
        "fit continues\n",
    ),
    ("target_warning", ("b", "it diverged"), "", "warning: b: it diverged\n"),
    ("result_frame", ("that of the alignment", None, None), "frame of the result: that of the alignment\n", ""),
    (
        "result_frame",
        ("that in which rigid body 1 (62 % of the mass) stays still", 33.04, 12.06),
        "frame of the result: that in which rigid body 1 (62 % of the mass) stays still\n"
        "  in the frame of the alignment: rotation 33.0°, translation 12.1 Å\n",
        "",
    ),
    ("withholding", ("A:1-9", 1, 2), "test 1 of 2: A:1-9 is hidden, and the fit repeated\n", ""),
    (
        "withheld",
        (
            {
                "region": "A:1-9",
                "apart": 1.26,
                "predicted_error": 0.84,
                "within_90": 0.777,
                "correlation_before": 0.123,
                "correlation_without": 0.456,
                "correlation_with": 0.789,
            },
        ),
        "A:1-9, hidden from the fit: 1.3 Å (median) from where the whole target puts it\n"
        "  predicted error: 0.8 Å; share within its bound for 90 %: 0.78\n"
        "  correlation with what was hidden: 0.46 (before 0.12, whole target 0.79)\n",
        "",
    ),  # fmt: skip
    ("verdict", ("open_7A", "motion found"), "open_7A: motion found.\n", ""),
    ("seed_spread", (0.999, 4.82), "spread between seeds: median 1.00 Å, 95th percentile 4.82 Å\n", ""),
    (
        "trajectory_in_mmcif",
        ("its chain AB is long",),
        "trajectory format: mmCIF (trajectory.cif), as the PDB format cannot hold the model: its chain AB is long\n",
        "",
    ),
    (
        "results_written",
        (FOLDER, True, 1),
        "results: runs/demo\nopen runs/demo/report.html in a browser, or runs/demo/view.cxc in ChimeraX\n",
        "",
    ),
    (
        "results_written",
        (FOLDER, False, 2),
        "results: runs/demo\nopen runs/demo/<target>/view.cxc in ChimeraX\n",
        "",
    ),
    (
        "frames_written",
        (51, FOLDER),
        "frames: 51 in runs/demo\nin ChimeraX: open runs/demo/frame_*.mrc vseries true\n",
        "",
    ),
    ("report_written", (Path("report.html"),), "report: report.html, open it in a browser\n", ""),
    ("model_written", (Path("b_model.cif"),), "b_model.cif: the model in the frame of the map\n", ""),
    ("map_written", ("b.mrc", "8 x 8 x 8 voxels", 5.0), "b.mrc: 8 x 8 x 8 voxels, resolution 5 Å\n", ""),
    (
        "lock_taken_over",
        (Path("running.lock"),),
        "lock taken over from a program that has ended: running.lock\n",
        "",
    ),
    (
        "results_restored",
        (FOLDER,),
        "results restored in runs/demo, as the command that was replacing them was killed\n",
        "",
    ),
    ("file_fetched", (Path("6RAH.cif"), 1234567), "6RAH.cif: fetched, 1.2 MB\n", ""),
    ("file_present", (Path("6RAH.cif"),), "6RAH.cif: already there\n", ""),
    (
        "file_present",
        (Path("6RAH.cif"), False),
        "6RAH.cif: already there, not fetched by this program and not checked\n",
        "",
    ),
    ("part_missing", ("EMD-22001", "half maps"), "EMD-22001: no half maps in the archive\n", ""),
    (
        "digest_invalid",
        ("md5",),
        "",
        "warning: the server's md5 is not a digest: only the length and the format of the file are checked\n",
    ),
    ("info", ("see experiments.run",), "see experiments.run\n", ""),
    ("version", (), f"cryotrans-jax {ct.__version__}\n", ""),
    ("warning", ("see experiments.run",), "", "warning: see experiments.run\n"),
    ("error", ("no file a\x1b.mrc\nhere",), "", "error: no file a?.mrc here\n"),
]


def calls_of_print(path):
    """The lines at which a file calls `print`."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return [node.lineno for node in nodes if isinstance(node, ast.Name) and node.id == "print"]


@pytest.mark.parametrize("name", PRODUCT)
def test_no_other_file_of_the_product_prints(name):
    assert calls_of_print(EXPERIMENTS / f"{name}.py") == []


def test_the_file_that_prints_is_there():
    assert calls_of_print(EXPERIMENTS / "log.py")


@pytest.mark.parametrize("name, arguments, printed, warned", LINES)
def test_a_line_reads_as_it_should(capsys, name, arguments, printed, warned):
    getattr(log, name)(*arguments)
    assert capsys.readouterr() == (printed, warned)


def test_every_function_that_prints_is_tried():
    tree = ast.parse((EXPERIMENTS / "log.py").read_text())
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")}
    others = {"commands_as_typed", "scores", "rigid_bodies"}
    assert functions - others == {name for name, *_ in LINES} and others < functions


def test_scores_are_an_aligned_table(capsys):
    rows = score_rows({"rmsd_before": 12.409, "rmsd_after": 0.055, "clashes_after": 3, "clashes_before": 10})
    log.scores("open_7A", [*rows, Score("CA RMSD of the idealised model [Å]", "", "0.06")])
    assert capsys.readouterr().out.splitlines() == [
        "open_7A                                 initial  generated",
        "  CA RMSD to the reference [Å]            12.41       0.06",
        "  clashes (heavy atoms within 2.2 Å)         10          3",
        "  CA RMSD of the idealised model [Å]                  0.06",
    ]


def test_a_curve_that_never_falls_is_said_to_reach_the_nyquist_limit():
    scores = {"nyquist": 2.1, "fsc_with_target_before": 17.333, "fsc_with_target_after": 2.1}
    assert score_rows(scores) == [("FSC = 0.5 against the target map [Å]", "17.33", "≤ 2.1 (Nyquist)")]
    assert score_rows(scores | {"nyquist": 1.9})[0].generated == "2.10"


def test_a_long_name_of_a_target_widens_the_table(capsys):
    log.scores("t" * 50, [Score("label", "0.1", "0.2")])
    head, row = capsys.readouterr().out.splitlines()
    assert len(head) == len(row) and head.startswith("t" * 50 + "  ")


def test_rigid_bodies_are_an_aligned_table(capsys):
    log.rigid_bodies("rigid body", [log.RigidBody(0.57, 5.84, 9.04, 1.096), log.RigidBody(0.43, 124.8, 17.0, 1.36)])
    log.rigid_bodies("part", [log.RigidBody(0.1, 5.84, 9.04, 1.096, copies=8, error=0.76)])
    assert capsys.readouterr().out.splitlines() == [
        "rigid body  mass [%]  rotation [°]  translation [Å]  RMS deviation from rigid-body motion [Å]",
        "         1        57           5.8              9.0                                      1.10",
        "         2        43         124.8             17.0                                      1.36",
        "part  copies  mass [%]  rotation [°]  translation [Å]  RMS deviation from rigid-body motion [Å]  "
        "predicted error [Å]",
        "   1       8        10           5.8              9.0                                      1.10  "
        "                0.8",
    ]
