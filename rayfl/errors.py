"""The errors that users see. Each message names the value, what is allowed and what to do."""


class ConfigError(Exception):
    """Bad input, found before any actor starts. The command line exits with code 2."""


class RunError(Exception):
    """A run that had started cannot go on. The command line exits with code 1."""


class ClientError(RunError):
    """Code that ran for some clients raised; carries round, client ids, algorithm and the traceback."""

    def __init__(self, round: int, clients: tuple[int, ...], algorithm: str, traceback: str):
        # All four go to Exception.__init__ so that the error pickles across processes.
        super().__init__(round, clients, algorithm, traceback)
        self.round, self.clients, self.algorithm, self.traceback = (
            round,
            clients,
            algorithm,
            traceback,
        )

    def __str__(self) -> str:
        ids = ", ".join(map(str, self.clients[:10])) + (", ..." if len(self.clients) > 10 else "")
        where = f"clients [{ids}]" if self.clients else "evaluation"
        last_line = self.traceback.strip().splitlines()[-1]
        return f"round {self.round}, {where}, algorithm '{self.algorithm}': {last_line}"


class DivergedError(RunError):
    """The loss or an update stopped being finite."""


class CheckpointError(RunError):
    """A checkpoint cannot be written, or is not what it should be."""


class StateLostError(RunError):
    """What the server held is gone (a node took objects with it): go on from the last checkpoint."""


def first_line(error: BaseException) -> str:
    """What an error of a library says, without what it adds below; its type if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def reason(error: BaseException) -> str:
    """An error of a library on one line, with its type."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
