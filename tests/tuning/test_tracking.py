"""Outages of MLflow: writes wait, in order, and nothing is lost."""

import threading
import time

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE
from mlflow.tracking import MlflowClient

from rayfl.config.schema import load_config
from rayfl.errors import RunError
from rayfl.tracking import mlflow, outages
from rayfl.tracking.defaults import default_uri
from rayfl.tracking.mlflow import RunTracker
from rayfl.tracking.outages import BackgroundWriter, OutageError
from rayfl.tracking.store import TrackingStore


@pytest.fixture
def tracker(small, store_here, monkeypatch):
    monkeypatch.setattr(mlflow, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(mlflow, "LONGEST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(outages, "LONGEST_PAUSE_SECONDS", 0.05)
    return RunTracker(TrackingStore(None, "rayfl"), load_config(small), "digits")


@pytest.fixture
def store_is_away(monkeypatch):
    """Function that starts (True) or ends (False) an outage, in which every write fails."""
    away = threading.Event()
    for name in ("log_batch", "set_tag", "set_terminated"):
        real = getattr(MlflowClient, name)

        def write(*arguments, real=real, **named):
            if away.is_set():
                raise MlflowException("database is locked", TEMPORARILY_UNAVAILABLE)
            return real(*arguments, **named)

        monkeypatch.setattr(MlflowClient, name, write)
    return lambda is_away: away.set() if is_away else away.clear()


def client():
    return MlflowClient(default_uri())


def losses(tracker):
    history = client().get_metric_history(tracker.run_id, "train/loss")
    return {metric.step: metric.value for metric in history}


def test_metrics_wait_for_the_store_and_none_is_lost(tracker, store_is_away):
    tracker.log(1, {"train/loss": 1.0})
    store_is_away(True)
    tracker.log(2, {"train/loss": 0.5})
    tracker.log(3, {"train/loss": 0.25})
    assert losses(tracker) == {1: 1.0}
    threading.Timer(0.3, store_is_away, [False]).start()
    tracker.finish("FINISHED")
    assert losses(tracker) == {1: 1.0, 2: 0.5, 3: 0.25}
    assert client().get_run(tracker.run_id).info.status == "FINISHED"


def test_a_store_that_stays_away_is_an_error_in_the_end(tracker, store_is_away, monkeypatch):
    monkeypatch.setattr(outages, "PATIENCE_SECONDS", 0.2)
    store_is_away(True)
    tracker.log(1, {"train/loss": 1.0})
    with pytest.raises(OutageError, match=r"MLflow has been away .*database is locked"):
        tracker.finish("FINISHED")


def test_a_refusal_is_an_error_at_once(tracker):
    with pytest.raises(MlflowException) as error:
        tracker.tag("x" * 1000, "a key that MLflow does not take")
    assert not outages.is_outage(error.value)
    assert error.value.error_code == "INVALID_PARAMETER_VALUE"


def test_the_writer_makes_calls_in_order_across_an_outage(monkeypatch):
    monkeypatch.setattr(outages, "LONGEST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(outages, "PATIENCE_SECONDS", 0.1)  # it is longer than that
    until, made = time.monotonic() + 0.5, []

    def call(i):
        if time.monotonic() < until:
            raise MlflowException("no connection", TEMPORARILY_UNAVAILABLE)
        made.append(i)

    writer = BackgroundWriter("http://nowhere")
    for i in range(5):
        writer.put(lambda i=i: call(i))
    time.sleep(until - time.monotonic())
    writer.close()
    assert made == list(range(5))


def test_the_writer_hands_on_what_is_no_outage():
    def refuse():
        raise MlflowException("no such run", INVALID_PARAMETER_VALUE)

    writer = BackgroundWriter("http://nowhere")
    writer.put(refuse)
    with pytest.raises(RunError, match=r"MLflow at http://nowhere: no such run"):
        writer.close()
