"""MLflow runs of a sweep that earlier commands have left."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from rayfl.analysis.states import State
from rayfl.tracking.store import TrackingStore

if TYPE_CHECKING:
    from mlflow.entities import Run  # rayfl.tracking must configure MLflow before its import


@dataclass(frozen=True)
class PreviousRun:
    """State of a trial's run after an earlier command."""

    run_id: str
    state: State
    reason: str
    rules: str
    """Rules that could end the trial early, as JSON."""
    value: float | None
    """Last value of the sweep's metric."""
    rounds: int

    @classmethod
    def of(cls, run: "Run", metric: str) -> Self:
        tags, metrics = run.data.tags, run.data.metrics
        return cls(
            run_id=run.info.run_id,
            state=tags.get("rayfl.state", "running"),  # type: ignore[arg-type]
            reason=tags.get("rayfl.reason", ""),
            rules=tags.get("rayfl.rules", ""),
            value=metrics.get(metric),
            rounds=int(metrics.get("rounds", 0)),
        )


def runs_of(store: TrackingStore, sweep: str, kind: str, also: str = "") -> "Iterator[Run]":
    """Yield the sweep's runs of a kind, the oldest first, and only one of each identity."""
    which = f"tags.`rayfl.sweep` = '{sweep}' and tags.`rayfl.kind` = '{kind}'{also}"
    token, seen = None, set()
    while True:
        page = store.client.search_runs(
            [store.experiment_id],
            which,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        for run in page:
            identity = run.data.tags.get("rayfl.config_hash")
            if identity not in seen:
                seen.add(identity)
                yield run
        token = page.token
        if not token:
            return
