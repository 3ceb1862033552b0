"""Banks on disk: what is written comes back, damage is refused, samplers mix, health warns."""

import pytest
import torch

from frami_edge.bank import Bank, BankIndex, BankSampler, Clips, check_bank, health_warnings
from frami_edge.errors import BankError

LABELS = ("a", "b", "c", "d", "e")
SHA = "0" * 64


def index_of(spec, **changes):
    fields = {"frames": 7, "labels": LABELS, "teacher_sha256": SHA}
    return BankIndex(mel=spec.to_dict(), config={}, seed=0, **(fields | changes))


def clips(n, start=0.0):
    """Clip i of the bank holds the value start + i everywhere."""
    mels = (start + torch.arange(n).float())[:, None, None, None].expand(n, 1, 16, 7).clone()
    return Clips(mels, torch.arange(n) % 5, mels[:, 0, 0, :5] * 0.5)


@pytest.fixture
def bank(tmp_path, spec):
    """Ten clips of `a` in two shards around six of `b`."""
    bank = Bank.create(tmp_path / "bank", index_of(spec))
    bank.append("a", clips(4), 0, 2)
    bank.append("b", clips(6, 100), 0, 3)
    bank.append("a", clips(6, 4), 2, 5)
    return bank


def test_what_was_written_comes_back(bank):
    again = Bank.open(bank.folder)
    assert (len(again), again.sources) == (16, {"a": 10, "b": 6})
    assert (again.next_step("a"), again.next_step("b"), again.next_step("c")) == (5, 3, 0)
    found = again.read("a")
    assert found.mels_N1MT[:, 0, 0, 0].tolist() == list(range(10))
    assert found.mels_N1MT.dtype == torch.float32
    assert found.labels_N.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 0]
    assert found.logits_NK[:, 0].tolist() == [i / 2 for i in range(10)]


def test_a_limit_spreads_over_all_shards(bank):
    found = bank.read("a", 4)
    assert found.mels_N1MT[:, 0, 0, 0].tolist() == [0, 3, 6, 9]
    assert found.logits_NK[:, 0].tolist() == [0, 1.5, 3, 4.5]
    sampler = BankSampler(bank, {"a": 0.5, "b": 0.5}, limit=4)
    drawn = sampler.batch(200, torch.Generator().manual_seed(0))[:, 0, 0, 0]
    assert set(drawn.tolist()) == {0, 9, 100, 105}


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("bank.json", None, "bank.json is missing"),
        ("bank.json", lambda text: b"", "damaged"),
        ("bank.json", lambda text: b"[" * 100_000, "damaged"),
        ("bank.json", lambda text: text.replace(b'"shard-a', b'"../shard-a'), "damaged"),
        ("bank.json", lambda text: text.replace(b'"shard-a', b'"rank-0/../shard-0'), "damaged"),
        ("shard", None, "shard-"),
        ("shard", lambda data: data[:-10], "shard-"),
        ("shard", lambda data: data[:-1] + bytes([data[-1] ^ 1]), "shard-"),
    ],
)
def test_a_damaged_bank_is_refused(bank, file, change, said):
    path = bank.folder / (bank.index.shards[1].file if file == "shard" else file)
    data = path.read_bytes()
    path.unlink()
    if change:
        assert change(data) != data
        path.write_bytes(change(data))
    with pytest.raises(BankError, match=said) as caught:
        Bank.open(bank.folder)
    assert caught.value.fix


def test_a_bank_belongs_to_its_teacher(bank, spec):
    check_bank(bank, spec, LABELS, SHA)
    for other in ((spec, LABELS, "1" * 64), (spec.replace(std=5.0), LABELS, SHA),
                  (spec, LABELS[::-1], SHA)):  # fmt: skip
        with pytest.raises(BankError, match="another"):
            check_bank(bank, *other)


def test_a_sampler_mixes_by_share_and_repeats_by_seed(bank):
    sampler = BankSampler(bank, {"a": 0.75, "b": 0.25})

    def draw(seed):
        return sampler.batch(400, torch.Generator().manual_seed(seed))[:, 0, 0, 0]

    values = draw(0)
    assert torch.equal(values, draw(0))
    assert not torch.equal(values, draw(1))
    share = float((values >= 100).float().mean())
    assert 0.17 < share < 0.33
    assert set(values.tolist()) == {*range(10), *range(100, 106)}
    late = values[200:] >= 100
    assert 0.1 < float(late.float().mean()) < 0.4, "the sources must be mixed within a batch"


def test_a_balanced_sampler_takes_turns_among_likely_clips(tmp_path, spec):
    """A hundred clips; clip 5 k + 4 is the only one that detector k finds likely."""
    bank = Bank.create(tmp_path / "bank", index_of(spec, output="sigmoid"))
    found = clips(100)
    found.logits_NK = torch.full((100, 5), -9.0) + 0.001 * torch.arange(100)[:, None]
    found.logits_NK[5 * torch.arange(5) + 4, torch.arange(5)] = 3.0
    bank.append("a", found, 0, 1)
    sampler = BankSampler(bank, {"a": 1.0}, balance=0.5, boundary=0.995)
    drawn = sampler.batch(400, torch.Generator().manual_seed(0))[:, 0, 0, 0].int().tolist()
    assert min(drawn.count(5 * k + 4) for k in range(5)) >= 40
    assert len(set(drawn)) > 70, "the other half is drawn from all clips"
    assert sampler.boundary_K is not None
    assert (sampler.boundary_K <= 0).all()


def health(**changes):
    facts = {"hit_rate": 0.5, "batch_norm_error": 0.03, "class_share": [0.1] * 10} | changes
    return {"hit_rate_per_class": [facts["hit_rate"]] * len(facts["class_share"])} | facts


@pytest.mark.parametrize(
    ("source", "change", "words"),
    [
        ("inversion", {"hit_rate": 0.15}, "for only 15 % of the clips (20 % is the least)"),
        ("inversion", {"hit_rate": 0.7, "class_share": [0.5, 0.5]}, "(80 % is the least)"),
        (
            "inversion",
            {"hit_rate_per_class": [0.6] * 9 + [0.01], "class_share": [0.11] * 9 + [0.001]},
            "predicts 9 for next to no clip",
        ),
        ("inversion", {"batch_norm_error": 0.5}, "0.50 away"),
        ("inversion", {"class_share": [0.7, *[0.03] * 9]}, "one class for 70 % of the clips"),
        ("cmi", {"hit_rate": 0.1}, "bank.inversion.steps or bank.baselines.cmi.class_loss"),
        ("cmi", {"batch_norm_error": 2.0}, "raise bank.baselines.cmi.batch_norm"),
    ],
)
def test_a_known_failure_is_warned_of(source, change, words):
    sound = {"inversion": health(), "procedural": health(hit_rate=None)}
    assert health_warnings(sound, "0123456789") == []
    labels = "0123456789"[: len(change.get("class_share", "0123456789"))]
    (sentence,) = health_warnings({source: health(**change)}, labels)
    assert words in sentence


def test_a_class_that_is_in_no_source_is_named():
    one, other = [0.5, 0.5, 0.0, 0.0], [0.5, 0.2, 0.3, 0.0]
    rates = {"hit_rate_per_class": [0.9, 0.9, 0.2, 0.0]}
    bank = {"inversion": health(class_share=one, **rates)}
    bank["procedural"] = health(class_share=other, hit_rate_per_class=[None] * 4)
    (sentence,) = health_warnings(bank, ("dog", "cat", "cow", "hen"))
    assert "predicts hen for next to no clip of the bank" in sentence
