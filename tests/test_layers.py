"""Imports go one way. Reads them with `ast`, wherever they stand: in functions and for types too."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

# From the top to the bottom: a module imports only from layers below its own, or from its own package.
LAYERS = [
    {"cli"},
    {"progress"},
    {"experiment"},
    {"tracking"},
    {"config", "runtime", "diagnostics"},
    {"checkpoint", "training", "evaluation"},
    {"algorithms", "data", "models"},
    {"registry", "overlays", "participation", "folder"},
    {"wording"},
    {"errors", "history", "interrupts", "seeds", "store"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
SOURCES = sorted((ROOT / "rayfl").rglob("*.py"))
MAY_IMPORT_RAY = ("rayfl/runtime/", "tuning/")


def imports(path: Path) -> set[str]:
    """Dotted names of all that a file imports; `from a import b` counts as a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def component(path: Path) -> str:
    """`config` for rayfl/config.py, `runtime` for all of rayfl/runtime/."""
    return path.relative_to(ROOT / "rayfl").parts[0].removesuffix(".py")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_go_one_way(path):
    own = component(path)
    if own == "__init__":
        return  # the public names, imported when they are used
    assert own in LEVEL, f"give {name(path)} a place in LAYERS"
    used = {module.split(".")[1] for module in imports(path) if module.startswith("rayfl.")}
    upwards = {other for other in used - {own} if LEVEL[other] <= LEVEL[own]}
    assert not upwards, f"{name(path)} imports {upwards}, which it must not know"


@pytest.mark.parametrize("path", [*SOURCES, *sorted((ROOT / "tuning").rglob("*.py"))], ids=name)
def test_ray_is_imported_where_it_belongs(path):
    roots = {module.split(".")[0] for module in imports(path)}
    if not name(path).startswith(MAY_IMPORT_RAY):
        assert "ray" not in roots
    if component_of_library(path):
        assert "tuning" not in roots, "sweeps are built on experiments, not the other way round"


def component_of_library(path: Path) -> bool:
    return name(path).startswith("rayfl/") and path.name != "cli.py"


@pytest.mark.parametrize("path", [*SOURCES, *sorted((ROOT / "tuning").rglob("*.py"))], ids=name)
def test_only_the_command_prints(path):
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    printing = [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
    assert not printing or path.name == "cli.py"


def test_importing_rayfl_and_its_command_is_cheap():
    """Seconds of imports would be paid by `rayfl --help` and by every import of the library."""
    code = "import sys, rayfl, rayfl.cli; print(*{'torch', 'ray', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_public_names_are_there():
    import rayfl

    for public in rayfl.__all__:
        assert getattr(rayfl, public) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rayfl.nothing  # noqa: B018
