"""The `rayfl` command: the only place that prints.

Exit codes: 0 done, 1 the run failed, 2 bad input (found before any actor started), 130 interrupted.
"""

import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rayfl.errors import ClientError, ConfigError, RunError

if TYPE_CHECKING:
    from rayfl.config import Experiment
    from rayfl.experiment import Result, Start
    from rayfl.runtime.server import Record

app = typer.Typer(
    help="Federated-learning experiments on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The experiment.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as algorithm.rho=0.05 seed=3."),
]


def main() -> None:
    """Entry point of the console script."""
    # Import paths in a config may name modules of the working directory, as with `python -m`.
    sys.path.insert(0, os.getcwd())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        app(standalone_mode=True)
    except ConfigError as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(2)
    except ClientError as error:
        errors.print(
            f"{escape(error.traceback.rstrip())}\n[bold red]error:[/] {escape(str(error))}"
        )
        sys.exit(1)
    except RunError as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(1)
    except KeyboardInterrupt:
        errors.print("stopped; the finished rounds are kept")
        sys.exit(130)


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one JSON object, alone on stdout.")
    ] = False,
) -> None:
    """Run one experiment."""
    from rayfl import experiment

    resolved = _load(config, overrides)
    progress = Progress(resolved, Console(stderr=True, highlight=False, soft_wrap=True))
    with progress:
        result = experiment.run(resolved, progress.start, progress.record)
    if as_json:
        print(json.dumps(_as_json(resolved, result)))
    else:
        progress.conclude(result)


@app.command("config")
def show_config(config: ConfigFile, overrides: Overrides = None) -> None:
    """Print the resolved config: every key with its value, and the hash."""
    resolved = _load(config, overrides)
    print(resolved.to_yaml() + f"# config hash: {resolved.hash}")


@app.command()
def partition(
    config: ConfigFile,
    overrides: Overrides = None,
    plot: Annotated[Path | None, typer.Option(help="Write a heatmap here (.png or .svg).")] = None,
) -> None:
    """Show how the data are split among the clients."""
    from rayfl.data.partition import split
    from rayfl.data.picture import heatmap

    resolved = _load(config, overrides)
    if plot is not None and plot.suffix not in (".png", ".svg"):
        raise ConfigError(f"--plot = {str(plot)!r}: must end in .png or .svg")
    data = resolved.data.load()
    parts = split(resolved.partition, data.y_train, resolved.federation.clients, resolved.seed)
    histogram = parts.histogram(data.y_train, data.num_classes)
    table = Table("client", "samples", "classes", *data.classes, header_style="bold")
    for column in table.columns:
        column.justify = "right"
    for client, counts in enumerate(histogram):
        shown = [str(count) if count else "·" for count in counts]
        table.add_row(str(client), str(counts.sum()), str((counts > 0).sum()), *shown)
    # Piped into a file, a table must not be cut to the width of a terminal that is not there.
    console = Console(
        highlight=False, width=None if sys.stdout.isatty() else 40 + 12 * len(data.classes)
    )
    console.print(table)
    sizes = histogram.sum(1)
    console.print(
        f"{len(histogram)} clients, {sizes.sum()} samples, {sizes.min()} to {sizes.max()} each; "
        f"digest {parts.digest()[:16]}"
    )
    if plot is not None:
        heatmap(histogram, data.classes, plot)
        console.print(f"wrote {plot}")


@app.command()
def algorithms() -> None:
    """List the algorithms with their papers and hyper-parameters."""
    from rayfl.algorithms import ALGORITHMS

    _list_registry("algorithm", ALGORITHMS, lambda cls: cls.paper)


@app.command()
def datasets() -> None:
    """List the data sources with their options."""
    from rayfl.data.datasets import SOURCES

    _list_registry("data", SOURCES, _first_doc_line)


@app.command()
def models() -> None:
    """List the models with their options."""
    from rayfl.models import MODELS

    _list_registry("model", MODELS, _first_doc_line)


class Progress:
    """A live bar on a terminal; plain lines elsewhere."""

    PLAIN_SECONDS = 5.0

    def __init__(self, config: "Experiment", console: Console):
        self.config, self.console = config, console
        self._rounds = config.federation.rounds
        self._latest: dict[str, float] = {}
        self._round = 0
        self._began = self._printed = time.monotonic()
        self._stack = contextlib.ExitStack()
        self._bar: Any = None
        self._start: Start | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def start(self, start: "Start") -> None:
        """Say what runs where, before it does."""
        prepared, c = start.prepared, self.config
        parameters = sum(p.numel() for p in prepared.model.parameters() if p.requires_grad)
        f = prepared.federation
        self._start = start
        self.console.print(
            f"{c.algorithm_name} on {prepared.data.name}: {f.clients} clients, {f.cohort_size} a round, "
            f"{f.rounds} rounds; model with {parameters:,} parameters; config {c.hash}\n"
            f"{start.placement}",
        )
        if self.console.is_terminal:
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            bar = Bar(
                TextColumn("round"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.fields[metrics]}"),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._bar = self._stack.enter_context(bar)
            self._task = bar.add_task("", total=self._rounds, metrics="starting the actors")

    def record(self, record: "Record") -> None:
        """Show a round, or an evaluation that has come in."""
        self._latest |= record.metrics
        self._round = max(self._round, record.round)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._round, metrics=self._metrics())
            return
        now = time.monotonic()
        last = self._round == self._rounds and "test/accuracy" in record.metrics
        if now - self._printed >= self.PLAIN_SECONDS or last:
            self._printed = now
            print(
                f"round {self._round}/{self._rounds}  {self._metrics()}",
                file=sys.stderr,
                flush=True,
            )

    def _metrics(self) -> str:
        shown = {
            "loss": ("train/loss", ".4f"),
            "accuracy": ("test/accuracy", ".4f"),
            "alpha": ("server/alpha", ".3f"),
            "s/round": ("time/round_s", ".3f"),
        }
        return "  ".join(
            f"{label} {self._latest[key]:{form}}"
            for label, (key, form) in shown.items()
            if key in self._latest
        )

    def conclude(self, result: "Result") -> None:
        """The table at the end, the run's id and what opens it."""
        s = result.summary
        rows = {
            "accuracy": f"final {s['accuracy_final']:.4f}, mean of last 10 evaluations "
            f"{s['accuracy_last10']:.4f}, best {s['accuracy_best']:.4f}",
            "test loss": f"{s['loss_final']:.4f}",
            "time": f"{s['seconds_per_round']:.3f} s per round, {s['rounds']:.0f} rounds",
            "traffic": f"{s['bytes_up'] / 1e6:,.1f} MB up, {s['bytes_down'] / 1e6:,.1f} MB down",
            "backward passes": f"{s['backward_passes']:,.0f}",
            "model sha256": result.model_sha256,
        }
        if result.run_id and self._start:
            rows["MLflow run"] = result.run_id
            rows["to look at it"] = self._start.ui_command or ""
        console = Console(highlight=False, soft_wrap=True)
        for label, value in rows.items():
            console.print(f"[bold]{label:<16}[/] {escape(value)}")


def _load(config: Path, overrides: list[str] | None) -> "Experiment":
    from rayfl.config import load_config

    return load_config(config, overrides or [])


def _as_json(config: "Experiment", result: "Result") -> dict[str, Any]:
    s = result.summary
    return {
        "accuracy": {kind: s[f"accuracy_{kind}"] for kind in ("final", "best", "last10")},
        "loss": s["loss_final"],
        "rounds": int(s["rounds"]),
        "seconds_per_round": s["seconds_per_round"],
        "backward_passes": int(s["backward_passes"]),
        "bytes_up": int(s["bytes_up"]),
        "bytes_down": int(s["bytes_down"]),
        "run_id": result.run_id,
        "config_hash": config.hash,
        "model_sha256": result.model_sha256,
    }


def _list_registry(section: str, registry: dict[str, Any], describe: Any) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for name, cls in sorted(registry.items()):
        console.print(f"[bold]{name}[/]  {escape(describe(cls))}")
        for key, default, text in _options(cls):
            console.print(f"    {section}.{key} = {escape(default)}  [dim]{escape(text)}[/]")


def _options(cls: type) -> Iterator[tuple[str, str, str]]:
    """Name, default and description of each option of a config dataclass."""
    from pydantic import TypeAdapter

    properties = TypeAdapter(cls).json_schema()["properties"] if dataclasses.fields(cls) else {}
    for field in dataclasses.fields(cls):
        schema = properties[field.name]
        default = (
            "(required)" if field.default is dataclasses.MISSING else json.dumps(field.default)
        )
        yield field.name, default, schema.get("description", "")


def _first_doc_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().splitlines()[0]
