"""One place says which keys make an experiment the same."""

import subprocess
import sys

from rayfl.config.identity import FREE_SECTIONS, PLACES, identity, is_identity
from rayfl.config.schema import Experiment, load_config

BASE = {"federation": {"clients": 10, "cohort": 4, "local_epochs": 1}}


def test_free_sections_and_places_change_no_hash():
    assert set(FREE_SECTIONS) < set(Experiment.model_fields)
    free = [
        "tracking.run_name=other",
        "resources.num_actors=2",
        "checkpoint.every=3",
        "evaluation.per_class=true",
        "diagnostics.every=5",
        "callbacks=[mymodule:on_round]",
        "ray.address=auto",
    ]
    assert {key.partition("=")[0].partition(".")[0] for key in free} == set(FREE_SECTIONS)
    assert load_config(BASE, free).hash == load_config(BASE).hash
    cifar = ["data.name=cifar10"]
    moved = load_config(BASE, [*cifar, "data.root=elsewhere", "data.download=true"])
    assert moved.hash == load_config(BASE, cifar).hash
    assert "data.root" in moved.flat()
    assert not set(PLACES) & set(moved.flat_identity())


def test_all_other_keys_change_it():
    one = load_config(BASE)
    for override in (
        "seed=1",
        "algorithm={name: fedsam, rho: 0.3}",
        "federation.cohort=0.4",
        "data.name=cifar10",
    ):
        assert load_config(BASE, [override]).hash != one.hash
    assert all(map(is_identity, one.flat_identity()))


def test_a_later_option_that_is_null_is_as_if_it_were_not_there():
    npz = {"data": {"name": "npz", "path": "a.npz", "layout": None}, "model": {"layout": None}}
    assert identity(npz) == {"data": {"name": "npz", "path": "a.npz"}, "model": {"layout": None}}
    none, some = (
        load_config(BASE, [f"data={{name: digits, validation: {share}}}"])
        for share in ("null", 0.1)
    )
    assert none.hash == load_config(BASE).hash != some.hash
    assert "data.validation" not in none.flat_identity()


def test_asking_for_it_imports_nothing_slow():
    code = (
        "import sys, rayfl.config.identity; "
        "print(*{'torch', 'ray', 'pydantic', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
