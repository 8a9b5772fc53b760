"""Measure the flatness of a run's checkpoints, on the client actors that would train it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from rayfl.diagnostics.pictures import pictures
from rayfl.diagnostics.subjects import LAST, Subject, find
from rayfl.errors import ConfigError
from rayfl.flatness.question import ACROSS, Measure, Question, Split
from rayfl.flatness.spectrum import TOLERANCE
from rayfl.launch import in_this_process, on_cluster
from rayfl.prepare import prepare
from rayfl.prepared import Prepared
from rayfl.storage.snapshot import Snapshot
from rayfl.training.batches import DeviceData
from rayfl.training.flat import sha256
from rayfl.training.function import channels_first
from rayfl.training.plain import restored

# Work that takes less is done in this process: Ray takes as long to start, measure and stop on two cores.
FEW_SECONDS = 20.0
TIMED_SAMPLES = 256


@dataclass(frozen=True, eq=False)
class Piece:
    """One measurement: a measure of one checkpoint on one split."""

    state: Snapshot
    measure: Measure
    split: Split

    def key(self, question: Question, model_sha256: str) -> dict[str, Any]:
        """All that its numbers depend on."""
        effort = asdict(question.effort)
        return {
            "round": self.state.round,
            "measure": self.measure,
            "split": self.split,
            "samples": question.samples,
            "clients": question.clients if self.measure in ACROSS else 0,
            "model_sha256": model_sha256,
            **({"average": question.average} if question.average > 1 else {}),
            **{k: list(v) if isinstance(v, tuple) else v for k, v in effort.items()},
        }


@dataclass(frozen=True)
class Report:
    """The answers."""

    subject: Subject
    question: Question
    rounds: tuple[int, ...]
    """After which w was measured, ascending."""
    frame: pd.DataFrame
    """One row a number: `round`, `split`, `metric`, `value`."""
    spectra: dict[tuple[int, Split, str], dict[str, list[float]]]
    """Eigenvalues, errors and weights by round, split and prefix (empty or `scale_free/`)."""
    clients: dict[tuple[int, Measure], dict[str, Any]]
    """By round and measure: the `ids`, each metric `by_client`, and the `cosines` of their gradients at w."""
    landscapes: dict[int, dict[str, dict[str, list]]]
    """By round and plane (`random`, `clients`): `x`, `y`, `losses` and the clients' `points`."""
    notes: tuple[str, ...]
    seconds: float
    """Time of what was computed now; 0 if all was known."""


def flatness(
    what: str = "latest",
    overrides: Sequence[str] = (),
    *,
    rounds: Sequence[str | int] = (LAST,),
    question: Question | None = None,
    uri: str | None = None,
    local: bool | None = None,
    on_start: Callable[[Subject, Any], None] = lambda subject, placement: None,
    on_work: Callable[[float], None] = lambda share: None,
) -> Report:
    """Measure the checkpoints of a run; what MLflow has of it already is read from there.

    `what`: the id of an MLflow run, `latest`, or the path of a checkpoint or its folder. `overrides`:
    where things are or run, such as data.root. `uri`: MLflow store. `local`: in this process, without Ray;
    None: if Ray's start would take longer. The numbers are the same.
    `on_start` is told what is measured and where, if anything has to be; `on_work` the share that is done.
    Raises ConfigError before any actor starts, RunError after.
    """
    question = question or Question()
    check(question)
    subject = find(what, [str(round) for round in rounds], overrides, uri, question.average)
    answer, began = look_up(subject, question), time.monotonic()
    if not answer.missing:
        return report_of(subject, answer, 0.0)
    measure(subject, prepare(subject.trained), answer, local, on_start, on_work)
    return report_of(subject, answer, time.monotonic() - began)


@dataclass
class Answer:
    """All that is known of a run's flatness."""

    question: Question
    known: dict[Piece, dict[str, Any]]
    """Records."""
    missing: list[tuple[Piece, dict[str, Any]]]
    """Pieces and their keys."""


def look_up(subject: Subject, question: Question) -> Answer:
    """Read from MLflow what has been measured already."""
    answer = Answer(question, {}, [])
    for state in _states(subject, question.average):
        digest = sha256(torch.tensor(state.tensors["w"]))
        for piece in (Piece(state, *asked) for asked in question.pieces):
            key = piece.key(question, digest)
            record = subject.records.read(key) if subject.records else None
            if record is None:
                answer.missing.append((piece, key))
            else:
                answer.known[piece] = record
    return answer


def _states(subject: Subject, average: int) -> list[Snapshot]:
    """The states that are measured."""
    states = [saved.snapshot() for saved in subject.checkpoints]
    if average == 1:
        return states
    last = states[-1]
    means = {
        name: np.mean([state.tensors[name] for state in states], axis=0, dtype=np.float64).astype(
            last.tensors[name].dtype
        )
        for name in ("w", "buffers")
    }
    return [replace(last, tensors=last.tensors | means)]


def measure(
    subject: Subject,
    prepared: Prepared,
    answer: Answer,
    local: bool | None,
    on_start: Callable[[Subject, Any], None],
    on_work: Callable[[float], None],
) -> None:
    """Measure what is missing; each record is kept in MLflow as soon as it is there, and pictures of all."""
    for saved in subject.checkpoints:
        prepared.check_provenance(saved)
    notes = _model_notes(prepared.model)
    measurer = prepared.measurer(answer.question)
    costs = [measurer.cost(p.state, p.measure, p.split) for p, _ in answer.missing]
    whole, before = sum(costs), 0.0
    if local is None:
        local = prepared.config.ray.address is None and _seconds(prepared, whole) < FEW_SECONDS
    with (in_this_process if local else on_cluster)(prepared) as place, place.pool() as pool:
        on_start(subject, place.placement)
        for (piece, key), cost in zip(answer.missing, costs, strict=True):
            began, done = time.monotonic(), before

            def work(more: float, most: float = before + cost) -> None:
                nonlocal done
                done = min(done + more, most)
                on_work(done / whole)

            record = measurer.measure(pool, piece.state, piece.measure, piece.split, work)
            before += cost  # Lanczos may have taken fewer steps than were counted on
            on_work(before / whole)
            record |= {"notes": notes, "seconds": time.monotonic() - began}
            if subject.records is not None:
                subject.records.write(key, record)
            answer.known[piece] = record
    answer.missing.clear()
    if subject.records is not None:
        found = pictures(report_of(subject, answer, 0.0))
        subject.records.draw(found, answer.question.average)


def _seconds(prepared: Prepared, cost: float) -> float:
    """About how long so many samples' forward passes take in this process."""
    x = DeviceData(prepared.data, "train", torch.device("cpu"))
    samples = torch.arange(min(TIMED_SAMPLES, len(x)))
    inputs = channels_first(x.preprocess(samples, None, None))
    with restored(prepared.model), torch.no_grad():
        torch.set_num_threads(1)  # as `in_this_process`; `restored` puts it back
        prepared.model.eval()
        prepared.model(inputs)  # the first pass takes longer
        began = time.perf_counter()
        prepared.model(inputs)
        return (time.perf_counter() - began) / len(samples) * cost


def _model_notes(model: nn.Module) -> list[str]:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
    if not any(isinstance(part, kinds) for part in model.modules()):
        return []
    return [
        "BatchNorm: the loss is that of the running statistics, which do not move with w; gaps and "
        "eigenvalues of other normalisations are not comparable with these"
    ]


def report_of(subject: Subject, answer: Answer, seconds: float) -> Report:
    """Put what is known together."""
    rows, spectra, clients, landscapes, notes = [], {}, {}, {}, list[str]()
    for piece, record in sorted(answer.known.items(), key=lambda item: item[0].state.round):
        where = {"round": piece.state.round, "split": piece.split, "n": record["n"]}
        for name, value in record["metrics"].items():
            short = name.removeprefix("flatness/").removeprefix("test/")
            rows.append({**where, "metric": short, "value": value})
        for prefix, spectrum in record.get("spectra", {}).items():
            spectra[piece.state.round, piece.split, prefix] = spectrum
            notes += _spectrum_notes(f"round {piece.state.round}, {piece.split}", prefix, spectrum)
        if "clients" in record:
            clients[piece.state.round, piece.measure] = record["clients"]
        if "landscapes" in record:
            landscapes[piece.state.round] = record["landscapes"]
        notes += record["notes"]
    frame = pd.DataFrame(rows, columns=["round", "split", "n", "metric", "value"])
    unique = tuple(dict.fromkeys(notes))
    rounds = tuple(sorted({piece.state.round for piece in answer.known}))
    return Report(
        subject, answer.question, rounds, frame, spectra, clients, landscapes, unique, seconds
    )


def _spectrum_notes(where: str, prefix: str, spectrum: dict[str, list[float]]) -> list[str]:
    values, errors = spectrum["eigenvalues"], spectrum["errors"]
    name = f"{where}: {prefix}lambda"
    notes = []
    if values[0] <= 0:
        notes.append(f"{name}1 is not positive: w is no minimum, not even nearly")
    pairs = enumerate(zip(values[:5], errors, strict=False), start=1)
    if loose := [(i, e / abs(v)) for i, (v, e) in pairs if e > TOLERANCE * abs(v)]:
        listed = ", ".join(f"lambda{i} {100 * r:.0f} %" for i, r in loose)
        notes.append(f"{where}: residuals of {prefix}{listed}; raise --lanczos")
    return notes


def check(question: Question) -> None:
    """Raise ConfigError for a question that has no answer."""
    effort = question.effort
    counts = (
        ("--samples", question.samples, 1),
        ("--clients", question.clients, 1),
        ("--draws", effort.draws, 2),
        ("--lanczos", effort.lanczos_steps, 1),
        ("--average", question.average, 1),
    )
    for option, value, least in counts:
        if value < least:
            raise ConfigError(key=option, value=value, allowed=f"at least {least}")
    if question.average > 1 and (across := [m for m in question.measures if m in ACROSS]):
        raise ConfigError(
            f"--average = last{question.average}: no client ever starts from a mean of several rounds' w, so "
            f"{', '.join(across)} cannot be measured there; give --measures gap,hessian"
        )
    for option, sizes in (("--rho", effort.rhos), ("--scale-free-rho", effort.scale_free_rhos)):
        for rho in sizes:
            if not 0 < rho < float("inf"):
                raise ConfigError(key=option, value=rho, allowed="greater than 0")
