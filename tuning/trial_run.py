"""A trial as MLflow has it when a sweep begins."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from rayfl.analysis.states import State
from rayfl.provenance import ANSWERED_TAG, CODE_TAG, DATA_TAG

if TYPE_CHECKING:
    from mlflow.entities import Run


@dataclass(frozen=True)
class TrialRun:
    """MLflow run of a trial, as it was left."""

    state: State
    reason: str
    rounds: int
    value: float | None
    """Last value of the sweep's metric."""
    run_id: str
    model_sha256: str | None
    """SHA-256 of the final w."""
    rules: str
    """Rules that could end the trial early, as JSON."""
    identity: tuple[str, str, str]
    """The identity of its `PlannedTrial`; empty digests in runs of earlier versions."""
    answered: int
    """Time of its start, or when a sweep last answered with it, in milliseconds since 1970."""
    summary: dict[str, float]
    """Numbers of the whole run, and the last accuracies of its domains."""

    @classmethod
    def of(cls, run: "Run", metric: str) -> Self:
        tags, metrics = run.data.tags, run.data.metrics
        return cls(
            state=tags.get("rayfl.state", "running"),  # type: ignore[arg-type]
            reason=tags.get("rayfl.reason", ""),
            rounds=int(metrics.get("rounds", 0)),
            value=metrics.get(metric),
            run_id=run.info.run_id,
            model_sha256=tags.get("rayfl.model_sha256"),
            rules=tags.get("rayfl.rules", ""),
            identity=(tags["rayfl.config_hash"], tags.get(DATA_TAG, ""), tags.get(CODE_TAG, "")),
            answered=max(run.info.start_time, int(tags.get(ANSWERED_TAG, 0))),
            summary={
                k: v for k, v in metrics.items() if "/" not in k or k.startswith("test/domain")
            },
        )
