"""The `rayfl` command: the only place that prints.

Exit codes: 0 done, 1 the run failed, 2 bad input (found before any actor started), 130 interrupted.
"""

import codecs
import contextlib
import dataclasses
import gc
import io
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rayfl.cli import analysis as questions
from rayfl.cli.signals import Interrupts
from rayfl.errors import ClientError, ConfigError, RunError

if TYPE_CHECKING:
    from rayfl.cli.run_display import Progress
    from rayfl.cli.sweep_display import Progress as SweepProgress
    from rayfl.config.schema import Experiment
    from rayfl.data.datasets import Dataset
    from rayfl.data.partition import Partition
    from rayfl.experiment import Result
    from tuning.config import Sweep
    from tuning.sweep import Result as SweepResult

app = typer.Typer(
    help="Federated-learning experiments on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_NEVER_CUT = 10_000  # columns: wider than any table, which a terminal may wrap but must not shorten

_PLAIN = str.maketrans({"·": ".", "±": "+-", "–": "-", "—": "-", "→": "->", "…": "..."})

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The experiment.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Overrides, such as algorithm.rho=0.05 seed=3."),
]
SweepFile = Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="The sweep.")]
SweepOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Overrides, such as space.algorithm.rho.grid=[0.05,0.1] base.federation.rounds=20.",
    ),
]


def script() -> None:
    """Entry point of the console script."""
    try:
        main()
    finally:
        # Else Python looks for garbage among all objects once more: a second, for nothing. But what triton
        # (torchvision imports it) does not find gone it reports as leaked.
        if "triton" not in sys.modules:
            gc.freeze()


def _plain(error: UnicodeError) -> tuple[str, int]:
    """What is shown for characters that a stream cannot encode: a path's, or those of a table."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return text.translate(_PLAIN).encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error("plain", _plain)


def main() -> None:
    """The command, in this process."""
    # MLflow, torch and Ray make millions of objects that stay, when they are imported. Looking for garbage
    # among them after every 700, as Python does, takes a third of a short command's time.
    gc.set_threshold(100_000)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")
    if os.path.expanduser("~") == "~":  # a user without a home, as in containers: MLflow wants one
        os.environ["HOME"] = tempfile.gettempdir()
    # Import paths in a config may name modules of the working directory, as with `python -m`.
    sys.path.insert(0, os.getcwd())
    try:
        app()
    except ConfigError as error:
        _fail(error)
        sys.exit(2)
    except ClientError as error:
        print(error.traceback.rstrip(), file=sys.stderr)
        _fail(error)
        sys.exit(1)
    except RunError as error:
        _fail(error)
        sys.exit(1)


@app.command()
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one JSON object, alone on stdout.")
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="latest|PATH|RUN_ID", help="Go on from a checkpoint of the same config."
        ),
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Train in this process, without Ray: for a debugger.")
    ] = False,
) -> None:
    """Run one experiment."""
    from rayfl.cli.run_display import Progress

    console = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
    progress = Progress(console, live=not local)
    with _showing(progress, redirect=not local) as on_start:
        resolved = _load(config, overrides)
        _keep_to_this_machine(resolved.ray.address)
        from rayfl import experiment

        result = experiment.run(resolved, on_start, progress.metrics, resume, local)
    if as_json:
        print(json.dumps(_as_json(resolved, result)))
    else:
        progress.conclude(result)


@app.command()
def sweep(
    file: SweepFile,
    overrides: SweepOverrides = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one JSON object, alone on stdout.")
    ] = False,
) -> None:
    """Run the experiments of a sweep, or what is missing of them."""
    from rayfl.cli.sweep_summary import as_json as sweep_as_json

    began = time.monotonic()
    resolved, result, progress = _run_sweep(lambda: _load_sweep(file, overrides))
    took = time.monotonic() - began
    if as_json:
        print(json.dumps(sweep_as_json(result, resolved, took)))
    else:
        progress.conclude(result, resolved, took)
    if not result.succeeded:
        raise typer.Exit(1)


@app.command()
def plan(
    file: SweepFile,
    overrides: SweepOverrides = None,
    cluster: Annotated[
        Path | None, typer.Option(help="File of `ray up`, to see what a grown cluster could hold.")
    ] = None,
) -> None:
    """Show what a sweep would do, without doing it."""
    _show_plan(_load_sweep(file, overrides), cluster)


@app.command()
def reproduce(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A preset; without one they are listed.")
    ] = None,
    overrides: SweepOverrides = None,
    scale: Annotated[
        Literal["small", "full"],
        typer.Option(help="full: the paper's setting; small: minutes on a laptop."),
    ] = "small",
    only: Annotated[
        str | None,
        typer.Option(metavar="FILTER", help="Values of axes, such as 'algorithm.name=fedwmsam'."),
    ] = None,
    show_plan: Annotated[
        bool, typer.Option("--plan", help="Show what it would do, without doing it.")
    ] = False,
    form: Annotated[
        Literal["table", "json", "markdown"], typer.Option("--format", help="Output.")
    ] = "table",
) -> None:
    """Run the setting of a paper's table, and put the results beside its numbers."""
    if name is None:
        _list_presets()
        return
    from tuning.papers import compare, presets

    def load() -> "Sweep":
        _keep_sweep_to_this_machine(preset.sweep)
        return preset.sweep

    preset = presets.load(name, scale, overrides or [], only)
    if show_plan:
        _show_plan(load())
        return
    _, result, _ = _run_sweep(load)
    comparison = compare.compare(preset, result.rows)
    heading = f"{name} ({scale}): {preset.published.about}"
    notes = compare.remarks(comparison, overrides or [])
    questions.show(compare.table(comparison), compare.frame(comparison), form, notes, heading)
    if not result.succeeded:
        raise typer.Exit(1)


@app.command("config")
def show_config(config: ConfigFile, overrides: Overrides = None) -> None:
    """Print the resolved config and its hash."""
    resolved = _load(config, overrides)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # as config files are read
    print(resolved.to_yaml() + f"# config hash: {resolved.hash}")


@app.command()
def partition(
    config: ConfigFile,
    overrides: Overrides = None,
    plot: Annotated[Path | None, typer.Option(help="Write a heatmap here (.png or .svg).")] = None,
) -> None:
    """Show what each client holds: samples by label."""
    from rayfl.data.federated import federate
    from rayfl.data.picture import heatmap
    from rayfl.text import brief

    if plot is not None and plot.suffix.lower() not in (".png", ".svg"):
        raise ConfigError(f"--plot = '{plot}': must end in .png or .svg")
    c = _load(config, overrides)
    data, parts = federate(c.data, c.partition, c.heterogeneity, c.federation.clients, c.seed)
    histogram = parts.histogram(data.y_train, data.num_classes)
    groups = _groups_held(data, parts)
    table = Table(header_style="bold")
    names = (brief(name) for name in data.classes)
    for column in ("client", *(["group"] if groups else []), "samples", "classes", *names):
        table.add_column(Text(column), justify="right")  # no string: rich reads [these] as styles
    for client, counts in enumerate(histogram):
        shown = [str(count) if count else "·" for count in counts]
        held = [*groups[client : client + 1], str(counts.sum()), str((counts > 0).sum())]
        table.add_row(*(Text(cell) for cell in (str(client), *held, *shown)))
    console = Console(highlight=False, emoji=False, width=_NEVER_CUT)
    console.print(table)
    for line in data.read:
        console.print(line, markup=False, soft_wrap=True)
    sizes = histogram.sum(1)
    console.print(
        f"{len(histogram)} clients, {sizes.sum()} samples, {sizes.min()} to {sizes.max()} each; "
        f"digest {parts.digest()[:16]}"
    )
    if plot is not None:
        try:
            heatmap(histogram, data.classes, plot)
        except OSError as error:
            raise ConfigError(f"--plot = '{plot}': cannot be written ({error.strerror})") from error
        console.print(f"wrote {plot}", markup=False)


for _question in (questions.results, questions.compare, questions.plot, questions.report):
    app.command()(_question)


@app.command()
def algorithms() -> None:
    """List the algorithms with their papers and hyper-parameters."""
    from rayfl.algorithms import ALGORITHMS

    _list_registry("algorithm", ALGORITHMS, lambda cls: cls.paper)


@app.command()
def datasets() -> None:
    """List the data sources with their options."""
    from rayfl.data.sources import SOURCES

    _list_registry("data", SOURCES, _first_doc_line)


@app.command()
def partitions() -> None:
    """List the partition schemes with their options."""
    from rayfl.data.schemes import SCHEMES

    _list_registry("partition", SCHEMES, _first_doc_line)


@app.command()
def models() -> None:
    """List the models with their options."""
    from rayfl.models import MODELS

    _list_registry("model", MODELS, _first_doc_line)


def _groups_held(data: "Dataset", parts: "Partition") -> list[str]:
    """Each client's writer or domain, or how many it has samples of; empty if the data know none."""
    if data.group_train is None:
        return []
    held = [set(data.group_train[parts.client(i)]) for i in range(len(parts.sizes))]
    return [data.groups[min(one)] if len(one) == 1 else f"{len(one)} groups" for one in held]


def _fail(error: Exception) -> None:
    console = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
    console.print(f"[bold red]error:[/] {escape(str(error))}")


def _load(config: Path, overrides: list[str] | None) -> "Experiment":
    from rayfl.config.schema import load_config

    if "=" in config.name and not config.exists():
        raise ConfigError(f"'{config}': the config file comes first, then the overrides")
    return load_config(config, overrides or [])


def _load_sweep(file: Path, overrides: list[str] | None) -> "Sweep":
    from tuning.config import load_sweep

    if "=" in file.name and not file.exists():
        raise ConfigError(f"'{file}': the sweep file comes first, then the overrides")
    sweep = load_sweep(file, overrides or [])
    _keep_sweep_to_this_machine(sweep)
    return sweep


def _run_sweep(load: "Callable[[], Sweep]") -> "tuple[Sweep, SweepResult, SweepProgress]":
    """Run what is missing of a sweep, and show it."""
    from rayfl.cli.sweep_display import Progress

    progress = Progress(Console(stderr=True, highlight=False, emoji=False, soft_wrap=True))
    with _showing(progress) as on_start:
        resolved = load()
        from tuning import sweep as sweeps

        result = sweeps.run(resolved, on_start, progress.watch)
    return resolved, result, progress


@contextlib.contextmanager
def _showing(
    progress: "Progress | SweepProgress", redirect: bool = True
) -> "Iterator[Callable[[Any], None]]":
    """While it is entered, `progress` shows what runs, and Ctrl-C ends the command.

    Gives the function to call once Ray has started. `redirect`: keep what libraries print off stdout, which
    a debugger needs.
    """
    interrupts = Interrupts(progress.say)

    def on_start(start: Any) -> None:
        interrupts.take()
        progress.start(start)

    try:
        with interrupts, progress, _stdout_for_results() if redirect else contextlib.nullcontext():
            yield on_start
    except (KeyboardInterrupt, SystemExit):  # while it starts, Ray exits at SIGTERM
        progress.interrupted()
        raise typer.Exit(130) from None


def _show_plan(sweep: "Sweep", cluster: Path | None = None) -> None:
    from rayfl.cli.sweep_display import describe
    from tuning import sweep as sweeps

    planned = sweeps.plan(sweep, cluster)
    Console(highlight=False, emoji=False, soft_wrap=True).print(escape(describe(planned)))


def _list_presets() -> None:
    from tuning.papers import presets

    logging.getLogger("rayfl.config.layers").setLevel(
        logging.ERROR
    )  # not what each of them leaves out
    columns = ["preset", "", "scale", "trials", "rounds", "client updates"]
    table = Table(*columns, header_style="bold", box=box.SIMPLE_HEAD)
    for column in table.columns[3:]:
        column.justify = "right"
    for name in presets.names():
        for i, scale in enumerate(presets.scales(name)):
            preset = presets.load(name, scale)
            first = (name, escape(preset.published.about)) if i == 0 else ("", "")
            table.add_row(*first, scale, *(f"{n:,}" for n in presets.size(preset.sweep)))
    Console(highlight=False, emoji=False, width=_NEVER_CUT).print(table)


def _keep_sweep_to_this_machine(sweep: "Sweep") -> None:
    section = sweep.base.get("ray")
    _keep_to_this_machine(section.get("address") if isinstance(section, dict) else None)


def _stdout_for_results() -> contextlib.AbstractContextManager[object]:
    """While it is entered, what libraries print goes to stderr: Ray tells of lost nodes, for instance."""
    return contextlib.redirect_stdout(_Briefly() if sys.stderr.isatty() else sys.stderr)


class _Briefly(io.TextIOBase):
    """Stderr of a terminal, with a row for each line: Ray takes ten to say that a process died."""

    def write(self, text: str) -> int:
        most = shutil.get_terminal_size().columns - len("...")
        for line in text.splitlines(keepends=True):
            end = "\n" if line.endswith("\n") else ""
            sys.stderr.write(line if len(line) <= most else f"{line[:most]}...{end}")
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()


def _keep_to_this_machine(address: str | None) -> None:
    """Ray of a run of its own listens on 127.0.0.1 alone, not on every interface.

    Ray reads this when it is imported, on Linux too; with it, it could not join a cluster.
    """
    if address is None:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


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
    console = Console(highlight=False, emoji=False, soft_wrap=True)
    listed: dict[tuple[Any, ...], str] = {}
    for name, cls in sorted(registry.items()):
        console.print(f"[bold]{name}[/]  {escape(describe(cls))}")
        options = tuple(_options(cls))
        if len(options) > 3 and options in listed:
            console.print(f"    the options of {listed[options]}")
            continue
        listed[options] = name
        for key, default, text in options:
            console.print(f"    {section}.{key} = {escape(default)}  [dim]{escape(text)}[/]")


def _options(cls: type) -> Iterator[tuple[str, str, str]]:
    """Name, default and description of each option of a config dataclass."""
    from rayfl.config.messages import allowed, keys_of, schema_of

    schema = schema_of(cls)
    for field in dataclasses.fields(cls):
        option = schema["properties"][field.name]
        inner = {f"{field.name}.{key}": value for key, value in keys_of(option, schema).items()}
        for key, value in {field.name: option, **inner}.items():
            default = json.dumps(value["default"]) if "default" in value else "(required)"
            words = [value.get("description", ""), allowed(value, schema)]
            yield key, default, "; ".join(filter(None, words))


def _first_doc_line(cls: type) -> str:
    return (cls.__doc__ or "").strip().splitlines()[0]
