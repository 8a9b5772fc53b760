"""Arguments that several commands take, and the configs and sweeps that they name."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayfl.errors import ConfigError

if TYPE_CHECKING:
    from rayfl.config.schema import Experiment
    from tuning.config import Sweep

ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A file, or a name that `rayfl configs` lists.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Overrides, such as algorithm.rho=0.05 seed=3."),
]
SweepFile = Annotated[
    Path, typer.Argument(metavar="SWEEP", help="A file, or a name that `rayfl configs` lists.")
]
SweepOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Overrides, such as space.algorithm.rho.grid=[0.05,0.1] base.federation.rounds=20.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="End with one JSON object, alone on stdout.")]


def listed(text: str) -> list[str]:
    """Return what stands between the commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def load(config: Path, overrides: Sequence[str] | None) -> "Experiment":
    """Return the experiment of a file or name with overrides; ConfigError if there is none."""
    from rayfl.config.schema import load_config

    _check_is_file("config", config)
    return load_config(config, overrides or [])


def load_sweep(file: Path, overrides: Sequence[str] | None) -> "Sweep":
    """Return the sweep of a file or name with overrides; ConfigError if there is none."""
    from tuning import config

    _check_is_file("sweep", file)
    sweep = config.load_sweep(file, overrides or [])
    listen_locally_for_sweep(sweep)
    return sweep


def _check_is_file(kind: str, path: Path) -> None:
    """Raise ConfigError for an override in the file's place."""
    if "=" in path.name and not os.path.exists(path):
        raise ConfigError(f"'{path}': the {kind} file comes first, then the overrides")


def listen_locally(address: str | None) -> None:
    """Make a Ray of the command's own listen on 127.0.0.1 alone, not on every interface.

    Ray reads the variable when it is imported, on Linux too; with it, it could not join a cluster.
    """
    if address is None:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def listen_locally_for_sweep(sweep: "Sweep") -> None:
    """Do the same for the Ray of a sweep's trials."""
    section = sweep.base.get("ray")
    listen_locally(section.get("address") if isinstance(section, dict) else None)
