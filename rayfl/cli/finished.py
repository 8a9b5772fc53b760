"""The commands about runs that have ended: `rayfl export`."""

from pathlib import Path
from typing import Annotated

import typer

from rayfl.cli.analysis import Uri, check_output
from rayfl.cli.arguments import Overrides
from rayfl.cli.terminal import say, writing

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
