"""The inversion, the translator and the noise controls: what each step gives, and its state."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frami_edge.config import BASELINES, BankConfig
from frami_edge.errors import TeacherError
from frami_edge.inversion import Generator
from frami_edge.models import ResNetTeacher
from frami_edge.sources import NO_LABEL, SOURCES, SourceContext, balanced_labels, make_source
from frami_edge.sources.baselines import smooth_noise_mels, white_noise_mels
from frami_edge.sources.breeding import Breeding
from frami_edge.sources.procedural import Procedural
from frami_edge.sources.refinement import Refinement
from frami_edge.sources.translator import Translator
from frami_edge_runtime.melspec import MelSpec

Make = Callable[..., SourceContext]
LEARNED = ("inversion", "translator")
OURS = [name for name in SOURCES if name not in (*BASELINES, "recordings")]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)


@pytest.mark.parametrize("name", OURS)
def test_a_step_depends_on_the_seed_alone(name: str, context: Make) -> None:
    a, b, c = (make_source(name, context(seed=s)).step(0) for s in (0, 0, 1))
    assert torch.equal(a.mels_B1MT, b.mels_B1MT)
    assert not torch.equal(a.mels_B1MT, c.mels_B1MT)
    assert a.mels_B1MT.shape[1:] == (1, 16, 16)
    assert a.mels_B1MT.dtype == torch.float32
    assert not a.mels_B1MT.requires_grad
    assert torch.isfinite(a.mels_B1MT).all()


def test_breeding_finds_clips_that_the_teacher_takes_for_each_class(context: Make) -> None:
    settings = context()
    source = make_source("breeding", settings)
    assert isinstance(source, Breeding)
    before = None
    for i in range(30):
        batch = source.step(i)
        before = batch.metrics["score"] if before is None else before
    assert batch.metrics["score"] > before
    assert source.elites is not None
    floor, ceiling = (
        torch.from_numpy(x)[:, None] for x in (settings.spec.floor, settings.spec.ceiling)
    )
    for k, (scores, founders, mels) in enumerate(source.elites):
        x = mels[:, None].float()
        answers = settings.teacher.hidden(x).logits_BK.log_softmax(1)[:, k]
        assert torch.allclose(answers, scores, atol=1e-4)
        assert scores.tolist() == sorted(scores.tolist(), reverse=True)
        assert founders.bincount().max() <= settings.config.breeding.per_founder
        assert (x >= floor - 0.01).all() and (x <= ceiling + 0.01).all()  # noqa: PT018


def test_refined_clips_get_the_classes_that_were_asked_for(context: Make) -> None:
    refined = {"batch_size": 20, "iterations": 60, "batch_norm": 0.1, "class_loss": 1.0}
    settings = context(refinement=refined)
    source = make_source("refinement", settings)
    assert isinstance(source, Refinement)
    found = source.step(0)
    for clips, least, most in ((source.pool_N1MT[:20], 0.0, 0.4), (found.mels_B1MT, 0.6, 1.0)):
        answers = settings.teacher.hidden(clips).logits_BK.argmax(1)
        assert least <= float((answers == balanced_labels(len(clips), 5)).float().mean()) <= most
    assert found.mels_B1MT.std() < 2 * source.pool_N1MT.std(), "it is still that clip"


@pytest.mark.parametrize("batch_steps", [1, 3])
@pytest.mark.parametrize("name", OURS)
def test_a_source_continues_from_its_state_to_the_same_bits(
    name: str, batch_steps: int, context: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
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


@pytest.mark.parametrize("name", ["procedural", "smooth_noise", "white_noise"])
def test_sources_that_do_not_learn_make_the_configured_clips(
    name: str, context: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Procedural, "block", 4)
    source = make_source(name, context())
    batches = [source.step(i) for i in range(source.steps)]
    assert sum(len(b.labels_B) for b in batches) == 10
    assert all((b.labels_B == NO_LABEL).all() for b in batches)
    assert all(b.keep for b in batches)


@pytest.mark.parametrize("name", LEARNED)
def test_targets_take_turns_and_the_burn_in_is_dropped(name: str, context: Make) -> None:
    source = make_source(name, context(inversion={"batch_steps": 1}))
    batches = [source.step(i) for i in range(source.steps)]
    counts = torch.bincount(torch.cat([b.labels_B for b in batches]))
    assert counts.max() - counts.min() <= 1
    assert [b.keep for b in batches] == [False, False, True, True, True, True]


def test_the_latents_of_a_batch_learn_for_some_steps(context: Make) -> None:
    for rate, learns in ((0.02, True), (0.0, False)):
        source: Any = make_source(
            "inversion", context(inversion={"batch_steps": 2, "latent_rate": rate})
        )
        labels, latents = [], []
        for i in range(4):
            labels.append(source.step(i).labels_B)
            latents.append(source.z_BZ.detach().clone())
        assert torch.equal(labels[0], labels[1])
        assert not torch.equal(labels[0], labels[2])
        assert torch.equal(latents[0], latents[1]) == (not learns)
        assert not torch.equal(latents[1], latents[2])


def test_every_term_has_a_switch(context: Make) -> None:
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
def test_learning_lowers_the_loss_and_leaves_the_teacher(
    name: str, context: Make, teacher: ResNetTeacher
) -> None:
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    recipe = {"steps": 40, "learning_rate": 1e-2, "batch_size": 16}
    source = make_source(name, context(**{name: recipe}))
    losses = [float(source.step(i).metrics["batch_norm"]) for i in range(40)]
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])
    assert same(before, dict(teacher.state_dict()))
    assert not any(m._forward_pre_hooks for m in teacher.modules())
    assert all(p.grad is None for p in teacher.parameters())


class Folded(nn.Module):
    """A teacher without BatchNorm."""

    frame_stride, frame_offset = 4, 0.0

    def __init__(self, teacher: ResNetTeacher) -> None:
        super().__init__()
        self.inner = teacher
        for name, module in list(teacher.named_modules()):
            if isinstance(module, nn.BatchNorm2d):
                parent, _, child = name.rpartition(".")
                setattr(teacher.get_submodule(parent), child, nn.Identity())
        self.channels, self.pooled_size = teacher.channels, teacher.pooled_size
        self.hidden = teacher.hidden


@pytest.mark.parametrize("name", LEARNED)
def test_a_teacher_without_batch_norm_needs_the_term_off(
    name: str, context: Make, teacher: ResNetTeacher
) -> None:
    folded = Folded(teacher)
    with pytest.raises(TeacherError, match="no BatchNorm"):
        make_source(name, context(model=folded))
    source = make_source(name, context(model=folded, **{name: {"batch_norm": 0}}))
    assert "batch_norm" not in source.step(0).metrics


def test_shares_sum_to_one_and_leave_out_what_is_off() -> None:
    config = BankConfig(sources={"inversion": 3, "procedural": 1, "translator": 0})
    assert config.shares == {"inversion": 0.75, "procedural": 0.25}
    assert set(SOURCES) == {"inversion", "procedural", "translator", "breeding", "recordings",
                            "refinement", "smooth_noise", "white_noise", *BASELINES}  # fmt: skip


# --- Networks


def bounds(spec: MelSpec) -> tuple[Tensor, Tensor]:
    floor, ceiling = torch.from_numpy(spec.floor), torch.from_numpy(spec.ceiling)
    return floor[None, None, :, None] - 1e-5, ceiling[None, None, :, None] + 1e-5


@pytest.mark.parametrize("gain", [1.0, 100.0])
@pytest.mark.parametrize("frames", [8, 17])
def test_the_generator_stays_in_the_range_of_the_front_end(
    spec: MelSpec, frames: int, gain: float
) -> None:
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


def test_the_translator_stays_in_the_range_and_learns_from_what_is_clamped(spec: MelSpec) -> None:
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
    assert model.gain.weight.grad is not None
    assert model.gain.weight.grad.abs().sum() > 0


# --- Noise controls


def test_smooth_noise_is_smooth_and_in_range(spec: MelSpec) -> None:
    def roughness(x: Tensor) -> float:
        return float(x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean())

    smooth, white = smooth_noise_mels(spec, 64, 48, 0), white_noise_mels(spec, 64, 48, 0)
    assert roughness(smooth) < 0.4 * roughness(white)
    assert smooth.mean((1, 2, 3)).std() > 10 * white.mean((1, 2, 3)).std()
    floor, ceiling = bounds(spec)
    assert ((smooth >= floor) & (smooth <= ceiling)).all()
