"""A picture of a partition: who holds how many samples of which class."""

from os import PathLike
from typing import BinaryIO, NamedTuple

import numpy as np

from rayfl.data.datasets import Dataset
from rayfl.data.partition import Partition
from rayfl.text import brief, unset

MOST_CLIENTS = (
    1000  # that are shown: a picture has 1,500 pixels, and a table's reader less patience
)
_MOST_CATEGORIES = 1000  # as many as make sense beside so many clients
_MAX_NUMBERED = 12  # clients up to which there is room for the number in every cell
_MAX_NAMED = 30  # classes up to which there is room for the name of every class


class Shown(NamedTuple):
    """Samples of each category at each client that is shown."""

    clients: np.ndarray
    """Ids of all clients, or of `MOST_CLIENTS` that are evenly spaced, `[M]`."""
    categories: tuple[str, ...]
    """Classes, or groups where there are no classes; of many groups `all` together."""
    histogram: np.ndarray
    """Counts, `[M, C]`."""


def shown(data: Dataset, partition: Partition) -> Shown:
    """Count what is shown of a partition, in a time and a size that grow with no number of clients."""
    clients = len(partition.offsets) - 1
    ids = np.linspace(0, clients - 1, min(clients, MOST_CLIENTS)).astype(np.int64)
    of_sample, categories = data.categories()
    if len(categories) > _MOST_CATEGORIES and data.kind != "classes":
        of_sample, categories = np.zeros_like(of_sample), ("all",)
    return Shown(ids, categories, partition.histogram(of_sample, len(categories), ids))


def heatmap(
    histogram: np.ndarray,
    classes: tuple[str, ...],
    path: str | PathLike[str] | BinaryIO,
    clients: int | None = None,
) -> None:
    """Draw the counts [M, C] of clients x classes, and the client sizes above them.

    `clients`: N, where the M are evenly spaced among so many. The suffix of `path` selects the format, .png
    or .svg; a stream gets .png.
    """
    # The object interface draws off screen and leaves pyplot's global state alone.
    from matplotlib.figure import Figure

    clients = clients or len(histogram)
    rows = 0.28 * min(len(classes), _MAX_NAMED)  # inches
    figure = Figure(figsize=(10, 1.7 + rows), dpi=150, layout="constrained")
    sizes, cells = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (0.7, rows)})
    edges = np.linspace(-0.5, clients - 0.5, len(histogram) + 1)
    sizes.stairs(histogram.sum(axis=1), edges, fill=True, color="0.7")
    sizes.set(ylabel="samples", ylim=(0, None))
    sizes.spines[["top", "right"]].set_visible(False)

    counts = np.ma.masked_equal(histogram.T, 0)  # [C, N]; no sample at all stays white
    extent = (-0.5, clients - 0.5, len(classes) - 0.5, -0.5)
    image = cells.imshow(
        counts, aspect="auto", cmap="viridis_r", interpolation="nearest", vmin=0, extent=extent
    )
    some = f", {len(histogram):,} of {clients:,}" if len(histogram) < clients else ""
    cells.set(xlabel=f"client{some}", ylabel="class", xlim=(-0.5, clients - 0.5))
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
