"""A picture of a partition: who holds how many samples of which class."""

from os import PathLike
from typing import BinaryIO

import numpy as np

from rayfl.text import brief, unset

_MAX_NUMBERED = 12  # clients up to which there is room for the number in every cell
_MAX_NAMED = 30  # classes up to which there is room for the name of every class


def heatmap(
    histogram: np.ndarray, classes: tuple[str, ...], path: str | PathLike[str] | BinaryIO
) -> None:
    """Draw the counts [N, C] of clients x classes, and the client sizes above them.

    The suffix of `path` selects the format, .png or .svg; a stream gets .png.
    """
    # The object interface draws off screen and leaves pyplot's global state alone.
    from matplotlib.figure import Figure

    clients = len(histogram)
    rows = 0.28 * min(len(classes), _MAX_NAMED)  # inches
    figure = Figure(figsize=(10, 1.7 + rows), dpi=150, layout="constrained")
    sizes, cells = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (0.7, rows)})
    sizes.stairs(histogram.sum(axis=1), np.arange(clients + 1) - 0.5, fill=True, color="0.7")
    sizes.set(ylabel="samples", ylim=(0, None))
    sizes.spines[["top", "right"]].set_visible(False)

    counts = np.ma.masked_equal(histogram.T, 0)  # [C, N]; no sample at all stays white
    image = cells.imshow(counts, aspect="auto", cmap="viridis_r", interpolation="nearest", vmin=0)
    cells.set(xlabel="client", ylabel="class", xlim=(-0.5, clients - 0.5))
    cells.xaxis.get_major_locator().set_params(integer=True, nbins=min(clients, _MAX_NUMBERED))
    named = np.arange(0, len(classes), -(-len(classes) // _MAX_NAMED))
    cells.set_yticks(named, [unset(brief(classes[k])) for k in named])
    figure.colorbar(image, ax=cells, label="samples", pad=0.01)
    if clients <= _MAX_NUMBERED and len(classes) <= _MAX_NAMED:
        for (k, client), count in np.ndenumerate(histogram.T):
            shade = "white" if count > histogram.max() / 2 else "black"
            if count:
                cells.text(client, k, str(count), ha="center", va="center", color=shade, size=8)
    figure.savefig(path)
