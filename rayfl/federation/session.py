"""The loop of a run: go on from a checkpoint, run rounds, keep their metrics, write checkpoints."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from rayfl.federation.history import History
from rayfl.federation.metrics import EvaluationMetrics, Metrics, RoundMetrics
from rayfl.federation.server import Final, Server
from rayfl.storage.checkpoint import SavedCheckpoint
from rayfl.storage.checkpoint_writer import CheckpointWriter

M = TypeVar("M", bound=Metrics)


class Session:
    """A server with the history and the checkpoints of its run."""

    def __init__(
        self,
        server: Server,
        checkpoints: CheckpointWriter | None = None,
        constants: Mapping[str, float] | None = None,
    ):
        """`constants`: metrics to add to every round that is run here."""
        self.server, self.checkpoints, self.history = server, checkpoints, History()
        self._constants = dict(constants or {})

    def describe(self) -> list[dict[str, Any]]:
        """Each client process, once all of them are ready."""
        return self.server.pool.describe()

    def final(self) -> Final:
        """The result of the rounds so far."""
        return self.server.final()

    def run(self) -> Iterator[Metrics]:
        """The whole run: the rounds of the newest checkpoint, if there is one, and all others."""
        yield from self.restore()
        yield from self.rounds()
        self.conclude()

    def restore(self) -> list[RoundMetrics]:
        """Go on from the newest checkpoint, if there is one; the metrics of its rounds."""
        if self.checkpoints is not None and (saved := self.checkpoints.latest()):
            return self.go_on(saved)
        if self.server.round == 0:
            self.server.memories.restore({})  # a server that died may have left files
        return []

    def go_on(self, saved: SavedCheckpoint) -> list[RoundMetrics]:
        """Take over the state and the history of a checkpoint, which may be another run's; its metrics."""
        self.server.memories.settle()  # what is being written is of before
        if self.checkpoints is not None:
            self.checkpoints.follow(saved)
        self.server.restore(saved.snapshot())
        self.history = History()
        rounds = [RoundMetrics(*row) for row in saved.history().items()]
        if rounds and saved.manifest.config["federation.rounds"] == saved.round:
            # Maybe of a run of fewer rounds, whose last one is measured in any case.
            beginnings = self.server.not_due(saved.round)
            values = rounds[-1].values.items()
            kept = {name: v for name, v in values if not name.startswith(beginnings)}
            rounds[-1] = RoundMetrics(saved.round, kept)
        for metrics in rounds:
            self.history.add(*metrics)
        return rounds

    def rounds(self, until: int | None = None) -> Iterator[Metrics]:
        """Run the rounds up to `until` (None: all); each checkpoint that is due is written first.

        What was finished is yielded before the error of a checkpoint or an evaluation is raised.
        """
        for metrics in self.server.run(until):
            finished: list[Metrics] = [self._noted(metrics)]
            try:
                if not isinstance(metrics, RoundMetrics):
                    continue
                for measured in (self.server.diagnose(), self.server.personalise()):
                    finished += [self._noted(measured)] if measured else []
                if own := self.server.call_back(self.history.rows[metrics.round]):
                    finished.append(self._noted(own))
                if self._is_due(metrics.round):
                    finished += self.settle()
                    self.save()
            finally:
                yield from finished

    def settle(self) -> Iterator[EvaluationMetrics]:
        """Wait for the evaluations of the rounds so far."""
        return map(self._noted, self.server.settle())

    def save(self) -> None:
        """Write a checkpoint of the last round, if there is none yet."""
        if self.checkpoints is not None and self.checkpoints.round != self.server.round:
            self.checkpoints.save(self.server.snapshot(), self.history.rows)

    def conclude(self) -> None:
        """Write the last checkpoint, and delete those that a run which is done need not keep."""
        self.save()
        if self.checkpoints is not None:
            self.checkpoints.conclude()

    def _is_due(self, round: int) -> bool:
        return self.checkpoints is not None and self.checkpoints.due(round)

    def _noted(self, metrics: M) -> M:
        if isinstance(metrics, RoundMetrics):
            metrics.values.update(self._constants)
        self.history.add(*metrics)
        return metrics
