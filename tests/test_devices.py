"""Which device computes."""

import pytest
import torch

from slt_lib.base.devices import device
from slt_lib.base.errors import InputError


def test_the_cpu_where_there_is_no_other_and_where_it_is_asked_for(monkeypatch):
    monkeypatch.setenv("SLT_DEVICE", "cpu")
    assert device() == torch.device("cpu")
    monkeypatch.delenv("SLT_DEVICE")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert device() == torch.device("cpu")


def test_each_local_rank_has_its_own(monkeypatch):
    monkeypatch.delenv("SLT_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert device() == torch.device("cuda:3")


@pytest.mark.parametrize("asked", ["tpu", "cuda", "cuda:x", "cuda:4"])
def test_a_device_that_is_not_there_is_named(monkeypatch, asked):
    monkeypatch.setenv("SLT_DEVICE", asked)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match=f"SLT_DEVICE={asked}: no such device here; there are cpu"):
        device()
