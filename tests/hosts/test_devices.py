"""Where workers compute."""

import os

import pytest

from portability.core.errors import UserError
from portability.hosts import devices
from portability.hosts.devices import Place, places


def test_without_a_gpu_there_is_one_worker_a_core():
    cores = devices.cores()
    assert 1 <= cores <= (os.cpu_count() or 1)
    assert places("cpu", None) == [Place("cpu", 1 / cores, cores)] * cores
    assert places("cpu", 3) == [Place("cpu", 1 / 3, cores)] * 3


def test_workers_are_spread_over_the_gpus_and_share_their_memory(monkeypatch):
    monkeypatch.setattr(devices, "count_gpus", lambda: 2)
    monkeypatch.setattr(devices, "cores", lambda: 1)
    assert places("auto", None) == [Place("cuda:0", 1.0), Place("cuda:1", 1.0)]
    assert places("cuda", 3) == [Place("cuda:0", 0.5), Place("cuda:1", 1.0), Place("cuda:0", 0.5)]
    assert places("cpu", 1) == [Place("cpu", 1.0)]


def test_cuda_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(devices, "count_gpus", lambda: 0)
    assert places("auto", 1) == [Place("cpu", 1.0, devices.cores())]
    with pytest.raises(UserError, match="torch finds no GPU"):
        places("cuda", None)


def test_hosts_that_are_spread_have_one_worker(monkeypatch):
    monkeypatch.setattr(devices, "count_gpus", lambda: 2)
    (place,) = places("auto", None, "auto")
    assert (place.device, place.share, place.device_map) == ("cuda:0", 1.0, "auto")
    assert hash(places("auto", 1, {"lm_head": 1})[0])
    with pytest.raises(UserError, match="engine.workers is 2, but engine.device_map spreads each host"):
        places("auto", 2, "auto")
