"""How large a distillation is: by the teacher, or by the time that it may take."""

from __future__ import annotations

import math
import re
import time
from typing import TYPE_CHECKING, Any

import torch

from frami_edge.config import (
    BankConfig,
    DistillConfig,
    InversionConfig,
    JourneyConfig,
    StudentArch,
    TranslatorConfig,
    budget,
)
from frami_edge.device import read_every
from frami_edge.distillation import Sampler, TensorSampler, distill
from frami_edge.errors import ConfigError
from frami_edge.filling import source_context, sources_at_once, threads_of_one
from frami_edge.models import build_trunk
from frami_edge.sources import Independent, SourceContext, make_source
from frami_edge.sources.procedural import procedural_audio, procedural_mels

if TYPE_CHECKING:
    from frami_edge.checkpoint import Teacher
    from frami_edge.device import Compute
    from frami_edge.progress import Progress
    from frami_edge_runtime.melspec import MelSpec

# --- By the teacher

MANY_CLASSES = 20
"""Above it the student has the widths that were tried on ESC-50."""
STEPS_PER_CLASS = 160
"""Distillation steps: 1,600 for ten classes, as many as ESC-10 and FSDD needed."""


def sized_for(teacher: Teacher) -> JourneyConfig:
    """The config of a distillation where none is given.

    Between the recipes of ESC-10 and ESC-50: steps grow with the classes, batches hold two clips of
    each, and clips are as long as what the teacher and the student take in at once.
    """
    classes, network = len(teacher.labels), teacher.model
    many = classes > MANY_CLASSES
    channels = (32, 64, 128, 192, 256) if many else (32, 64, 96, 128, 128)
    width = min(128, max(32, network.channels))  # the teacher's own C needs no projector
    student = StudentArch(channels=channels, out_channels=width)
    own_s = build_trunk(student, teacher.mel.n_mels)[1] * teacher.mel.hop_s
    field: int | None = getattr(network, "receptive_field", None)
    theirs_s = None if field is None else field * teacher.step_s
    clip_s = round(min(2.56, max(0.96, 1.2 * (theirs_s or 0), 2 * own_s)), 2)
    made = round(250 * math.sqrt(max(1.0, classes / 10)))  # steps of each learned source
    batch = min(200, max(48, 2 * classes))
    source = {"steps": made, "burn_in": made // 4, "batch_size": batch}
    steps = round(min(6000, max(1200, STEPS_PER_CLASS * classes)))
    return JourneyConfig(
        student=student,
        bank=BankConfig(
            clip_s=clip_s,
            procedural_clips=min(20_000, max(3000, 200 * classes)),
            inversion=InversionConfig.model_validate(source | {"adversarial": {"weight": 0.5}}),
            translator=TranslatorConfig.model_validate(source),
        ),
        distill=DistillConfig(steps=steps, crop_min_s=clip_s / 2, crop_max_s=clip_s),
    )


def reason(teacher: Teacher, config: JourneyConfig) -> str:
    """One line: the sizes that the teacher decided, and why."""
    field: int | None = getattr(teacher.model, "receptive_field", None)
    seen = "a whole clip" if field is None else f"{field * teacher.step_s:.2f} s"
    return (
        f"Sized for {len(teacher.labels)} classes, frame features that see {seen} and a hop of "
        f"{1000 * teacher.mel.hop_s:g} ms: clips of {config.bank.clip_s:g} s, "
        f"{config.bank.inversion.steps} steps of inversion, {config.distill.steps:,} of "
        "distillation."
    )


def doubt(teacher: Teacher, config: JourneyConfig) -> str:
    """A sentence where a recipe has far fewer steps than its teacher's classes need, or nothing."""
    usual = sized_for(teacher).distill.steps
    if 2 * config.distill.steps >= usual:
        return ""
    return (
        f"{config.distill.steps:,} steps of distillation are few for {len(teacher.labels)} classes "
        f"(usual: {usual:,}). Without a recipe the teacher decides."
    )


# --- By the time that it may take

SHARES = (0.05, 4.0)
"""Least and most of the config's steps that a budget may leave or give."""
_UNITS = {"s": 1, "min": 60, "h": 3600}
_WARM, _TIMED, _PATIENCE_S = 2, 8, 3.0  # steps, steps, seconds per source


def parse_budget(text: str | float) -> float:
    """Seconds of `90s`, `10min`, `1.5h`, or of a plain number.

    Raises:
        ConfigError: It is neither.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(s|min|h)?\s*", str(text))
    if not found or not float(found[1]):
        raise ConfigError(f"The budget {text!r} is not a time.", fix="Write it like 10min or 1h.")
    return float(found[1]) * _UNITS[found[2] or "s"]


def scaled_keys(config: JourneyConfig, bank: bool) -> list[str]:
    """Dotted keys of the numbers that a budget changes; `bank`: whether one is to be made."""
    keys = ["distill.steps"]
    for source in config.bank.shares if bank else ():
        section = budget(source).removeprefix("bank.")
        found = getattr(config.bank, section, None)
        if hasattr(found, "steps"):
            keys += [f"bank.{section}.{k}" for k in ("steps", "burn_in") if hasattr(found, k)]
        elif hasattr(config.bank, f"{section}_clips"):
            keys.append(f"bank.{section}_clips")
    return list(dict.fromkeys(keys))


def value_at(config: Any, key: str) -> Any:
    """The value of a dotted key."""
    for part in key.split("."):
        config = getattr(config, part)
    return config


def fitted(
    teacher: Teacher,
    config: JourneyConfig,
    compute: Compute,
    seconds: float,
    *,
    mel: MelSpec,
    audio: bool = False,
    sampler: Sampler | None = None,
) -> tuple[dict[str, int], str]:
    """Steps and clips for which a distillation takes about so many seconds here.

    A few steps of every part are timed and thrown away. All numbers of the config keep their
    proportions. The time is for bank (of audio or log-mels) and student together; where a sampler
    gives the clips, for the student alone.

    Returns:
        Values by dotted key, and one line about the decision.

    Raises:
        ConfigError: So few steps would train nothing.
    """
    making, fixed, growing = sampler is None, 0.0, 0.0
    if sampler is None:
        begin = time.perf_counter()
        context = source_context(teacher, config.bank, compute, config.seed, audio=audio)
        fixed += time.perf_counter() - begin
        at_once = sources_at_once(context)
        with threads_of_one(at_once) as share_cores:
            share_cores()
            found_s = [_source_seconds(name, context) for name in config.bank.shares]
        fixed += sum(first_s for first_s, _, _ in found_s) / at_once
        alone_s = [steps_s / (min(2, at_once) if shared else 1) for _, steps_s, shared in found_s]
        growing = max(sum(steps_s for _, steps_s, _ in found_s) / at_once, *alone_s)
        clips = 4 * config.distill.batch_size
        if context.samples:
            made = procedural_audio(context.spec.sample_rate, clips, context.samples, 0)
        else:
            made = procedural_mels(context.spec, clips, context.frames, 0)
        sampler = TensorSampler(made)
    each = _distill_seconds(teacher, sampler, config, compute, mel)
    growing += each * config.distill.steps
    least, most = SHARES
    share = min(most, (0.9 * seconds - fixed) / growing)  # health and pictures take the rest
    if share < least:
        raise ConfigError(
            f"A budget of {seconds:.0f} s is too short: about "
            f"{(fixed + least * growing) / 0.9:.0f} s is the least here.",
            fix="Give more time, or a smaller recipe.",
        )
    found = {
        key: max(1, round(share * value_at(config, key))) for key in scaled_keys(config, making)
    }
    line = (
        f"A budget of {seconds:.0f} s gives {share:.2f} times the recipe's steps: "
        f"{found['distill.steps']:,} of distillation, {1000 * each:.0f} ms each."
    )
    return found, line


def _source_seconds(name: str, context: SourceContext) -> tuple[float, float, bool]:
    """Seconds before a source's first step, those of all steps; whether two cores share them."""
    begin = time.perf_counter()
    source = make_source(name, context)
    # Before that step there is no adversarial term.
    start = context.config.inversion.adversarial.warmup_steps if name == "inversion" else 0
    laps: list[float] = []
    for _ in range(min(_WARM + _TIMED, source.steps)):
        lap = time.perf_counter()
        source.step(start + len(laps))
        if context.compute.device.type == "cuda":
            torch.cuda.synchronize(context.compute.device)
        laps.append(time.perf_counter() - lap)
        if len(laps) > _WARM and time.perf_counter() - begin > _PATIENCE_S:
            break  # never after the first steps, which fill pools and caches
    timed = laps[_WARM:] or laps[-1:]
    each = sum(timed) / len(timed)
    first_s = max(0.0, time.perf_counter() - begin - len(laps) * each)
    return first_s, each * source.steps, isinstance(source, Independent)


def _distill_seconds(
    teacher: Teacher, sampler: Sampler, config: JourneyConfig, compute: Compute, mel: MelSpec
) -> float:
    """Seconds per step of distillation."""
    warm, timed = (max(n * config.distill.repeats, read_every(compute)) for n in (_WARM, _TIMED))
    few = config.distill.model_copy(update={"steps": warm + timed})
    at: list[float] = []

    def lap(_: Progress) -> None:
        at.append(time.perf_counter())

    config = config.model_copy(update={"distill": few})
    distill(teacher, sampler, config, compute, mel=mel, progress=lap)
    return (at[-1] - at[warm - 1]) / timed
