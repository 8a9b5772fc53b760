"""Files and links that the pages name are there."""

import re

from conftest import ROOT

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
