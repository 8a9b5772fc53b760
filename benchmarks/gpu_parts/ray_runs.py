"""Real runs on Ray: the same SHA-256 for any number of actors on a GPU, and for one that is killed."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
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
    unit: int | None  # clients of a work unit; None: as rayfl chooses
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
    unit = 1 if setup.small else 2  # several actors share a round
    reference = Actors("1 x 1.0", 1, 1.0, unit)
    others = [
        Actors("4 x 0.25", 4, 0.25, unit),
        Actors("2 x 0.5", 2, 0.5, unit),
        Actors("2 x 0.5, one killed", 2, 0.5, unit, kill=True),
    ]
    if setup.small:
        others = others[2:]
    else:
        timed = _run(setup, log, Actors("1 x 1.0, units as chosen", 1, 1.0, None), rounds)
        log.check("1 x 1.0, units as chosen: ends", timed is not None)
        if timed is not None:
            log.value("round", timed["seconds_per_round"], "s", note="resnet18, float32")
    # Beside each other: their bits count, not their time.
    with ThreadPoolExecutor(1 + len(others)) as pool:
        first = pool.submit(_run, setup, log, reference, rounds)
        runs = {own.name: pool.submit(_run, setup, log, own, rounds) for own in others}
        expected = (first.result() or {}).get("model_sha256")
        log.check("1 x 1.0: ends", expected is not None)
        for name, future in runs.items():
            sha = (future.result() or {}).get("model_sha256")
            same = sha is not None and sha == expected
            log.check(f"{name}: bits of 1 x 1.0", same, f"{sha}"[:10])


def _run(setup: Setup, log: Log, actors: Actors, rounds: int) -> dict[str, Any] | None:
    """The answer of `rayfl run`, or None with its last words in the log."""
    overrides = setup.overrides(
        f"federation.rounds={rounds}",
        "federation.eval_every=100",
        f"federation.clients_per_unit={actors.unit or 'null'}",
        f"ray.object_store_gb={1 if setup.small else 6}",  # four of them fit in a machine
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
    killer = Killer(process.pid, after=0.1 if setup.small else 1.5) if actors.kill else None
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
