"""The files for `ray up`: valid for Ray, nothing at rest but the head, nothing public, nothing secret."""

import json
import re
import tomllib
from pathlib import Path

import jsonschema
import pytest
import ray
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ruamel.yaml import YAML

CLOUD = [ROOT / "cluster.yaml", ROOT / "clusters/gcp.yaml"]
FILES = [*CLOUD, ROOT / "clusters/onprem.yaml"]
SCRIPTS = sorted((ROOT / "clusters").glob("*.sh"))
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())

every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
every_cloud = pytest.mark.parametrize("path", CLOUD, ids=lambda path: path.name)


def load(path):
    return YAML(typ="safe").load(path)


@every_file
def test_ray_accepts_the_file(path):
    config = load(path)
    if config["provider"]["type"] == "local":
        # Of such clusters alone, and Ray takes it out before it looks at the schema.
        assert config.pop("min_workers") == len(config["provider"]["worker_ips"])
    jsonschema.validate(config, SCHEMA)
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minute"):
        jsonschema.validate(config | {"idle_timeout_minute": 5}, SCHEMA)


@every_cloud
def test_only_the_head_costs_at_rest(path):
    config = load(path)
    head, *workers = sorted(
        config["available_node_types"].items(), key=lambda kind: kind[0] != config["head_node_type"]
    )
    assert head[0] == config["head_node_type"]
    assert head[1]["resources"]["CPU"] == 0  # whatever fits nowhere else makes a worker come
    assert [kind["min_workers"] for _, kind in workers] == [0, 0]
    assert sum(kind["max_workers"] for _, kind in workers) == config["max_workers"]
    assert 0 < config["idle_timeout_minutes"] <= 10
    # So that `ray down` leaves no disk to pay for.
    assert config["provider"]["cache_stopped_nodes"] is False
    spot = {name: "spot" in str(kind["node_config"]).lower() for name, kind in (head, *workers)}
    assert spot == {"head": False, "gpu": True, "cpu": True}


@every_file
def test_what_is_mounted_is_there_and_is_code(path):
    mounts = load(path)["file_mounts"]
    assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
    for remote, local in mounts.items():
        assert (ROOT / local).exists(), local
        assert remote == f"~/rayfl/{local}"
    built_from = {"pyproject.toml", "README.md", "rayfl", "tuning"}
    assert set(mounts.values()) == built_from | {"configs", "clusters"}


@every_file
def test_the_commands_are_the_same_everywhere_and_their_scripts_exist(path):
    config, first = load(path), load(FILES[0])
    for key in ("file_mounts", "rsync_exclude", "rsync_filter", "setup_commands"):
        assert config[key] == first[key]
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert config[key] == first[key]
    named = re.findall(r"~/rayfl/(\S+\.sh)", path.read_text())
    assert {ROOT / name for name in named} == set(SCRIPTS)


@pytest.mark.parametrize("path", [*FILES, *SCRIPTS], ids=lambda path: path.name)
def test_nothing_is_public_and_nothing_is_secret(path):
    text = path.read_text()
    addresses = re.findall(r"(?:-host[= ]|\baddress=)(\S+)", text)
    assert set(addresses) <= {"127.0.0.1", '"$address"', "$RAY_HEAD_IP:6379"}
    assert "0.0.0.0" not in text
    secret = r"\bAKIA[0-9A-Z]{16}\b|PRIVATE KEY|(?i:secret|password)|[0-9a-f]{40}"
    assert not re.search(secret, text)


def test_the_clusters_ray_is_one_that_the_project_accepts():
    """One pin, in one place; any other mention of a Ray version would be a second one."""
    (pin,) = re.findall(r"^ray='(.*)'$", (ROOT / "clusters/setup.sh").read_text(), re.MULTILINE)
    (specifier,) = Requirement(pin).specifier
    assert specifier.operator == "~="
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ranges = [Requirement(line) for line in project["dependencies"]]
    allowed: SpecifierSet = next(line.specifier for line in ranges if line.name == "ray")
    assert allowed.contains(specifier.version)
    assert not any(re.search(r"\bray(\[\w+\])?[~=]=", path.read_text()) for path in FILES)
