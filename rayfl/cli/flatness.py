"""The command `rayfl flatness`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from rayfl.cli.analysis import Format, Uri, show
from rayfl.cli.arguments import Overrides, listed, listen_locally
from rayfl.cli.terminal import Display, console, say, showing, writing
from rayfl.errors import ConfigError

if TYPE_CHECKING:
    from rayfl.diagnostics import Report
    from rayfl.diagnostics.subjects import Subject

_PLAIN_SECONDS = 10.0


def flatness(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="An MLflow run's id, latest, or the path of a checkpoint or of a folder of them.",
        ),
    ],
    overrides: Overrides = None,
    rounds: Annotated[
        str, typer.Option(metavar="N,N,last", help="Rounds that have a checkpoint.")
    ] = "last",
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
    pictures: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Directory for the pictures."),
    ] = None,
    picture: Annotated[
        Literal["png", "svg", "pdf"], typer.Option(help="What the pictures are.")
    ] = "png",
    uri: Uri = None,
    local: Annotated[bool, typer.Option("--local", help="In this process, without Ray.")] = False,
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
        effort=Effort(
            rhos=_numbers("--rho", rho),
            scale_free_rhos=_numbers("--scale-free-rho", scale_free_rho),
            draws=draws,
            lanczos_steps=lanczos,
        ),
    )
    address = next((o for o in overrides or () if o.startswith("ray.address=")), None)
    listen_locally(address)
    progress = FlatnessDisplay(console(stderr=True), live=not local)
    with showing(progress, redirect=not local) as on_start:
        report = diagnostics.flatness(
            what,
            overrides or (),
            rounds=_named("--rounds", rounds),
            question=question,
            uri=uri,
            local=local,
            on_start=lambda subject, placement: on_start((subject, placement)),
            on_work=progress.work,
        )
    show(table_of(report), wide(report), form, _notes(report))
    if pictures is not None:
        _draw(report, pictures, picture)


def _draw(report: "Report", folder: Path, suffix: str) -> None:
    """Write the report's pictures into the folder."""
    from rayfl.analysis.plots import save
    from rayfl.diagnostics.pictures import pictures

    for name, figure in pictures(report).items():
        path = folder / f"{name}.{suffix}"
        with writing("--output", path):
            folder.mkdir(parents=True, exist_ok=True)
            save(figure, path)
        say(f"wrote {path}", stderr=True)


class FlatnessDisplay(Display):
    """A bar of the work that is done, and the time that is left."""

    def __init__(self, console: Console, live: bool = True):
        columns = BarColumn(None), TaskProgressColumn(), TimeRemainingColumn()
        self._bar = Progress(*columns, TextColumn("left"), expand=True)
        self._task = self._bar.add_task("", total=1.0)
        self._began = time.monotonic()
        super().__init__(console, live)

    def __rich__(self) -> RenderableType:
        return Group(self._bar, Text(self._text, no_wrap=True, overflow="ellipsis"))

    def start(self, start: Any) -> None:
        subject, placement = start
        self._console.print(_heading(subject), markup=False)
        self._console.print(str(placement), markup=False)
        self._began, self._text = time.monotonic(), "starting the actors"

    def work(self, share: float) -> None:
        """Show the share of the work that is done."""
        self._bar.update(self._task, completed=share)
        self._text = ""
        if not self._is_live and share > 0 and self._is_due(_PLAIN_SECONDS):
            left = (time.monotonic() - self._began) * (1 - share) / share
            self._console.print(f"{100 * share:.0f} %, about {left:.0f} s left")

    def interrupted(self) -> None:
        self._console.print("interrupted; what is measured is kept, the same command goes on")


def _heading(subject: "Subject") -> str:
    config = subject.config
    rounds = ", ".join(str(saved.round) for saved in subject.checkpoints)
    return (
        f"flatness of {config.algorithm_name}, seed {config.seed}, config {config.hash}, "
        f"after round {rounds}"
    )


def _notes(report: "Report") -> list[str]:
    """How it was measured, and what is to be doubted."""
    kept = report.subject.records
    how = (
        "mean cross-entropy on fixed samples without augmentation, model in evaluation mode, no weight decay "
        "and no term of the method; train: of all clients together"
    )
    took = f"{report.seconds:.0f} s" if report.seconds else "nothing: all of it was known"
    where = f"kept in MLflow run {kept.run_id}" if kept else "kept nowhere: no MLflow run is known"
    return [how, f"took {took}; {where}", *report.notes]


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


def _named(option: str, text: str) -> list[str]:
    parts = list(dict.fromkeys(listed(text)))
    if not parts:
        raise ConfigError(f"{option} = '{text}': names nothing")
    return parts
