"""Procedural clips bred for a teacher: varied like sounds, selected by its answers, no gradient.

Gradients find patterns that only the teacher sees; what these operations make stays within reach of
a sound, so that a small student can follow. It works for teachers that give answers alone.
Shape legend: M mel bands, T frames, E elites, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from frami_edge.augment import DECIBEL, Energies
from frami_edge.device import autocast, generator, named_seed
from frami_edge.losses import has_class
from frami_edge.sources import Batch, SourceContext, balanced_labels
from frami_edge.sources.procedural import procedural_mels

_CHUNK = 64  # clips per call of the teacher


class Draw:
    """Random numbers of one child."""

    def __init__(self, rng: torch.Generator) -> None:
        self.rng = rng

    def uniform(self, low: float, high: float) -> float:
        """Between ``low`` and ``high``."""
        return low + (high - low) * float(torch.rand((), generator=self.rng))

    def chance(self, p: float) -> bool:
        """True with probability ``p``."""
        return self.uniform(0, 1) < p

    def below(self, n: int) -> int:
        """0..n - 1."""
        return int(torch.randint(0, n, (), generator=self.rng))

    def curve(self, points: int, n: int) -> Tensor:
        """(n,) smooth curve through that many normal values."""
        values = torch.randn(1, 1, points, generator=self.rng)
        return F.interpolate(values, size=n, mode="linear", align_corners=True)[0, 0]


# --- Variations of a log energy (M, T), in nepers; T stays


def stretch(x_MT: Tensor, d: Draw) -> Tensor:
    """Another tempo and another pitch, up to 1.6 times and an eighth of the bands."""
    m, t = x_MT.shape
    frames = max(8, round(t * math.exp(d.uniform(-0.5, 0.5))))
    x = F.interpolate(x_MT[None], size=frames, mode="linear", align_corners=False)[0]
    shift = d.uniform(-m / 8, m / 8)
    low, part = math.floor(shift), shift - math.floor(shift)
    band = torch.arange(m) - low
    x = (1 - part) * x[band.clamp(0, m - 1)] + part * x[(band - 1).clamp(0, m - 1)]
    return wrapped(x, t, d)


def wrapped(x_MT: Tensor, frames: int, d: Draw) -> Tensor:
    """Start anywhere and go round."""
    n = x_MT.shape[1]
    return x_MT[:, (d.below(n) + torch.arange(frames)) % n]


def equalise(x_MT: Tensor, d: Draw) -> Tensor:
    """A smooth change of the spectrum."""
    return x_MT + d.uniform(2, 10) * DECIBEL * d.curve(3 + d.below(8), len(x_MT))[:, None]


def band_pass(x_MT: Tensor, d: Draw) -> Tensor:
    """Everything outside a range of bands becomes weaker."""
    m = len(x_MT)
    away_M = (torch.arange(m) - d.uniform(0, m)).abs() / d.uniform(m / 16, m / 2)
    return x_MT - d.uniform(5, 30) * DECIBEL * (away_M.clamp_min(1) - 1)[:, None]


def pulses(x_MT: Tensor, d: Draw) -> Tensor:
    """Regular pulses or decays."""
    t = x_MT.shape[1]
    phase_T = (torch.arange(t) / t * d.uniform(1, 64) + d.uniform(0, 1)) % 1
    if d.chance(0.5):
        return x_MT - phase_T * d.uniform(1, 12)
    return x_MT - d.uniform(3, 20) * DECIBEL * (phase_T > d.uniform(0.1, 0.8))


def events(x_MT: Tensor, d: Draw) -> Tensor:
    """One to five events with attack and decay, and less in between."""
    t = x_MT.shape[1]
    gain_T = torch.full((t,), -d.uniform(10, 50) * DECIBEL)
    for _ in range(1 + d.below(5)):
        at_T = (torch.arange(t) - d.below(t)) / (t * d.uniform(0.03, 0.5))
        rise_T = (at_T * d.uniform(3, 40)).clamp(1e-3, 1).log()
        shape_T = rise_T - at_T.clamp(0, 1) * d.uniform(0, 5)
        gain_T = torch.where((at_T >= 0) & (at_T < 1), gain_T.maximum(shape_T), gain_T)
    return x_MT + gain_T


def swell(x_MT: Tensor, d: Draw) -> Tensor:
    """A smooth change of loudness."""
    return x_MT + d.uniform(2, 8) * DECIBEL * d.curve(4 + d.below(30), x_MT.shape[1])


def loop(x_MT: Tensor, d: Draw) -> Tensor:
    """A stretch again and again, with or without gaps."""
    t = x_MT.shape[1]
    n = min(t, 8 + d.below(max(1, t // 2)))
    start = d.below(t - n + 1)
    part = x_MT[:, start : start + n]
    if d.chance(0.5):
        gap = part.mean(1, keepdim=True) - d.uniform(10, 50) * DECIBEL
        part = torch.cat([part, gap.expand(-1, 1 + d.below(max(1, t // 4)))], dim=1)
    return part[:, torch.arange(t) % part.shape[1]]


def glide(x_MT: Tensor, d: Draw) -> Tensor:
    """The pitch moves."""
    m, t = x_MT.shape
    shift_T = (d.uniform(m / 64, m / 12) * d.curve(3 + d.below(8), t)).round().long()
    return x_MT.gather(0, (torch.arange(m)[:, None] - shift_T).clamp(0, m - 1))


def contrast(x_MT: Tensor, d: Draw) -> Tensor:
    """Stronger or weaker changes over time."""
    mean_M1 = x_MT.mean(1, keepdim=True)
    return mean_M1 + (x_MT - mean_M1) * d.uniform(0.6, 1.6)


def smear(x_MT: Tensor, d: Draw) -> Tensor:
    """Reverberant: a mean over neighbouring frames."""
    size = 1 + 2 * d.below(6)
    return F.avg_pool1d(x_MT[None], size, 1, size // 2, count_include_pad=False)[0]


def hiss(x_MT: Tensor, d: Draw) -> Tensor:
    """Steady noise behind it."""
    level = x_MT.mean() - d.uniform(-10, 30) * DECIBEL
    return torch.logaddexp(x_MT, level + 5 * DECIBEL * d.curve(5, len(x_MT))[:, None])


def louder(x_MT: Tensor, d: Draw) -> Tensor:
    """Another level."""
    return x_MT + d.uniform(-10, 10) * DECIBEL


VARIATIONS: tuple[Callable[[Tensor, Draw], Tensor], ...] = (
    stretch, stretch, equalise, band_pass, pulses, events, swell, loop, glide, contrast, smear,
    hiss, louder,
)  # fmt: skip


# --- The source


class Breeding:
    """Each step varies elites of every class, asks the teacher, and keeps the best as elites.

    A child has one to three variations, and sometimes a second sound mixed in. Its score for a
    class is ``log softmax(z)_k``, or the logit of a detector. No founder may hold more than a few
    places among a class's elites: a class would else end as one clip.

    Source: A. Nguyen et al., *Deep Neural Networks are Easily Fooled*, CVPR 2015, breed pictures
    that way, class by class (MAP-Elites); the variations, which keep a clip a sound, are ours.
    """

    name = "breeding"

    def __init__(self, context: SourceContext) -> None:
        self.context = context
        self.config = context.config.breeding
        self.steps = self.config.steps
        spec = context.spec
        self.energies = Energies(spec)
        self._floor, self._ceiling = (
            torch.from_numpy(x)[:, None] for x in (spec.floor, spec.ceiling)
        )
        seed = named_seed(context.seed, f"{self.name}/founders")
        mels = procedural_mels(spec, self.config.founders, context.frames, seed)
        self.founders_NMT = mels[:, 0].half()
        self.elites: list[tuple[Tensor, Tensor, Tensor]] | None = None
        """Scores (E,), founders (E,) and log-mels (E, M, T) float16 of each class, best first."""

    def step(self, index: int) -> Batch:
        """Children of one step; those that come near the elites of their class are kept."""
        c, w = self.context, self.config
        if self.elites is None:
            scores_NK, _ = self._ask(self.founders_NMT)
            every = torch.arange(len(scores_NK))
            self.elites = [
                self._best(scores_NK[:, k], every, self.founders_NMT) for k in range(c.n_classes)
            ]
        rng = generator(c.seed, f"{self.name}/{index}")
        labels_B = balanced_labels(w.batch_size, c.n_classes, index * w.batch_size)
        children = [self._child(int(k), Draw(rng)) for k in labels_B]
        founder_B = torch.tensor([founder for founder, _ in children])
        mels_BMT = torch.stack([mel for _, mel in children]).half()
        scores_BK, logits_BK = self._ask(mels_BMT)
        near_B = torch.zeros(len(labels_B), dtype=torch.bool)
        for k in range(c.n_classes):
            score_E, founder_E, mels_EMT = self.elites[k]
            better = (scores_BK[:, k] > score_E[-1]) | (labels_B == k)
            self.elites[k] = self._best(
                torch.cat([score_E, scores_BK[better, k]]),
                torch.cat([founder_E, founder_B[better]]),
                torch.cat([mels_EMT, mels_BMT[better]]),
            )
            least = self.elites[k][0][-1] - w.margin
            near_B |= (labels_B == k) & (scores_BK[:, k] >= least)
        hits_B = has_class(logits_BK, labels_B, c.output)
        metrics = {
            "score": torch.stack([score_E.median() for score_E, _, _ in self.elites]).mean(),
            "hit_rate": hits_B.float().mean(),
        }
        kept = bool(near_B.any()) and index >= w.burn_in
        return Batch(mels_BMT[near_B, None].float(), labels_B[near_B], kept, metrics)

    def _child(self, k: int, d: Draw) -> tuple[int, Tensor]:
        """Founder and normalised log-mel (M, T) of a child for class k."""
        assert self.elites is not None
        _, founder_E, mels_EMT = self.elites[k]
        place = min(d.below(len(founder_E)), d.below(len(founder_E)))
        founder, mel = int(founder_E[place]), mels_EMT[place]
        if d.chance(self.config.fresh):
            founder = d.below(len(self.founders_NMT))
            mel = self.founders_NMT[founder]
        x = self.energies.of(mel.float())
        for _ in range(1 + d.below(3)):
            x = VARIATIONS[d.below(len(VARIATIONS))](x, d)
        if d.chance(0.3):
            group = self.elites[k if d.chance(0.3) else d.below(len(self.elites))][2]
            other = group if d.chance(0.65) else self.founders_NMT
            y = wrapped(self.energies.of(other[d.below(len(other))].float()), x.shape[1], d)
            level = x.logsumexp((0, 1)) - y.logsumexp((0, 1)) + d.uniform(-12, 6) * DECIBEL
            x = torch.logaddexp(x, y + level)
        return founder, self.energies.back(x).clamp(self._floor, self._ceiling)

    def _best(
        self, score_N: Tensor, founder_N: Tensor, mels_NMT: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The elites among candidates, best first, few of each founder."""
        w, held, places = self.config, dict[int, int](), list[int]()
        for i in score_N.argsort(descending=True, stable=True).tolist():
            founder = int(founder_N[i])
            if held.get(founder, 0) < w.per_founder:
                held[founder] = held.get(founder, 0) + 1
                places.append(i)
            if len(places) == w.elites:
                break
        return score_N[places], founder_N[places], mels_NMT[places]

    @torch.no_grad()
    def _ask(self, mels_NMT: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and the teacher's logits (N, K), on the host."""
        c = self.context
        parts = []
        for x in mels_NMT.split(_CHUNK):
            with autocast(c.compute):
                hidden = c.teacher.hidden(x[:, None].float().to(c.compute.device))
            parts.append(hidden.logits_BK.float().cpu())
        logits_NK = torch.cat(parts)
        return (logits_NK if c.output == "sigmoid" else logits_NK.log_softmax(1)), logits_NK

    def state(self) -> dict[str, Any]:
        """Elites; the founders depend on the seed alone."""
        names = ("scores", "founders", "mels")
        columns = zip(*(self.elites or ()), strict=True)
        return dict(zip(names, map(list, columns), strict=False))

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.elites = list(zip(state["scores"], state["founders"], state["mels"], strict=True))
