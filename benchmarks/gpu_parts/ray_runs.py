"""Real runs on Ray: the same SHA-256 for any number of actors on a GPU, and for one that is killed."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import psutil

from benchmarks.gpu_parts.log import Log
from benchmarks.gpu_parts.setup import CONFIG, ROOT, Setup

RAYFL = (sys.executable, "-c", "from rayfl.cli.main import script; script()")
TRAINS = "ray::ClientActor.train"  # title of a client actor's process while it trains


class Actors(NamedTuple):
    """The client actors of a run."""

    name: str
    count: int
    share: float  # of the GPU, for each
    kill: bool = False  # one of them, in a round


class Killer(threading.Thread):
    """Kills a client actor of a driver, some seconds after its first work unit has begun."""

    def __init__(self, driver: int, after: float):
        super().__init__(daemon=True)
        self._driver, self._after, self._ended = psutil.Process(driver), after, threading.Event()
        self.killed: int | None = None

    def run(self) -> None:
        seen = None  # when the first unit was seen
        while not self._ended.wait(0.005):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                for process in self._driver.children(recursive=True):
                    if " ".join(process.cmdline()).startswith(TRAINS):
                        seen = seen or time.monotonic()
                        if time.monotonic() - seen >= self._after:
                            process.kill()
                            self.killed = process.pid
                            return

    def end(self) -> None:
        self._ended.set()
        self.join()


def run(setup: Setup, log: Log) -> None:
    rounds = 3 if setup.small else 6
    alone = Actors("1 x 1.0", 1, 1.0)
    others = [Actors("2 x 0.5, one killed", 2, 0.5, kill=True)]
    if not setup.small:
        others = [Actors("2 x 0.5", 2, 0.5), Actors("4 x 0.25", 4, 0.25), *others]
    with ThreadPoolExecutor(len(others) + 1) as pool:
        first = pool.submit(_run, setup, log, alone, rounds)
        if not setup.small:
            wait([first])  # it is timed
        # Beside each other: their bits count, not their time.
        runs = {own.name: pool.submit(_run, setup, log, own, rounds) for own in others}
        if (reference := first.result()) is None:
            log.check("1 x 1.0 ends", False, "the last words are in ray_runs.log")
            return
        model = "lenet5" if setup.small else "resnet18"
        log.value("round, 1 x 1.0", reference["seconds_per_round"], "s", note=f"{model}, float32")
        for name, future in runs.items():
            sha = (future.result() or {}).get("model_sha256", "none")
            log.check(f"{name}: bits of 1 x 1.0", sha == reference["model_sha256"], sha[:10])


def _run(setup: Setup, log: Log, actors: Actors, rounds: int) -> dict[str, Any] | None:
    """The answer of `rayfl run`, or None with its last words in the log."""
    overrides = setup.overrides(
        f"federation.rounds={rounds}",
        "federation.eval_every=100",
        "federation.clients_per_unit=1",  # so that four actors share a round
        f"resources.num_actors={actors.count}",
        f"resources.gpus_per_actor={0 if setup.small else actors.share}",
        f"resources.cpus_per_actor={0.5 if setup.small else 1}",
    )
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_memory_monitor_refresh_ms": "0"}
    began = time.monotonic()
    process = subprocess.Popen(
        [*RAYFL, "run", CONFIG, "--json", *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    killer = Killer(process.pid, after=0.1 if setup.small else 3.0) if actors.kill else None
    if killer:
        killer.start()
    try:
        out, err = process.communicate(timeout=max(setup.left, 1))
    except subprocess.TimeoutExpired:
        process.terminate()
        log.note(actors.name, "did not end in time")
        return None
    finally:
        if killer:
            killer.end()
            log.check(f"{actors.name}: an actor was killed in a round", killer.killed is not None)
    if process.returncode:
        print(f"== {actors.name}\n{err[-3000:]}", file=sys.stderr, flush=True)
        log.note(actors.name, (err.strip().splitlines() or ["?"])[-1][:300])
        return None
    log.note(actors.name, f"{time.monotonic() - began:.0f} s in all")
    return json.loads(out[out.index("{") :])
