"""The inversion, the translator and the noise controls: what each step gives, and its state."""

import io

import pytest
import torch
from kit import same

from frami_edge.config import BASELINES
from frami_edge.errors import TeacherError
from frami_edge.inversion import Generator
from frami_edge.models import only_answers
from frami_edge.sources import SOURCES, balanced_labels, make_source
from frami_edge.sources.procedural import Procedural
from frami_edge.sources.translator import Translator

LEARNED = ("inversion", "translator")
OURS = [name for name in SOURCES if name not in (*BASELINES, "recordings")]


@pytest.mark.parametrize("name", OURS)
def test_a_step_depends_on_the_seed_alone(name, context, spec):
    a, b, c = (make_source(name, context(seed=s)).step(0) for s in (0, 0, 1))
    assert torch.equal(a.mels_B1MT, b.mels_B1MT)
    assert not torch.equal(a.mels_B1MT, c.mels_B1MT)
    assert a.mels_B1MT.shape[1:] == (1, 16, 16)
    assert a.mels_B1MT.dtype == torch.float32
    assert not a.mels_B1MT.requires_grad
    floor, ceiling = bounds(spec) if name != "white_noise" else (-10, 10)
    assert ((a.mels_B1MT >= floor - 0.01) & (a.mels_B1MT <= ceiling + 0.01)).all()


def test_breeding_finds_clips_that_the_teacher_takes_for_each_class(context):
    settings = context()
    source = make_source("breeding", settings)
    scores = [source.step(i).metrics["score"] for i in range(30)]
    assert scores[-1] > scores[0]
    for k, (scores, founders, mels) in enumerate(source.elites):
        x = mels[:, None].float()
        answers = settings.teacher.hidden(x).logits_BK.log_softmax(1)[:, k]
        assert torch.allclose(answers, scores, atol=1e-4)
        assert scores.tolist() == sorted(scores.tolist(), reverse=True)
        assert founders.bincount().max() <= settings.config.breeding.per_founder


def test_refined_clips_get_the_classes_that_were_asked_for(context):
    refined = {"batch_size": 20, "iterations": 60, "batch_norm": 0.1, "class_loss": 1.0}
    settings = context(refinement=refined)
    source = make_source("refinement", settings)
    found = source.step(0)
    for clips, least, most in ((source.pool_N1MT[:20], 0.0, 0.4), (found.mels_B1MT, 0.6, 1.0)):
        answers = settings.teacher.hidden(clips).logits_BK.argmax(1)
        assert least <= float((answers == balanced_labels(len(clips), 5)).float().mean()) <= most
    assert found.mels_B1MT.std() < 2 * source.pool_N1MT.std(), "it is still that clip"


@pytest.mark.parametrize("batch_steps", [1, 3])
@pytest.mark.parametrize("name", OURS)
def test_a_source_continues_from_its_state_to_the_same_bits(
    name, batch_steps, context, monkeypatch
):
    monkeypatch.setattr(Procedural, "block", 3)
    adversarial = {"weight": 0.1, "warmup_steps": 1}
    settings = context(inversion={"adversarial": adversarial, "batch_steps": batch_steps})
    whole, resumed = make_source(name, settings), make_source(name, settings)
    for i in range(2):
        whole.step(i)
    file = io.BytesIO()
    torch.save(whole.state(), file)
    file.seek(0)
    resumed.load_state(torch.load(file, weights_only=True))
    for i in range(2, 4):
        a, b = whole.step(i), resumed.step(i)
        assert torch.equal(a.mels_B1MT, b.mels_B1MT)
        assert a.metrics == b.metrics
    assert same(whole.state(), resumed.state())


@pytest.mark.parametrize("name", LEARNED)
def test_targets_take_turns_and_the_burn_in_is_dropped(name, context):
    source = make_source(name, context(inversion={"batch_steps": 1}))
    batches = [source.step(i) for i in range(source.steps)]
    counts = torch.bincount(torch.cat([b.labels_B for b in batches]))
    assert counts.max() - counts.min() <= 1
    assert [b.keep for b in batches] == [False, False, True, True, True, True]


def test_every_term_has_a_switch(context):
    every = {"class_loss": 1, "batch_norm": 1, "contrastive": 1}
    adversarial = {"adversarial": {"weight": 1, "warmup_steps": 0}}
    terms = {"class", "batch_norm", "contrastive", "adversarial"}
    full = make_source("inversion", context(inversion=every | adversarial)).step(0).metrics
    assert set(full) == terms | {"loss", "hit_rate"}
    torch.testing.assert_close(full["loss"], sum(full[t] for t in terms))
    for key, term in zip(every, ("class", "batch_norm", "contrastive"), strict=True):
        row = make_source("inversion", context(inversion=every | {key: 0})).step(0).metrics
        assert set(row) & terms == terms - {term, "adversarial"}


@pytest.mark.parametrize("name", LEARNED)
def test_learning_lowers_the_loss_and_leaves_the_teacher(name, context, teacher):
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    recipe = {"steps": 40, "learning_rate": 1e-2, "batch_size": 16}
    source = make_source(name, context(**{name: recipe}))
    losses = [float(source.step(i).metrics["batch_norm"]) for i in range(40)]
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])
    assert same(before, dict(teacher.state_dict()))
    assert not any(m._forward_pre_hooks for m in teacher.modules())
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("name", LEARNED)
def test_a_teacher_without_batch_norm_needs_the_term_off(name, context, teacher):
    folded = only_answers(teacher)
    with pytest.raises(TeacherError, match="no BatchNorm"):
        make_source(name, context(model=folded))
    source = make_source(name, context(model=folded, **{name: {"batch_norm": 0}}))
    assert "batch_norm" not in source.step(0).metrics


# --- Networks


def bounds(spec):
    floor, ceiling = torch.from_numpy(spec.floor), torch.from_numpy(spec.ceiling)
    return floor[None, None, :, None] - 1e-5, ceiling[None, None, :, None] + 1e-5


@pytest.mark.parametrize("gain", [1.0, 100.0])
@pytest.mark.parametrize("frames", [8, 17])
def test_the_generator_stays_in_the_range_of_the_front_end(spec, frames, gain):
    torch.manual_seed(0)
    model = Generator(spec, 5, frames, latent=8, width=8)
    with torch.no_grad():
        model.out.weight.mul_(gain)
        mels = model(3 * torch.randn(12, 8), balanced_labels(12, 5))
    floor, ceiling = bounds(spec)
    assert mels.shape == (12, 1, spec.n_mels, frames)
    assert ((mels >= floor) & (mels <= ceiling)).all()
    z, model = torch.randn(4, 8), model.eval()
    one, other = model(z, torch.zeros(4).long()), model(z, torch.ones(4).long())
    assert (one - other).abs().max() > 1e-3, "the class must matter"


def test_the_translator_stays_in_the_range_and_learns_from_what_is_clamped(spec):
    torch.manual_seed(0)
    model = Translator(spec, 5, latent=8, width=8)
    x = torch.randn(6, 1, spec.n_mels, 30)
    y, change = model(x, torch.randn(6, 8), balanced_labels(6, 5))
    floor, ceiling = bounds(spec)
    assert y.shape == x.shape == change.shape
    assert ((y >= floor) & (y <= ceiling)).all()
    assert change.abs().mean() < x.abs().mean()
    y, _ = model(torch.full((4, 1, spec.n_mels, 16), -99.0), torch.randn(4, 8), torch.arange(4))
    y.sum().backward()
    assert model.gain.weight.grad.abs().sum() > 0
