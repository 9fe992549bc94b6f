"""Section many of the benchmark: what targets on several devices, and several processes, reach of what cores allow."""

import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

import jax
from absl import flags

from cryotrans_jax.density.problem import Problem
from cryotrans_jax.fit import devices
from cryotrans_jax.fit.stage import Config, Stage
from cryotrans_jax.io.cores import bind, own
from cryotrans_jax.io.files import InputError

from . import benchmark_cases as cases
from .benchmark_cases import Rows

FLAGS = flags.FLAGS


class Worker(NamedTuple):
    """A process that counts steps.

    Attributes:
        cores: numbers of the cores that it may use.
        devices: devices of its own, which share its targets.
    """

    cores: Sequence[int]
    devices: int = 1


def many() -> Rows:
    """Steps of all targets a second in several arrangements, relative to one process of one target for each core."""
    if not own():
        raise InputError("section many gives each process a core of its own, which only Linux can: leave it out")
    problem = cases.prepare_case(cases.load())
    config = cases.default_recipe(problem)
    fits, cores, count = (problem, config, config.stages[-1]), own(), FLAGS.many_devices
    allowed = steps_a_second([Worker([core]) for core in cores], *fits)
    yield f"many: {len(cores)} processes with a core each, steps of all targets a second", allowed
    arrangements = {
        "one process of one target": [Worker(cores)],
        f"{count} devices of one process, a target each": [Worker(cores, count)],
        "two processes of one target": 2 * [Worker(cores)],
        f"two processes of {count // 2} devices, a target each": 2 * [Worker(cores, max(count // 2, 1))],
    }
    for name, workers in arrangements.items():
        yield f"many: {name}, share of that", steps_a_second(workers, *fits) / allowed


def steps_a_second(workers: Sequence[Worker], problem: Problem, config: Config, stage: Stage) -> float:
    """Steps of all targets of all workers a second, while all of them run."""
    spawn, links = multiprocessing.get_context("spawn"), []
    for worker in workers:
        here, there = spawn.Pipe()
        spawn.Process(target=work, args=(there, worker, problem, config, stage), daemon=True).start()
        links.append(here)
    for act in (Connection.recv, lambda link: link.send(FLAGS.many_seconds)):  # all are ready before one begins
        for link in links:
            act(link)
    return sum(link.recv() for link in links)


def work(link: Connection, worker: Worker, problem: Problem, config: Config, stage: Stage) -> None:
    """Count the steps of a worker for as long as it is told through the link."""
    bind(0, set(worker.cores))
    jax.config.update("jax_num_cpu_devices", worker.devices)
    layout = devices.DeviceLayout.automatic(worker.devices)
    steps = cases.compile_steps(problem, config, stage, worker.devices, layout=layout)
    jax.block_until_ready(steps.call())
    link.send("ready")
    lasts, calls, begin = link.recv(), 0, time.perf_counter()
    while time.perf_counter() - begin < lasts:
        jax.block_until_ready(steps.call())
        calls += 1
    link.send(calls * steps.count * worker.devices / (time.perf_counter() - begin))
