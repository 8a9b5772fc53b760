"""Uploads that stand for fewer bytes than their numbers, on the example of `docs/examples/topk.py`."""

import numpy as np
import pytest
import torch
from conftest import ROOT
from local_pool import a_server

from rayfl import load_config
from rayfl.algorithms import Algorithm
from rayfl.prepare import prepare

P = 64 * 16 + 16 + 16 * 10 + 10
SHARE = 0.02


@pytest.fixture(scope="module")
def topk():
    """The module of the example, which a config names as from its own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs/examples")
        import topk

        yield topk


def trained(small, algorithm):
    """The rounds' metrics and the server after them, each client in every round."""
    small["federation"] |= {"cohort": 10, "clients_per_unit": 4}
    small["algorithm"] = algorithm
    server = a_server(prepare(load_config(small)), name=algorithm["name"])
    return [m.values for m in server.run() if "cost/bytes_up" in m.values], server


def test_all_entries_are_fedavg_bit_for_bit(small, topk):
    dense, fedavg = trained(small, {"name": "fedavg"})
    whole, server = trained(small, {"name": "topk:TopK", "share": 1.0})
    assert server.w.equal(fedavg.w)
    assert [m["cost/bytes_up"] for m in whole] == [m["cost/bytes_up"] for m in dense]
    assert dense[0]["cost/bytes_up"] == 10 * 4 * P


def test_indices_and_values_are_counted(small, topk):
    sparse, server = trained(small, {"name": "topk:TopK", "share": SHARE})
    k = round(SHARE * P)
    assert [m["cost/bytes_up"] for m in sparse] == [10 * k * (4 + 4)] * 3
    first = server.snapshot().memories[0].fetch()["rest"]
    assert (first == 0).sum() == k  # what has just been sent


def test_what_is_not_sent_waits(topk):
    method = topk.TopK(share=0.5)
    delta = torch.tensor([[3.0, -1.0, 0.5, -4.0], [0.0, 1.0, 2.0, 3.0]])
    uploads, memory = method.upload(delta, {"rest": torch.zeros(2, 4)}, None)
    assert uploads["delta"].tolist() == [[3, 0, 0, -4], [0, 0, 2, 3]]
    assert memory["rest"].tolist() == [[0, -1, 0.5, 0], [0, 1, 0, 0]]
    uploads, memory = method.upload(torch.zeros(2, 4), memory, None)
    assert uploads["delta"].tolist() == [[0, -1, 0.5, 0], [0, 1, 0, 0]]
    assert not memory["rest"].any()
    assert method.upload_bytes(uploads, None).tolist() == [16, 16]


def test_clients_may_send_different_numbers_of_bytes(small):
    """Each client's own are added up, in whichever unit it is."""

    class Counted(Algorithm):
        def upload_bytes(self, uploads, experiment):
            return (uploads["delta"].abs() > 0.01).sum(-1)

    small["federation"] |= {"rounds": 1}
    found = []
    for unit in (1, 5):
        small["federation"]["clients_per_unit"] = unit
        first, *_ = a_server(prepare(load_config(small)), Counted()).run()
        found.append(first.values["cost/bytes_up"])
    assert found[0] == found[1] == int(found[0])
    assert 0 < found[0] < np.prod([5, P])
