"""The commands of one experiment: `rayfl run` and `rayfl config`."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayfl.cli.arguments import AsJson, ConfigFile, Overrides, listen_locally, load
from rayfl.cli.terminal import console, showing, write_utf8

if TYPE_CHECKING:
    from rayfl.config.schema import Experiment
    from rayfl.result import Result


def run(
    config: ConfigFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
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
    from rayfl.cli.run_display import RunDisplay

    progress = RunDisplay(console(stderr=True), live=not local)
    with showing(progress, redirect=not local) as on_start:
        progress.phase("importing PyTorch")
        resolved = load(config, overrides)
        listen_locally(resolved.ray.address)
        from rayfl import experiment

        result = experiment.run(
            resolved, on_start, progress.metrics, resume, local, progress.actors, progress.phase
        )
    if as_json:
        print(json.dumps(_as_json(resolved, result)))
    else:
        progress.conclude(result)


def config(config: ConfigFile, overrides: Overrides = None) -> None:
    """Print the resolved config and its hash."""
    resolved = load(config, overrides)
    write_utf8()
    print(resolved.to_yaml() + f"# config hash: {resolved.hash}")


def _as_json(config: "Experiment", result: "Result") -> dict[str, Any]:
    from rayfl.cli.run_display import own_numbers

    s = result.summary
    return {
        **_evaluated(s, ""),
        **({"validation": held_out} if (held_out := _evaluated(s, "validation_")) else {}),
        **({"own": own} if (own := own_numbers(config, result.history.iloc[-1])) else {}),
        "rounds": int(s["rounds"]),
        "seconds_per_round": s["seconds_per_round"],
        "backward_passes": int(s["backward_passes"]),
        "bytes_up": int(s["bytes_up"]),
        "bytes_down": int(s["bytes_down"]),
        **({"epsilon": s["epsilon"]} if "epsilon" in s else {}),
        "run_id": result.run_id,
        "config_hash": config.hash,
        "model_sha256": result.model_sha256,
    }


def _evaluated(summary: dict[str, float], prefix: str) -> dict[str, Any]:
    """Accuracy, loss and the like of the test set, or of what was held out; nothing if nothing was."""
    if f"{prefix}loss_final" not in summary:
        return {}
    kinds = ("final", "best", "last10")
    accuracy = {kind: summary.get(f"{prefix}accuracy_{kind}") for kind in kinds}
    found = {name: summary.get(f"{prefix}{name}_final") for name in ("loss", "perplexity", "r2")}
    kept = {name: value for name, value in found.items() if value is not None}
    return kept if accuracy["final"] is None else {"accuracy": accuracy, **kept}
