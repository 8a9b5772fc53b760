"""Runs that sweeps of small experiments leave in MLflow."""

from mlflow.tracking import MlflowClient


def runs(folder, kind="experiment"):
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("rayfl").experiment_id
    return client.search_runs([experiment], f"tags.`rayfl.kind` = '{kind}'")
