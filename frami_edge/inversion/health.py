"""Health of a bank: what can be said of it with the teacher alone, without any real clip.

Shape legend: N clips, M mel bands, T frames, D pooled statistics, K classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge.device import Choice, autocast
from frami_edge.inversion.bank import Bank
from frami_edge.inversion.baselines_config import budget, section
from frami_edge.inversion.bn_loss import BatchNormStatistics, live_batch_norms
from frami_edge.models.hidden import TeacherLike


@torch.no_grad()
def source_health(
    teacher: TeacherLike, bank: Bank, source: str, choice: Choice, limit: int = 768
) -> dict[str, Any]:
    """Figures of one source.

    ``requested``: share of clips that the teacher hears as the class asked for (None where none
    was asked); ``batch_norm_error``: relative, as in the loss; ``entropy``: of the teacher's
    answer, in nats; ``embedding_variance`` of the pooled statistics, total and within the
    teacher's classes; ``cosine``: mean pairwise cosine of the embeddings; ``loudness_spread``:
    standard deviation of the clips' means; ``class_share``: what the teacher hears, by class.
    """
    assert isinstance(teacher, nn.Module)
    clips = bank.read(source, limit)
    pooled, logits, errors = [], [], []
    watch = BatchNormStatistics(teacher) if live_batch_norms(teacher) else None
    for x in clips.mels_N1MT.split(96):
        x = x.to(choice.device)
        with autocast(choice):
            if watch:
                with watch:
                    hidden = teacher.hidden(x)
                if x.shape[0] == min(96, len(clips.mels_N1MT)):
                    errors.append(watch.loss())
            else:
                hidden = teacher.hidden(x)
        pooled.append(hidden.pooled_BD.float().cpu())
        logits.append(hidden.logits_BK.float().cpu())
    s_ND, z_NK = torch.cat(pooled), torch.cat(logits)
    answer_N = z_NK.argmax(1)
    asked = clips.labels_N >= 0
    p_NK = z_NK.softmax(1)
    share_K = torch.bincount(answer_N, minlength=z_NK.shape[1]).float() / len(answer_N)
    return {
        "clips": bank.sources[source],
        "requested": float((answer_N == clips.labels_N)[asked].float().mean())
        if asked.any()
        else None,
        "batch_norm_error": float(torch.stack(errors).mean()) if errors else None,
        "entropy": float(-(p_NK * z_NK.log_softmax(1)).sum(1).mean()),
        "embedding_variance": float(s_ND.var(dim=0).sum()),
        "embedding_variance_within": _within(s_ND, answer_N),
        "cosine": _mean_cosine(s_ND),
        "loudness_spread": float(clips.mels_N1MT.mean(dim=(1, 2, 3)).std()),
        "class_share": share_K.tolist(),
        "requested_per_class": [
            float((answer_N == k)[clips.labels_N == k].float().mean())
            if (clips.labels_N == k).any()
            else None
            for k in range(z_NK.shape[1])
        ],
    }


def _within(s_ND: Tensor, answer_N: Tensor) -> float:
    centred = s_ND.clone()
    for k in answer_N.unique():
        centred[answer_N == k] -= s_ND[answer_N == k].mean(dim=0)
    return float(centred.square().sum(dim=1).mean())


def _mean_cosine(s_ND: Tensor) -> float:
    unit = F.normalize(s_ND, dim=1)
    n = len(unit)
    return float((unit.sum(dim=0).square().sum() - n) / max(1, n * (n - 1)))


HEALTHY_REQUESTED = 2.0
"""Times chance. Below it the generator has not learned the classes. The class term is a gentle
push: good banks of ten classes have 0.25 to 0.33 (ESC-10) and 0.8 (digits)."""
HEALTHY_BATCH_NORM = 0.2
"""Above it the clips are far from what the teacher was trained on; a good bank is below 0.05."""
HEALTHY_SHARE = 0.6
"""Above it one class swallows the bank, whatever was asked for."""


def warnings(health: dict[str, dict[str, Any]]) -> list[str]:
    """A sentence for each source that shows a known failure."""
    found = []
    for name, h in health.items():
        asked, error, share = h["requested"], h["batch_norm_error"], max(h["class_share"])
        enough = min(0.8, HEALTHY_REQUESTED / len(h["class_share"]))
        if asked is not None and asked < enough:
            found.append(
                f"{name}: the teacher hears the requested class in only {100 * asked:.0f} % of the "
                f"clips ({100 * enough:.0f} % is the least): raise {budget(name)}.steps or "
                f"{section(name)}.class_loss."
            )
        if asked is not None and error is not None and error > HEALTHY_BATCH_NORM:
            found.append(
                f"{name}: the BatchNorm statistics are {error:.2f} away from the training data's "
                f"(a good bank: 0.05): raise {section(name)}.batch_norm or the steps."
            )
        if share > HEALTHY_SHARE:
            found.append(
                f"{name}: the teacher hears one class in {100 * share:.0f} % of the clips."
            )
    return found
