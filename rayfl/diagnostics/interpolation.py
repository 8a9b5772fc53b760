"""The loss along the straight line from one run's w to another's.

Goodfellow, Vinyals and Saxe, "Qualitatively characterizing neural network optimization problems", ICLR 2015,
arXiv:1412.6544; the barrier is that of Frankle et al., "Linear Mode Connectivity and the Lottery Ticket
Hypothesis", ICML 2020, arXiv:1912.05671: the largest rise above the straight line between both ends.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from rayfl.analysis.plots import DPI
from rayfl.analysis.tables import Table
from rayfl.diagnostics.measuring import check
from rayfl.diagnostics.subjects import LAST, Subject, find
from rayfl.errors import ConfigError
from rayfl.flatness.question import Question, Split
from rayfl.launch import in_this_process, on_cluster
from rayfl.prepare import prepare
from rayfl.training.flat import sha256

POSITIONS = np.linspace(-0.5, 1.5, 41)
"""0: the run; 1: the other one."""
AT_ONCE = 8


@dataclass(frozen=True)
class Interpolation:
    """The answer."""

    ends: tuple[str, str]
    """Names of both runs."""
    frame: pd.DataFrame
    """`position`, and the loss on each split."""
    barriers: dict[Split, float]
    run_id: str | None
    """MLflow run that keeps it; None: none does."""

    def table(self) -> Table:
        """Every fifth position."""
        rows = [
            tuple(f"{value:.4g}" for value in row)
            for row in self.frame.iloc[::5].itertuples(index=False)
        ]
        return Table(tuple(map(str, self.frame.columns)), tuple(rows))

    def picture(self) -> Figure:
        """Both losses against the position."""
        figure = Figure(figsize=(6, 3.6), dpi=DPI, layout="constrained")
        axes = figure.subplots()
        for split, colour in (("train", "tab:blue"), ("test", "tab:orange")):
            if split in self.frame:
                axes.plot(self.frame["position"], self.frame[split], color=colour, label=split)
        for place, name in enumerate(self.ends):
            axes.axvline(place, color="0.6", lw=0.8, ls=":")
            axes.annotate(
                name, (place, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom"
            )
        axes.set(xlabel="position on the line", ylabel="loss")
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        return figure


def interpolate(
    what: str,
    towards: str,
    overrides: Sequence[str] = (),
    *,
    splits: Sequence[Split] = ("train", "test"),
    samples: int = 2048,
    uri: str | None = None,
    local: bool = False,
    on_start: Callable[[Subject, Any], None] = lambda subject, placement: None,
    on_work: Callable[[float], None] = lambda share: None,
) -> Interpolation:
    """The loss of `what`'s experiment along the line from its last w to that of `towards`.

    Both are named as for `flatness`; also raises ConfigError if they are of different models. It is kept in
    the MLflow run of `what`, and not computed again.
    """
    check(Question(splits=tuple(splits), samples=samples))
    here, there = (find(name, [LAST], overrides, uri) for name in (what, towards))
    states = [subject.checkpoints[-1].snapshot() for subject in (here, there)]
    models = [subject.config.model_dump(mode="json")["model"] for subject in (here, there)]
    ends = [torch.from_numpy(np.array(state.tensors["w"])) for state in states]
    if models[0] != models[1] or len(ends[0]) != len(ends[1]):
        raise ConfigError(
            f"--towards = '{towards}': has the model {models[1]}, and '{what}' {models[0]}; a line is "
            "between two w of one model"
        )
    if len(states[0].tensors["buffers"]):
        raise ConfigError(
            "--towards: the model has running statistics (BatchNorm), which belong to no w on the way"
        )
    key = {
        "measure": "interpolation",
        "round": states[0].round,
        "split": "+".join(splits),
        "samples": samples,
        "ends": [sha256(w) for w in ends],
    }
    record = here.records.read(key) if here.records else None
    if record is None:
        record = _measured(here, states[0], ends, splits, samples, local, on_start, on_work)
    else:
        on_work(1.0)
    names = _names(here, there)
    frame = pd.DataFrame({"position": POSITIONS, **record["losses"]})
    barriers: dict[Split, float] = {s: _barrier(record["losses"][s]) for s in splits}
    run_id = here.records.run_id if here.records else None
    found = Interpolation(names, frame, barriers, run_id)
    if here.records is not None and "metrics" not in record:
        metrics = {
            f"flatness/{'' if s == 'train' else 'test/'}barrier": v for s, v in barriers.items()
        }
        here.records.write(key, record | {"metrics": metrics})
        here.records.draw({f"interpolation-{key['ends'][1][:8]}": found.picture()})
    return found


def _measured(
    here: Subject,
    state: Any,
    ends: list[torch.Tensor],
    splits: Sequence[Split],
    samples: int,
    local: bool,
    on_start: Callable[[Subject, Any], None],
    on_work: Callable[[float], None],
) -> dict[str, Any]:
    """The losses of each split."""
    prepared = prepare(here.trained)
    prepared.check_provenance(here.checkpoints[-1])
    direction = (ends[1] - ends[0])[None]
    parts = torch.from_numpy(POSITIONS)[:, None].split(AT_ONCE)
    losses: dict[str, list[float]] = {}
    measurer = prepared.measurer(Question(samples=samples))
    with (in_this_process if local else on_cluster)(prepared) as place, place.pool() as pool:
        on_start(here, place.placement)
        for number, split in enumerate(splits):
            objective = measurer.objective(pool, state, split)
            losses[split] = []
            for i, part in enumerate(parts):
                losses[split] += objective.losses(part, direction).tolist()
                on_work((number + (i + 1) / len(parts)) / len(splits))
    return {"losses": losses}


def _barrier(losses: Sequence[float]) -> float:
    inside = (POSITIONS >= 0) & (POSITIONS <= 1)
    values, t = np.asarray(losses)[inside], POSITIONS[inside]
    return float(np.max(values - ((1 - t) * values[0] + t * values[-1])))


def _names(here: Subject, there: Subject) -> tuple[str, str]:
    """Names that tell both apart: the algorithm, and the seed where it is the same one."""
    names = [subject.config.algorithm_name for subject in (here, there)]
    if names[0] == names[1]:
        names = [f"{n}, seed {s.config.seed}" for n, s in zip(names, (here, there), strict=True)]
    return names[0], names[1]
