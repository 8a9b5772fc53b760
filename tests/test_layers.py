"""Imports go one way. Reads them with `ast`, wherever they stand: in functions and for types too."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, each

# From the top to the bottom: a module imports only from layers below its own, or from its own package.
LAYERS = [
    {"cli"},
    {"tuning"},
    {"finished"},
    {"diagnostics"},
    {"experiment", "analysis"},
    {"launch", "inputs", "resume", "result"},
    {"prepare", "tracking", "weights"},
    {"prepared"},
    {"workload", "own_parts"},
    {"runtime", "config"},
    {"warm_start"},
    {"federation"},
    {"training"},
    {"storage", "data", "models"},
    {"flatness"},
    {"algorithms"},
    {"errors"},
    {"seeds", "text", "provenance", "kernels"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
SOURCES = {
    str(path.relative_to(ROOT)): path
    for package in ("rayfl", "tuning")
    for path in sorted((ROOT / package).rglob("*.py"))
}
MAY_IMPORT_RAY = ("rayfl/runtime/", "tuning/")


def imports(tree: ast.Module) -> set[str]:
    """Dotted names of all that a file imports; `from a import b` counts as a.b."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def component(module: str) -> str:
    """`prepare` for rayfl.prepare, `runtime` for all of rayfl.runtime, `tuning` for all of tuning."""
    package, _, rest = module.partition(".")
    return package if package == "tuning" else rest.split(".")[0]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@each(path=SOURCES)
def test_imports_go_one_way_and_only_the_command_prints(path):
    tree = ast.parse(path.read_text())
    imported = imports(tree)
    if not name(path).startswith(MAY_IMPORT_RAY):
        assert "ray" not in {module.split(".")[0] for module in imported}
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    if not name(path).startswith("rayfl/cli/"):
        assert "print" not in {call.id for call in calls if isinstance(call, ast.Name)}
    own = component(name(path).removesuffix(".py").replace("/", "."))
    if own == "__init__":
        return  # the public names, imported when they are used
    assert own in LEVEL, f"give {name(path)} a place in LAYERS"
    used = {component(module) for module in imported if module.startswith(("rayfl.", "tuning"))}
    upwards = {other for other in used - {own} if LEVEL[other] <= LEVEL[own]}
    assert not upwards, f"{name(path)} imports {upwards}, which it must not know"


def test_importing_rayfl_and_its_command_is_cheap():
    """Seconds of imports would be paid by `rayfl --help` and by every import of the library."""
    code = (
        "import sys, rayfl, rayfl.cli.main; print(*{'torch', 'ray', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_public_names_are_there():
    import rayfl

    for public in rayfl.__all__:
        assert getattr(rayfl, public) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        rayfl.nothing  # noqa: B018
