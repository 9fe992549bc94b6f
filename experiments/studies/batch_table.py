"""The table of a batch and its page, made of what is in the folders of its pairs."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from cryotrans_jax.io.files import InputError, write_file

from .. import finished, run_folder, tables
from ..pages import index, words
from .batch_list import Pair
from .batch_state import RECORD, beside, is_finished, read_record

COLUMNS = {
    "name": "{}",
    "verdict": "{}",
    "predicted_error": "{:.1f}",
    "correlation_before": "{:.3f}",
    "correlation_after": "{:.3f}",
    "rmsd_before": "{:.2f}",
    "rmsd_after": "{:.2f}",
    "stretched": "{:.3f}",
    "seconds": "{:.0f}",
    "failed": "{}",
}
HEADS = {
    "name": "pair",
    "verdict": "verdict",
    "predicted_error": "predicted error [Å]",
    "correlation_before": "correlation before",
    "correlation_after": "after",
    "rmsd_before": "CA RMSD before [Å]",
    "rmsd_after": "after [Å]",
    "stretched": "share stretched",
    "seconds": "seconds",
    "failed": "what failed",
}
SCORES = {  # columns, and their names in metrics.json
    "verdict": "verdict",
    "predicted_error": "predicted_error",
    "correlation_before": "correlation_matched_before",
    "correlation_after": "correlation_matched_after",
    "rmsd_before": "rmsd_before",
    "rmsd_after": "rmsd_after",
    "stretched": "stretched",
}
ALWAYS = ("name", "verdict", "seconds", "failed")  # columns that the table has even where they are empty
NO_VERDICT, FAILED, WAITING = "no verdict", "failed", "not done yet"
ATTEMPTS = 5  # to write tables that no other program has made out of date meanwhile


def row(pair: Pair, out_dir: Path) -> dict[str, Any]:
    """A line of the table: the scores of a pair, or what failed; other keys are those of COLUMNS that it has."""
    found = read_record(out_dir, pair)
    head = {"name": pair.name}
    if failed := why_failed(pair, out_dir, found):
        return head | {"verdict": FAILED, "failed": failed}
    folder = out_dir / pair.name
    if not is_finished(folder):
        return head | {"verdict": WAITING}
    try:
        scores = finished.read_scores(folder)
    except InputError as error:
        return head | {"verdict": FAILED, "failed": str(error)}
    values = {column: scores[name] for column, name in SCORES.items() if isinstance(scores.get(name), float | str)}
    seconds = {"seconds": found["seconds"]} if found.get("seconds") else {}
    return head | {"verdict": NO_VERDICT} | values | seconds


def why_failed(pair: Pair, out_dir: Path, found: dict[str, Any]) -> str:
    """Why a pair failed by its record; empty where it did not, or where its folder holds a later run."""
    failed, scores = found.get("failed"), out_dir / pair.name / "metrics.json"
    if not failed:
        return ""
    with contextlib.suppress(OSError):
        if scores.stat().st_mtime > beside(out_dir, pair, RECORD).stat().st_mtime:
            return ""
    return str(failed)


def in_words(found: dict[str, Any]) -> str:
    """What became of a pair, by its line of the table, in words."""
    if "failed" in found:
        return f"failed: {found['failed']}"
    said = words.VERDICTS.get(found["verdict"], found["verdict"])
    error = f", predicted error {found['predicted_error']:.1f} Å" if "predicted_error" in found else ""
    return f"{said}{error}"


def write(pairs: Sequence[Pair], out_dir: Path) -> list[dict[str, Any]]:
    """Write batch.csv, batch.md and index.html, each whole or not at all; again where a pair has ended meanwhile.

    Returns:
        The lines of the table, in the order of the list.
    """
    for _ in range(ATTEMPTS):
        state = [changes(pair, out_dir) for pair in pairs]
        found = [row(pair, out_dir) for pair in pairs]
        shown = [name for name in COLUMNS if name in ALWAYS or any(name in each for each in found)]
        run_folder.write_rows(out_dir / "batch.csv", [{name: each.get(name, "") for name in shown} for each in found])
        write_file(out_dir / "batch.md", markdown(found, shown))
        cards = [card(each, out_dir) for each in found]
        write_file(out_dir / "index.html", index.build(cards, summary(found)))
        if state == [changes(pair, out_dir) for pair in pairs]:
            break
    return found


def changes(pair: Pair, out_dir: Path) -> list[int]:
    """Times of the files by which a pair's line is made; they change when it ends."""
    paths = (beside(out_dir, pair, RECORD), out_dir / pair.name / "metrics.json", out_dir / pair.name / "report.html")
    return [path.stat().st_mtime_ns if path.is_file() else 0 for path in paths]


def markdown(found: Sequence[dict[str, Any]], shown: Sequence[str]) -> str:
    """The table as Markdown, below the numbers of verdicts."""
    lines = (
        [cell.replace("|", "\\|") for cell in tables.cells(each, {n: COLUMNS[n] for n in shown})] for each in found
    )
    return f"{summary(found)}\n\n{tables.markdown([HEADS[name] for name in shown], lines)}"


def summary(found: Sequence[dict[str, Any]]) -> str:
    """How many pairs have each verdict, in a sentence."""
    counts = {kind: sum(each["verdict"] == kind for each in found) for kind in index.KINDS}
    said = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    return f"{len(found)} pair{'s' * (len(found) != 1)}: {said}."


def card(found: dict[str, Any], out_dir: Path) -> index.Card:
    """The card of a pair, by its line of the table."""
    folder = out_dir / found["name"]
    facts = []
    for label, name in (("correlation", "correlation"), ("CA RMSD [Å]", "rmsd")):
        if f"{name}_after" in found:
            values = (COLUMNS[f"{name}_{when}"].format(found[f"{name}_{when}"]) for when in ("before", "after"))
            facts.append(f"{label} {' → '.join(values)}")
    done = found["verdict"] not in (FAILED, WAITING)
    picture = thumbnail(folder / "morph.gif") if done else b""
    report = done and (folder / "report.html").is_file()
    return index.Card(found["name"], found["verdict"], in_words(found), facts, picture, report)


def thumbnail(path: Path) -> bytes:
    """A small PNG of the end of a run's film; empty where there is none."""
    try:
        with Image.open(path, formats=["GIF"]) as film:
            return index.thumbnail(film)
    except (OSError, ValueError, SyntaxError):
        return b""
