"""Clients' memories: in the pool's store as far as they may, the longest unused ones in files.

Threads write and read the files behind the rounds. A memory has the same bits in either place, and which
place it is in is nothing that a result depends on.
"""

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

from rayfl.errors import CheckpointError, first_line
from rayfl.federation.pool import Pool
from rayfl.storage.checkpoint_writer import CheckpointWriter
from rayfl.storage.memory_files import MemoryFiles, memory_name
from rayfl.storage.snapshot import Memory
from rayfl.training.units import Arrays

THREADS = 4
# Share of the store, or of the machine's memory, that memories may fill unless told otherwise: the rest is
# for what a cohort brings back, for broadcasts and for memories on their way to files. From 80 % on Ray
# writes objects to disk itself.
AUTO_SHARE = 0.4
# Share of the memories in the store that may wait to be written before a round waits for them.
BACKLOG = 0.25


class MemoryRef(NamedTuple):
    """One client's memory, where the pool keeps it."""

    round: int  # the client's last round
    handle: Any  # handle of the pool; None: a unit or a file has it
    name: bytes | None = None  # the client's last unit's; None: it comes from a checkpoint


class Tier(NamedTuple):
    """Place of the memories that the store is not to hold."""

    files: MemoryFiles
    most_bytes: int  # of memories in the store


class MemoryRoom(NamedTuple):
    """Room of a run's memories, for a server in whichever process."""

    most_bytes: int  # of the store
    folder: str | None = None  # for the files of a run without checkpoints; None: with them

    def tier(self, checkpoints: CheckpointWriter | None) -> Tier:
        """Have the files where the run's checkpoints will name them."""
        files = MemoryFiles(self.folder or "") if checkpoints is None else checkpoints.memories
        return Tier(files, self.most_bytes)


class Memories(Mapping[int, MemoryRef]):
    """The memory of each client that has been in a cohort, by client id."""

    def __init__(self, pool: Pool, nbytes: int, tier: Tier | None = None):
        """`nbytes` of each client; without a tier all of them stay in the store."""
        self._pool, self._files = pool, tier.files if tier else MemoryFiles("")
        self._most = tier.most_bytes // max(nbytes, 1) if tier else math.inf
        self._refs: dict[int, MemoryRef] = {}
        # Clients whose memory is in the store, the longest unused first; a unit; or on its way from a file.
        self._held: dict[int, None] = {}
        self._lent: set[int] = set()
        self._reads: dict[int, Future[Any]] = {}
        # Memories on their way to a file, by client and round; those that are being deleted.
        self._writes: dict[tuple[int, int], Future[None]] = {}
        self._deletions: list[Future[None]] = []

    def __getitem__(self, client: int) -> MemoryRef:
        return self._refs[client]

    def __iter__(self) -> Iterator[int]:
        return iter(self._refs)

    def __len__(self) -> int:
        return len(self._refs)

    def __setitem__(self, client: int, ref: MemoryRef) -> None:
        """Keep what a client has brought back, in place of what it had."""
        if client in self._refs:
            self._delete(client, self._refs[client].round)
        self._refs[client] = ref
        self._lent.discard(client)
        self._use(client)
        self._evict()

    @property
    def is_complete(self) -> bool:
        """True if no memory is in a file alone."""
        return len(self._refs) == len(self._held) + len(self._lent)

    def lend(self, clients: Iterable[int]) -> list[Any]:
        """Handles for a unit, whose clients will bring new memories back; None where there is none yet."""
        clients = list(clients)
        for client in clients:
            self._request(client)
        handles = [self.handle(client) for client in clients]
        for client in self._refs.keys() & clients:
            # The unit holds it now, and nobody else: it is gone as soon as the unit is done.
            self._refs[client] = self._refs[client]._replace(handle=None)
            self._held.pop(client, None)
            self._reads.pop(client, None)
            self._lent.add(client)
        return handles

    def handle(self, client: int) -> Any:
        """Handle of a client's memory; None if it has none."""
        ref = self._refs.get(client)
        if ref is None or ref.handle is not None:
            return ref and ref.handle
        reading = self._reads.get(client)
        return reading.result() if reading else self._read(client, ref.round)

    def prefetch(self, clients: Iterable[int]) -> None:
        """Have the memories of the next cohort in the store, as far as they fit."""
        for client in clients:
            if client in self._held:
                self._use(client)
            elif len(self._lent) + len(self._reads) < self._most:
                self._request(client)
        self._evict()

    def snapshot(self) -> dict[int, Memory]:
        """Each client's memory for a checkpoint, to be fetched before the next round: files change then."""
        self.settle()
        return {
            client: Memory(ref.round, functools.partial(self._fetch, client, ref))
            for client, ref in self._refs.items()
        }

    def restore(self, memories: Mapping[int, Memory]) -> None:
        """Take over the memories of a checkpoint; those in files of this run stay there until needed."""
        self.settle()
        for kept in (self._refs, self._held, self._lent, self._reads):
            kept.clear()
        if self._most < math.inf:
            self._files.reset()
        for client, memory in sorted(memories.items(), key=lambda item: item[1].round):
            if memory_name(client, memory.round) in self._files.written:
                self._refs[client] = MemoryRef(memory.round, None)
            else:
                self[client] = MemoryRef(memory.round, self._pool.store(memory.fetch()))

    def settle(self) -> None:
        """Wait until nothing is being written or deleted."""
        for client, round in [*self._writes]:
            self._written(client, round)
        wait(self._deletions)
        self._deletions.clear()

    def close(self) -> None:
        """Let go of the files, whatever is being done with them."""
        self._threads.shutdown(cancel_futures=True)

    @functools.cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(THREADS, "memories")

    def _use(self, client: int) -> None:
        self._held.pop(client, None)
        self._held[client] = None

    def _request(self, client: int) -> None:
        """Begin to read a memory that is in a file alone."""
        ref = self._refs.get(client)
        is_free = client not in self._lent and client not in self._reads
        if ref and ref.handle is None and is_free:
            self._reads[client] = self._threads.submit(self._read, client, ref.round)

    def _evict(self) -> None:
        """Drop the longest unused memories of the store, once they are in files."""
        for client, round in [key for key, future in self._writes.items() if future.done()]:
            self._written(client, round)
        while self._held and len(self._held) + len(self._lent) + len(self._reads) > self._most:
            client = next(iter(self._held))
            del self._held[client]
            self._files.holds_memories = True
            ref = self._refs[client]
            name = memory_name(client, ref.round)
            if name in self._files.written:
                self._refs[client] = ref._replace(handle=None)
            else:
                self._writes[client, ref.round] = self._threads.submit(
                    lambda name=name, ref=ref: self._files.write(name, self._pool.fetch(ref.handle))
                )
        while len(self._writes) > BACKLOG * self._most:
            self._written(*next(iter(self._writes)))

    def _written(self, client: int, round: int) -> None:
        """Let a memory that is in a file be in the file alone."""
        try:
            self._writes[client, round].result()
        except OSError as error:
            raise CheckpointError(
                f"the memory of client {client} cannot be written to {self._files.location} "
                f"({first_line(error)}); make room there, or raise resources.memories_gb",
                keys=("resources.memories_gb",),
            ) from error
        del self._writes[client, round]
        ref = self._refs[client]
        if ref.round == round:
            self._refs[client] = ref._replace(handle=None)
        else:
            self._delete(client, round)

    def _delete(self, client: int, round: int) -> None:
        name = memory_name(client, round)
        if name in self._files.written:
            self._deletions = [f for f in self._deletions if not f.done()]
            self._deletions.append(self._threads.submit(self._files.delete, name))

    def _read(self, client: int, round: int) -> Any:
        return self._pool.store(self._files.read(memory_name(client, round)))

    def _fetch(self, client: int, ref: MemoryRef) -> Arrays:
        if ref.handle is not None:
            return self._pool.fetch(ref.handle)
        return self._files.read(memory_name(client, ref.round))
