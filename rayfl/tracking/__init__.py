"""Tracking with MLflow, and the settings of MLflow itself."""

import os

# MLflow reads these when it is imported, which every module here does after this one.
# Only the user may allow usage data; and a machine without a network must not wait for their upload.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# An unavailable tracking server must be an error within seconds, not minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
# MLflow prints a link at the end of each run, but stdout is for results.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
