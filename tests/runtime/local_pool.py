"""A pool without Ray: the reference that any number of actors must equal."""

from typing import Any

from rayfl.runtime.client import Client
from rayfl.runtime.pool import Ticket
from rayfl.training.engine import Broadcast, WorkUnit


class LocalPool:
    """Executes every unit at once in this process: the reference that any other pool must equal."""

    def __init__(self, client: Client):
        self.client = client
        self.lost_units = 0

    def put(self, broadcast: Broadcast) -> Broadcast:
        return broadcast

    def store(self, memory: Any) -> Any:
        return memory

    def fetch(self, handle: Any) -> Any:
        return handle

    def train(self, unit: WorkUnit, broadcast: Any, memories: list[Any] | None) -> Ticket:
        given = memories if memories is not None else [None] * len(unit.clients)
        ticket = Ticket(("train", (), 0), "", done=True)
        ticket.result = self.client.train(unit, broadcast, *given)
        if memories is not None:
            ticket.result, *ticket.memories = ticket.result
        return ticket

    def evaluate(self, round: int, broadcast: Any, first: int, last: int) -> Ticket:
        result = self.client.evaluate(round, broadcast, first, last)
        return Ticket(("evaluate", (), 0), "", result=result, done=True)

    def wait(self, ticket: Ticket) -> Any:
        return ticket.result

    def poll(self) -> None:
        pass
