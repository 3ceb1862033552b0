from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from frami_edge.bank import Bank, BankFeed, BankIndex, Clips
from frami_edge.errors import BankError
from frami_edge.inversion import Hooks, make_bank
from frami_edge.sources.base import Context
from frami_edge_runtime.melspec import MelSpec

LABELS = ("a", "b", "c", "d", "e")
SHA = "0" * 64
Make = Callable[..., Context]


def index_of(spec: MelSpec, **changes: Any) -> BankIndex:
    fields: dict[str, Any] = {"frames": 7, "labels": LABELS, "teacher_sha256": SHA}
    return BankIndex(mel=spec.to_dict(), config={}, seed=0, **(fields | changes))


def clips(n: int, start: float = 0.0) -> Clips:
    """Clip i of the bank holds the value start + i everywhere."""
    mels = (start + torch.arange(n).float())[:, None, None, None].expand(n, 1, 16, 7).clone()
    return Clips(mels, torch.arange(n) % 5, mels[:, 0, 0, :5] * 0.5)


@pytest.fixture
def bank(tmp_path: Path, spec: MelSpec) -> Bank:
    """Ten clips of `a` in two shards around six of `b`."""
    bank = Bank.create(tmp_path / "bank", index_of(spec))
    bank.append("a", clips(4), 0, 2)
    bank.append("b", clips(6, 100), 0, 3)
    bank.append("a", clips(6, 4), 2, 5)
    return bank


def test_what_was_written_comes_back(bank: Bank) -> None:
    again = Bank.open(bank.folder)
    assert (len(again), again.sources) == (16, {"a": 10, "b": 6})
    assert (again.next_step("a"), again.next_step("b"), again.next_step("c")) == (5, 3, 0)
    found = again.read("a")
    assert found.mels_N1MT[:, 0, 0, 0].tolist() == list(range(10))
    assert found.mels_N1MT.dtype == torch.float32
    assert found.labels_N.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 0]
    assert found.logits_NK[:, 0].tolist() == [i / 2 for i in range(10)]


def test_a_limit_spreads_over_all_shards(bank: Bank) -> None:
    found = bank.read("a", 4)
    assert found.mels_N1MT[:, 0, 0, 0].tolist() == [0, 3, 6, 9]
    assert found.logits_NK[:, 0].tolist() == [0, 1.5, 3, 4.5]


def test_rows_come_in_the_order_asked_for(bank: Bank) -> None:
    rows = bank.mels("a", torch.tensor([9, 0, 4, 4, 3]))
    assert rows[:, 0, 0, 0].tolist() == [9, 0, 4, 4, 3]


def test_only_the_rows_asked_for_are_read(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    class Spy:
        """A handle that gives slices of mels only, one row each."""

        def __init__(self, handle: Any) -> None:
            self.handle = handle

        def get_tensor(self, name: str) -> Any:
            assert name != "mels", "a whole shard was read"
            return self.handle.get_tensor(name)

        def get_slice(self, name: str) -> Any:
            rows = self.handle.get_slice(name)

            class Rows:
                def __getitem__(self, key: slice) -> Any:
                    assert key.stop - key.start == 1
                    return rows[key]

            return Rows()

    real = Bank._handle
    monkeypatch.setattr(Bank, "_handle", lambda self, shard: Spy(real(self, shard)))
    assert bank.mels("a", torch.tensor([5, 1]))[:, 0, 0, 0].tolist() == [5, 1]
    assert len(bank.read("b", 3).labels_N) == 3


def test_values_beyond_float16_stay_finite(bank: Bank) -> None:
    wild = clips(1)
    wild.mels_N1MT[:] = 1e9
    bank.append("wild", wild, 0, 1)
    assert torch.isfinite(bank.read("wild").mels_N1MT).all()


def refusal(folder: Path) -> str:
    with pytest.raises(BankError) as caught:
        Bank.open(folder)
    assert caught.value.fix
    return caught.value.message


def test_no_bank_is_said(tmp_path: Path) -> None:
    assert "bank.json is missing" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", "[" * 100_000])
def test_a_damaged_index_is_refused(bank: Bank, text: str) -> None:
    (bank.folder / "bank.json").write_text(text)
    assert "damaged" in refusal(bank.folder)


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("schema_version", 2, "schema 2"),
        ("mel", {"n_mels": 0}, "damaged"),
        ("shards", [{"file": "../../etc/passwd.safetensors"}], "damaged"),
        ("extra", 1, "damaged"),
    ],
)
def test_an_index_that_lies_is_refused(bank: Bank, key: str, value: Any, word: str) -> None:
    file = bank.folder / "bank.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    assert word in refusal(bank.folder)


def test_a_shard_cannot_lead_out_of_the_folder(bank: Bank) -> None:
    file = bank.folder / "bank.json"
    content = json.loads(file.read_text())
    content["shards"][0]["file"] = "../shard-00000-a.safetensors"
    file.write_text(json.dumps(content))
    assert "damaged" in refusal(bank.folder)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_shard_is_named(bank: Bank, damage: str) -> None:
    shard = bank.folder / bank.index.shards[1].file
    data = bytearray(shard.read_bytes())
    if damage == "flip":
        data[-1] ^= 1
        shard.write_bytes(data)
    elif damage == "cut":
        shard.write_bytes(data[:-10])
    else:
        shard.unlink()
    assert shard.name in refusal(bank.folder)


def test_an_unknown_source_is_refused(bank: Bank) -> None:
    with pytest.raises(BankError, match="no clips of the source c"):
        bank.read("c")
    with pytest.raises(BankError, match="no clips of c"):
        BankFeed(bank, {"a": 0.5, "c": 0.5})


def test_a_feed_mixes_by_share_and_repeats_by_seed(bank: Bank) -> None:
    feed = BankFeed(bank, {"a": 0.75, "b": 0.25})

    def draw(seed: int) -> torch.Tensor:
        return feed.batch(400, torch.Generator().manual_seed(seed))[:, 0, 0, 0]

    values = draw(0)
    assert torch.equal(values, draw(0))
    assert not torch.equal(values, draw(1))
    share = float((values >= 100).float().mean())
    assert 0.17 < share < 0.33
    assert set(values.tolist()) == {*range(10), *range(100, 106)}
    late = values[200:] >= 100
    assert 0.1 < float(late.float().mean()) < 0.4, "the sources must be mixed within a batch"


def same_bank(a: Bank, b: Bank) -> bool:
    hashes = [[(s.source, s.clips, s.sha256) for s in bank.index.shards] for bank in (a, b)]
    return hashes[0] == hashes[1] and a.index.health == b.index.health


@pytest.fixture
def settings(context: Make) -> Context:
    return context(
        sources={"inversion": 1, "procedural": 1, "translator": 1, "white_noise": 1},
        inversion={"adversarial": {"weight": 0.1, "warmup_steps": 2}},
    )


def test_a_bank_is_made(tmp_path: Path, settings: Context) -> None:
    seen: list[tuple[str, int, int]] = []
    bank = make_bank(tmp_path, settings, LABELS, SHA, lambda s, i, n, _: seen.append((s, i, n)))
    assert bank.sources == {
        "inversion": 32, "procedural": 10, "translator": 32, "white_noise": 10
    }  # fmt: skip
    assert [n for s, _, n in seen if s == "inversion"] == [6] * 6
    assert [s.clips for s in bank.index.shards if s.source == "inversion"] == [16, 16]
    assert set(bank.index.health) == set(bank.sources)
    assert 0 <= bank.index.health["inversion"]["requested"] <= 1
    assert bank.index.health["procedural"]["requested"] is None
    assert not list(tmp_path.glob("state-*")), "states of finished sources must be gone"
    clips = bank.read("inversion")
    with torch.no_grad():
        said = settings.teacher.hidden(clips.mels_N1MT).logits_BK
    torch.testing.assert_close(clips.logits_NK, said, atol=0.05, rtol=0.01)  # stored as float16


class Killed(BaseException):
    """What a signal would do."""


STEPS = [("inversion", 1), ("inversion", 4), ("inversion", 5), ("translator", 4), ("translator", 6)]


@pytest.mark.parametrize(("source", "step"), STEPS)
def test_a_killed_bank_goes_on_to_the_same_bank(
    tmp_path: Path, settings: Context, source: str, step: int
) -> None:
    whole = make_bank(tmp_path / "whole", settings, LABELS, SHA)

    def kill(name: str, done: int, steps: int, metrics: dict[str, float]) -> None:
        if (name, done) == (source, step):
            raise Killed

    with pytest.raises(Killed):
        make_bank(tmp_path / "killed", settings, LABELS, SHA, kill)
    assert len(Bank.open(tmp_path / "killed")) < len(whole)
    resumed = make_bank(tmp_path / "killed", settings, LABELS, SHA)
    assert same_bank(whole, resumed)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_around_a_shard_loses_nothing(
    tmp_path: Path, settings: Context, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_bank(tmp_path / "whole", settings, LABELS, SHA)
    real = Bank.append

    def append(self: Bank, *args: Any) -> None:
        if when == "after":
            real(self, *args)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Bank, "append", append)
        with pytest.raises(Killed):
            make_bank(tmp_path / "killed", settings, LABELS, SHA)
    assert same_bank(whole, make_bank(tmp_path / "killed", settings, LABELS, SHA))


def test_a_finished_bank_is_left_alone(tmp_path: Path, settings: Context) -> None:
    bank = make_bank(tmp_path, settings, LABELS, SHA)
    steps: list[str] = []
    again = make_bank(tmp_path, settings, LABELS, SHA, lambda name, *_: steps.append(name))
    assert same_bank(bank, again)
    assert steps == []


def test_a_bank_of_other_settings_is_refused(tmp_path: Path, context: Make) -> None:
    make_bank(tmp_path, context(sources={"procedural": 1}), LABELS, SHA)
    with pytest.raises(BankError, match="another seed"):
        make_bank(tmp_path, context(sources={"procedural": 1}, seed=1), LABELS, SHA)
    with pytest.raises(BankError, match="another config"):
        make_bank(tmp_path, context(sources={"white_noise": 1}), LABELS, SHA)
    with pytest.raises(BankError, match="another teacher_sha256"):
        make_bank(tmp_path, context(sources={"procedural": 1}), LABELS, "1" * 64)
    with pytest.raises(BankError, match="another labels"):
        make_bank(tmp_path, context(sources={"procedural": 1}), LABELS[::-1], SHA)


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_lost_state_is_said_and_its_source_begins_again(
    tmp_path: Path, settings: Context, damage: str
) -> None:
    def kill(name: str, done: int, steps: int, metrics: dict[str, float]) -> None:
        if (name, done) == ("inversion", 5):
            raise Killed

    with pytest.raises(Killed):
        make_bank(tmp_path / "killed", settings, LABELS, SHA, kill)
    (state,) = (tmp_path / "killed").glob("state-inversion-*.pt")
    data = bytearray(state.read_bytes())
    if damage == "cut":
        state.write_bytes(data[:-100])
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        state.write_bytes(data)
    else:
        state.unlink()
    said: list[str] = []
    begun: list[tuple[str, int]] = []
    hooks = Hooks(on_begin=lambda *place: begun.append(place), warn=said.append)
    bank = make_bank(tmp_path / "killed", settings, LABELS, SHA, hooks)
    assert [str(state) in text and "inversion is done again" in text for text in said] == [True]
    assert begun[0] == ("inversion", 0)
    assert same_bank(bank, make_bank(tmp_path / "whole", settings, LABELS, SHA))
    assert not list((tmp_path / "killed").glob("*.pt"))


def test_burn_in_of_everything_is_refused(tmp_path: Path, context: Make) -> None:
    with pytest.raises(BankError, match="burn-in"):
        make_bank(
            tmp_path, context(sources={"inversion": 1}, inversion={"burn_in": 6}), LABELS, SHA
        )
