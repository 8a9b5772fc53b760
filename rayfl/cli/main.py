"""The `rayfl` command. This package is the only place that prints.

Exit codes: 0 done, 1 the run failed, 2 bad input (found before any actor started), 130 interrupted.
"""

import gc
import os
import platform
import sys
import tempfile
from importlib.metadata import version
from typing import Annotated

import typer

import tuning  # noqa: F401  # this one, whatever the working directory holds
from rayfl.cli import analysis, finished, flatness, listings, runs, sweeps
from rayfl.cli.terminal import fail, write_any_character
from rayfl.errors import ConfigError, OwnCodeError, RunError

app = typer.Typer(
    help="Federated-learning experiments on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (
    *(runs.run, sweeps.sweep, sweeps.plan, sweeps.reproduce, runs.config, listings.partition),
    *(analysis.results, analysis.compare, analysis.plot, analysis.report),
    *(flatness.flatness, finished.export, finished.evaluate, finished.clean),
    *(
        listings.algorithms,
        listings.datasets,
        listings.partitions,
        listings.models,
        listings.configs,
    ),
):
    app.command()(_command)


def _show_versions(is_wanted: bool) -> None:
    if not is_wanted:
        return
    print(f"rayfl {version('rayfl')}", f"Python {platform.python_version()}", sep="\n")
    for package in ("torch", "ray", "mlflow"):
        print(f"{package} {version(package)}")
    raise typer.Exit


@app.callback()
def options(
    versions: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_versions, is_eager=True, help="Show versions and exit."
        ),
    ] = False,
) -> None:
    """Take the options of the command itself."""


def script() -> None:
    """Entry point of the console script."""
    try:
        main()
    finally:
        # Skip the interpreter's final garbage collection (about 1 s); but triton (torchvision imports it)
        # reports as leaked what that would have collected.
        if "triton" not in sys.modules:
            gc.freeze()


def main() -> None:
    """Run the command in this process."""
    # MLflow, torch and Ray make millions of lasting objects when they are imported. Collecting garbage
    # after every 700 objects, Python's default, takes a third of a short command's time.
    gc.set_threshold(100_000)
    write_any_character()
    if os.path.expanduser("~") == "~":  # a user without a home, as in containers: MLflow wants one
        os.environ["HOME"] = tempfile.gettempdir()
    # Import paths in a config may name modules of the working directory, as with `python -m`.
    sys.path.insert(0, os.getcwd())
    try:
        app()
    except ConfigError as error:
        fail(error)
        sys.exit(2)
    except OwnCodeError as error:
        print(error.traceback.rstrip(), file=sys.stderr)
        fail(error)
        sys.exit(1)
    except RunError as error:
        fail(error)
        sys.exit(1)
