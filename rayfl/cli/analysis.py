"""The commands that read MLflow: `rayfl results`, `compare`, `plot` and `report`.

`main` registers them. Slow imports stand where they are used.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table as RichTable

from rayfl.cli.arguments import listed
from rayfl.cli.terminal import measured, say, table_console, terminal_width, writing
from rayfl.cli.terminal import table as new_table
from rayfl.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from rayfl.analysis.tables import Table

ExperimentName = Annotated[
    str | None, typer.Option("--experiment", help="MLflow experiment; default: all of the store.")
]
Uri = Annotated[
    str | None,
    typer.Option(help="MLflow store; default: $MLFLOW_TRACKING_URI, or mlflow.db here."),
]
Where = Annotated[
    str | None,
    typer.Option(
        metavar="FILTER", help="Such as 'algorithm.name=fedwmsam and partition.alpha<=0.3'."
    ),
]
By = Annotated[
    str | None,
    typer.Option(metavar="KEY,KEY", help="Rows; default: the keys that vary, but for the seed."),
]
Over = Annotated[
    str | None,
    typer.Option(metavar="KEY,KEY", help="Means are over these keys too, and not the seed alone."),
]
MetricNames = Annotated[
    str,
    typer.Option(
        metavar="NAME,NAME",
        help="final, best, last10, loss, seconds, bytes, backward_passes, "
        "{rounds,bytes,seconds,backward_passes}_to_ACCURACY, echo_reversals, accuracy_oscillation, "
        "accuracy_overshoot, or a metric of MLflow's; the first decides which row is best.",
    ),
]
MetricName = Annotated[str, typer.Option(metavar="NAME", help="As in `rayfl results`.")]
Format = Annotated[
    Literal["table", "csv", "json", "markdown", "latex"], typer.Option("--format", help="Output.")
]


def results(
    experiment: ExperimentName = None,
    uri: Uri = None,
    where: Where = None,
    by: By = None,
    over: Over = None,
    metric: MetricNames = "last10",
    rows: Annotated[
        str | None,
        typer.Option(metavar="KEY,KEY", help="A table of the first metric: the keys down,"),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(metavar="KEY,KEY", help="and those across; default: the others that vary."),
    ] = None,
    underline: Annotated[
        bool,
        typer.Option("--underline", help="LaTeX: what is within a standard error of the best."),
    ] = False,
    form: Format = "table",
) -> None:
    """Mean and spread over the seeds of what was run."""
    from rayfl.analysis import aggregate, tables
    from rayfl.analysis.pivot import pivot
    from rayfl.analysis.runs import load

    names = listed(metric)
    if not names:
        raise ConfigError(f"--metric = '{metric}': names no metric; give one, such as last10")
    if underline and form != "latex":
        raise ConfigError(f"--underline: needs --format latex; {form} has no underlining")
    if by is not None and (rows or columns):
        raise ConfigError("--by: makes rows alone; give the keys to --rows and --columns")
    runs, beside = load(experiment, uri, where, names), listed(over or "")
    if not (rows or columns):
        keys = listed(by) if by else _varying(runs, beside)
        aggregate.check_means(runs, keys, beside)
        summary = aggregate.summarize(runs, keys, names)
        table = tables.table_of(summary, form, underline)
        which = [] if len(runs) > 1 else [f"run {runs['run_name'][0]}, id {runs['run_id'][0]}"]
        show(table, summary.rows, form, [*which, *summary.notes])
        return
    down, across = _pivot_keys(runs, listed(rows or ""), listed(columns or ""), beside)
    aggregate.check_means(runs, [*down, *across], beside)
    summary = aggregate.summarize(runs, [*down, *across], names[:1])
    table, numbers, notes = pivot(summary, len(across), form, underline)
    if len(names) > 1:
        notes = (f"without {', '.join(names[1:])}: such a table has one metric", *notes)
    show(table, numbers, form, notes)


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="An algorithm, or a filter.")],
    b: Annotated[str, typer.Argument(metavar="B", help="What A is compared with.")],
    experiment: ExperimentName = None,
    uri: Uri = None,
    where: Where = None,
    metric: MetricName = "last10",
    form: Format = "table",
) -> None:
    """Difference of two algorithms or filters over paired seeds."""
    from rayfl.analysis import compare as comparison
    from rayfl.analysis.runs import load

    result = comparison.compare(load(experiment, uri, where, [metric]), a, b, metric)
    heading = f"{metric} of A = {a} minus B = {b}; 95 % confidence interval, paired t over seeds"
    show(comparison.table_of(result, form), result.rows, form, result.notes, heading)


def plot(
    kind: Annotated[
        Literal["curves", "heatmap", "parallel", "traces"], typer.Argument(help="What to draw.")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A .png, .svg or .pdf; default: KIND.png.")
    ] = None,
    experiment: ExperimentName = None,
    uri: Uri = None,
    where: Where = None,
    by: By = None,
    over: Over = None,
    metric: MetricName = "last10",
    x: Annotated[
        Literal["rounds", "bytes", "seconds", "backward_passes"],
        typer.Option(help="Abscissa of the curves."),
    ] = "rounds",
) -> None:
    """Draw curves, a heatmap, parallel coordinates or traces."""
    output = output or Path(f"{kind}.png")
    check_output(output, (".png", ".svg", ".pdf"))
    from rayfl.analysis import curves, plots
    from rayfl.analysis.aggregate import check_means
    from rayfl.analysis.runs import histories, load

    if over and kind == "heatmap":
        raise ConfigError("--over: a heatmap makes panels of the other keys; choose with --where")
    runs, beside = load(experiment, uri, where, [metric]), listed(over or "")
    keys = listed(by) if by else _varying(plots.finished(runs), beside) if over else None
    if keys is not None and kind != "heatmap":
        check_means(runs, keys, beside)
    if kind == "heatmap":
        drawing = plots.heatmap(runs, keys, metric)
    elif kind == "parallel":
        drawing = plots.parallel(runs, keys, metric)
    elif kind == "curves":
        needed = curves.curve_metrics(x, metric)
        rounds = histories(curves.drawn(runs, keys, metric), needed, uri)
        drawing = curves.curves(runs, rounds, keys, x, metric)
    else:
        scalars = curves.trace_metrics(runs)
        rounds = histories(curves.drawn(runs, keys, metric, scalars), scalars, uri)
        drawing = curves.traces(runs, rounds, keys, metric)
    with writing("--output", output):
        plots.save(drawing.figure, output)
    say(*drawing.notes, f"wrote {output}")


def report(
    output: Annotated[Path, typer.Option("-o", "--output", help="An .html file.")] = Path(
        "report.html"
    ),
    experiment: ExperimentName = None,
    uri: Uri = None,
    where: Where = None,
    metric: MetricName = "last10",
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
) -> None:
    """Write all answers to one HTML page that opens offline."""
    check_output(output, (".html",))
    from rayfl.analysis import report as page

    text = page.render(experiment, uri, where, metric, title)
    with writing("--output", output):
        output.write_text(text, encoding="utf-8")
    say(f"wrote {output}")


def _varying(runs: "pd.DataFrame", over: Sequence[str]) -> list[str]:
    """List the keys that vary, but for the seed and those that means are over."""
    from rayfl.analysis.runs import axes

    return [key for key in axes(runs) if key not in over]


def _pivot_keys(
    runs: "pd.DataFrame", rows: list[str], columns: list[str], over: list[str]
) -> tuple[list[str], list[str]]:
    """Complete the keys of a pivot by those that vary; ConfigError if nothing is left for one side."""
    if twice := set(rows) & set(columns):
        raise ConfigError(f"--columns = '{min(twice)}': is among --rows too; a key has one place")
    others = [key for key in _varying(runs, over) if key not in rows + columns]
    rows, columns = rows or others, columns or others
    if not rows or not columns:
        raise ConfigError(
            f"--{'columns' if rows else 'rows'}: no other key varies between the runs; name one"
        )
    return rows, columns


def check_output(path: Path, suffixes: Sequence[str]) -> None:
    """Raise ConfigError unless a file of this kind can be written there."""
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"--output = '{path}': must end in {' or '.join(suffixes)}")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--output = '{path}': there is no directory '{path.parent}'")


def show(
    table: "Table", rows: "pd.DataFrame", form: str, notes: Sequence[str], heading: str = ""
) -> None:
    """Print a table; the notes go to stderr if stdout is for programs, and into LaTeX as comments."""
    from rayfl.analysis import tables

    if form != "table":
        if form == "latex":
            print("".join(f"% {note}\n" for note in notes), end="")
        print(tables.text_of(table, rows, form))
        say(*(f"note: {note}" for note in notes), stderr=True)
        return
    if heading:
        say(heading)
    width, drawn = terminal_width(), _parts(table)
    for i, one in enumerate(drawn):
        # Rows are marked once: in other parts the mark would seem to be of their numbers.
        table_console(width).print(_rich(one if i == 0 else replace(one, best=())))
    if len(drawn) > 1:
        notes = (
            f"columns are in {len(drawn)} parts: they need more than {width} characters",
            *notes,
        )
    marks = ["* best"] if table.best or table.bold else []
    if len(table.best) > 1:
        marks = ["* best of each task: the same data, partition and number of clients"]
    say(*marks, *(f"note: {note}" for note in notes))


def _parts(table: "Table") -> "list[Table]":
    """Split the columns of numbers so that no part is wider than the terminal, and no number is cut."""
    from rayfl.analysis.tables import part

    width = terminal_width()
    if width is None or measured(_rich(table)) <= width:
        return [table]
    groups: list[list[int]] = []
    for j in range(table.left, len(table.header)):
        if groups and measured(_rich(part(table, [*groups[-1], j]))) <= width:
            groups[-1].append(j)
        else:
            groups.append([j])
    return [part(table, columns) for columns in groups] or [table]


def _rich(table: "Table") -> RichTable:
    drawn = new_table()
    for i, name in enumerate(table.header):
        is_text = i < table.left
        justify, overflow = ("left", "fold") if is_text else ("right", "ellipsis")
        drawn.add_column(escape(name), justify=justify, overflow=overflow, no_wrap=not is_text)
    for i, row in enumerate(table.rows):
        cells = [escape(cell) for cell in row]
        if table.best:
            cells[-1] += " *" if i in table.best else "  "
        else:
            marked = {j for _, j in table.bold}  # columns, which stay aligned
            cells = [
                f"[bold]{cell} *[/]" if (i, j) in table.bold else cell + "  " * (j in marked)
                for j, cell in enumerate(cells)
            ]
        drawn.add_row(*cells, style="bold" if i in table.best else None)
    return drawn
