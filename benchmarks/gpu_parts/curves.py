"""The accuracy curve of one method in the papers' setting; its rounds go to OUT/curves.csv, line by line."""

import os
import time

from benchmarks.gpu_parts.log import Log
from benchmarks.gpu_parts.setup import Setup
from rayfl.federation.metrics import EvaluationMetrics
from rayfl.launch import in_this_process
from rayfl.prepare import prepare

HEADER = "method,round,accuracy,loss,seconds\n"


def run(setup: Setup, log: Log) -> None:
    method, rounds = setup.argument, 2 if setup.small else setup.curve_rounds
    prepared = prepare(
        setup.experiment(
            f"algorithm.name={method}",
            "federation.precision=tf32",
            f"federation.rounds={rounds}",
            f"federation.eval_every={1 if setup.small else 5}",
        )
    )
    last, accuracy, stopped = 0, float("nan"), False
    with in_this_process(prepared) as place, place.session(None) as session:
        began = time.perf_counter()
        for metrics in session.run():
            if isinstance(metrics, EvaluationMetrics):
                last, accuracy = metrics.round, metrics.values["test/accuracy"]
                passed = time.perf_counter() - began
                _append(setup, method, last, accuracy, metrics.values["test/loss"], passed)
            if setup.left < 0:
                stopped = True
                break
    note = f"stopped early, of {rounds}" if stopped else f"{time.perf_counter() - began:.0f} s"
    log.value(f"accuracy after round {last}", accuracy, note=note)


def _append(setup: Setup, method: str, *numbers: float) -> None:
    with (setup.out / "curves.csv").open("a") as file:
        if file.tell() == 0:
            file.write(HEADER)
        file.write(",".join([method, *(f"{number:.6g}" for number in numbers)]) + "\n")
        file.flush()
        os.fsync(file.fileno())
