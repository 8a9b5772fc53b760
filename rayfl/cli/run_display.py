"""Display of a run: its placement, its rounds, and the table at the end."""

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from rayfl.cli.terminal import Display, console, duration, this_command
from rayfl.federation.likeness import unlike

if TYPE_CHECKING:
    import pandas as pd

    from rayfl.config.schema import Experiment
    from rayfl.federation.metrics import Metrics
    from rayfl.result import Result, Start

_PLAIN_SECONDS = 5.0
_SCALARS = {"server/alpha": "adaptive alpha"}  # others have the names of their metrics

MEANS = {
    "uniform": "uniform mean over the clients of a round",
    "samples": "mean over the clients of a round by their samples",
    "steps": "mean over the clients of a round by their local steps",
}


class RunDisplay(Display):
    """A progress bar, and the latest metrics."""

    def __init__(self, console: Console, live: bool = True):
        columns = TextColumn("round"), MofNCompleteColumn(), BarColumn(None)
        self._bar = Progress(*columns, TextColumn("{task.description}"), expand=True)
        self._latest: dict[str, float] = {}
        self._seconds: dict[int, float] = {}
        """Duration of each round of this command."""
        self._first = self._last = 0.0
        """Times at which the first and the last round came in."""
        self._round = self._rounds = self._resumed = 0
        self._start: Start | None = None
        super().__init__(console, live)

    def __exit__(self, *_: object) -> None:
        self._text = self._metrics()
        self._live.transient = self._start is None
        super().__exit__()

    def __rich__(self) -> RenderableType:
        for task in self._bar.tasks:
            self._bar.update(task.id, description=self._time_left())
        return Group(self._bar, Text(self._line()))

    def start(self, start: "Start") -> None:
        """Show the experiment and its placement, before the actors start."""
        prepared, f = start.prepared, start.prepared.federation
        self._start, self._rounds, self._resumed = start, f.rounds, start.resumed_round
        parameters = sum(p.numel() for p in prepared.model.parameters() if p.requires_grad)
        self._console.print(
            f"{prepared.config.algorithm_name} on {prepared.data.name}: {f.clients} clients, "
            f"{'about ' if f.sampling == 'bernoulli' else ''}{f.cohort_size} a round, {f.rounds} rounds\n"
            f"{MEANS[prepared.config.federation.weighting]} ({describe_sizes(f.sizes)})\n"
            f"{describe_privacy(prepared.config)}"
            f"{parameters:,} parameters; config {prepared.config.hash}\n"
            f"{start.placement}",
            markup=False,
        )
        for line in (*prepared.data.read, *prepared.settings.shortcuts.dropped):
            self._console.print(line, markup=False)
        if f.validation_samples:
            self._console.print(f"{f.validation_samples:,} samples are held out to validate with")
        if start.resumed_round:
            self._console.print(f"going on after round {start.resumed_round}")
        self._task = self._bar.add_task("", total=f.rounds, completed=start.resumed_round)
        self.phase("starting the actors")

    def actors(self, actors: list[dict[str, Any]]) -> None:
        """Show what GPUs make of the local steps, which no config tells, and whether actors are unlike."""
        engines = Counter(f"{a['device']}: {a['engine']}" for a in actors if a["device"] != "cpu")
        for engine, count in engines.items():
            self._console.print(f"{count} x {engine}" if count > 1 else engine, markup=False)
        if warning := unlike(actors):
            self._console.print(f"warning: {warning}", markup=False)

    def metrics(self, metrics: "Metrics") -> None:
        """Show a round, or an evaluation that has come in."""
        self._latest |= metrics.values
        self._round, self._is_preparing = max(self._round, metrics.round), False
        if "time/round_s" in metrics.values and metrics.round > self._resumed:
            self._last = time.monotonic()
            self._first = self._first if self._seconds else self._last
            self._seconds[metrics.round] = metrics.values["time/round_s"]
        self._bar.update(self._task, completed=self._round)
        self._text = self._metrics()
        evaluated = any(name.startswith("test/") for name in metrics.values)
        last = metrics.round == self._rounds and evaluated
        if not self._is_live and (self._is_due(_PLAIN_SECONDS) or last):
            parts = f"round {self._round}/{self._rounds}", self._metrics(), self._time_left()
            self._console.print("  ".join(filter(None, parts)))

    def _time_left(self) -> str:
        """Estimate the remaining time from the rounds that this command has finished."""
        done, left = len(self._seconds), self._rounds - self._round
        if not done or not left:
            return ""
        # The server's own times are there from the first round on, and lack what is between two rounds.
        own = sum(self._seconds.values()) / done
        each = max(own, (self._last - self._first) / max(done - 1, 1))
        return f"{duration(max(0.0, each * left - (time.monotonic() - self._last)))} left"

    def _metrics(self) -> str:
        scalars = (key for key in self._latest if key.startswith("server/"))
        shown = {
            "train/loss": ("train loss", ".4f"),
            "test/accuracy": ("test accuracy", ".4f"),
            "test/perplexity": ("test perplexity", ".2f"),
            "test/r2": ("test R squared", ".4f"),
            "validation/accuracy": ("validation accuracy", ".4f"),
            **{key: (_SCALARS.get(key, key), ".3f") for key in scalars},
            "time/round_s": ("s/round", ".3f"),
        }
        return "  ".join(
            f"{label} {self._latest[key]:{form}}"
            for key, (label, form) in shown.items()
            if key in self._latest
        )

    def interrupted(self) -> None:
        if self._round == 0:
            self._console.print("stopped before the first round was done")
        else:
            self._console.print(f"stopped after {self._round} of {self._rounds} rounds")
        if self._start is None:
            return
        if self._round and self._start.run_id:
            self._console.print(f"MLflow run {self._start.run_id}")
        for line in self._how_to_go_on(self._start):
            self._console.print(line, markup=False)

    def _how_to_go_on(self, start: "Start") -> list[str]:
        if start.checkpoints is None:
            return ["it cannot go on: checkpoint.every=null writes no checkpoints"]
        if start.checkpoints.latest() is None:
            return [f"the same command starts anew: no checkpoint was due yet ({_due(start)})"]
        again = this_command(start.run_id or "latest")
        return [f"to go on after round {start.checkpoints.round}:", f"  {again}"]

    def conclude(self, result: "Result") -> None:
        """Show the final table, and the id of the MLflow run with the command that opens it."""
        s = result.summary
        last = result.history.iloc[-1]
        rows = {
            **_evaluated(s, ""),
            **_average(s),
            **_clients_row("of the clients", last, "client/"),
            **_clients_row("own models", last, "personal/"),
            "test loss": f"{s['loss_final']:.4f}",
            **_evaluated(s, "validation "),
            **self._own(last),
            "time": f"{s['seconds_per_round']:.3f} s per round, {s['rounds']:.0f} rounds",
            "traffic": f"{s['bytes_up'] / 1e6:,.1f} MB up, {s['bytes_down'] / 1e6:,.1f} MB down",
            "backward passes": f"{s['backward_passes']:,.0f}",
            **({"epsilon": f"{s['epsilon']:.3g}"} if "epsilon" in s else {}),
            "model sha256": result.model_sha256,
        }
        if result.run_id and self._start:
            rows["MLflow run"] = result.run_id
            rows["to look at it"] = self._start.ui_command or ""
            rows["then open"] = self._start.page or ""
        for label, value in rows.items():
            console().print(f"[bold]{label:<15}[/] {escape(value)}")

    def _own(self, last: "pd.Series") -> dict[str, str]:
        """Return the rows of the user's own metrics, and of what their callbacks return."""
        if self._start is None:
            return {}
        numbers = own_numbers(self._start.prepared.config, last)
        return {n: "no finite number" if v is None else f"{v:.4g}" for n, v in numbers.items()}


def own_numbers(config: "Experiment", last: "pd.Series") -> dict[str, float | None]:
    """Return the user's own metrics of the last round by name; None: it gave no finite number."""
    names = [f"test/{name}" for name in config.evaluation.metrics]
    names += [name for name in map(str, last.index) if name.startswith("own/")]
    values = zip(names, last.reindex(names).tolist(), strict=True)
    return {name: None if np.isnan(value) else value for name, value in values}


def describe_privacy(config: "Experiment") -> str:
    """Describe the noise, and the epsilon after all rounds, on a line; nothing without privacy."""
    privacy, f = config.privacy, config.federation
    if privacy is None:
        return ""
    clipped = f"uploads of a client are clipped to the norm {privacy.clip:g}, "
    epsilons = privacy.epsilons(f)
    if not epsilons:
        return f"{clipped}without noise: that is no privacy\n"
    neighbours = "more or less" if f.sampling == "bernoulli" else "in another's place"
    return (
        f"{clipped}noise {privacy.noise:g} at the {privacy.at}: epsilon {epsilons[-1]:.3g} after all rounds, "
        f"at delta {privacy.delta_of(f):.3g}, for one client {neighbours}\n"
    )


def _due(start: "Start") -> str:
    from rayfl.storage.checkpoint_writer import AUTO_SECONDS

    every = start.checkpoints.every if start.checkpoints else None
    return f"one every {every} rounds" if every else f"one every {AUTO_SECONDS:.0f} s"


def _accuracies(summary: dict[str, float], name: str) -> str:
    final, last10, best = (summary[f"{name}_{kind}"] for kind in ("final", "last10", "best"))
    return f"final {final:.4f}, mean of last 10 evaluations {last10:.4f}, best {best:.4f}"


def _average(summary: dict[str, float]) -> dict[str, str]:
    """Return the row of the average of the global models, if there is one."""
    final = summary.get("average_accuracy_final")
    return {} if final is None else {"of the average": f"final {final:.4f}"}


def _evaluated(summary: dict[str, float], of: str) -> dict[str, str]:
    """Return the rows of the test set, or, if `of` is "validation ", of what was held out, if anything."""
    prefix, rows = of.replace(" ", "_"), {}
    if f"{prefix}accuracy_final" in summary:
        rows["validation" if of else "accuracy"] = _accuracies(summary, f"{prefix}accuracy")
    for name, label, form in (("perplexity", "perplexity", ".2f"), ("r2", "R squared", ".4f")):
        if (final := summary.get(f"{prefix}{name}_final")) is not None:
            rows[f"{of}{label}"] = f"{final:{form}}"
    if of and f"{prefix}loss_final" in summary:
        rows["validation loss"] = f"{summary[f'{prefix}loss_final']:.4f}"
    return rows


def describe_sizes(sizes: np.ndarray) -> str:
    """Describe the clients' sizes, because the mean over clients is not the mean over samples."""
    fewest, most = int(sizes.min()), int(sizes.max())
    return (
        f"they hold {fewest:,} to {most:,} samples" if fewest < most else f"{most:,} samples each"
    )


def _clients_row(label: str, metrics: "pd.Series", prefix: str) -> dict[str, str]:
    """Return the row of such accuracies, if they were evaluated."""
    is_there = f"{prefix}accuracy_mean" in metrics
    return {label: of_clients(metrics, prefix)} if is_there else {}


def of_clients(metrics: "pd.Series | dict[str, float]", prefix: str = "client/") -> str:
    """Return accuracies on the clients' distributions as one line."""
    mean, p10, worst = (metrics[f"{prefix}accuracy_{name}"] for name in ("mean", "p10", "worst10"))
    return f"mean {mean:.4f}, 10 % quantile {p10:.4f}, mean of the worst 10 % {worst:.4f}"
