"""Seconds and memory that the table and the dry run tell."""

from __future__ import annotations

import time

import pytest
import torch

from frami_edge.config import BankConfig
from frami_edge.inversion import SourceClock
from frami_edge.protocol.cost import without_warm_up
from frami_edge.protocol.memory import peak_memory


def test_the_dry_run_times_terms_that_begin_late() -> None:
    bank = BankConfig()
    assert bank.inversion.adversarial.warmup_steps
    assert bank.baselines.fast.warmup
    timed = without_warm_up(bank)
    assert timed.inversion.adversarial.warmup_steps == 0
    assert timed.baselines.fast.warmup == 0
    assert timed.inversion.steps == bank.inversion.steps


def test_a_source_that_begins_again_forgets_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [10.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = SourceClock({"inversion": {"wall": 5.0, "cpu": 4.0}, "translator": {"wall": 7.0}})
    now[0] = 12.0
    clock.tick("inversion")
    assert clock.seconds["inversion"]["wall"] == 7.0
    clock.forget("translator")
    now[0] = 13.0
    clock.tick("translator")
    assert clock.seconds["translator"]["wall"] == 1.0


def test_scoring_is_left_out_of_the_peak() -> None:
    size = 2**20 * 40  # 160 MiB of float32
    with peak_memory(torch.device("cpu")) as small, small.left_out():
        torch.ones(size)
    with peak_memory(torch.device("cpu")) as large:
        torch.ones(size)
    if small.host_mib == large.host_mib:
        pytest.skip("this system's mark of the most resident memory cannot be reset")
    assert large.host_mib - small.host_mib > 100
