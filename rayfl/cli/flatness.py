"""The command `rayfl flatness`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rayfl.cli.analysis import Format, Uri, show
from rayfl.cli.arguments import Overrides, listed, listen_locally
from rayfl.cli.flatness_display import FlatnessDisplay
from rayfl.cli.terminal import console, say, showing, writing
from rayfl.errors import ConfigError

if TYPE_CHECKING:
    from rayfl.diagnostics import Interpolation, Report, SweepReport

_HOW = (
    "mean of the run's loss on fixed samples without augmentation, model in evaluation mode, no weight "
    "decay and no term of the method; train: of all clients together"
)


def flatness(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="An MLflow run's id, latest, the path of a checkpoint or of a folder of them, or a sweep.",
        ),
    ],
    overrides: Overrides = None,
    rounds: Annotated[
        str, typer.Option(metavar="N,N,last", help="Rounds that have a checkpoint.")
    ] = "last",
    average: Annotated[
        str, typer.Option(metavar="lastN", help="The mean of the last N checkpoints' w instead.")
    ] = "last1",
    towards: Annotated[
        str | None,
        typer.Option(metavar="WHAT", help="The loss on the line to another run's w, instead."),
    ] = None,
    measures: Annotated[
        str,
        typer.Option(
            metavar="NAME,NAME", help="Of gap, hessian, alignment, variance and landscape."
        ),
    ] = "gap,hessian,alignment,variance",
    clients: Annotated[
        int, typer.Option(help="Clients of the next round that are trained again, at most.")
    ] = 8,
    splits: Annotated[str, typer.Option(metavar="NAME,NAME", help="Of train and test.")] = (
        "train,test"
    ),
    samples: Annotated[int, typer.Option(help="Samples of each split, at most.")] = 2048,
    rho: Annotated[
        str, typer.Option(metavar="R,R", help="Distances of the gaps, as SAM's rho.")
    ] = "0.01,0.05,0.1",
    scale_free_rho: Annotated[
        str, typer.Option(metavar="R,R", help="Those in parts of |w|, as adaptive SAM's rho.")
    ] = "0.1,0.5,1",
    draws: Annotated[int, typer.Option(help="Draws of noise, and vectors for the trace.")] = 20,
    lanczos: Annotated[int, typer.Option(help="Steps for the eigenvalues, at most.")] = 40,
    columns: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME", help="Of a sweep's table; CSV and JSON have all."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="FILTER", help="A sweep's other points minus this one, paired over seeds."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Directory for the pictures."),
    ] = None,
    picture: Annotated[
        Literal["png", "svg", "pdf"], typer.Option(help="What the pictures are.")
    ] = "png",
    uri: Uri = None,
    local: Annotated[
        bool | None,
        typer.Option(
            "--local/--ray",
            help="In this process, or on Ray's actors; left open, a run is measured here if Ray's start "
            "would take longer, and all else on Ray.",
        ),
    ] = None,
    form: Format = "table",
) -> None:
    """Measure how flat the loss is where a run has ended."""
    from rayfl import diagnostics
    from rayfl.diagnostics.tables import table_of, wide
    from rayfl.flatness.measures import Effort
    from rayfl.flatness.question import MEASURES, SPLITS

    question = diagnostics.Question(
        measures=_among("--measures", measures, MEASURES),
        splits=_among("--splits", splits, SPLITS),
        samples=samples,
        clients=clients,
        average=_average(average),
        effort=Effort(
            rhos=_numbers("--rho", rho),
            scale_free_rhos=_numbers("--scale-free-rho", scale_free_rho),
            draws=draws,
            lanczos_steps=lanczos,
        ),
    )
    address = next((o for o in overrides or () if o.startswith("ray.address=")), None)
    listen_locally(address)
    sweep = diagnostics.sweep_named(what, uri)
    if sweep is None and (columns or against):
        option = "--columns" if columns else "--against"
        raise ConfigError(f"{option}: is for sweeps, and '{what}' is none")
    if sweep is not None and towards:
        raise ConfigError(f"--towards: is for runs, and '{what}' is a sweep")
    if towards and (average, rounds) != ("last1", "last"):
        raise ConfigError(
            "--towards: is about the last w of both runs; leave --average and --rounds out"
        )
    progress = FlatnessDisplay(console(stderr=True), live=not local)
    with showing(progress, redirect=not local) as on_start:
        places: Any = {
            "uri": uri,
            # A question about several runs is left to Ray, unless told otherwise.
            "local": local if sweep is None and towards is None else bool(local),
            "on_start": lambda start, placement: on_start((start, placement)),
            "on_work": progress.work,
        }
        given, chosen = overrides or (), _named("--rounds", rounds)
        if towards is not None:
            answer = diagnostics.interpolate(
                what, towards, given, splits=question.splits, samples=samples, **places
            )
        elif sweep is None:
            answer = diagnostics.flatness(what, given, rounds=chosen, question=question, **places)
        else:
            answer = diagnostics.flatness_of_sweep(
                sweep, given, rounds=chosen, question=question, against=against, **places
            )
    if isinstance(answer, diagnostics.SweepReport):
        _show_sweep(answer, columns, against, form)
    elif isinstance(answer, diagnostics.Interpolation):
        show(answer.table(), answer.frame, form, _notes_of_line(answer))
    else:
        show(table_of(answer), wide(answer), form, _notes(answer))
    if output is not None:
        _draw(answer, output, picture)


def _show_sweep(report: "SweepReport", columns: str | None, against: str | None, form: str) -> None:
    """Print the means of a sweep's points, or their differences to the point `against`."""
    from rayfl.diagnostics import sweep_tables

    names = (
        sweep_tables.chosen_columns(_named("--columns", columns), report.metrics)
        if columns
        else sweep_tables.default_columns(report.metrics, report.question)
    )
    how = [*_how(report), f"{_took(report)}; kept in the MLflow run of each trial"]
    heading = ""
    if against is None:
        table, notes = sweep_tables.table_of(report, names, form)
        rows = sweep_tables.frame_of(report)
    else:
        if form in ("csv", "json") and not columns:
            names = report.metrics
        table, rows, notes = sweep_tables.differences(report, names, against, form)
        heading = f"minus {against}: mean difference [95 % interval], paired t over seeds; * not 0"
    *first, last = sweep_tables.parts(table) if form == "table" else [table]
    for part in first:
        show(part, rows, form, [], heading)
        heading = ""
    show(last, rows, form, [*how, *report.notes, *notes], heading)


def _draw(answer: "Report | SweepReport | Interpolation", folder: Path, suffix: str) -> None:
    """Write the answer's pictures into the folder."""
    from rayfl import diagnostics
    from rayfl.analysis.plots import save
    from rayfl.diagnostics.comparison import pictures_of_sweep
    from rayfl.diagnostics.pictures import pictures

    if isinstance(answer, diagnostics.SweepReport):
        figures = pictures_of_sweep(answer)
    elif isinstance(answer, diagnostics.Interpolation):
        figures = {"interpolation": answer.picture()}
    else:
        figures = pictures(answer)
    for name, figure in figures.items():
        path = folder / f"{name}.{suffix}"
        with writing("--output", path):
            folder.mkdir(parents=True, exist_ok=True)
            save(figure, path)
        say(f"wrote {path}", stderr=True)


def _notes_of_line(line: "Interpolation") -> list[str]:
    barriers = ", ".join(f"{value:.4g} ({split})" for split, value in line.barriers.items())
    what = f"barrier {barriers}: the largest rise above the straight line between both ends"
    where = f"kept in MLflow run {line.run_id}" if line.run_id else "kept nowhere"
    return [what, f"{_HOW}; {where}"]


def _notes(report: "Report") -> list[str]:
    """The way it was measured, and reasons to doubt it."""
    kept = report.subject.records
    where = f"kept in MLflow run {kept.run_id}" if kept else "kept nowhere: no MLflow run is known"
    return [*_how(report), f"{_took(report)}; {where}", *report.notes]


def _how(report: "Report | SweepReport") -> list[str]:
    last = report.question.average
    return [_HOW, *([f"w: mean of the last {last} checkpoints"] if last > 1 else [])]


def _took(report: "Report | SweepReport") -> str:
    return f"took {report.seconds:.0f} s" if report.seconds else "took nothing: all of it was known"


def _among(option: str, text: str, allowed: tuple[Any, ...]) -> tuple[Any, ...]:
    names = _named(option, text)
    if unknown := [name for name in names if name not in allowed]:
        raise ConfigError(f"{option} = '{unknown[0]}': must be of {', '.join(allowed)}")
    return tuple(names)


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in _named(option, text))
    except ValueError as error:
        raise ConfigError(
            f"{option} = '{text}': must be numbers, with commas between them"
        ) from error


def _average(text: str) -> int:
    number = text.removeprefix("last")
    if not number.isascii() or not number.isdecimal() or int(number) < 1:
        raise ConfigError(
            f"--average = '{text}': must be such as last10, of the last ten checkpoints"
        )
    return int(number)


def _named(option: str, text: str) -> list[str]:
    parts = list(dict.fromkeys(listed(text)))
    if not parts:
        raise ConfigError(f"{option} = '{text}': names nothing")
    return parts
