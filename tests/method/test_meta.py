"""The GPU path without a GPU: whole steps with every tensor of the device on torch's `meta`.

A meta tensor has a shape and no values. An operation that mixes devices or waits for a value
(`.item()`, `float(t)`, boolean indexing) fails there, as it would cost a host sync on a GPU.
Left out by name: breeding, which selects by answers. Reading metrics, once in 20 steps, is stubbed.
"""

import contextlib
import dataclasses

import pytest
import torch
from torch import Tensor

from frami_edge import distillation
from frami_edge.config import BankConfig, JourneyConfig
from frami_edge.device import Compute, place
from frami_edge.progress import StepReport
from frami_edge.sources import SourceContext, make_source

META = Compute(torch.device("meta"), torch.float32, "a test")


@pytest.fixture(autouse=True)
def _a_device_without_values(monkeypatch):
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


@pytest.mark.parametrize(
    ("name", "output"),
    [("inversion", "sigmoid"), ("translator", "softmax"), ("refinement", "sigmoid")],
)
def test_a_source_never_waits(teacher, spec, name, output):
    learned = {"steps": 6, "burn_in": 0, "batch_size": 10}
    config = BankConfig.model_validate({
        "clip_s": 0.24, "procedural_clips": 20, "translator": learned,
        "refinement": {"batch_size": 10, "iterations": 2},
        "inversion": learned | {
            "latent": 8, "width": 8, "batch_steps": 2,
            "adversarial": {"weight": 1.0, "warmup_steps": 1},
        },
    })  # fmt: skip
    place(teacher, META)
    source = make_source(name, SourceContext(teacher, spec, 5, config, META, 0, output))
    for step in range(4):
        batch = source.step(step)
        assert batch.mels_B1MT.device.type == "meta"
        assert all(value.device.type == "meta" for value in batch.metrics.values())


@pytest.mark.parametrize(
    ("output", "own"), [("softmax", {"n_mels": 10, "hop_length": 160}), ("sigmoid", {})]
)
def test_distillation_never_waits(opened, spec, monkeypatch, output, own):
    steps = []

    def unread(self, metrics, *, read):
        steps.append(len(metrics))
        return []

    monkeypatch.setattr(StepReport, "step", unread)
    monkeypatch.setattr(distillation, "_finished", lambda student, steps: student)

    class Clips:
        def batch(self, n, generator):
            return torch.randn(n, 1, spec.n_mels, 24, generator=generator)

    recipe = {
        "steps": 3, "batch_size": 8, "crop_min_s": 0.18, "crop_max_s": 0.24, "mixup": 0.5,
        "mask_bands": 3, "overlay": 0.5, "join": 2, "tempo": 0.2, "pitch_bands": 1,
        "equaliser_db": 3, "roll": True,
    }  # fmt: skip
    config = JourneyConfig.model_validate({
        "student": {"channels": [8, 8], "time_kernels": [3, 3], "out_channels": 8},
        "bank": {"clip_s": 0.24},
        "distill": recipe,
    })  # fmt: skip
    teacher = dataclasses.replace(opened, card=opened.card.model_copy(update={"output": output}))
    mel = spec.replace(**own) if own else None
    student = distillation.distill(teacher, Clips(), config, META, mel=mel)
    assert len(steps) == 3
    assert all(p.device.type == "meta" for p in student.parameters())
