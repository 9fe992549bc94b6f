"""Many pairs of a list: each a run of its own, kept once it is done, with one table and one page."""

import base64
import contextlib
import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from cryotrans_jax.io import atoms
from cryotrans_jax.io.maps import Map, write_map
from experiments import lock
from experiments.pages import index
from experiments.studies import batch_runs, batch_state

ROOT = Path(__file__).parents[3]
HOW = ["--recipe=paper", "--schedule=l2:10:1e-3", "--bin=4", "--align=none", "--frames=2"]  # ten steps
ODD = "A <b>&amp; 'x'"
LIST = [
    "initial,target,name,model,reference,mask,target_mask,report",
    f"initial.mrc,target.mrc,{ODD},initial.cif,target.cif,ones.mrc,ones.mrc,",
    "initial.mrc,between.mrc,,,,,,false",
    "cut.mrc,between.mrc,,,,,,",
]
FAILS = "import sys; print('error: no such luck'); sys.exit(2)"
STOPS = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, maps, models):
    """Maps, models and a mask, one map that is cut, and one in a larger box."""
    folder = tmp_path_factory.mktemp("batch")
    for name, map_, model in zip(("initial", "target", "between"), maps, models, strict=True):
        write_map(folder / f"{name}.mrc", map_)
        atoms.write_model(folder / f"{name}.cif", model)
    ones = np.ones_like(maps[0].density)
    ones[0] = 0
    write_map(folder / "ones.mrc", Map(ones, maps[0].voxel_size, maps[0].origin))
    write_map(folder / "large.mrc", Map(np.pad(maps[0].density, 4), maps[0].voxel_size, maps[0].origin))
    (folder / "cut.mrc").write_bytes((folder / "initial.mrc").read_bytes()[:-100])
    return folder


@pytest.fixture(scope="module")
def done(folder, job):
    """Status, output and folder of a batch of two tiny pairs, and one that fails."""
    return *batch(job, folder, LIST, folder / "out", "--at_once=2")[:2], folder / "out"


@pytest.fixture
def again(done, tmp_path):
    """A copy of that folder."""
    return Path(shutil.copytree(done[2], tmp_path / "out"))


def batch(job, folder, rows, out_dir, *more):
    """Run a batch of a list with these rows."""
    (folder / "list.csv").write_text("\n".join(rows) + "\n")
    return job("batch", f"--pairs={folder / 'list.csv'}", f"--out_dir={out_dir}", *HOW, *more)


@contextlib.contextmanager
def instead(program, *arguments):
    """Within it, this program is started in place of runs; yields the commands that would have been."""
    real, started = batch_state.command, []

    def command(pair, plan):
        started.append(real(pair, plan))
        return [sys.executable, "-c", program, *map(str, arguments)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_runs, "command", command)
        yield started


def table(out_dir):
    """The rows of batch.csv, by name."""
    with (out_dir / "batch.csv").open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_each_pair_is_a_run_of_its_own_and_one_that_fails_stops_no_other(done):
    status, said, out = done
    assert status == 1
    for name in (ODD, "initial_to_between"):
        assert (out / name / "generated.mrc").is_file() and (out / name / "metrics.json").is_file()
        assert "correlation with the target map" in (out / f"{name}.log").read_text()
    assert (out / ODD / "report.html").is_file() and not (out / "initial_to_between" / "report.html").exists()
    assert (out / ODD / "generated.cif").is_file()
    lines = said.splitlines()
    assert lines[0] == "3 pairs: 0 done already, 3 to morph, 2 at a time"
    assert len([line for line in lines if re.fullmatch(r".+: begins \([123] of 3\)", line)]) == 3
    ended = [line for line in lines if re.search(r" \([123] of 3 ended(, about \d+ s left)?\)$", line)]
    assert [" left)" in line for line in ended] == [False, True, False]  # the first has failed at once
    assert any(line.startswith("cut_to_between: failed after ") and "is truncated" in line for line in ended)
    assert not [path for path in out.iterdir() if path.name.endswith((".claim", ".lock"))]


def test_the_table_has_a_line_for_each_pair_in_the_order_of_the_list(done):
    rows = table(done[2])
    assert [*rows] == [ODD, "initial_to_between", "cut_to_between"]
    scores = json.loads((done[2] / ODD / "metrics.json").read_text())
    for name, key in (("predicted_error", "predicted_error"), ("correlation_after", "correlation_matched_after")):
        assert float(rows[ODD][name]) == pytest.approx(scores[key], rel=1e-4)
    assert rows[ODD]["verdict"] == scores["verdict"] and float(rows[ODD]["seconds"]) > 0
    assert float(rows[ODD]["rmsd_after"]) == pytest.approx(scores["rmsd_after"], rel=1e-4)
    assert rows["initial_to_between"]["rmsd_after"] == "" == rows["initial_to_between"]["failed"]
    failed = rows["cut_to_between"]
    assert failed["verdict"] == "failed" and failed["failed"].startswith("cut.mrc is truncated: its header promises ")
    text = (done[2] / "batch.md").read_text()
    assert "1 failed." in text.splitlines()[0] and f"| {ODD} | " in text and "| pair | verdict |" in text


def test_the_page_escapes_names_and_links_reports(done):
    text = (done[2] / "index.html").read_text()
    assert "<b>" not in text and "A &lt;b&gt;&amp;amp; &#x27;x&#x27;" in text
    links = set(re.findall(r'href="([^"]+)"', text))
    assert [(done[2] / unquote(link)).is_file() for link in links] == [True]
    (picture,) = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert len(base64.b64decode(picture)) <= index.MOST_BYTES
    assert "<script" not in text and "http:" not in text and "https:" not in text
    assert 'class="card failed"' in text and "prefers-color-scheme: dark" in text


def test_what_is_done_is_kept_and_the_rest_is_run(folder, job, again):
    """Also where the folder was copied, and the list has other pairs; what the page needs is made anew."""
    with instead(FAILS) as started:
        status, said, _ = batch(job, folder, LIST[:3], again)
    assert status == 0 and not started and said.startswith("2 pairs: 2 done already, 0 to morph")
    assert "cut_to_between" not in (again / "batch.csv").read_text()
    shutil.rmtree(again / "initial_to_between")
    with instead(FAILS) as started:
        status, said, _ = batch(job, folder, LIST[:3], again)
    assert status == 1 and len(started) == 1 and str(again / "initial_to_between") in started[0][-1]
    assert "initial_to_between: failed after 0 s: no such luck (2 of 2 ended)\n" in said
    assert table(again)["initial_to_between"]["failed"] == "no such luck"
    assert (again / "initial_to_between.log").read_text().endswith("error: no such luck\n")


def test_a_run_of_other_settings_or_files_is_replaced_only_if_asked(folder, job, again):
    other = [LIST[0], LIST[1].replace("ones.mrc,ones.mrc", "ones.mrc,"), LIST[2]]
    with instead(FAILS) as started:
        status, said, _ = batch(job, folder, other, again, "--frames=3")
        assert status == 1 and not started
        rows = table(again)
        assert "holds a run of other inputs or settings, as the file for --target_mask is an" in rows[ODD]["failed"]
        assert "as --frames was 2 and is 3: give another --out_dir" in rows["initial_to_between"]["failed"]
        assert f"{ODD}: failed: " in said
        batch(job, folder, LIST[:3], again, "--frames=3", "--overwrite")
        assert len(started) == 2 and all("--overwrite" in each and "--frames=3" in each for each in started)
    status, *_ = batch(job, folder, LIST[:3], again)
    assert status == 0 and table(again)[ODD]["verdict"] != "failed"


def test_a_share_of_processes_that_are_connected_is_refused(folder, job, tmp_path):
    status, _, error = batch(job, folder, LIST, tmp_path / "out", "--share=1/2", "--distributed")
    assert status == 2 and "--share=1/2 contradicts processes that JAX connects" in error


def test_processes_without_a_coordinator_are_refused(folder, job, tmp_path):
    status, _, error = batch(job, folder, LIST, tmp_path / "out", "--processes=2", "--process=0")
    assert status == 2 and "--coordinator" in error and not (tmp_path / "out").exists()


def test_shares_have_each_pair_once_in_the_order_of_size(folder, job, tmp_path):
    rows = ["target;initial;name;seed", *(f"target.mrc;{m}.mrc;{m};7" for m in ("large", "initial", "between"))]
    with instead(FAILS) as started:
        for share, names in (("1/2", ["between", "large"]), ("2/2", ["initial"])):
            status, said, _ = batch(job, folder, rows, tmp_path, f"--share={share}", "--noreport", "--seed=3")
            assert status == 1 and re.findall("(.*): begins", said) == names
        assert [*table(tmp_path)] == ["large", "initial", "between"]
    assert all("--seed=7" in each and "--seed=3" not in each and "--noreport" in each for each in started)
    assert [each[-1] for each in started] == [f"--out_dir={tmp_path / n}" for n in ("between", "large", "initial")]


@pytest.mark.parametrize("share", ["0/3", "4/3", "2", "/", "a/b"])
def test_a_share_that_there_is_not_is_refused(folder, job, tmp_path, share):
    status, _, error = batch(job, folder, LIST, tmp_path / "out", f"--share={share}")
    assert status == 2 and f"--share={share} is not K/N, with K from 1 to N" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["between.claim", "between/running.lock"])
def test_a_pair_that_another_program_has_is_left_to_it(folder, job, tmp_path, name):
    (tmp_path / "between").mkdir()
    (tmp_path / name).write_text(json.dumps(lock.this_process()))
    with instead(FAILS) as started:
        status, said, _ = batch(job, folder, ["initial,target,name", "initial.mrc,between.mrc,between"], tmp_path)
    assert status == 1 and not started and "between: left out, as another program is morphing it" in said
    assert not (tmp_path / "between.log").exists() and table(tmp_path)["between"]["verdict"] == "not done yet"


def test_the_table_alone_is_made_of_what_is_there(folder, job, again):
    """Also where the maps are gone."""
    shutil.rmtree(again / "initial_to_between")
    for name in ("batch.csv", "batch.md", "index.html"):
        (again / name).unlink()
    rows = [*LIST[:3], "gone.mrc,target.mrc,new,,,,,"]
    with instead(FAILS) as started:
        status, said, _ = batch(job, folder, rows, again, "--table_only")
    assert status == 0 and not started and "1 found" in said and "2 not done yet" in said
    assert table(again)["new"]["verdict"] == "not done yet"
    assert (again / "index.html").is_file() and "| new | not done yet |" in (again / "batch.md").read_text()


def test_a_batch_that_is_stopped_stops_its_runs(folder, job, tmp_path):
    ready, before = tmp_path / "ready", signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def stop():
        while not ready.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    try:
        with instead(STOPS, ready):
            threading.Thread(target=stop, daemon=True).start()
            status, _, error = batch(job, folder, LIST[:3], tmp_path / "out")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert status == 128 + signal.SIGTERM
    assert error == "error: stopped by SIGTERM; the runs are saved: give the same command to go on\n"
    (record,) = (tmp_path / "out").glob("*.json")
    assert json.loads(record.read_text())["stopped"] and not [*(tmp_path / "out").glob("*.claim")]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells how a process handles signals")
def test_a_run_that_a_cluster_has_signalled_already_is_not_signalled_again(tmp_path):
    """A run that was signalled handles none of the signals any more, so that a second one would end it at once."""
    ready = tmp_path / "ready"
    again = STOPS.replace("lambda *_: sys.exit(143)", "lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL)")
    with subprocess.Popen([sys.executable, "-c", again, str(ready)]) as process:
        while not ready.exists():
            time.sleep(0.02)
        assert not batch_runs.has_caught(process.pid)
        process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 10
        while not batch_runs.has_caught(process.pid) and time.monotonic() < end:
            time.sleep(0.02)
        assert batch_runs.has_caught(process.pid) and process.poll() is None
        process.kill()


BAD = {
    "no such list": (None, "does not exist: give --pairs=FILE"),
    "no pairs": (["initial,target"], "lists no pairs"),
    "no target": (["initial,name", "initial.mrc,a"], "has no column target: name the columns"),
    "unknown": (["initial,target,colour", "initial.mrc,target.mrc,red"], "has a column 'colour', which is no flag"),
    "not for a pair": (["initial,target,out_dir", "initial.mrc,target.mrc,x"], "has a column 'out_dir', which"),
    "twice": (["initial,target,name,name", "initial.mrc,target.mrc,a,b"], "has two columns name"),
    "empty": (["initial,target", "initial.mrc,target.mrc", ",target.mrc"], "row 3 of {list} has no initial map: give"),
    "missing": (["initial,target", "initial.mrc,none.mrc"], "row 2 of {list} names the target 'none.mrc', and "),
    "folder": (["initial,target,model", "initial.mrc,target.mrc,."], "is a folder: correct the cell"),
    "value": (["initial,target,steps", "initial.mrc,target.mrc,1e9"], "has steps=1e9 is not from 0.0001 to 100: it "),
    "choice": (["initial,target,micelle", "initial.mrc,target.mrc,x"], "micelle=x: value should be one of <auto|keep>"),
    "cells": (["initial,target", "initial.mrc,a,b.mrc"], "row 2 of {list} has 3 cells and there are 2 columns"),
    "same": (["initial,target", *["initial.mrc,target.mrc"] * 2], "rows 2 and 3 of {list} are both named"),
    "same letters": (
        ["initial,target,name", "initial.mrc,target.mrc,a", "", "initial.mrc,target.mrc,A"],
        "rows 2 and 4 of {list} are both named 'A': give each a name of its own",
    ),
    "above": (["initial,target,name", "initial.mrc,target.mrc,../a"], "has a name that begins with a dot, '../a'"),
    "inside": (["initial,target,name", "initial.mrc,target.mrc,a/b"], "has a name with a slash or a control char"),
    "ending": (["initial,target,name", "initial.mrc,target.mrc,a.log"], "has a name that ends as a file of the batch"),
    "quote": (["initial,target", 'initial.mrc,"target.mrc'], "is not a table (unexpected end of data)"),
}


@pytest.mark.parametrize("rows, found", BAD.values(), ids=BAD)
def test_a_bad_list_is_refused_in_one_sentence_before_anything_is_run(folder, job, tmp_path, rows, found):
    path = folder / "bad.csv"
    path.unlink(missing_ok=True)
    if rows:
        path.write_text("\ufeff" + "\n".join(rows) + "\n", encoding="utf-8")
    status, said, error = job("batch", f"--pairs={path}", f"--out_dir={tmp_path / 'out'}", *HOW)
    assert status == 2 and not said and error.startswith("error: ") and error.count("\n") == 1
    assert found.replace("{list}", str(path)) in error
    assert not (tmp_path / "out").exists()


def test_files_that_the_command_line_names_are_those_of_all_pairs(folder, job, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    rows = ["initial,target,mask,name", "initial.mrc,target.mrc,,a", "initial.mrc,target.mrc,initial.mrc,b"]
    with instead(FAILS) as started:
        batch(job, folder, rows, tmp_path, "--mask=ones.mrc", "--initial_resolution=8")
    masks = [[text for text in each if text.startswith("--mask=")] for each in started]
    assert masks == [[f"--mask={folder / 'ones.mrc'}"], ["--mask=initial.mrc"]]
    assert all("--initial_resolution=8.0" in each and "--target=target.mrc" in each for each in started)


def test_a_link_in_the_place_of_a_log_is_refused(folder, job, tmp_path):
    (tmp_path / "a.log").symlink_to(folder / "initial.mrc")
    status, _, error = batch(job, folder, ["initial,target,name", "initial.mrc,target.mrc,a"], tmp_path)
    assert status == 2 and f"{tmp_path / 'a.log'} is a link" in error


def test_a_thumbnail_is_made_small_enough():
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)
    assert 0 < len(index.thumbnail(Image.fromarray(noise))) <= index.MOST_BYTES


def started_apart(folder, out, *more):
    """Start a batch in a process of its own."""
    command = [sys.executable, "-m", "experiments.studies.batch", f"--pairs={folder / 'apart.csv'}"]
    return subprocess.Popen([*command, f"--out_dir={out}", *more], cwd=ROOT, start_new_session=True)


@pytest.mark.slow
@pytest.mark.parametrize("connected", [False, True])
def test_shares_that_run_at_once_make_one_table(folder, tmp_path, connected):
    """Named one by one, or of processes that JAX connects."""
    shares = [[f"--share={k}/2"] for k in (1, 2)]
    if connected:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        shares = [[f"--coordinator={address}", "--processes=2", f"--process={k}"] for k in (0, 1)]
    (folder / "apart.csv").write_text("\n".join([LIST[0], LIST[2], LIST[2].replace("n.mrc,,", "n.mrc,b,")]) + "\n")
    both = [started_apart(folder, tmp_path, *HOW, *own) for own in shares]
    assert [each.wait(300) for each in both] == [0, 0]
    assert all(row["predicted_error"] for row in table(tmp_path).values()) and len(table(tmp_path)) == 2


@pytest.mark.slow
def test_a_batch_that_was_stopped_resumes_its_runs(folder, tmp_path):
    (folder / "apart.csv").write_text("initial,target,name\ninitial.mrc,target.mrc,a\n")
    how = ["--align=none", "--frames=2", "--noreport", "--checkpoint_minutes=0"]
    running, unfinished = started_apart(folder, tmp_path, *how), tmp_path / "a" / "unfinished"
    while not [*unfinished.glob("*/seed_0/*")]:
        assert running.poll() is None
        time.sleep(0.2)
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 128 + signal.SIGTERM and unfinished.exists()
    assert started_apart(folder, tmp_path, *how).wait(600) == 0
    assert "Run resumed from " in (tmp_path / "a.log").read_text()
    assert table(tmp_path)["a"]["verdict"] and not unfinished.exists()
