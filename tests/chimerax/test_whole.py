"""Our own program, started as ChimeraX starts it: its result is opened, and a run that is stopped is resumed."""

import queue
import sys
from pathlib import Path

import pytest
from bundle import plain

from cryotrans_jax.io.maps import write_map

messages, process, request, results = (plain(name) for name in ("messages", "process", "request", "results"))
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture
def asked(tmp_path, maps, monkeypatch):
    """A morph of two small maps, in a folder with a blank in its name."""
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "a morph"
    (folder / "inputs").mkdir(parents=True)
    files = [folder / "inputs" / "initial.mrc", tmp_path / "rare, state.mrc"]
    for path, map_ in zip(files, maps, strict=False):
        write_map(path, map_)
    options = "--steps=0.05 --frames=2 --parts=none --align=none --still=none --checkpoint_minutes=0"
    return request.Request(*files, folder, resolutions=(8, 8), options=options)


class Ran:
    """A run of the program."""

    def __init__(self, asked):
        self.lines, self.queue, self.status = [], queue.Queue(), queue.Queue()
        self.run = process.Run([*process.command_of(f"{sys.executable} -m experiments"), *asked.arguments()])
        self.run.start(self.queue.put, self.status.put)

    def until(self, kind):
        """Read lines until one is of a kind."""
        while not self.lines or self.lines[-1].kind != kind:
            self.lines.append(messages.read(self.queue.get(timeout=300)))

    def outcome(self):
        status = self.status.get(timeout=300)
        self.lines += map(messages.read, self.queue.queue)
        return messages.outcome(status, self.lines, self.run.stopped)


def test_the_result_of_our_program_is_opened_and_a_stopped_run_is_resumed(asked):
    stopped = Ran(asked)
    stopped.until(messages.PROGRESS)
    assert stopped.run.stop()
    found = stopped.outcome()
    assert found.kind == messages.STOPPED and found.text.startswith("stopped by SIGTERM"), found
    request.check_folder(asked.folder, "")
    whole = Ran(asked)
    assert whole.outcome().kind == messages.DONE, whole.lines
    assert any(line.text.startswith("Run resumed from") for line in whole.lines)
    shown = []
    results.show(asked.folder, shown.append, lambda: set(range(5 + sum(c.startswith("open ") for c in shown))))
    assert any(line.startswith("color sample #6 map #7") for line in shown), shown
    with pytest.raises(request.Refused, match="holds another run"):
        request.check_folder(asked.folder, "")
