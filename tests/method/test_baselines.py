"""Every baseline learns, keeps to its budget, and continues from its state to the same bits."""

import io

import pytest
import torch
from kit import same

from frami_edge.config import BASELINES, BankConfig
from frami_edge.errors import BankError
from frami_edge.sources import SourceContext, make_source

BATCH_WISE = ("deep_inversion", "cmi", "fast")
# An adversary moves the goal; what must fall is a term that does not depend on it.
FALLS = {"dafl": "balance", "dfq": "batch_norm"} | dict.fromkeys(BATCH_WISE, "batch_norm")


@pytest.fixture
def source(teacher, spec, cpu):
    """`source("cmi", iterations=3, steps=12)`: a tiny baseline."""

    def make(name, seed=0, **changes):
        budget = {"steps": 12, "burn_in": 2, "batch_size": 8, "width": 8}
        budget |= {key: changes.pop(key) for key in list(changes) if key in budget}
        own = {"student_steps": 1}
        own |= {"iterations": 4} if name in BATCH_WISE else {}
        own |= {} if name == "deep_inversion" else {"latent": 8}
        own |= {"warmup": 0.25} if name == "fast" else {}
        fields = {"clip_s": 0.24, "sources": {name: 1}, "inversion": budget}
        config = BankConfig.model_validate(fields | {"baselines": {name: own | changes}})
        return make_source(name, SourceContext(teacher, spec, 5, config, cpu, seed))

    return make


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_continues_from_any_step_to_the_same_bits(name, source):
    whole = source(name)
    assert whole.name == name
    states, batches = [], []
    for i in range(12):
        file = io.BytesIO()
        torch.save(whole.state(), file)
        states.append(file)
        batches.append(whole.step(i))
    for start in (6, 8):
        torch.manual_seed(99)
        resumed = source(name)
        torch.manual_seed(100)  # the global stream must not matter
        states[start].seek(0)
        resumed.load_state(torch.load(states[start], weights_only=True))
        for i in range(start, 12):
            again = resumed.step(i)
            assert torch.equal(again.mels_B1MT, batches[i].mels_B1MT), (start, i)
            assert same(dict(again.metrics), dict(batches[i].metrics)), (start, i)
            assert again.keep == batches[i].keep
        assert same(resumed.state(), whole.state())


@pytest.mark.parametrize("name", BATCH_WISE)
def test_a_batch_without_a_finite_loss_is_refused(source, name, monkeypatch):
    made = source(name)
    genuine = made.iterate

    def diverging(index, *more):
        mels, logits, terms = genuine(index, *more)
        return mels, logits, terms | ({"class": terms["class"] * torch.nan} if index > 5 else {})

    monkeypatch.setattr(made, "iterate", diverging)
    for i in range(made.steps - 1):
        made.step(i)
    # Its first batches were sound: their clips must not come again under its labels.
    with pytest.raises(BankError, match=f"{name} diverged by step 12"):
        made.step(made.steps - 1)


@pytest.mark.parametrize("name", list(FALLS))
def test_learning_lowers_the_loss(name, source):
    one_batch = {"iterations": 24} if name in ("cmi", "deep_inversion") else {}
    made = source(name, steps=24, **one_batch)
    rows = [float(made.step(i).metrics[FALLS[name]]) for i in range(24)]
    assert sum(rows[-4:]) < sum(rows[:4])


@pytest.mark.parametrize("name", ["cmi", "deep_inversion", "fast"])
def test_the_best_iterate_is_kept(name, source):
    made = source(name, steps=8, iterations=8, burn_in=0, learning_rate=0.5)
    rows = [made.step(i) for i in range(8)]
    losses = [float(row.metrics["loss"]) for row in rows]
    best = min(range(8), key=losses.__getitem__)
    assert torch.equal(rows[-1].mels_B1MT, rows[best].mels_B1MT)
    for i in range(1, 8):
        changed = not torch.equal(rows[i].mels_B1MT, rows[i - 1].mels_B1MT)
        assert changed == (losses[i] < min(losses[:i]))


@pytest.mark.parametrize("name", ["zskt", "dfq", "deep_inversion", "cmi", "fast"])
def test_the_adversary_is_a_student_that_learns(name, source):
    made = source(name)
    weights = {k: v.clone() for k, v in made.auxiliary.student.state_dict().items()}
    rows = [made.step(i).metrics for i in range(12)]
    moved = made.auxiliary.student.state_dict()
    assert not all(torch.equal(weights[k], moved[k]) for k in weights)
    assert any("adversarial" in row and float(row["adversarial"]) != 0 for row in rows)
