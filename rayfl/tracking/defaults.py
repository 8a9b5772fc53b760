"""Address of the default MLflow store. Importing this does not import mlflow, which takes seconds."""

from pathlib import Path
from urllib.parse import unquote


def default_uri() -> str:
    """Return the absolute address of the sqlite file in the working directory."""
    path = str(Path.cwd() / "mlflow.db")
    quoted = path.replace("%", "%25").replace(
        "?", "%3F"
    )  # escape the characters with a meaning in a URL
    # For an escaped sqlite:/// address, MLflow would create a directory of the escaped name.
    return f"{'sqlite' if quoted == path else 'sqlite+pysqlite'}:///{quoted}"


def database_file(uri: str) -> Path | None:
    """Return the file of a sqlite address, or None for other addresses."""
    driver, separator, path = uri.partition(":///")
    if not separator or driver not in ("sqlite", "sqlite+pysqlite"):
        return None
    return Path(unquote(path.partition("?")[0]))
