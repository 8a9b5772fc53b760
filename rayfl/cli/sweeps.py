"""The commands of sweeps: `rayfl sweep`, `plan` and `reproduce`."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from rayfl.cli import analysis
from rayfl.cli.arguments import (
    AsJson,
    SweepFile,
    SweepOverrides,
    listen_locally_for_sweep,
    load_sweep,
)
from rayfl.cli.terminal import console, say, showing, table, table_console

if TYPE_CHECKING:
    from rayfl.cli.sweep_display import SweepDisplay
    from tuning.config import Sweep
    from tuning.sweep import SweepResult


def sweep(
    file: SweepFile,
    overrides: SweepOverrides = None,
    as_json: AsJson = False,
) -> None:
    """Run the experiments of a sweep that have not run yet."""
    from rayfl.cli.sweep_summary import as_json as sweep_as_json

    began = time.monotonic()
    resolved, result, progress = _run_sweep(lambda: load_sweep(file, overrides))
    took = time.monotonic() - began
    if as_json:
        print(json.dumps(sweep_as_json(result, resolved, took)))
    else:
        progress.conclude(result, resolved, took)
    if not result.succeeded:
        raise typer.Exit(1)


def plan(
    file: SweepFile,
    overrides: SweepOverrides = None,
    cluster: Annotated[
        Path | None, typer.Option(help="File of `ray up`, to see what a grown cluster could hold.")
    ] = None,
) -> None:
    """Show the trials of a sweep without running them."""
    _show_plan(load_sweep(file, overrides), cluster)


def reproduce(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A preset; without a name they are listed.")
    ] = None,
    overrides: SweepOverrides = None,
    scale: Annotated[
        Literal["small", "full", "released"],
        typer.Option(
            help="full: the setting of the paper's text; released: that of its scripts; small: minutes on "
            "a laptop."
        ),
    ] = "small",
    only: Annotated[
        str | None,
        typer.Option(metavar="FILTER", help="Values of axes, such as 'algorithm.name=fedwmsam'."),
    ] = None,
    show_plan: Annotated[
        bool, typer.Option("--plan", help="Show the trials without running them.")
    ] = False,
    form: Annotated[
        Literal["table", "json", "markdown"], typer.Option("--format", help="Output.")
    ] = "table",
) -> None:
    """Run the setting of a paper's table and show the results beside its numbers."""
    if name is None:
        _list_presets()
        return
    from tuning.papers import compare, presets

    preset = presets.load(name, scale, overrides or [], only)
    listen_locally_for_sweep(preset.sweep)
    if show_plan:
        say(*(f"note: {fact}" for fact in compare.setting(preset, overrides or [])))
        _show_plan(preset.sweep)
        return
    _, result, _ = _run_sweep(lambda: preset.sweep)
    comparison = compare.compare(preset, result.rows)
    heading = f"{name} ({scale}): {preset.published.about}"
    notes = compare.remarks(comparison, overrides or [])
    analysis.show(compare.table(comparison), compare.frame(comparison), form, notes, heading)
    if not result.succeeded:
        raise typer.Exit(1)


def _run_sweep(load: "Callable[[], Sweep]") -> "tuple[Sweep, SweepResult, SweepDisplay]":
    """Run the trials of a sweep that have not run yet, and show them."""
    from rayfl.cli.sweep_display import SweepDisplay

    progress = SweepDisplay(console(stderr=True))
    with showing(progress) as on_start:
        progress.phase("importing PyTorch and Ray")
        resolved = load()
        from tuning import sweep as sweeps

        result = sweeps.run(resolved, on_start, progress.update, progress.phase)
    return resolved, result, progress


def _show_plan(sweep: "Sweep", cluster: Path | None = None) -> None:
    from rayfl.cli.sweep_plan import describe
    from tuning import sweep as sweeps

    say(describe(sweeps.plan(sweep, cluster)))


def _list_presets() -> None:
    from tuning.papers import presets

    listed = table("preset", "", "scale", "trials", "rounds", "client updates")
    for column in listed.columns[3:]:
        column.justify = "right"
    log = logging.getLogger("rayfl.config.layers")
    log.disabled = True  # not the lines on options that each of them drops
    try:
        for name in presets.names():
            for i, scale in enumerate(presets.scales(name)):
                preset = presets.load(name, scale)
                first = (name, escape(preset.published.about)) if i == 0 else ("", "")
                listed.add_row(*first, scale, *(f"{n:,}" for n in presets.size(preset.sweep)))
    finally:
        log.disabled = False
    table_console().print(listed)
