"""Clients' memories that the store is not to hold: same bits, few files, and nothing lost."""

from pathlib import Path

import numpy as np
import pytest
from conftest import rarely
from local_pool import specs

from rayfl import load_config
from rayfl import run as run_on_actors
from rayfl.errors import CheckpointError, ConfigError
from rayfl.federation.client import Client
from rayfl.federation.memories import Memories, MemoryRef, Tier
from rayfl.federation.pool import LocalPool
from rayfl.federation.server import Server
from rayfl.federation.session import Session
from rayfl.prepare import prepare
from rayfl.storage.memory_files import FOLDER, MemoryFiles, memory_name
from rayfl.storage.snapshot import Memory
from rayfl.storage.storage import Storage
from rayfl.training.flat import sha256

BYTES = 40  # of a memory in the tests of `Memories` alone


def memory(client, round):
    return {"c_i": np.full(10, 100 * client + round, np.float32)}


class Files(MemoryFiles):
    """Files that tell of each read and write."""

    def __init__(self, location):
        super().__init__(str(location))
        Storage(self.location).make(FOLDER)
        self.wrote, self.got = [], []

    def write(self, name, arrays):
        super().write(name, arrays)
        self.wrote.append(name)

    def read(self, name):
        self.got.append(name)
        return super().read(name)

    def there(self):
        return set(Storage(self.location).sizes(FOLDER))


def a_round(memories, round, clients):
    """Lend the clients' memories and bring new ones back, as a round does; what was lent."""
    lent = memories.lend(clients)
    for client in clients:
        memories[client] = MemoryRef(round, memory(client, round))
    return lent


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def of_most(files, most):
    return Memories(LocalPool(None), BYTES, Tier(files, most * BYTES))


def test_the_longest_unused_memories_go_to_files(files):
    memories = of_most(files, 3)
    for round, clients in enumerate([(0, 1), (2, 3), (1, 4)], start=1):
        a_round(memories, round, clients)
        memories.settle()
    assert files.wrote == [memory_name(0, 1), memory_name(2, 2)]
    in_store = {client for client, ref in memories.items() if ref.handle is not None}
    assert in_store == {3, 1, 4}


def test_a_memory_comes_back_as_it_went(files):
    """From the store, from a file, and from one that is being read already."""
    memories = of_most(files, 1)
    for client in range(4):
        a_round(memories, 1 + client, [client])
    memories.settle()
    memories.prefetch([1])
    lent = a_round(memories, 5, [3, 1, 0, 7])
    assert [m and m["c_i"][0] for m in lent] == [304, 102, 1, None]
    assert files.got.count(memory_name(1, 2)) == 1
    fetched = {client: m.fetch()["c_i"][0] for client, m in memories.snapshot().items()}
    assert fetched == {0: 5, 1: 105, 2: 203, 3: 305, 7: 705}


def test_only_the_last_memory_of_a_client_has_a_file(files):
    memories = of_most(files, 0)
    for round in range(1, 6):
        a_round(memories, round, [0, round])
    memories.settle()
    kept = {memory_name(0, 5), *(memory_name(round, round) for round in range(1, 6))}
    assert files.there() == kept == files.written.keys()


def test_what_a_checkpoint_has_written_is_dropped_and_not_written_again(files):
    memories = of_most(files, 2)
    a_round(memories, 1, [0, 1])
    for client in (0, 1):  # as a checkpoint does
        files.write(memory_name(client, 1), memory(client, 1))
    files.need(files.written)
    a_round(memories, 2, [2, 3])
    memories.settle()
    assert len(files.wrote) == 2
    a_round(memories, 3, [0])
    memories.settle()
    assert memory_name(0, 1) in files.there()  # the checkpoint's


def test_a_name_is_not_believed_after_going_back(files):
    """The same client may bring another memory of the same round, after other hyper-parameters."""
    memories = of_most(files, 0)
    a_round(memories, 1, [0])
    a_round(memories, 2, [0])
    memories.restore({0: Memory(1, lambda: {"c_i": np.zeros(10, np.float32)})})
    assert memories.lend([0])[0]["c_i"][0] == 0
    memories[0] = MemoryRef(2, {"c_i": np.ones(10, np.float32)})
    assert memories.lend([0])[0]["c_i"][0] == 1


def test_a_file_that_cannot_be_written_or_read_is_said(files):
    memories = of_most(files, 0)
    a_round(memories, 1, [0])
    path = Path(files.location, memory_name(0, 1))
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(CheckpointError, match=r"0-00000001.*damaged.*SHA-256"):
        memories.lend([0])
    files.location = "/dev/null"
    del files._storage
    with pytest.raises(
        CheckpointError, match=r"client 1 cannot be written to /dev/null.*memories_gb"
    ):
        a_round(memories, 2, [1])


# Of all ten clients' memories none, two, or the cohort's five stay in the store.
SOME = [0, 1e-5, 2.5e-5]


@pytest.fixture
def scaffold(small, tmp_path):
    small["algorithm"] = {"name": "scaffold"}
    small["federation"] |= {"rounds": 8, "eval_every": 4}
    small["checkpoint"] = {"every": None, "dir": str(tmp_path / "checkpoints")}
    return small


def run(config, *overrides, local=True, **options):
    return run_on_actors(load_config(config, list(overrides)), local=local, **options)


@pytest.fixture
def whole(scaffold):
    return run(scaffold).model_sha256


@pytest.mark.parametrize("every", [*rarely(["null", "1"]), "3"])
def test_same_bits_wherever_memories_are(every, scaffold, whole):
    for most in SOME:
        result = run(scaffold, f"resources.memories_gb={most}", f"checkpoint.every={every}")
        assert result.model_sha256 == whole


@pytest.mark.slow
def test_same_bits_on_actors(scaffold, whole, ray_session):
    scaffold["resources"] = {"num_actors": 2, "cpus_per_actor": 0.5, "memories_gb": 1e-5}
    assert run(scaffold, local=False).model_sha256 == whole


def a_session(config, folder, most=None):
    """A session as `--local` has one, with checkpoints; `most`: bytes of memories in the store."""
    prepared = prepare(load_config(config))
    writer = prepared.checkpoint_writer(str(folder))
    writer.prepare()
    spec, client = specs(prepared)
    tier = None if most is None else Tier(writer.memories, most)
    return Session(Server(spec, LocalPool(Client(client)), tier), writer)


def files_in(folder):
    return {str(path.relative_to(folder)): path for path in Path(folder, FOLDER).iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(10_000, 10_000), (0, None), (None, 0)])
def test_a_run_goes_on_whatever_was_in_files(before, after, scaffold, whole, tmp_path):
    scaffold["checkpoint"]["every"] = 2
    first = a_session(scaffold, tmp_path, before)
    list(first.rounds(until=5))  # what is written after the checkpoint of round 4 is nobody's
    first.server.memories.close()
    orphan = tmp_path / memory_name(0, 5)
    orphan.write_bytes(b"of a server that was killed")
    (tmp_path / f"{memory_name(1, 5)}.part").write_bytes(b"as it wrote")
    second = a_session(scaffold, tmp_path, after)
    second.restore()
    if after is not None:
        named = {name for name in second.checkpoints.memories.needed if FOLDER in name}
        assert files_in(tmp_path).keys() == named
    list(second.rounds())
    second.conclude()
    assert sha256(second.server.w) == whole
    third = a_session(scaffold, tmp_path, 0)
    third.restore()
    for client, kept in third.server.snapshot().memories.items():
        again = second.server.snapshot().memories[client]
        assert kept.round == again.round
        np.testing.assert_array_equal(kept.fetch()["c_i"], again.fetch()["c_i"])


def test_a_run_that_begins_anew_finds_an_empty_folder(scaffold, tmp_path):
    """A server that died before its first checkpoint has left what nobody needs."""
    session = a_session(scaffold, tmp_path, 0)
    (tmp_path / memory_name(0, 1)).write_bytes(b"left")
    assert session.restore() == []
    assert not files_in(tmp_path)


@pytest.mark.parametrize("every", [None, "auto"])
def test_disk_holds_little_more_than_the_memories(every, scaffold, tmp_path):
    """With one client of twenty a round: after each round, whether checkpoints are written or not."""
    scaffold["federation"] |= {"clients": 20, "cohort": 1, "rounds": 60, "local_epochs": None}
    scaffold["federation"] |= {"local_steps": 1, "eval_every": 100}
    scaffold["checkpoint"]["every"] = every or 1000
    session = a_session(scaffold, tmp_path, 10_000)
    shares = []
    for metrics in session.rounds():
        if every == "auto" and metrics.round == 30:
            session.save()  # half a minute has passed
        session.server.memories.settle()
        shares.append(len(files_in(tmp_path)) / len(session.server.memories))
    assert len(session.server.memories) >= 18
    assert max(shares[-30:]) <= 1.2


@pytest.mark.parametrize("place", ["memory://memories", "file"])
def test_memories_at_a_uri(place, scaffold, whole, tmp_path):
    place = tmp_path.as_uri() if place == "file" else place
    scaffold["checkpoint"] = {"every": 3, "dir": place}
    assert run(scaffold, "resources.memories_gb=0").model_sha256 == whole
    assert run(scaffold, "resources.memories_gb=0", resume="latest").model_sha256 == whole


def test_a_run_without_checkpoints_leaves_no_file(scaffold, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen = []

    def look(metrics):
        seen.extend(tmp_path.glob(f"rayfl-*/{FOLDER}/*"))

    run(scaffold, "resources.memories_gb=0", on_metrics=look)
    assert seen
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["-1", "much", "null", ".inf"])
def test_a_share_that_none_can_be_is_refused(value, scaffold):
    with pytest.raises(ConfigError, match=r"resources\.memories_gb"):
        load_config(scaffold, [f"resources.memories_gb={value}"])


def test_more_than_the_store_is_refused(scaffold, ray_session):
    started = []
    with pytest.raises(
        ConfigError, match=r"memories_gb = 1000\.0: .*at most .*ray.object_store_gb"
    ):
        run(scaffold, "resources.memories_gb=1000", local=False, on_start=started.append)
    assert not started
