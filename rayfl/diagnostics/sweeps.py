"""The flatness of a sweep: every finished trial is measured, and a row of the answer is a point."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from rayfl import launch
from rayfl.analysis.aggregate import groups
from rayfl.analysis.naming import listed, row_name
from rayfl.analysis.runs import axes, histories, load
from rayfl.analysis.states import STATES, counted
from rayfl.analysis.store import of_sweep, open_store, sweeps_own_runs
from rayfl.diagnostics.comparison import pictures_of_sweep
from rayfl.diagnostics.measuring import Report, check, look_up, measure, report_of
from rayfl.diagnostics.records import Records
from rayfl.diagnostics.subjects import LAST, Subject, artifacts_of, find
from rayfl.diagnostics.sweep_tables import sides
from rayfl.errors import ConfigError
from rayfl.flatness.question import Question
from rayfl.inputs import Inputs

ACCURACY = "test/accuracy"
OF_ROUNDS = ("accuracy_last10", "echo_reversals", "accuracy_oscillation", "accuracy_overshoot")


@dataclass(frozen=True, eq=False)
class SweepReport:
    """The answers of all trials."""

    sweep: str
    question: Question
    runs: pd.DataFrame
    """One row for each finished trial and each round that was measured: the columns of `rayfl.analysis.runs`,
    `round`, and the numbers by their names in MLflow, such as `flatness/lambda1`."""
    by: tuple[str, ...]
    """Keys that make a point: those that vary but for the seed, and `round` where several were measured."""
    reports: dict[str, Report]
    """By run id."""
    notes: tuple[str, ...]
    seconds: float
    """Time of what was computed now; 0 if all was known."""
    records: Records
    """Records of the sweep's own run, for its pictures."""

    @property
    def metrics(self) -> list[str]:
        """Every number that was measured, accuracy first, and what the rounds tell of each run.

        The mean of several rounds' w has no accuracy here: the last round's is of another model.
        """
        measured = [c for c in self.runs if str(c).startswith("flatness/")]
        first = [] if self.question.average > 1 else [ACCURACY]
        return [*first, *measured, *(name for name in OF_ROUNDS if name in self.runs)]


@dataclass(frozen=True)
class MeasurementStart:
    """A measurement of a sweep that is about to begin."""

    sweep: str
    trials: int
    missing: int
    """Trials of which something is not known yet."""


def sweep_named(what: str, uri: str | None = None) -> str | None:
    """Name of the sweep that `what` names, or whose MLflow run it is; None if there is no such sweep."""
    if what == "latest" or "/" in what or what.endswith(".json"):
        return None
    client, _ = open_store(uri)
    quoted = what.replace("'", "")
    for which in (of_sweep(quoted), f"attributes.run_id = '{quoted}'"):
        if (run := next(sweeps_own_runs(client, which), None)) is not None:
            return run.data.tags["rayfl.sweep"]
    return None


def flatness_of_sweep(
    sweep: str,
    overrides: Sequence[str] = (),
    *,
    rounds: Sequence[str | int] = (LAST,),
    question: Question | None = None,
    against: str | None = None,
    uri: str | None = None,
    local: bool = False,
    on_start: Callable[[MeasurementStart, Any], None] = lambda start, placement: None,
    on_work: Callable[[float], None] = lambda share: None,
) -> SweepReport:
    """Measure the finished trials of a sweep whose file says `keep_checkpoints: true`.

    `against`: a filter for `sweep_tables.differences`, checked before anything is measured. The other
    arguments, and what is raised, are those of `flatness`.
    """
    question = question or Question()
    check(question)
    runs = load(uri=uri, where=f"sweep='{sweep}'")
    finished = runs.loc[runs["state"] == "finished"].reset_index(drop=True)
    if finished.empty:
        raise ConfigError(
            f"sweep '{sweep}': no trial has finished: {counted(runs['state'], STATES)}"
        )
    if against is not None:
        sides(finished, axes(finished), against)
    wanted = [str(round) for round in rounds]
    subjects = {
        str(i): find(str(i), wanted, overrides, uri, question.average) for i in finished["run_id"]
    }
    reports = {
        i: report_of(subject, answer, 0.0)
        for i, subject in subjects.items()
        if not (answer := look_up(subject, question)).missing
    }
    missing = {i: subject for i, subject in subjects.items() if i not in reports}
    began, inputs = time.monotonic(), Inputs()
    connection = contextlib.nullcontext()
    if missing and not local:
        connection = launch.connection(next(iter(missing.values())).config)
    with connection:
        for number, (i, subject) in enumerate(missing.items()):
            start = MeasurementStart(sweep, len(subjects), len(missing))
            began_trial = time.monotonic()

            def started(_: Subject, placement: Any, number: int = number, start=start) -> None:
                if number == 0:
                    on_start(start, placement)

            def work(share: float, number: int = number) -> None:
                on_work((number + share) / len(missing))

            # Looked up again: the states of all trials at once may be larger than the memory.
            answer = look_up(subject, question)
            measure(subject, inputs.prepare(subject.trained), answer, local, started, work)
            reports[i] = report_of(subject, answer, time.monotonic() - began_trial)
    seconds = time.monotonic() - began if missing else 0.0
    reports = {i: reports[i] for i in subjects}  # in the order of the trials
    return _report(sweep, question, runs, finished, reports, seconds, uri)


def _report(
    sweep: str,
    question: Question,
    runs: pd.DataFrame,
    finished: pd.DataFrame,
    reports: dict[str, Report],
    seconds: float,
    uri: str | None,
) -> SweepReport:
    rows = []
    for i, report in reports.items():
        frame = report.frame
        for round in report.rounds:
            part = frame.loc[frame["round"] == round, ["split", "metric", "value"]]
            numbers = {
                f"flatness/{'' if split == 'train' else f'{split}/'}{name}": value
                for split, name, value in part.itertuples(index=False)
            }
            rows.append({"run_id": i, "round": round, **numbers})
    measured = pd.DataFrame(rows)
    tested = histories(finished, [ACCURACY], uri)
    kept = [c for c in finished if not str(c).startswith("flatness/") and c != ACCURACY]
    frame = finished[kept].merge(measured, on="run_id").merge(tested, how="left")
    several = len(set(measured["round"])) > 1
    by = (*axes(finished), *(["round"] if several else []))
    client, _ = open_store(uri)
    parent = next(sweeps_own_runs(client, of_sweep(sweep)))
    records = Records(client, parent.info.run_id, artifacts_of(parent))
    notes = [*_left_out(runs), *_notes(frame, by, reports)]
    report = SweepReport(sweep, question, frame, by, reports, tuple(notes), seconds, records)
    if seconds:
        records.draw(pictures_of_sweep(report), question.average)
    return report


def _left_out(runs: pd.DataFrame) -> Iterator[str]:
    if found := counted(runs["state"], STATES[1:]):
        yield f"left out: {found}"


def _notes(runs: pd.DataFrame, by: Sequence[str], reports: dict[str, Report]) -> Iterator[str]:
    """Reasons for doubt, each once, with the trials that it is said of."""
    said: dict[str, list[str]] = {}
    keys = [*(key for key in by if key != "round"), "seed"]
    once = runs.drop_duplicates("run_id")
    for key, members in groups(once, keys):
        name = row_name(keys, key)
        for i in members["run_id"]:
            for note in reports[i].notes:
                said.setdefault(note, []).append(name)
    for note, names in said.items():
        everybody = len(names) == len(once)
        yield f"{note} ({'all trials' if everybody else listed(names, 4)})"
