"""Presets: every file gives experiments, the published numbers are the papers', the comparison adds up."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT
from mlflow.tracking import MlflowClient
from PIL import Image
from typer.testing import CliRunner

from rayfl.algorithms import ALGORITHMS
from rayfl.cli.main import app
from rayfl.config import layers, shipped
from rayfl.data.schemes import ByGroup
from rayfl.errors import ConfigError
from rayfl.models.mlp import MLP
from rayfl.models.resnet import ResNet18, ResNet34, ResNet50
from tuning.config import load_sweep
from tuning.papers import compare, presets
from tuning.plan import PlannedTrial, trials
from tuning.space import points
from tuning.sweep import TrialResult, run

RAYFL = Path(sys.executable).parent / "rayfl"
EVERY = [(name, scale) for name in presets.names() for scale in presets.scales(name)]
# Reduces a preset to trials of seconds.
TINY = ["base.federation.rounds=2", "base.federation.clients=20", "seeds=[20,0]"]
TINY += ["base.federation.local_epochs=1", "space.algorithm.rho.grid=[0.01,0.5]"]


load = cache(presets.load)


def row(point, seed, state="finished", **summary):
    trial = PlannedTrial(point, seed, f"{point}{seed}", None)
    summary = {name: float(value) for name, value in summary.items()}
    return TrialResult(state, "", 3, None, "", None, "", ("", "", ""), 0, summary, trial, None)


def preset_of(values, space, metric="best", scale="full"):
    """A preset with these published values over these axes of table 6's base."""
    found = load("fedwmsam/table6", scale)
    sweep = found.sweep.model_dump(mode="json") | {"space": space}
    numbers = {"about": "a", "source": "s", "metric": metric, "values": values}
    return presets.Preset(
        found.name,
        scale,
        type(found.sweep).model_validate_json(json.dumps(sweep), strict=True),
        presets.Published.model_validate(numbers),
    )


@pytest.mark.parametrize(
    ("name", "scale"),
    [pytest.param(*one, marks=[] if one[1] == "full" else pytest.mark.slow) for one in EVERY],
)
def test_every_preset_gives_experiments_and_each_number_is_about_one(name, scale):
    preset = load(name, scale)
    planned = trials(preset.sweep, points(preset.sweep.space, None, 0))
    assert [t.problem for t in planned if t.problem] == []
    count, rounds, updates = presets.size(preset.sweep)
    assert count == len(planned)
    assert rounds == max(t.experiment.federation.rounds for t in planned)
    assert updates == sum(
        t.experiment.federation.rounds * t.experiment.federation.cohort_size for t in planned
    )
    everywhere = [t.point for t in planned if t.seed == preset.sweep.seeds[0]]
    seen = set()
    for value in preset.published.values:
        about = [repr(point) for point in everywhere if value.covers(point)]
        lists = [v for v in value.at.values() if isinstance(v, list)]
        # FedWMSAM's method is one of two in each preset: its own, or the released code's.
        other = "fedwmsam" if scale == "released" else "fedwmsam_released"
        own = [v for v in lists[0] if v != other] if lists else [None]
        assert len(about) == len(own), value.at
        metric = value.metric or preset.published.metric
        assert not seen & {(point, metric) for point in about}, f"{value.at} twice"
        seen |= {(point, metric) for point in about}
        if metric.startswith("rounds_to_"):
            targets = planned[0].experiment.tracking.targets
            assert float(metric.removeprefix("rounds_to_")) in targets


def test_the_names_of_sweeps_are_their_own():
    """They name directories and MLflow runs."""
    found = [load(name, scale).sweep.name for name, scale in EVERY]
    assert len(set(found)) == len(found) == len(EVERY)


def test_small_differs_from_full_in_name_and_base_alone():
    for name in presets.names():
        if "small" in presets.scales(name):
            small = load(name, "small").sweep
            full = load(name, "full").sweep
            same = {"name", "base"}
            assert small.model_dump(exclude=same) == full.model_dump(exclude=same)
            assert {"augment": "none"} | small.base["data"] == {"name": "digits", "augment": "none"}


def test_released_differs_from_full_in_name_base_and_algorithms_alone():
    for name in presets.names():
        if "released" in presets.scales(name):
            of_scale = [load(name, scale).sweep for scale in ("full", "released")]
            full, released = (s.model_dump_json(exclude={"name", "base"}) for s in of_scale)
            assert full.replace('"fedwmsam"', '"fedwmsam_released"') == released


def test_every_sweep_and_number_belongs_to_a_preset():
    files = {
        str(path.relative_to(shipped.folder() / folder).with_suffix(""))
        for folder in ("paper", "small", "released")
        for path in (shipped.folder() / folder).rglob("*.yaml")
        if not path.stem.startswith("base")
    }
    assert files == set(presets.names())


def test_a_preset_is_a_file_of_rayfl_sweep():
    preset = load("fedwmsam/table6", "small")
    assert preset.sweep == load_sweep(ROOT / "configs/small/fedwmsam/table6.yaml")


@pytest.mark.parametrize(
    ("name", "at", "value"),
    [
        ("table1_cifar10", {"algorithm.name": "fedwmsam", "partition.alpha": 0.1}, 0.7664),
        ("table1_cifar10", {"algorithm.name": "fedcm", "partition.classes_per_client": 3}, 0.7025),
        (
            "table1_cifar100",
            {"algorithm.name": "fedgamma", "partition.classes_per_client": 10},
            0.0198,
        ),
        ("table1_cifar100", {"algorithm.name": "fedlesam_s", "partition.alpha": 0.6}, 0.4260),
        (
            "table1_fmnist",
            {"algorithm.name": "scaffold", "partition.classes_per_client": 6},
            0.8785,
        ),
        ("table3", {"algorithm.name": "mofedsam"}, 97),
        ("table3", {"algorithm.name": "fedlesam_d"}, 149),
        ("table4", {"algorithm.name": "fedsmoo", "federation.local_epochs": 1}, 0.7888),
        (
            "table5",
            {"algorithm.control_variates": True, "algorithm.rho": 0, "algorithm.adaptive": False},
            0.7478,
        ),
        (
            "table5",
            {"algorithm.control_variates": False, "algorithm.rho": 0, "algorithm.adaptive": True},
            None,
        ),
        ("table6", {"algorithm.name": "mofedsam", "algorithm.rho": 0.5}, 0.1),
        ("table6", {"algorithm.name": "fedavg"}, 0.7005),
        ("fig6_clients", {"algorithm.name": "mofedsam", "federation.clients": 20}, 0.216),
        (
            "fig6_participation",
            {"algorithm.name": "fedavg", "federation.cohort": 0.4},
            0.747,
        ),
    ],
)
def test_published_numbers_are_the_paper_s(name, at, value):
    values = load(f"fedwmsam/{name}", "full").published.values
    assert [v.value for v in values if v.covers(at)][:1] == ([value] if value else [])


def test_published_numbers_of_domains_and_of_what_was_not_reached():
    values = load("fedwmsam/table2", "full").published.values
    scaffold = {v.metric: v.value for v in values if v.covers({"algorithm.name": "scaffold"})}
    assert scaffold == {
        "test/domain/Art": 0.9934,
        "test/domain/Clipart": 0.9610,
        "test/domain/Product": 0.9745,
        "test/domain/Real World": 0.9749,
    }
    values = load("fedwmsam/table9", "full").published.values
    assert [v.value for v in values] == [None] * 4 + [356, 382]


def test_the_paper_s_setting_is_the_paper_s():
    e = load("fedwmsam/table6", "full").sweep.experiment({"algorithm.name": "fedwmsam"}, 20)
    f = e.federation
    assert (f.clients, f.participation, f.rounds, f.local_epochs) == (100, 0.1, 500, 5)
    assert (f.batch_size, f.lr, f.lr_decay, f.weight_decay, f.clip_norm) == (
        50,
        0.1,
        0.998,
        1e-3,
        10,
    )
    assert load("fedwmsam/table6", "full").sweep.seeds == (20, 0, 10)


TEXTS_RHO = {"mofedsam": 0.1, "fedsmoo": 0.1} | dict.fromkeys(
    ["fedsam", "fedgamma", "fedlesam", "fedlesam_s", "fedlesam_d", "fedwmsam"], 0.01
)


@pytest.mark.parametrize(("name", "scale"), [e for e in EVERY if e[0].startswith("fedwmsam/")])
def test_rho_is_that_of_the_text_or_of_the_released_scripts(name, scale):
    sweep = load(name, scale).sweep
    for point in points(sweep.space, None, 0):
        method = sweep.experiment(point, 0).algorithm
        rho = getattr(method, "rho", None)
        if rho is None or name in ("fedwmsam/table5", "fedwmsam/table6"):  # their own axis
            continue
        (given,) = (n for n, known in ALGORITHMS.items() if type(method) is known)
        assert rho == (0.1 if scale == "released" else TEXTS_RHO[given])


@pytest.mark.parametrize(
    ("name", "model", "released"),
    [
        ("table1_fmnist", MLP(), None),
        ("table1_cifar10", ResNet18(), ResNet18()),
        ("table1_cifar100", ResNet34(), ResNet18()),
        ("table2", ResNet50(), None),
    ],
)
def test_models_are_those_of_the_text_or_of_the_released_scripts(name, model, released):
    for scale, expected in (("full", model), ("released", released)):
        if expected is None:
            assert scale not in presets.scales(f"fedwmsam/{name}")
            continue
        sweep = load(f"fedwmsam/{name}", scale).sweep
        found = {sweep.experiment(point, 0).model for point in points(sweep.space, None, 0)}
        assert found == {expected}


def test_a_domain_is_a_client_and_all_take_part():
    sweep = load("fedwmsam/table2", "full").sweep
    e = sweep.experiment({"algorithm.name": "fedwmsam"}, 20)
    assert (e.federation.clients, e.federation.cohort_size, e.partition) == (4, 4, ByGroup())
    assert (e.data.test_fraction, e.federation.rounds, e.federation.local_epochs) == (0.9, 500, 5)


def test_what_a_preset_follows_is_said():
    for scale, words in (("full", "Section 5.1"), ("released", "not the text"), ("small", "5.1")):
        said = compare.setting(load("fedwmsam/table3", scale), ["seeds=[1]"])
        assert said[0].startswith("published: FedWMSAM")
        assert any(s.startswith(f"scale {scale}: follows ") and words in s for s in said)
        assert "with seeds=[1]: not the preset's own setting" in said
        assert ("cannot be run" in " ".join(said)) == (scale != "released")
    assert len(compare.setting(load("fednsam/log", "full"))) == 1 + len(
        load("fednsam/log", "full").published.notes
    )


def test_a_plan_without_its_data_says_what_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["reproduce", "fedwmsam/table2", "--scale", "full", "--plan"])
    assert "note: needs the images of OfficeHome" in done.output
    assert "data/OfficeHomeDataset_10072016 is not a directory" in str(done.exception)


def test_presets_keep_the_papers_protocol():
    """The papers hold nothing out and choose by the test set; their numbers are to be compared with."""
    for name in presets.names():
        for scale in presets.scales(name):
            sweep = load(name, scale).sweep
            (first, *_) = points(sweep.space, None, 0)
            assert sweep.metric.startswith("test/")
            assert sweep.experiment(first, 0).data.validation is None


def test_the_comparison_is_what_a_hand_computes():
    """Ours .5 .7 and .6 .6 against .7 and .8, one failure, one point of ours alone, one absent."""
    a, b, c = ({"algorithm.rho": rho} for rho in (0.1, 0.2, 0.3))
    values = [{"at": a, "value": 0.7}, {"at": b, "value": 0.8, "note": "x"}]
    values += [{"at": {"algorithm.rho": 0.9}, "value": 0.1}]
    preset = preset_of(values, {"algorithm.rho": {"grid": [0.1, 0.2, 0.3]}})
    rows = [row(a, 0, accuracy_best=0.5), row(a, 1, accuracy_best=0.7)]
    rows += [row(b, 0, accuracy_best=0.59), row(b, 1, "failed", accuracy_best=0.99)]
    rows += [row(c, 0, "infeasible"), row(c, 1, "stopped_early", accuracy_best=0.9)]
    comparison = compare.compare(preset, rows)
    first, second, third = comparison.lines
    assert (first.published, first.ours.n, first.seeds, first.states) == (0.7, 2, 2, "")
    assert first.ours.mean == pytest.approx(0.6)
    assert first.ours.std == pytest.approx(0.02**0.5)
    assert first.difference == pytest.approx(-0.1)
    assert (second.ours.mean, second.ours.n, second.states) == (0.59, 1, "1 failed")
    assert math.isnan(second.ours.std)
    assert (third.point, third.published, third.ours.n) == (c, None, 0)
    assert math.isnan(third.ours.mean)
    assert third.states == "1 stopped early, 1 infeasible"
    # Published .7 < .8, ours .6 > .59: the opposite order.
    assert comparison.agreement == (compare.Agreement("best", -1.0, 2),)
    table = compare.table(comparison)
    assert table.header == ("algorithm.rho", "published", "ours", "n", "rounds", "difference", "")
    assert table.rows[0] == ("0.1", "0.7000", "0.6000 ± 0.1414", "2/2", "3", "-0.1000", "")
    assert table.rows[1] == ("0.2", "0.8000", "0.5900", "1/2", "3", "-0.2100", "1 failed; x")
    assert table.rows[2] == ("0.3", "–", "–", "0/2", "–", "–", "1 stopped early, 1 infeasible")
    assert compare.frame(comparison)["difference"].round(6).tolist()[:2] == [-0.1, -0.21]

    # At another scale a difference of levels means nothing.
    small = compare.compare(replace(preset, scale="small"), rows)
    assert compare.table(small).header == ("algorithm.rho", "published", "ours", "n", "rounds", "")
    assert compare.table(small).rows[1] == ("0.2", "0.8000", "0.5900", "1/2", "3", "1 failed; x")
    assert "difference" not in compare.frame(small)
    assert small.agreement == comparison.agreement


def test_rank_agreement_is_within_a_task_with_ties_as_in_tau_b():
    """Published 1 2 3 4, ours 1 3 2 2 (x .1): 3 concordant, 2 discordant, 1 tie: 1 / sqrt(6 * 5)."""
    names, ours = ["fedavg", "fedcm", "fedsam", "scaffold"], [0.1, 0.3, 0.2, 0.2]
    space = {"algorithm.name": {"grid": names}, "partition.alpha": {"grid": [0.1, 0.6]}}
    values, rows = [], []
    for alpha, level in ((0.1, 0.0), (0.6, 0.5)):
        for i, name in enumerate(names):
            point = {"algorithm.name": name, "partition.alpha": alpha}
            values.append({"at": point, "value": 0.1 * (i + 1) - level})
            mine = ours[i] if alpha == 0.1 else 0.4
            rows.append(row(point, 0, accuracy_best=mine + level))
    agreement = compare.compare(preset_of(values, space), rows).agreement
    assert [(a.of, a.pairs) for a in agreement] == [
        ("best partition.alpha=0.1", 4),
        ("best partition.alpha=0.6", 4),
    ]
    assert agreement[0].tau == pytest.approx(1 / 30**0.5)
    assert agreement[1].tau is None  # ours is constant


def test_numbers_of_domains_have_tables_of_their_own():
    """Ours .5 and .7 in one domain, .8 and .6 in the other: a best for each."""
    names, domains = ["fedavg", "fedcm"], ["test/domain/Art", "test/domain/Real World"]
    values = [
        {"at": {"algorithm.name": name}, "value": 0.9, "metric": domain}
        for name in names
        for domain in domains
    ]
    space = {"algorithm.name": {"grid": names}}
    rows = [
        row({"algorithm.name": name}, 0, accuracy_best=0.1, **dict(zip(domains, ours, strict=True)))
        for name, ours in zip(names, [(0.5, 0.8), (0.7, 0.6)], strict=True)
    ]
    found = compare.compare(preset_of(values, space, domains[0]), rows)
    assert [line.ours.mean for line in found.lines] == [0.5, 0.8, 0.7, 0.6]
    assert [line.metric for line in found.lines] == domains * 2
    assert found.best == (1, 2)


def test_the_best_of_several_and_what_was_not_reached():
    at = {"algorithm.name": ["fedlesam", "fedlesam_s"]}
    space = {"algorithm.name": {"grid": at["algorithm.name"]}}
    rows = [
        row({"algorithm.name": n}, 0, accuracy_best=b)
        for n, b in (("fedlesam", 0.4), ("fedlesam_s", 0.5))
    ]
    (line,) = compare.compare(preset_of([{"at": at, "value": 0.6}], space), rows).lines
    assert (line.point, line.ours.mean) == ({"algorithm.name": "fedlesam_s"}, 0.5)

    # A point that always gets there is better than one that is faster with some seeds.
    rows = [
        row({"algorithm.name": "fedlesam"}, 0, accuracy_best=0.8, **{"rounds_to_0.7": 15}),
        row({"algorithm.name": "fedlesam"}, 1, accuracy_best=0.6),
        row({"algorithm.name": "fedlesam_s"}, 0, accuracy_best=0.8, **{"rounds_to_0.7": 20}),
    ]
    values = [{"at": at, "value": 25}, {"at": {"algorithm.name": "fedlesam"}, "value": None}]
    best, not_reached = compare.compare(preset_of(values, space, "rounds_to_0.7"), rows).lines
    assert (best.ours.mean, best.difference) == (20, -5)
    assert (not_reached.ours.mean, not_reached.ours.n, not_reached.states) == (
        15,
        1,
        "1 not reached",
    )
    assert not_reached.difference is None


def test_only_keeps_the_values_that_a_filter_selects():
    def of(only):
        return presets.load("fedwmsam/table6", "small", only=only).sweep

    assert len(list(points(of("algorithm.name=fedwmsam").space, None, 0))) == 5
    assert list(points(of("fedwmsam and algorithm.rho<=0.01").space, None, 0)) == [
        {"algorithm.name": "fedwmsam", "algorithm.rho": rho} for rho in (0.005, 0.01)
    ]
    assert list(points(of("fedavg").space, None, 0)) == [{"algorithm.name": "fedavg"}]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"name": "fedwmsam/table66"},
            "preset 'fedwmsam/table66': .*did you mean 'fedwmsam/table6'",
        ),
        ({"name": "../published/fedwmsam/table6"}, "there is none"),
        ({"name": "seeds=[0]"}, "'seeds=\\[0\\]': the preset's name comes first"),
        ({"name": "fedwmsam/table1_fmnist"}, "--scale = small: .* only the scale full"),
        (
            {"only": "algorithm.nam=fedavg"},
            "--only: algorithm.nam is no grid axis .*algorithm.name",
        ),
        ({"only": "fedavgg"}, "--only = 'fedavgg': selects no value of algorithm.name: fedavg, "),
        ({"only": "algorithm.name"}, "filter"),
        ({"overrides": ["base.federation.round=3"]}, None),
        ({"overrides": ["spac.algorithm.rho.grid=[1]"]}, "spac"),
    ],
)
def test_what_cannot_be_is_one_clear_line(given, message):
    arguments = {"name": "fedwmsam/table6"} | given
    if message is None:  # found when the points are resolved
        sweep = presets.load(**arguments).sweep
        (problem,) = {t.problem for t in trials(sweep, points(sweep.space, None, 0))}
        assert "federation.round" in problem
        assert "federation.rounds" in problem
        return
    with pytest.raises(ConfigError, match=message):
        presets.load(**arguments)


def test_without_its_configs_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(shipped, "folder", lambda: tmp_path / "configs")
    with pytest.raises(ConfigError, match=r"no directory .*/published"):
        presets.load("fedwmsam/table6")


def test_a_broken_published_file_is_one_clear_line(monkeypatch, tmp_path):
    for folder in ("published", "small"):
        (tmp_path / folder).mkdir()
    (tmp_path / "published/x.yaml").write_text("about: a\nsource: s\nmetric: best\nvalus: []\n")
    base = layers.read(ROOT / "configs/small/fedwmsam/base.yaml", {})
    content = {"base": base, "space": {"algorithm.rho": {"grid": [0.1]}}}
    (tmp_path / "small/x.yaml").write_text(json.dumps(content))
    monkeypatch.setattr(shipped, "folder", lambda: tmp_path)
    with pytest.raises(ConfigError, match=r"x\.yaml: valus = .*did you mean 'values'"):
        presets.load("x")


def test_the_list_of_presets():
    done = CliRunner().invoke(app, ["reproduce"])
    assert done.exit_code == 0
    for name in presets.names():
        assert name in done.stdout


@pytest.mark.slow
def test_a_preset_runs_once_and_is_compared(ray_session, tmp_path, store_here):
    """With real actors; the second call runs nothing and gives the same lines."""
    preset = presets.load("fedwmsam/table6", "small", TINY, "algorithm.name=fedwmsam")
    started = []

    def on_update(update):
        if update.state == "running" and update.rounds == 0:
            started.append(update.trial.hash)

    result = run(preset.sweep, on_update=on_update)
    comparison = compare.compare(preset, result.rows)
    assert len(started) == 4
    again = compare.compare(preset, run(preset.sweep, on_update=on_update).rows)
    assert len(started) == 4
    assert again == comparison

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    known = {0.01: 0.7664, 0.5: 0.5905}
    assert [line.point["algorithm.rho"] for line in comparison.lines] == [0.01, 0.5]
    for line in comparison.lines:
        best = [
            client.get_run(row.run_id).data.metrics["accuracy_best"]
            for row in result.rows
            if row.trial.point == line.point
        ]
        assert line.published == known[line.point["algorithm.rho"]]
        assert line.ours.mean == pytest.approx(sum(best) / 2)
        assert (line.ours.n, line.seeds) == (2, 2)
    assert any("not comparable" in remark for remark in compare.remarks(comparison))


@pytest.mark.long
def test_a_preset_on_domains_runs(ray_session, tmp_path, store_here):
    """The domains of OfficeHome as published, with two classes of plain colours and a tiny network."""
    for d, domain in enumerate(("Art", "Clipart", "Product", "Real World")):
        for k, label in enumerate(("Bed", "Mug")):
            (folder := tmp_path / "office" / domain / label).mkdir(parents=True)
            for i in range(20):
                colour = (60 * d, 200 * k, 10 * i)
                Image.new("RGB", (8, 8), colour).save(folder / f"{i:05}.png")
    overrides = [
        "base.data.path=office",
        "base.data.size=8",
        "base.federation.rounds=2",
        "seeds=[1]",
    ]
    overrides += ["base.model.name=mlp", "base.model.hidden=[4]"]
    preset = presets.load("fedwmsam/table2", "full", overrides, "algorithm.name=fedsmoo")
    found = compare.compare(preset, run(preset.sweep).rows)
    domains = [f"test/domain/{domain}" for domain in ("Art", "Clipart", "Product", "Real World")]
    assert [line.metric for line in found.lines] == domains
    assert [line.published for line in found.lines] == [0.9868, 0.9563, 0.9753, 0.9629]
    assert [line.ours.n for line in found.lines] == [1] * 4
    assert found.lines[0].point == {"algorithm.name": "fedsmoo", "algorithm.rho": 0.1}


@pytest.mark.slow
def test_the_command_prints_json_alone_on_stdout_and_fails_with_its_trials(tmp_path):
    """seconds of training: one algorithm at two values of rho, of which one cannot be."""
    overrides = ["base.federation.rounds=2", "seeds=[20]", "space.algorithm.rho.grid=[0.01,-1]"]
    command = [RAYFL, "reproduce", "fedwmsam/table6", *overrides, "--format", "json"]
    command += ["--only", "algorithm.name=fedwmsam"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    good, bad = json.loads(done.stdout)
    assert (good["published"], good["n"]) == (0.7664, 1)
    assert (bad["mean"], bad["n"], bad["states"]) == (None, 0, "1 infeasible")
    assert "not the preset's own setting" in done.stderr
    assert "Kendall" not in done.stderr  # one pair has no order
