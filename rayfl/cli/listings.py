"""The commands that list what there is: algorithms, datasets, partitions, models, configs, a partition."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rayfl.cli.arguments import ConfigFile, Overrides, load
from rayfl.cli.terminal import (
    console,
    say,
    table,
    table_console,
    terminal_width,
    write_utf8,
    writing,
)
from rayfl.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rayfl.data.datasets import Dataset
    from rayfl.data.partition import Partition
    from rayfl.data.picture import Shown


_NARROWEST = 80  # columns in which a description has room beside a name


def algorithms() -> None:
    """List the algorithms with their papers and hyper-parameters."""
    from rayfl.algorithms import ALGORITHMS

    _list_registry("algorithm", ALGORITHMS, lambda cls: cls.paper)


def datasets() -> None:
    """List the data sources with their options."""
    from rayfl.data.sources import SOURCES

    _list_registry("data", SOURCES, _first_doc_line)


def partitions() -> None:
    """List the partition schemes with their options."""
    from rayfl.data.schemes import SCHEMES

    _list_registry("partition", SCHEMES, _first_doc_line)


def models() -> None:
    """List the models with their options."""
    from rayfl.models import MODELS

    _list_registry("model", MODELS, _first_doc_line)


def partition(
    config: ConfigFile,
    overrides: Overrides = None,
    plot: Annotated[Path | None, typer.Option(help="Write a heatmap here (.png or .svg).")] = None,
) -> None:
    """Show the samples of each client by label."""
    from rayfl.data.federated import federate
    from rayfl.data.picture import heatmap, shown

    if plot is not None and plot.suffix.lower() not in (".png", ".svg"):
        raise ConfigError(f"--plot = '{plot}': must end in .png or .svg")
    c = load(config, overrides)
    data, parts = federate(
        c.data.load(),
        c.partition,
        c.heterogeneity,
        c.federation.clients,
        c.seed,
        c.data.validation,
    )
    seen, sizes = shown(data, parts), parts.sizes
    table_console().print(_partition_table(data, parts, seen))
    lines = [
        *data.read,
        f"{len(sizes)} clients, {sizes.sum()} samples, {sizes.min()} to {sizes.max()} each; "
        f"digest {parts.digest()[:16]}",
    ]
    if len(parts.validation):
        lines.append(f"{len(parts.validation)} more samples are held out to validate with")
    if len(seen.clients) < len(sizes):
        lines.append(f"{len(seen.clients)} clients are shown, evenly spaced among all")
    if plot is not None:
        with writing("--plot", plot):
            heatmap(seen.histogram, seen.categories, plot, len(sizes))
        lines.append(f"wrote {plot}")
    say(*lines)


def configs(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Print this one, as a file of your own.")
    ] = None,
) -> None:
    """List the configs that come with rayfl, or print one of them."""
    from rayfl.config import layers, shipped

    if name is not None:
        write_utf8()
        print(shipped.text(name), end="")
        return
    listed = table("name", "for", "")
    for column in listed.columns[:2]:
        column.no_wrap = True
    for known, file in shipped.names().items():
        kind = "sweep" if "space" in layers.read(file, {}) else "run"
        listed.add_row(known, f"rayfl {kind}", escape(shipped.about(file)))
    width = terminal_width()
    table_console(width and max(width, _NARROWEST)).print(listed)


def _partition_table(data: "Dataset", parts: "Partition", seen: "Shown") -> Table:
    from rayfl.text import brief

    groups = _groups_held(data, parts, seen.clients)
    names = (brief(name) for name in seen.categories)
    table = Table(header_style="bold")
    for column in ("client", *(["group"] if groups else []), "samples", "classes", *names):
        table.add_column(Text(column), justify="right")  # no string: rich reads [these] as styles
    for place, (client, counts) in enumerate(zip(seen.clients, seen.histogram, strict=True)):
        cells = [str(count) if count else "·" for count in counts]
        held = [*groups[place : place + 1], str(counts.sum()), str((counts > 0).sum())]
        table.add_row(*(Text(cell) for cell in (str(client), *held, *cells)))
    return table


def _groups_held(data: "Dataset", parts: "Partition", clients: "NDArray[Any]") -> list[str]:
    """Return each of these clients' writer or domain, or their number; nothing if the data know none."""
    if data.group_train is None:
        return []
    held = [set(data.group_train[parts.client(i)]) for i in clients]
    return [data.groups[min(one)] if len(one) == 1 else f"{len(one)} groups" for one in held]


def _list_registry(section: str, registry: dict[str, Any], describe: Any) -> None:
    from rayfl.config.installed import offered
    from rayfl.config.own import named_function

    out = console()
    listed: dict[tuple[Any, ...], str] = {}
    paths = offered(section, frozenset(registry))
    for name in sorted([*registry, *paths]):
        try:
            cls: Any = registry.get(name) or named_function(paths[name], f"{section}.name")
        except ConfigError as error:  # of the package that offers it
            out.print(f"[bold]{name}[/]  {escape(str(error))}")
            continue
        out.print(f"[bold]{name}[/]  {escape(describe(cls))}")
        options = tuple(_options(cls))
        if len(options) > 3 and options in listed:
            out.print(f"    the options of {listed[options]}")
            continue
        listed[options] = name
        for key, default, text in options:
            out.print(f"    {section}.{key} = {escape(default)}  [dim]{escape(text)}[/]")


def _options(cls: type) -> Iterator[tuple[str, str, str]]:
    """Yield name, default and description of each option of a config dataclass; a factory's are not known."""
    from rayfl.config.messages import allowed, keys_of, schema_of

    schema = schema_of(cls)
    for field in dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ():
        option = schema["properties"][field.name]
        inner = {f"{field.name}.{key}": value for key, value in keys_of(option, schema).items()}
        for key, value in {field.name: option, **inner}.items():
            default = json.dumps(value["default"]) if "default" in value else "(required)"
            words = [value.get("description", ""), allowed(value, schema)]
            yield key, default, "; ".join(filter(None, words))


def _first_doc_line(cls: type) -> str:
    return next(iter((cls.__doc__ or "").strip().splitlines()), "")
