"""Which MLflow store holds the records, and how MLflow is to behave.

Import this before mlflow (which takes seconds, and is therefore imported where it is used).
"""

import os
from pathlib import Path
from urllib.parse import unquote

# Usage data are the user's to give, and a machine without a network must not wait for them.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A tracking server that is not there must be an error within seconds, not minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
# It prints a link at the end of each run, and stdout is for results.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


def default_uri() -> str:
    """The sqlite file in the working directory, as an absolute address."""
    path = str(Path.cwd() / "mlflow.db")
    quoted = path.replace("%", "%25").replace("?", "%3F")  # what an address means by itself
    # Of sqlite:/// MLflow makes the directory as it is spelt here, beside the one that is meant.
    return f"{'sqlite' if quoted == path else 'sqlite+pysqlite'}:///{quoted}"


def database_file(uri: str) -> Path | None:
    """The file of a sqlite address; None of another one."""
    driver, separator, path = uri.partition(":///")
    if not separator or driver not in ("sqlite", "sqlite+pysqlite"):
        return None
    return Path(unquote(path.partition("?")[0]))
