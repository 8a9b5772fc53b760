"""The commands about runs that have ended: `rayfl export`, `evaluate` and `clean`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from rayfl.cli.analysis import Uri, check_output
from rayfl.cli.arguments import AsJson, Overrides
from rayfl.cli.run_display import of_clients
from rayfl.cli.terminal import say, table, table_console, writing

if TYPE_CHECKING:
    from rayfl.finished import Evaluated

What = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="An MLflow run's id, latest, or the path of a checkpoint or of a folder of them.",
    ),
]


def export(
    what: What,
    overrides: Overrides = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FILE", help="A .safetensors or a .pt file.")
    ] = Path("model.safetensors"),
    average: Annotated[
        bool, typer.Option("--average", help="The average of evaluation.average instead.")
    ] = False,
    uri: Uri = None,
) -> None:
    """Write the model of a run to a file that PyTorch opens."""
    from rayfl import finished
    from rayfl.models.files import SUFFIXES

    check_output(output, SUFFIXES)
    with writing("--output", output):
        weights = finished.export(what, output, overrides or (), average=average, uri=uri)
    count = sum(tensor.numel() for tensor in weights.tensors.values())
    after = f"after round {weights.about['round']}"
    say(f"wrote {output}: {len(weights.tensors)} tensors, {count:,} numbers, {after}")


def evaluate(
    what: What, overrides: Overrides = None, uri: Uri = None, as_json: AsJson = False
) -> None:
    """Evaluate the model of a run, on its test set or, by data.KEY=VALUE, on another one."""
    from rayfl import finished

    found = finished.evaluate(what, overrides or (), uri=uri)
    if as_json:
        print(json.dumps(_as_json(found)))
    else:
        for label, value in _rows(found).items():
            say(f"{label:<15} {value}")
    say(*(f"note: {note}" for note in found.notes), stderr=True)


def clean(
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="The checkpoint.dir of the runs.")
    ] = "checkpoints",
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete it; else it is only listed.")
    ] = False,
    uri: Uri = None,
) -> None:
    """List, or delete, checkpoints that no unfinished run needs and cached images that none read lately."""
    from rayfl import finished
    from rayfl.data import cache

    found = finished.folders(directory, uri)
    listed = table("run", "state", "MB", "MB to delete")
    for folder in found:
        sizes = (f"{size / 1e6:,.1f}" for size in (folder.size, folder.freed))
        listed.add_row(escape(folder.name), folder.state, *sizes)
    if found:
        table_console().print(listed)
    if delete:
        for folder in found:
            folder.delete()
    sizes = (sum(folder.freed for folder in found), sum(folder.size for folder in found))
    say(_freed(*sizes, f"in {directory}", delete))
    if (images := cache.Usage.now()).size:
        freed = images.delete() if delete else sum(images.unused.values())
        say(_freed(freed, images.size, f"of decoded images in {images.directory}", delete))


def _freed(freed: int, whole: int, where: str, deleted: bool) -> str:
    sizes = f"{freed / 1e6:,.1f} MB of {whole / 1e6:,.1f} MB {where}"
    return f"deleted {sizes}" if deleted else f"{sizes} can go: add --delete"


def _as_json(found: "Evaluated") -> dict[str, Any]:
    return {
        "data": found.data,
        "samples": found.samples,
        "metrics": found.metrics,
        "clients": None if found.clients is None else found.clients.to_dict("list"),
        "round": found.round,
        "run_id": found.run_id,
        "config_hash": found.config_hash,
        "model_sha256": found.model_sha256,
    }


def _is_of_all(name: str) -> bool:
    """Return whether a metric is of the whole test set, and not of a class or a domain."""
    return name.startswith("test/") and name.count("/") == 1


def _rows(found: "Evaluated") -> dict[str, str]:
    """Return the lines for people, by their labels."""
    m = found.metrics
    of = f"of run {found.run_id}" if found.run_id else f"of config {found.config_hash}"
    rows = {
        "model": f"round {found.round} {of}",
        "test set": f"{found.data}, {found.samples:,} samples",
    }
    whole = {name.removeprefix("test/"): value for name, value in m.items() if _is_of_all(name)}
    first = [name for name in ("accuracy", "perplexity", "r2", "loss") if name in whole]
    for name in dict.fromkeys((*first, *whole)):
        label = f"test/{name}" if name in rows else name  # an own metric may be called `model`
        rows[label] = f"{whole[name]:.4f}"
    if "client/accuracy_mean" in m:
        rows["of the clients"] = of_clients(m)
    for kind in ("class", "domain"):
        prefix = f"test/{kind}/"
        rows |= {
            f"{kind} {name.removeprefix(prefix)}": f"{value:.4f}"
            for name, value in m.items()
            if name.startswith(prefix)
        }
    return rows
