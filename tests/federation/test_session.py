"""The loop of a run around the server."""

import shutil

import pytest
from local_pool import a_server

from rayfl.config.schema import load_config
from rayfl.errors import CheckpointError
from rayfl.federation.session import Session
from rayfl.prepare import checkpoint_writer, prepare


def test_a_checkpoint_that_cannot_be_written_loses_no_finished_round(small, tmp_path):
    small["checkpoint"] = {"every": 1}
    folder = tmp_path / "checkpoints"
    config = load_config(small)
    writer = checkpoint_writer(config, str(folder))
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
