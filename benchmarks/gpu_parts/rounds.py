"""Rounds of the papers' setting, server and clients in this process: seconds a round, accuracy."""

import statistics
import time

import torch

from benchmarks.gpu_parts.log import Log
from benchmarks.gpu_parts.setup import Setup
from rayfl.federation.metrics import RoundMetrics
from rayfl.launch import in_this_process
from rayfl.prepare import prepare
from rayfl.training.flat import sha256

ROUNDS, WARM, TARGET = 20, 2, 0.30  # seconds a round on an H100


def run(setup: Setup, log: Log) -> None:
    rounds = 4 if setup.small else ROUNDS
    began = time.perf_counter()
    prepared = prepare(
        setup.experiment(
            "federation.precision=tf32",
            f"federation.rounds={rounds}",
            f"federation.eval_every={2 if setup.small else 5}",
        )
    )
    with in_this_process(prepared) as place, place.session(None) as session:
        log.value("preparation", time.perf_counter() - began, "s", note="data, partition, model")
        described = session.describe()[0]
        rounds_of = prepared.federation
        unit = (rounds_of.on_gpus() if setup.device == "cuda" else rounds_of).clients_per_unit
        log.note(
            "engine", f"{described['engine']}; {described['precision']}; {unit} clients a unit"
        )
        seconds, units = [], []
        last = time.perf_counter()
        for metrics in session.run():
            if isinstance(metrics, RoundMetrics):
                now = time.perf_counter()
                seconds.append(now - last)
                units.append(metrics.values["time/client_s"])
                last = now
                if setup.left < 2 * seconds[-1]:
                    log.note("rounds", f"stopped after {metrics.round} of {rounds}: no time left")
                    break
            else:
                accuracy = metrics.values["test/accuracy"]
                log.value(f"accuracy after round {metrics.round}", accuracy)
        w = torch.tensor(session.final()[0])
    if len(seconds) <= WARM:
        return log.check("more rounds than those that warm up", False)
    warm, of_units = seconds[WARM:], units[WARM:]
    mean = statistics.mean(warm)
    log.value("first round", seconds[0], "s", limit=15)
    log.value("round, median", statistics.median(warm), "s", limit=TARGET)
    log.value("round, mean", mean, "s", note="with the evaluations")
    log.value("of it in work units", statistics.mean(of_units), "s", note="the clients")
    rest = mean - statistics.mean(of_units)
    log.value("of it beside them", rest, "s", note="server, transfers, evaluations")
    log.value("500 rounds, extrapolated", seconds[0] + 499 * mean, "s", limit=500 * TARGET)
    log.note("SHA-256 of w", sha256(w)[:16])
