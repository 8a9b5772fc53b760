"""Measurements of runs by `rayfl flatness`, for the report: means by point, and the pictures in MLflow."""

import contextlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from rayfl.analysis.aggregate import summarize
from rayfl.analysis.store import of_sweep, open_store, sweeps_own_runs
from rayfl.analysis.tables import Table, table_of

FOLDER = "flatness"
"""Folder of the artifacts of a run, or of a sweep, that has its pictures."""
_SHOWN = re.compile(
    r"flatness/(loss|gap_[\d.e-]+|lambda1|trace|scale_free/lambda1|clients/lambda1_end|"
    r"distance/discrepancy|alignment/gradient|variance/ratio)"
)
_MOST_RUNS = 4  # outside sweeps, whose pictures are shown


class Picture(NamedTuple):
    """A picture as it was kept."""

    title: str
    png: bytes
    where: str
    """Artifact that it is."""


def table_of_measured(runs: pd.DataFrame, by: Sequence[str], name: str) -> Table | None:
    """The metric `name` beside the last values of what was measured; None if nothing was."""
    done = runs.loc[runs["state"] == "finished"]
    metrics = [c for c in done if _SHOWN.fullmatch(str(c)) and done[c].notna().any()]
    return table_of(summarize(runs, by, [name, *metrics])) if metrics else None


def pictures(runs: pd.DataFrame, uri: str | None) -> Iterator[Picture]:
    """The pictures of the sweeps of these runs, and of those outside sweeps that were measured."""
    measured = [c for c in runs if str(c).startswith("flatness/")]
    if not measured:
        return
    from mlflow.exceptions import MlflowException

    client, _ = open_store(uri)
    found = runs.loc[runs[measured].notna().any(axis=1)]
    sweeps = list(dict.fromkeys(found["sweep"].dropna()))
    alone = found.loc[found["sweep"].isna(), "run_id"]
    of_runs = [(str(i), str(i)) for i in alone[:_MOST_RUNS]]
    of_sweeps = [
        (run.info.run_id, name)
        for name in sweeps
        for run in sweeps_own_runs(client, of_sweep(name))
    ]
    for run_id, what in (*of_sweeps, *of_runs):
        with contextlib.suppress(MlflowException, OSError):  # the page does without
            for file in client.list_artifacts(run_id, FOLDER):
                if file.path.endswith(".png"):
                    with tempfile.TemporaryDirectory() as folder:
                        path = client.download_artifacts(run_id, file.path, folder)
                        title = f"{Path(file.path).stem.replace('-', ' ').capitalize()} of {what}"
                        where = f"{file.path} of MLflow run {run_id}"
                        yield Picture(title, Path(path).read_bytes(), where)
