"""The loop that fills a bank: what it writes and reports, and that a killed run gives the same."""

import threading
import time

import pytest
import torch

from frami_edge.bank import Bank
from frami_edge.errors import BankError
from frami_edge.filling import invert
from frami_edge.sources.refinement import Refinement


class Killed(BaseException):
    """What a signal would do."""


@pytest.fixture
def config(bank_config):
    return bank_config(
        sources={"inversion": 1, "procedural": 1, "translator": 1, "white_noise": 1},
        inversion={"adversarial": {"weight": 0.1, "warmup_steps": 2}},
    )


@pytest.fixture
def make(opened, cpu, config):
    """`make(folder)`: a bank, or the rest of it; with `kill`, killed after a step of a source."""

    def run(folder, kill=None, seed=0, **more):
        def progress(p):
            if (p.phase, p.done) == kill:
                raise Killed

        settings = more.pop("config", config)
        return invert(opened, settings, folder, cpu, seed, progress=progress, **more)

    return run


WHOLE = []


@pytest.fixture
def whole(make, tmp_path_factory):
    """The bank of a run that was not killed; made once."""
    WHOLE[:] = WHOLE or [make(tmp_path_factory.mktemp("whole"))]
    return WHOLE[0]


def same_bank(a, b):
    hashes = [[(s.source, s.clips, s.sha256) for s in bank.index.shards] for bank in (a, b)]
    return hashes[0] == hashes[1] and a.index.health == b.index.health


def test_a_bank_is_made(tmp_path, make, opened):
    bank = make(tmp_path)
    counts = {"inversion": 32, "procedural": 10, "translator": 32, "white_noise": 10}
    assert bank.sources == counts
    assert [s.clips for s in bank.index.shards if s.source == "inversion"] == [16, 16]
    assert set(bank.index.health) == set(counts)
    assert 0 <= bank.index.health["inversion"]["hit_rate"] <= 1
    assert bank.index.health["procedural"]["hit_rate"] is None
    assert not list(tmp_path.glob("state-*")), "states of finished sources must be gone"
    clips = bank.read("inversion")
    with torch.no_grad():
        logits = opened.hidden(clips.mels_N1MT).logits_BK
    torch.testing.assert_close(clips.logits_NK, logits, atol=0.05, rtol=0.01)  # stored as float16


def test_detectors_are_asked_for_positives_and_near_misses(tmp_path, make, opened, bank_config):
    opened.card = opened.card.model_copy(update={"output": "sigmoid"})
    mix = {"inversion": 1, "translator": 1}
    config = bank_config(sources=mix, near_misses=0.4, inversion={"steps": 40, "class_loss": 5})
    bank = make(tmp_path, config=config)
    clips = bank.read("inversion")
    near = clips.labels_N < 0
    assert 0.2 < near.float().mean() < 0.6
    own = clips.logits_NK[~near].gather(1, clips.labels_N[~near, None])[:, 0]
    assert float((own > 0).float().mean()) > 0.5
    hits = bank.index.health["inversion"]["hit_rate"]
    assert hits == pytest.approx(float((own > 0).float().mean()), abs=0.05)


@pytest.mark.parametrize("kill", [("inversion", 5), ("translator", 4)])
def test_a_killed_bank_continues_to_the_same_bank(tmp_path, make, whole, kill):
    with pytest.raises(Killed):
        make(tmp_path, kill)
    assert len(Bank.open(tmp_path)) < 84
    assert same_bank(make(tmp_path), whole)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_sources_side_by_side_give_the_same_bank(tmp_path, make, opened, config, two_threads):
    ours = {name: 1 for name in config.sources if name != "white_noise"}
    config = config.model_copy(update={"sources": ours})
    together = make(tmp_path / "together", config=config)
    torch.set_num_threads(1)
    assert same_bank(make(tmp_path / "in-turn", config=config), together)


def test_a_free_core_makes_steps_of_a_source_whose_steps_are_independent(
    tmp_path, make, bank_config, two_threads, monkeypatch
):
    real, threads = Refinement.step, list[int]()

    def step(self, index):
        threads.append(threading.get_ident())
        deadline = time.monotonic() + 60
        while len(set(threads)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)  # until the other source has ended
        return real(self, index)

    monkeypatch.setattr(Refinement, "step", step)
    config = bank_config(
        sources={"refinement": 1, "procedural": 1},
        refinement={"steps": 9, "batch_size": 5, "iterations": 3},
    )
    together = make(tmp_path / "together", config=config)
    assert len(threads) == 9
    assert len(set(threads)) == 2
    torch.set_num_threads(1)
    assert same_bank(make(tmp_path / "in-turn", config=config), together)
    assert len(set(threads[9:])) == 1


def test_a_finished_bank_is_not_begun_again(make, whole, monkeypatch):
    monkeypatch.setattr("frami_edge.filling.source_context", None)  # it may distil a prior
    assert same_bank(make(whole.folder), whole)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_around_a_shard_loses_nothing(tmp_path, make, whole, when, monkeypatch):
    real = Bank.append

    def append(self, *args):
        if when == "after":
            real(self, *args)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Bank, "append", append)
        with pytest.raises(Killed):
            make(tmp_path)
    assert same_bank(make(tmp_path), whole)


@pytest.mark.parametrize("gone", [False, True])
def test_a_source_without_its_state_starts_again(tmp_path, make, whole, gone, caplog):
    with pytest.raises(Killed):
        make(tmp_path, ("inversion", 5))
    (state,) = tmp_path.glob("state-inversion-*.pt")
    data = state.read_bytes()
    state.unlink() if gone else state.write_bytes(data[:-100])
    assert same_bank(make(tmp_path), whole)
    assert str(state) in caplog.text
    assert not list(tmp_path.glob("*.pt"))


def test_a_bank_of_other_settings_is_refused(tmp_path, make, bank_config):
    make(tmp_path, config=bank_config(sources={"procedural": 1}))
    with pytest.raises(BankError, match="another seed"):
        make(tmp_path, config=bank_config(sources={"procedural": 1}), seed=1)
    with pytest.raises(BankError, match="another config"):
        make(tmp_path, config=bank_config(sources={"white_noise": 1}))
