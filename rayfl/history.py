"""The metrics of a run: every round as a row, and the numbers that sum it up."""

from collections.abc import Mapping, Sequence

import pandas as pd


class History:
    """Collects records; a round's evaluation may arrive after later rounds."""

    def __init__(self) -> None:
        self._rows: dict[int, dict[str, float]] = {}

    def add(self, round: int, metrics: Mapping[str, float]) -> None:
        self._rows.setdefault(round, {}).update(metrics)

    def frame(self) -> pd.DataFrame:
        """One row a round (index `round`), one column a metric; NaN where a round was not evaluated."""
        frame = pd.DataFrame.from_dict(self._rows, orient="index").sort_index()
        return frame.rename_axis("round")

    def summary(self, targets: Sequence[float] = ()) -> dict[str, float]:
        """Final, best and last-10 accuracy apart; costs summed over all rounds; `rounds_to_<target>`.

        A target that was never reached has no entry.
        """
        frame = self.frame()
        if "train/loss" not in frame:
            return {}
        rounds = frame["time/round_s"].dropna()
        summary = {
            "rounds": float(len(rounds)),
            "seconds_per_round": float(rounds.mean()),
            "backward_passes": float(frame["cost/backward_passes"].sum()),
            "bytes_up": float(frame["cost/bytes_up"].sum()),
            "bytes_down": float(frame["cost/bytes_down"].sum()),
        }
        if "test/accuracy" in frame:
            accuracy = frame["test/accuracy"].dropna()
            summary |= {
                "accuracy_final": float(accuracy.iloc[-1]),
                "accuracy_best": float(accuracy.max()),
                "accuracy_last10": float(accuracy.tail(10).mean()),
                "loss_final": float(frame["test/loss"].dropna().iloc[-1]),
            }
            for target in targets:
                reached = accuracy.index[accuracy >= target]
                if len(reached):
                    summary[f"rounds_to_{target:g}"] = float(reached[0])
        return summary
