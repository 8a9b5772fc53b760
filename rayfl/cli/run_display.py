"""Display of a run: its placement, its rounds, and the table at the end."""

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from rayfl.cli.terminal import Display, console

if TYPE_CHECKING:
    import pandas as pd

    from rayfl.experiment import Result, Start
    from rayfl.federation.metrics import Metrics

_PLAIN_SECONDS = 5.0


MEANS = {
    "uniform": "uniform mean over the clients of a round",
    "samples": "mean over the clients of a round by their samples",
    "steps": "mean over the clients of a round by their local steps",
}


class RunDisplay(Display):
    """A progress bar, and the latest metrics."""

    def __init__(self, console: Console, live: bool = True):
        columns = TextColumn("round"), MofNCompleteColumn(), BarColumn(None), TimeRemainingColumn()
        self._bar = Progress(*columns, TextColumn("left"), expand=True)
        self._latest: dict[str, float] = {}
        self._round = self._rounds = 0
        self._start: Start | None = None
        super().__init__(console, live)

    def __exit__(self, *_: object) -> None:
        self._text = self._metrics()
        self._live.transient = self._start is None
        super().__exit__()

    def __rich__(self) -> RenderableType:
        return Group(self._bar, Text(self._text, no_wrap=True, overflow="ellipsis"))

    def start(self, start: "Start") -> None:
        """Show the experiment and its placement, before the actors start."""
        prepared, f = start.prepared, start.prepared.federation
        self._start, self._rounds = start, f.rounds
        parameters = sum(p.numel() for p in prepared.model.parameters() if p.requires_grad)
        self._console.print(
            f"{prepared.config.algorithm_name} on {prepared.data.name}: {f.clients} clients, "
            f"{'about ' if f.sampling == 'bernoulli' else ''}{f.cohort_size} a round, {f.rounds} rounds\n"
            f"{MEANS[prepared.config.federation.weighting]} ({describe_sizes(f.sizes)})\n"
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
        self._text = "starting the actors"

    def actors(self, actors: list[dict[str, Any]]) -> None:
        """Show what GPUs make of the local steps, which no config tells."""
        engines = Counter(f"{a['device']}: {a['engine']}" for a in actors if a["device"] != "cpu")
        for engine, count in engines.items():
            self._console.print(f"{count} x {engine}" if count > 1 else engine, markup=False)

    def metrics(self, metrics: "Metrics") -> None:
        """Show a round, or an evaluation that has come in."""
        self._latest |= metrics.values
        self._round = max(self._round, metrics.round)
        self._bar.update(self._task, completed=self._round)
        self._text = self._metrics()
        evaluated = any(name.startswith("test/") for name in metrics.values)
        last = metrics.round == self._rounds and evaluated
        if not self._is_live and (self._is_due(_PLAIN_SECONDS) or last):
            self._console.print(f"round {self._round}/{self._rounds}  {self._metrics()}")

    def _metrics(self) -> str:
        shown = {
            "loss": ("train/loss", ".4f"),
            "accuracy": ("test/accuracy", ".4f"),
            "perplexity": ("test/perplexity", ".2f"),
            "R squared": ("test/r2", ".4f"),
            "validation": ("validation/accuracy", ".4f"),
            "alpha": ("server/alpha", ".3f"),
            "s/round": ("time/round_s", ".3f"),
        }
        return "  ".join(
            f"{label} {self._latest[key]:{form}}"
            for label, (key, form) in shown.items()
            if key in self._latest
        )

    def interrupted(self) -> None:
        if self._round == 0:
            self._console.print("stopped before the first round was done")
            return
        self._console.print(f"stopped after {self._round} of {self._rounds} rounds")
        if self._start and self._start.run_id:
            self._console.print(f"MLflow run {self._start.run_id}")

    def conclude(self, result: "Result") -> None:
        """Show the final table, and the id of the MLflow run with the command that opens it."""
        s = result.summary
        last = result.history.iloc[-1]
        rows = {
            **_evaluated(s, ""),
            **_average(s),
            **({"of the clients": of_clients(last)} if "client/accuracy_mean" in last else {}),
            "test loss": f"{s['loss_final']:.4f}",
            **_evaluated(s, "validation "),
            "time": f"{s['seconds_per_round']:.3f} s per round, {s['rounds']:.0f} rounds",
            "traffic": f"{s['bytes_up'] / 1e6:,.1f} MB up, {s['bytes_down'] / 1e6:,.1f} MB down",
            "backward passes": f"{s['backward_passes']:,.0f}",
            "model sha256": result.model_sha256,
        }
        if result.run_id and self._start:
            rows["MLflow run"] = result.run_id
            rows["to look at it"] = self._start.ui_command or ""
        for label, value in rows.items():
            console().print(f"[bold]{label:<15}[/] {escape(value)}")


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


def of_clients(metrics: "pd.Series | dict[str, float]") -> str:
    """Return the clients' accuracies of an evaluation as one line."""
    mean, p10, worst = (metrics[f"client/accuracy_{name}"] for name in ("mean", "p10", "worst10"))
    return f"mean {mean:.4f}, 10 % quantile {p10:.4f}, mean of the worst 10 % {worst:.4f}"
