"""The configs that come with rayfl, known by name wherever it is installed.

A name is the file's path in `configs/` without its suffix, and without `sweeps/`: `quickstart`,
`rho_beta_alpha`, `paper/fedwmsam/table6`.
"""

import os
import re
from pathlib import Path

from rayfl.errors import ConfigError
from rayfl.text import nearest, shown

_PACKAGE = Path(__file__).resolve().parents[1]
_REFERENCE = re.compile(r"^( *extends|base): *(\S+\.yaml)", re.MULTILINE)


def folder() -> Path:
    """Return the directory of the configs: inside an installed package, beside it in a checkout."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def names() -> dict[str, Path]:
    """Return the file of each name. The published numbers are no configs and have none."""
    named = {_name(file): file for file in folder().rglob("*.yaml")}
    return {name: named[name] for name in sorted(named) if not name.startswith("published/")}


def find(given: str | Path, directory: Path = Path()) -> Path:
    """Return the file at a path, relative to `directory`, or else that of a name."""
    path = directory / given
    is_file = os.path.exists(path) and not os.path.isdir(path)  # no error, unlike Path's
    return path if is_file else names().get(str(given), path)


def similar(given: str | Path) -> str:
    """Return a hint at the name closest to one that is not there, or at the list of names."""
    known = names()
    words = (str(given), Path(given).stem)
    hint = next(filter(None, (nearest(word, known, cutoff=0.7) for word in words)), "")
    is_name = not Path(given).suffix
    return hint or "; `rayfl configs` lists those that come with rayfl" * is_name


def text(name: str) -> str:
    """Return a config as text that means the same in any directory; ConfigError without one."""
    file = names().get(name)
    if file is None:
        raise ConfigError(f"config {shown(name)}: there is none of this name{similar(name)}")

    def renamed(reference: re.Match[str]) -> str:
        return f"{reference[1]}: {_name((file.parent / reference[2]).resolve())}"

    return _REFERENCE.sub(renamed, file.read_text(encoding="utf-8"))


def about(file: Path) -> str:
    """Return the first comment line of a config."""
    return file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()


def _name(file: Path) -> str:
    return file.relative_to(folder()).with_suffix("").as_posix().removeprefix("sweeps/")
