"""Whether a student is ready, judged from its teacher's answers to synthetic clips alone.

No real audio enters, also where the student learned from recordings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from frami_edge.bank import missing_classes
from frami_edge.config import frames_in
from frami_edge.device import named_seed
from frami_edge.distillation import Hearing
from frami_edge.losses import Output, detection_boundary, same_decision
from frami_edge.sources.procedural import procedural_audio, procedural_mels, samples_for

if TYPE_CHECKING:
    from frami_edge.bank import Bank
    from frami_edge.checkpoint import Teacher
    from frami_edge.config import JourneyConfig
    from frami_edge.device import Compute
    from frami_edge.models import StudentNet
    from frami_edge_runtime.melspec import MelSpec

LEAST_AGREEMENT: Mapping[Output, float] = {"softmax": 0.85, "sigmoid": 0.75}
"""Averaged over classes. Synthetic clips are harder than real ones: the students that reached 0.85
agreed with their teachers on 93 to 99 % of the real clips (docs/METHOD.md)."""
LEAST_OF_CLASS = 0.5
"""For each class: a mean hides one that the student does not know."""
FEW_CLIPS = 10
"""Fewer clips of a class say nothing about it."""
CLIPS = 512
"""Held-out procedural clips."""


@dataclass(frozen=True)
class Readiness:
    """Data-free figures of a student, and what they mean.

    Attributes:
        agreement: Share of clips on which student and teacher decide alike, by source; of detectors
            over the clips that trigger any, None below `FEW_CLIPS` of them.
        held_out: Sources whose clips are new to the student. The others made no further clips, and
            are judged on those of the bank.
        requested: Share of the clips made for each class that the teacher assigns to it, of the
            best source; None where no source makes clips for classes.
        by_class: Agreement on each class, 2 |S and T| / (|S| + |T|) of the clips that student and
            teacher assign to it, over all sources; None below `FEW_CLIPS` of the teacher. Each clip
            counts by the margin between the teacher's first and second probability (detectors: all
            count alike, beyond `losses.detection_boundary`).
        mean: Their mean, which decides; None where no class has clips.
        missing: Classes that the bank lacks.
        reasons: Why it is not ready, one sentence each.
    """

    agreement: Mapping[str, float | None]
    held_out: tuple[str, ...]
    requested: Mapping[str, float | None]
    by_class: Mapping[str, float | None]
    mean: float | None
    missing: tuple[str, ...]
    reasons: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.reasons

    def __str__(self) -> str:
        return "Ready." if self else f"Not ready. {' '.join(self.reasons)}"

    def to_dict(self) -> dict[str, Any]:
        """For cards and JSON."""
        return {"ready": bool(self), **asdict(self)}


@torch.no_grad()
def judge(
    teacher: Teacher,
    student: StudentNet,
    config: JourneyConfig,
    compute: Compute,
    mel: MelSpec,
    bank: Bank | None = None,
) -> Readiness:
    """The verdict on a student, in evaluation mode, with its front end.

    Its recipe's seed gives procedural clips that no bank holds. A student of other clips than a
    bank's is judged on these alone.
    """
    hear, labels = Hearing(teacher, mel, compute.device), teacher.labels
    seed, frames = named_seed(config.seed, "held-out"), frames_in(config.bank.clip_s, teacher.mel)
    if hear.shared:
        fresh = procedural_mels(teacher.mel, CLIPS, frames, seed)
    else:
        samples = samples_for(teacher.mel, frames)
        fresh = procedural_audio(teacher.sample_rate, CLIPS, samples, seed)
    clips, held_out = {"procedural": fresh}, ["procedural"]
    for source in bank.sources if bank else ():
        if source not in ("procedural", "recordings"):
            assert bank is not None
            kept = bank.held_out(source)
            held_out += [] if kept is None else [source]
            clips[source] = bank.clips(source, bank.some(source, CLIPS)) if kept is None else kept
    agreement: dict[str, float | None] = {}
    answers = []
    for source, x in clips.items():
        student_NK, teacher_NK = _answers(hear, student, x, compute)
        same_N, least = same_decision(student_NK, teacher_NK, teacher.output), 1
        if teacher.output == "sigmoid":  # most clips trigger no detector, and nothing is agreed on
            same_N, least = same_N[((student_NK > 0) | (teacher_NK > 0)).any(1)], FEW_CLIPS
        agreement[source] = float(same_N.float().mean()) if len(same_N) >= least else None
        answers.append((student_NK, teacher_NK))
    student_NK, teacher_NK = (torch.cat(part) for part in zip(*answers, strict=True))
    boundary = config.distill.boundary
    by_class = _by_class(labels, student_NK, teacher_NK, teacher.output, boundary)
    health = dict(bank.index.health) if bank else {}
    health.pop("recordings", None)
    missing = tuple(missing_classes(health, labels)) if health else ()
    requested: dict[str, float | None] = {}
    for k, label in enumerate(labels):
        rates = [h["hit_rate_per_class"][k] for h in health.values()]
        requested[label] = max((rate for rate in rates if rate is not None), default=None)
    shares = [share for share in by_class.values() if share is not None]
    mean = sum(shares) / len(shares) if shares else None
    reasons = _reasons(mean, LEAST_AGREEMENT[teacher.output], by_class, missing)
    return Readiness(agreement, tuple(held_out), requested, by_class, mean, missing, reasons)


def _answers(
    hear: Hearing, student: StudentNet, clips: Tensor, compute: Compute
) -> tuple[Tensor, Tensor]:
    """Logits (N, K) of student and teacher."""
    found = []
    for part in clips.to(compute.device).split(128):
        ours, theirs = hear(part)
        found.append(torch.stack([student(theirs), hear.teacher(ours)]))
    student_NK, teacher_NK = torch.cat(found, dim=1).float().cpu()
    return student_NK, teacher_NK


def _by_class(
    labels: tuple[str, ...],
    student_NK: Tensor,
    teacher_NK: Tensor,
    output: Output,
    boundary: float,
) -> dict[str, float | None]:
    """Agreement of the sets of clips that each assigns to a class.

    Clips between two classes say little, and the more classes there are, the more such clips: each
    counts by the teacher's margin. Few synthetic clips trigger a detector: its sets are the clips
    beyond the boundary around which the student was trained.
    """
    if output == "softmax":
        numbers = torch.arange(len(labels))
        ours_NK, theirs_NK = (z.argmax(1)[:, None] == numbers for z in (student_NK, teacher_NK))
        first_N, second_N = teacher_NK.softmax(1).topk(2).values.unbind(1)
        weight_N = (first_N - second_N).double()
    else:
        least_K = detection_boundary(teacher_NK, boundary)
        ours_NK, theirs_NK = student_NK > least_K, teacher_NK > least_K
        weight_N = torch.ones(len(teacher_NK), dtype=torch.float64)
    found: dict[str, float | None] = {}
    for k, label in enumerate(labels):
        ours_N, theirs_N = ours_NK[:, k], theirs_NK[:, k]
        both = float(weight_N @ (ours_N & theirs_N).double())
        either = float(weight_N @ (ours_N.double() + theirs_N))
        enough = int(theirs_N.sum()) >= FEW_CLIPS and either > 0
        found[label] = 2 * both / either if enough else None
    return found


def _reasons(
    mean: float | None,
    least: float,
    by_class: Mapping[str, float | None],
    missing: tuple[str, ...],
) -> tuple[str, ...]:
    """Why a student with these figures is not ready."""
    found = []
    if mean is None:
        found.append("No class has enough synthetic clips: nothing shows what it learned.")
    elif mean < least:
        found.append(
            f"Its agreement with the teacher, averaged over classes, is {100 * mean:.0f} % "
            f"({100 * least:.0f} % is the least)."
        )
    if missing:
        found.append(f"The bank lacks {_listed(missing)}.")
    known = {name: share for name, share in by_class.items() if share is not None}
    poor = [name for name, share in known.items() if share < LEAST_OF_CLASS and name not in missing]
    if poor:
        found.append(f"The agreement on {_listed(poor)} is below {100 * LEAST_OF_CLASS:.0f} %.")
    return tuple(found)


def _listed(names: tuple[str, ...] | list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more classes" if len(names) > most else ""
    return ", ".join(names[:most]) + more
