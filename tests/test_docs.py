"""Files and links that the pages name are there."""

import inspect
import re
from dataclasses import fields

from conftest import ROOT

from rayfl.algorithms.base import Algorithm, ClientContext, ExperimentInfo, ServerContext

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks/README.md"]


def test_files_that_the_pages_name_are_there():
    named = [
        (page.name, path)
        for page in PAGES
        for path in re.findall(
            r"`((?:rayfl|tuning|tests|configs|docs)/[\w./-]+)`", page.read_text()
        )
        if not re.search(r"[A-Z]{4}", path)  # NAME.yaml stands for any
    ]
    assert len(named) > 30
    assert [(page, path) for page, path in named if not (ROOT / path).exists()] == []


def test_links_lead_somewhere():
    links = [
        (page, target)
        for page in PAGES
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    ]
    assert len(links) > 5
    assert [str(page) for page, target in links if not (page.parent / target).exists()] == []


def test_the_map_names_each_package_and_each_module_at_its_top():
    text = (ROOT / "docs/architecture.md").read_text()
    (tree,) = re.findall(r"```\nrayfl/\n(.*?)```", text, re.DOTALL)
    found = {p.name for p in (ROOT / "rayfl").iterdir() if p.suffix == ".py" or p.is_dir()}
    named = {name.rstrip("/") for name in re.findall(r"^  (\S+)", tree, re.MULTILINE)}
    assert named == found - {"__init__.py", "__pycache__"}


def test_the_modules_that_the_page_on_the_architecture_names_are_there():
    text = (ROOT / "docs/architecture.md").read_text()
    named = re.findall(r"`([a-z_]+/(?:[a-z_]+/)?[a-z_]+\.py)`", text)
    assert len(named) > 60
    places = (ROOT, ROOT / "rayfl")
    assert [name for name in named if not any((p / name).is_file() for p in places)] == []


def test_the_interface_of_a_method_is_on_its_page():
    """Every function with its arguments, every field of both contexts, and the class variables."""
    page = (ROOT / "docs/own_method.md").read_text()
    calls = dict(re.findall(r"^\| `(\w+)\(([\w, ]+)\)` \|", page, re.MULTILINE))
    own = {name: f for name, f in vars(Algorithm).items() if inspect.isfunction(f)}
    functions = {name: f for name, f in own.items() if name[0] != "_" and name != "at"}
    arguments = {name: inspect.signature(f).parameters for name, f in functions.items()}
    assert calls == {name: ", ".join(list(of)[1:]) for name, of in arguments.items()}
    clients, server = re.findall(r"^\| on [a-z ]+, `ctx.` .*?\n\n", page, re.MULTILINE | re.DOTALL)
    for table, context in ((clients, ClientContext), (server, ServerContext)):
        assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == context._fields
    (facts,) = re.findall(r"^\| `experiment` .*", clients, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", facts)) == {
        "experiment",
        "clients",
        "mean_samples",
        *(f.name for f in fields(ExperimentInfo)),
    }
    said = {name for name in inspect.get_annotations(Algorithm) if f"`{name}`" in page}
    assert said == set(inspect.get_annotations(Algorithm))
