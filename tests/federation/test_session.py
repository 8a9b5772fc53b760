"""The loop of a run around the server."""

import shutil

import pytest
import torch
from local_pool import a_server

from rayfl.config.schema import load_config
from rayfl.errors import CheckpointError
from rayfl.federation.session import Session
from rayfl.prepare import prepare


@pytest.mark.parametrize("name", ["fedwmsam", "scaffold"])
def test_a_session_goes_on_where_another_stopped(name, small, tmp_path):
    small |= {"algorithm": {"name": name}, "checkpoint": {"every": 2}}
    small["federation"]["rounds"] = 5
    config = load_config(small)
    whole = Session(a_server(prepare(config)))
    expected = {m.round for m in whole.run()}
    writer = prepare(config).checkpoint_writer(str(tmp_path))
    writer.prepare()
    list(Session(a_server(prepare(config)), writer).rounds(until=3))

    resumed = Session(a_server(prepare(config)), prepare(config).checkpoint_writer(str(tmp_path)))
    assert [m.round for m in resumed.restore()] == [1, 2]
    assert resumed.server.round == 2
    assert {m.round for m in resumed.rounds()} == {3, 4, 5}
    assert torch.equal(resumed.server.w, whole.server.w)
    assert resumed.history.rows.keys() == expected


def test_a_checkpoint_that_cannot_be_written_loses_no_finished_round(small, tmp_path):
    small["checkpoint"] = {"every": 1}
    folder = tmp_path / "checkpoints"
    config = load_config(small)
    writer = prepare(config).checkpoint_writer(str(folder))
    writer.prepare()
    session = Session(a_server(prepare(config)), writer)
    found = []

    def run():
        for metrics in session.rounds():
            found.append(metrics)
            if metrics.round == 1 and folder.is_dir():
                shutil.rmtree(folder)
                folder.write_text("no directory any more")

    with pytest.raises(CheckpointError, match="round 2 cannot be written"):
        run()
    assert {m.round for m in found} == {1, 2}
    for round in (1, 2):
        told = [key for m in found if m.round == round for key in m.values]
        assert {"train/loss", "test/accuracy"} <= set(told)
        assert len(told) == len(set(told))
