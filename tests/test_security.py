"""No file runs code because it was read."""

import ast

import pytest
from conftest import ROOT, each

from rayfl.config.schema import load_config
from rayfl.errors import ConfigError

SOURCES = {
    str(path.relative_to(ROOT)): path
    for package in ("rayfl", "tuning")
    for path in sorted((ROOT / package).rglob("*.py"))
}
LOADERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "yaml"}
# These follow a config's own `package.module:Name`, the package's lazy names, and a list of searchers.
MAY_IMPORT = {
    *("rayfl/config/choice.py", "rayfl/config/named.py", "rayfl/config/learning_rates.py"),
    "rayfl/config/own.py",
    "rayfl/__init__.py",
    "tuning/searchers.py",
}
# A model on its way between the processes of one run, which Ray would pickle too; it is never a file.
MAY_UNPICKLE = {"rayfl/training/travel.py"}


@pytest.mark.parametrize(
    "tag",
    [
        '!!python/object/apply:os.system ["touch {}"]',
        '!!python/object/new:os.system ["touch {}"]',
        '!!python/object/apply:subprocess.check_output [["touch", "{}"]]',
    ],
)
def test_a_python_tag_is_refused_and_does_nothing(tag, tmp_path):
    touched = tmp_path / "touched"
    value = tag.format(touched)
    config = tmp_path / "config.yaml"
    config.write_text(f"seed: {value}\nfederation: {{cohort: 5, local_epochs: 1}}\n")
    with pytest.raises(ConfigError, match=r"config\.yaml'.* is not valid YAML .*tag"):
        load_config(config)
    config.write_text("federation: {cohort: 5, local_epochs: 1}\n")
    with pytest.raises(ConfigError, match=r"seed"):
        load_config(config, [f"seed={value}"])
    assert not touched.exists()


@each(path=SOURCES)
def test_nothing_that_is_read_can_run_code(path):
    name = str(path.relative_to(ROOT))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names]
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else modules
            loaders = LOADERS & {module.split(".")[0] for module in modules}
            assert not loaders or name in MAY_UNPICKLE, ast.unparse(node)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert called not in {"eval", "exec"}, ast.unparse(node)
            assert called != "torch.load" or given.get("weights_only") == "True", ast.unparse(node)
            assert given.get("allow_pickle", "False") == "False", ast.unparse(node)
            if called.split(".")[-1] == "YAML":
                assert given.get("typ", "'safe'") == "'safe'", ast.unparse(node)
            if called.split(".")[-1] in {"import_path", "import_module", "__import__"}:
                assert name in MAY_IMPORT, ast.unparse(node)
