"""Which MLflow store holds the records, and how MLflow is to behave.

Import this before mlflow (which takes seconds, and is therefore imported where it is used).
"""

import os
from pathlib import Path

# Usage data are the user's to give, and a machine without a network must not wait for them.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A tracking server that is not there must be an error within seconds, not minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
# It prints a link at the end of each run, and stdout is for results.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


def default_uri() -> str:
    """The sqlite file in the working directory, as an absolute address."""
    return f"sqlite:///{Path.cwd() / 'mlflow.db'}"
