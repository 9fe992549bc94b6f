"""Run a command, and record where its time goes.

python -m experiments.studies.timeline OUT.json experiments.run --out_dir=runs/timed

While the command runs, another thread looks at its main thread a hundred times a second, and counts the time since the
last look for the part of the program that is found there. The command itself is not changed. Programs are counted in
all threads.
"""

import json
import runpy
import sys
import threading
import time
from collections import Counter
from pathlib import Path

INTERVAL = 0.01  # seconds between two looks
OTHER = "other"
COMPILED, CACHED, TRACED = "programs compiled", "programs from the cache", "programs traced"
# Beginnings of "module:function" by the part of the run that they belong to. The innermost function that begins with
# one of them counts, and of several beginnings the longest. What serves several parts is counted for its caller.
PARTS: dict[str, str | None] = {
    "": None,
    "jax._src.compiler:": COMPILED,
    "jax._src.compilation_cache:": CACHED,
    "cryotrans_jax.io.exported:": CACHED,
    "jax._src.interpreters.": TRACED,
    "jax._src.pjit:": TRACED,
    "jax._src.stages:": TRACED,
    "cryotrans_jax.fit.schedule:inputs": "waiting for programs and correspondences",  # made by another thread
    "importlib._bootstrap": "import",
    "experiments.load:": "reading",
    "experiments.inputs:": "reading",
    "cryotrans_jax.density.align:": "alignment",
    "cryotrans_jax.density.align:refine_once": None,  # of docking too
    "cryotrans_jax.fit.prepare:": "preparation",
    "cryotrans_jax.fit.morph:": "preparation",
    "experiments.run:": "preparation",
    "cryotrans_jax.motion.correspond:": "correspondences",
    "cryotrans_jax.motion.docking:": "docking",
    "cryotrans_jax.motion.rigid_bodies:": "rigid bodies",
    "cryotrans_jax.fit.bodies:": "rigid bodies",
    "cryotrans_jax.fit.bodies:awaited": "docking",
    "cryotrans_jax.fit.bodies:redraw_borders": "borders",
    "cryotrans_jax.fit.stage:": "points and terms of stages",
    "cryotrans_jax.fit.supervise:": "steps",
    "experiments.frames:": "frames",
    "cryotrans_jax.fit.frame:": "frames",
    "cryotrans_jax.fit.errors:": "predicted errors",
    "experiments.frames:write_models": "models",
    "cryotrans_jax.scores.": "scores",
    "cryotrans_jax.scores.geometry:idealise": "models",
    "experiments.score:": "scores",
    "experiments.pages.": "report",
}
EVENTS = {  # of JAX: seconds of a program, by its name
    "/jax/core/compile/jaxpr_trace_duration": "traced",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowered",
    "/jax/core/compile/backend_compile_duration": "compiled",
}


def part_of(module: str, function: str) -> str | None:
    """Part of the run to which a function belongs; None if to no particular one."""
    name = f"{module}:{function}"
    return PARTS[max((beginning for beginning in PARTS if name.startswith(beginning)), key=len, default="")]


class Timeline:
    """Wall and CPU seconds of each part of the main thread's work, and seconds of each program of JAX.

    Attributes:
        wall: seconds by part.
        cpu: seconds of all cores by part, while the main thread was in it.
        programs: seconds by step (traced, lowered, compiled) and name of the JAX program.
        counts: how many programs were compiled, or found in the cache.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.wall: Counter[str] = Counter()
        self.cpu: Counter[str] = Counter()
        self.programs: Counter[tuple[str, str]] = Counter()
        self.counts: Counter[str] = Counter()
        self.known: dict[tuple[str, str], str | None] = {}
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.watch, args=(threading.get_ident(),), daemon=True)

    def watch(self, watched: int) -> None:
        """Look at a thread until told to stop."""
        wall, cpu, listening = time.perf_counter(), time.process_time(), False
        while not self.stop.wait(INTERVAL):
            frame = sys._current_frames().get(watched)
            now, used = time.perf_counter(), time.process_time()
            part = self.part_of_frame(frame)
            self.wall[part] += now - wall
            self.cpu[part] += used - cpu
            wall, cpu = now, used
            listening = listening or self.listen()

    def part_of_frame(self, frame) -> str:
        """Part to which the innermost function that belongs to one does."""
        while frame is not None:
            key = frame.f_globals.get("__name__", ""), frame.f_code.co_name
            if key not in self.known:
                self.known[key] = part_of(*key)
            if found := self.known[key]:
                return found
            frame = frame.f_back
        return OTHER

    def listen(self) -> bool:
        """Register for JAX's events once JAX is imported; return whether it is."""
        monitoring = sys.modules.get("jax.monitoring")
        if not hasattr(monitoring, "register_event_duration_secs_listener"):  # not imported, or not to its end
            return False

        def on_duration(event: str, seconds: float, fun_name: str = "", **_) -> None:
            if event in EVENTS:
                self.programs[EVENTS[event], fun_name] += seconds

        monitoring.register_event_duration_secs_listener(on_duration)
        monitoring.register_event_listener(lambda event, **_: self.counts.update([event.rpartition("/")[2]]))
        return True

    def record(self) -> dict:
        """What was found, as JSON values."""
        programs = [{"program": name, "what": what, "seconds": s} for (what, name), s in self.programs.items()]
        return {"wall": self.wall, "cpu": self.cpu, "programs": programs, "counts": self.counts}


def main() -> None:
    """Run the command that the command line names."""
    out, module, *arguments = sys.argv[1:]
    timeline = Timeline()
    timeline.thread.start()
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        timeline.stop.set()
        timeline.thread.join()
        from cryotrans_jax.io import memory

        Path(out).write_text(json.dumps(timeline.record() | {"peak": memory.peak()}))


if __name__ == "__main__":
    main()
