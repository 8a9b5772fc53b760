"""Sweep files: overrides follow the file's keys, and what is wrong is one line."""

import pytest

from rayfl.cli.sweep_plan import describe
from rayfl.config import layers
from rayfl.errors import ConfigError
from rayfl.inputs import Inputs
from rayfl.runtime.placement import Placement
from tuning.config import load_sweep
from tuning.plan import SweepPlan, resolve, trials
from tuning.space import points

SWEEP = """
base: base.yaml
space:
  algorithm.rho: {grid: [0.05, 0.1]}
seeds: [0, 1]
"""
BASE = """
algorithm: {name: fedsam}
federation: {cohort: 2, clients: 4, local_steps: 1, rounds: 2}
"""


@pytest.fixture
def load(tmp_path):
    """Loads the sweep file above with overrides."""
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "rho.yaml").write_text(SWEEP)
    return lambda *overrides: load_sweep(tmp_path / "rho.yaml", overrides)


def test_base_is_relative_to_the_sweep_and_the_name_is_the_file_s(load):
    sweep = load()
    assert sweep.name == "rho"
    experiment = sweep.experiment({"algorithm.rho": 0.1}, seed=1)
    assert (experiment.algorithm.rho, experiment.seed) == (0.1, 1)
    assert experiment.federation.rounds == 2


@pytest.mark.parametrize(
    ("key", "there"),
    [
        ("data.root", "base.data.root"),
        ("algorithm.rho", "space.algorithm.rho"),  # an axis
        ("algorithm.rho_max", "base.algorithm.rho_max"),
        ("seed", "base.seed"),
        ("federation", "base.federation"),
        ("base.federation.lr", "base.federation.lr"),  # keys of the sweep itself
        ("metric", "metric"),
        ("", ""),
    ],
)
def test_keys_of_experiments_are_named_as_in_the_sweep(load, key, there):
    assert load().key(key) == there


def test_only_keys_are_renamed_in_an_error(load):
    error = ConfigError(
        "cannot read data.root in data.root.npz",
        *("data.path", "/a/data.root"),
        hint="set data.download=true",
        keys=("data.download",),
    )
    assert str(error.rekeyed(load().key)) == (
        "base.data.path = '/a/data.root': cannot read data.root in data.root.npz; "
        "set base.data.download=true"
    )


def test_an_old_key_is_refused_with_its_new_name(load):
    with pytest.raises(
        ConfigError, match=r"^space\.federation\.dropout.* is now called .*client_dropout"
    ):
        load("space.federation.dropout.grid=[0,0.2]")
    sweep = load("base.federation.dropout=0.2")
    problem = resolve(sweep, {"algorithm.rho": 0.1}, 0).problem
    assert str(problem).startswith("base.federation.dropout = 0.2: is now called ")
    assert str(problem).endswith("; write base.federation.client_dropout=0.2")


def test_overrides_follow_the_file_s_keys(load):
    sweep = load(
        "space.algorithm.rho.uniform=[0,1]",
        "space.federation.lr.grid=[0.1]",
        "base.federation.rounds=7",
        "base.algorithm.name=mofedsam",
        "search={name: random, num_samples: 3}",
        "scheduler=asha",
        "scheduler.grace_period=2",
        "stop.rounds=5",
        "seeds=[3]",
    )
    assert sweep.space["algorithm.rho"].kind == "uniform"
    assert list(sweep.space) == ["algorithm.rho", "federation.lr"]
    assert sweep.search.num_samples == 3
    assert sweep.scheduler.grace_period == 2
    assert sweep.stop.rounds == 5
    assert sweep.seeds == (3,)
    experiment = sweep.experiment({"algorithm.rho": 0.3}, 3)
    assert (experiment.algorithm_name, experiment.federation.rounds) == ("mofedsam", 7)


def test_points_are_chosen_by_what_is_held_out_if_anything_is(load):
    named = "base.data.name=digits"
    assert load(named).metric == "test/accuracy"
    assert load(named, "base.data.validation=null").metric == "test/accuracy"
    held_out = named, "base.data.validation=0.1"
    assert load(*held_out).metric == "validation/accuracy"
    assert load(*held_out, "metric=test/loss").metric == "test/loss"
    assert load(named, "space.data.validation.grid=[0.1,0.2]").metric == "validation/accuracy"


def test_a_metric_of_samples_that_nobody_holds_out_is_one_line(load):
    sweep = load("metric=validation/loss", "base.data.name=digits")
    assert resolve(sweep, {"algorithm.rho": 0.1}, 0).problem == (
        "metric = 'validation/loss': is of samples that are held out, and base.data.validation holds out "
        "none; set base.data.validation=0.1, or metric=test/accuracy"
    )


def test_noise_is_an_axis_and_epsilon_in_the_plan(load):
    private = "base.privacy={clip: 1.0, noise: 1.0}"
    sweep = load(private, "space.privacy.noise.grid=[0.5,2]")
    planned = [resolve(sweep, {"privacy.noise": z, "algorithm.rho": 0.1}, 0) for z in (0.5, 2.0)]
    assert [t.config.privacy.noise for t in planned] == [0.5, 2.0]
    assert planned[0].hash != planned[1].hash
    less, more = (t.config.privacy.epsilons(t.config.federation)[-1] for t in planned)
    plan = SweepPlan(
        sweep, tuple(planned), 2, Inputs(), Placement(actors=1, cpus=1, gpus=0, nodes=1), 2, None
    )
    words = f"epsilon of a client after all rounds: {more:.3g} to {less:.3g}"
    assert words in describe(plan).splitlines()


def test_no_epsilon_counts_the_models_that_pbt_takes_over(load):
    pbt = "scheduler={name: pbt, mutate: [algorithm.rho]}"
    sweep = load(pbt, "base.privacy={clip: 1.0, noise: 1.0}")
    assert resolve(sweep, {"algorithm.rho": 0.1}, 0).problem == (
        "scheduler.name = 'pbt': a trial goes on with the model of another one, which no epsilon counts; "
        "choose asha, median or none under privacy"
    )


def test_checkpoints_that_are_kept_must_be_written(load):
    sweep = load("keep_checkpoints=true", "base.checkpoint.every=null")
    assert resolve(sweep, {"algorithm.rho": 0.1}, 0).problem == (
        "base.checkpoint.every = null: must be a number or auto, or keep_checkpoints false"
    )
    assert resolve(load("base.checkpoint.every=null"), {"algorithm.rho": 0.1}, 0).problem is None


def test_models_go_to_mlflow_with_kept_checkpoints_unless_the_base_says_otherwise(load):
    asked = {"null": None, "true": True, "false": False}
    for text, value in asked.items():
        for keeps in (False, True):
            sweep = load(f"keep_checkpoints={keeps}", f"base.tracking.log_model={text}")
            trial = resolve(sweep, {"algorithm.rho": 0.1}, 0)
            assert sweep.logs_model(trial.config) is (keeps if value is None else value)
    sweep = load("base.tracking.log_model=true", "base.checkpoint.every=null")
    assert resolve(sweep, {"algorithm.rho": 0.1}, 0).problem == (
        "base.checkpoint.every = null: the model of a trial comes to MLflow from where its checkpoints are; "
        "set it to auto, or base.tracking.log_model to null"
    )


def test_a_sweep_is_a_sweep_file_again(load, tmp_path):
    sweep = load("scheduler=asha", "stop.plateau.rounds=3")
    (tmp_path / "again.yaml").write_text(sweep.to_yaml())
    assert load_sweep(tmp_path / "again.yaml") == sweep


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sede=[1]", r"sede = \[1\]: unknown key \(did you mean 'seeds'\?\)"),
        (
            "space.algorithm.rho.gird=[1]",
            r"space.algorithm.rho.gird = \[1\]: unknown key .*rho.grid'",
        ),
        ("space.algorithm.rho.uniform=[1,0]", r"space.algorithm.rho: uniform = .*ascending"),
        ("space.algorithm.rho.loguniform=[0,1]", r"space.algorithm.rho: .*above 0"),
        ("space.algorithm.rho.integers=[1,3]", r"space.algorithm.rho.integers: is drawn at random"),
        ("search=random", r"search.num_samples: is missing"),
        ("search={name: random, num_samples: 2}", r"no axis of the space is drawn"),
        ("search={name: optuna, num_samples: 2}", r"space.algorithm.rho.grid: .*draws every axis"),
        ("scheduler=asah", r"scheduler.name = 'asah': unknown name \(did you mean 'asha'\?\)"),
        ("scheduler={name: asha, grace: 3}", r"scheduler.grace = 3: unknown key"),
        ("scheduler={name: pbt, mutate: [algorithm.rh]}", r"did you mean 'algorithm.rho'\?"),
        ("stop.accuracy=2", r"stop.accuracy = 2: must be null or a number greater than 0"),
        ("seeds=[1,1]", r"seeds = \[1, 1\]: must be different"),
        ("name=a/b", r"name = 'a/b'"),
        ("max_concurrent=0", r"max_concurrent = 0: must be null or an integer greater than 0"),
    ],
)
def test_what_is_wrong_is_one_line(load, override, message):
    with pytest.raises(ConfigError, match=message) as error:
        load(override)
    assert "\n" not in str(error.value)


def test_an_axis_that_only_some_methods_have_says_how_it_is_limited(load):
    """Limited so, the others have one point each."""
    methods = "space.algorithm.name.grid=[fedavg,fedsam,fednsam]"
    sweep = load(methods)
    problem = resolve(sweep, {"algorithm.name": "fedavg", "algorithm.rho": 0.1}, 0).problem
    limit = "when: {algorithm.name: [fedsam, fednsam]}"
    assert str(problem).startswith("space.algorithm.rho = 0.1: unknown key")
    assert str(problem).endswith(f"; limit this axis to others by {limit}")
    assert resolve(sweep, {"algorithm.name": "fedsam", "algorithm.rho": 0.1}, 0).problem is None
    limited = load(methods, f"space.algorithm.rho.{limit.replace(': ', '=', 1)}")
    planned = trials(limited, points(limited.space, None, 0))
    assert len(planned) == (1 + 2 + 2) * 2
    assert [trial.problem for trial in planned if trial.problem] == []


def test_a_missing_package_says_how_to_get_it(load, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'rayfl\[optuna\]'"):
        load("search={name: optuna, num_samples: 2}", "space.algorithm.rho.uniform=[0,1]")


def test_another_name_keeps_what_it_shares_in_axes_overrides_and_bases(load, caplog):
    layers.say_once.cache_clear()
    names = "space.algorithm.name.grid=[fedavg, fednsam, fedwmsam]"
    sweep = load("base.algorithm={name: fedsam, rho: 0.3}", names)
    rhos = [
        sweep.experiment({"algorithm.name": name}, seed=0).flat().get("algorithm.rho")
        for name in ("fedavg", "fednsam", "fedwmsam", "fednsam", "fedavg")
    ]
    assert rhos == [None, 0.3, 0.3, 0.3, None]
    assert [record.message for record in caplog.records] == [  # each once, however many points
        "algorithm.name = 'fedavg', not 'fedsam': drops rho = 0.3",
        "algorithm.name = 'fednsam', not 'fedsam': keeps rho = 0.3",
        "algorithm.name = 'fedwmsam', not 'fedsam': keeps rho = 0.3",
    ]


def test_overrides_of_a_sweep_s_own_names_keep_what_they_share(tmp_path, caplog):
    layers.say_once.cache_clear()
    (tmp_path / "base.yaml").write_text(BASE)
    drawn = SWEEP.replace("grid", "uniform")
    (tmp_path / "s.yaml").write_text(drawn + "search: {name: random, num_samples: 7, seed: 3}\n")
    sweep = load_sweep(tmp_path / "s.yaml", ["search=optuna"])
    assert sweep.search.num_samples == 7
    kept = "search.name = 'optuna', not 'random': keeps num_samples = 7, seed = 3"
    assert caplog.messages == [kept]
    load_sweep(tmp_path / "s.yaml", ["search=grid", "space.algorithm.rho.grid=[0.1]"])
    dropped = "search.name = 'grid', not 'random': drops num_samples = 7, seed = 3"
    assert caplog.messages == [kept, dropped]


def test_an_average_that_there_is_not_is_one_line(load):
    sweep = load("metric=average/accuracy", "base.data.name=digits")
    assert resolve(sweep, {"algorithm.rho": 0.1}, 0).problem == (
        "metric = 'average/accuracy': is of an average of the global models, and there is none; set "
        "base.evaluation.average.last=10, say"
    )
    sweep = load(
        "metric=average/accuracy", "base.data.name=digits", "base.evaluation.average.last=2"
    )
    assert resolve(sweep, {"algorithm.rho": 0.1}, 0).problem is None
    assert sweep.mode == "max"


def test_a_flatness_that_nobody_measures_is_one_line(load):
    sweep = load("metric=flatness/lambda1", "base.data.name=digits")
    assert resolve(sweep, {"algorithm.rho": 0.1}, 0).problem == (
        "metric = 'flatness/lambda1': is measured in no round, for base.diagnostics.every is not set; set "
        "base.diagnostics.every, and what it belongs to in base.diagnostics.measures"
    )
    measured = load(
        *("metric=flatness/gap_0.05", "base.diagnostics.every=3", "base.federation.rounds=12"),
        "scheduler={name: asha, grace_period: 4, reduction_factor: 2}",
    )
    assert resolve(measured, {"algorithm.rho": 0.1}, 0).problem == (
        "base.diagnostics.every = 3: the scheduler decides at round 4, which must be measured; let it divide "
        "that number"
    )


def test_a_loss_and_a_flatness_are_better_where_they_are_lower(load):
    named = "base.data.name=digits"
    assert load(named).mode == "max"
    assert load(named, "base.data.validation=0.1").mode == "max"
    assert load(named, "metric=test/loss").mode == "min"
    assert load(named, "metric=flatness/lambda1", "base.diagnostics.every=1").mode == "min"
    assert load(named, "metric=test/loss", "mode=max").mode == "max"
