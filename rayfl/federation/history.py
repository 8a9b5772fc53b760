"""The metrics of a run: every round as a row, and the numbers that sum it up."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from rayfl.federation import echo

if TYPE_CHECKING:
    import pandas as pd


class CompactMetrics(Mapping[str, float]):
    """The metrics of a round, in a tenth of a dictionary's memory: long runs keep many."""

    __slots__ = ("_positions", "_values")

    def __init__(self, positions: dict[str, int], values: "array[float]"):
        """`positions`: of each metric among the values; rounds with the same metrics share it."""
        self._positions, self._values = positions, values

    def __getitem__(self, metric: str) -> float:
        return self._values[self._positions[metric]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)


class History:
    """Collects records; a round's evaluation may arrive after later rounds."""

    def __init__(self) -> None:
        self._rows: dict[int, CompactMetrics] = {}
        self._positions: dict[tuple[str, ...], dict[str, int]] = {}

    def add(self, round: int, metrics: Mapping[str, float]) -> dict[str, float]:
        """Add metrics of a round; those that are new. What the round has already stays as it is."""
        row = self._rows.get(round, {})
        new = {key: value for key, value in metrics.items() if key not in row}
        names = (*row, *new)
        positions = self._positions.setdefault(names, {name: i for i, name in enumerate(names)})
        self._rows[round] = CompactMetrics(positions, array("d", [*row.values(), *new.values()]))
        return new

    @property
    def rows(self) -> Mapping[int, Mapping[str, float]]:
        """Metrics by round."""
        return self._rows

    def frame(self) -> "pd.DataFrame":
        """One row a round (index `round`), one column a metric; NaN where not evaluated."""
        import pandas as pd  # slow to import, and no actor needs it

        rows = {round: dict(row) for round, row in self._rows.items()}
        frame = pd.DataFrame.from_dict(rows, orient="index").sort_index()
        return frame.rename_axis("round")

    def summary(self, targets: Sequence[float] = ()) -> dict[str, float]:
        """Final, best and last-10 accuracy apart; costs summed over rounds; `rounds_to_<target>`; the echo.

        Accuracies, `loss_final`, `r2_final` and `perplexity_final` are the test set's, and as
        `validation_...` those of what is held out; `average_accuracy_final` is that of `evaluation.average`;
        `epsilon` is that of the last round.
        A target that was never reached has no entry, and nothing has before the first round.
        The echo (`rayfl.federation.echo`) is `accuracy_oscillation`, from 10 evaluations on,
        `accuracy_overshoot`, and, from two rounds on, `echo_reversals`.
        """
        seconds = list(self._values("time/round_s").values())
        if not seconds:
            return {}
        summary = {"rounds": float(len(seconds)), "seconds_per_round": fmean(seconds)}
        for cost in ("backward_passes", "bytes_up", "bytes_down"):
            summary[cost] = sum(self._values(f"cost/{cost}").values())
        for split, prefix in (("test", ""), ("validation", "validation_")):
            for metric in ("loss", "r2", "perplexity"):
                if values := list(self._values(f"{split}/{metric}").values()):
                    summary[f"{prefix}{metric}_final"] = values[-1]
            if evaluated := list(self._values(f"{split}/accuracy").values()):
                summary |= {
                    f"{prefix}accuracy_final": evaluated[-1],
                    f"{prefix}accuracy_best": max(evaluated),
                    f"{prefix}accuracy_last10": fmean(evaluated[-10:]),
                    f"{prefix}accuracy_overshoot": echo.overshoot(evaluated),
                }
                if (oscillation := echo.oscillation(evaluated)) is not None:
                    summary[f"{prefix}accuracy_oscillation"] = oscillation
        if averaged := list(self._values("average/accuracy").values()):
            summary["average_accuracy_final"] = averaged[-1]
        if epsilons := list(self._values("privacy/epsilon").values()):
            summary["epsilon"] = epsilons[-1]
        if cosines := list(self._values("update/cos_previous").values()):
            summary["echo_reversals"] = echo.reversals(cosines)
        accuracy = self._values("test/accuracy")
        for target in targets:
            reached = [round for round, value in accuracy.items() if value >= target]
            if reached:
                summary[f"rounds_to_{target:g}"] = float(reached[0])
        return summary

    def _values(self, metric: str) -> dict[int, float]:
        """The rounds that have this metric, ascending, with its value."""
        return {r: row[metric] for r, row in sorted(self._rows.items()) if metric in row}
