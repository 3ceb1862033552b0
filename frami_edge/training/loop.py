"""The training loop of a teacher.

Shape legend: B batch, M mel bands, T frames, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge.augment import mix_pairs, random_crop, random_gain, random_masks
from frami_edge.data import Features, collate, length_buckets
from frami_edge.device import Choice, autocast, generator
from frami_edge.optim import cosine_with_warmup, weight_groups
from frami_edge.training.config import TrainConfig


def train_epochs(
    model: nn.Module,
    features: Features,
    config: TrainConfig,
    *,
    choice: Choice,
    seed: int,
    on_step: Callable[[int, int, dict[str, float]], None] = lambda *_: None,
) -> None:
    """Train in place, and leave the last epoch's weights.

    Args:
        model: Maps (x_B1MT, lengths_B) to logits (B, K).
        features: Training clips.
        config: The recipe.
        choice: Device and precision.
        seed: Of order and augmentation.
        on_step: Called with (step, steps, metrics) after each step.
    """
    rng = generator(seed, "train")
    lengths = [min(m.shape[1], config.crop_frames or m.shape[1]) for m in features.mels]
    steps_per_epoch = len(length_buckets(lengths, config.batch_size, generator=None))
    total = steps_per_epoch * config.epochs
    model.to(choice.device).train()
    optimizer = torch.optim.AdamW(
        weight_groups(model, config.weight_decay), lr=config.learning_rate
    )
    step = 0
    while step < total:
        for indices in length_buckets(lengths, config.batch_size, generator=rng):
            if step >= total:
                break
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * cosine_with_warmup(step, total, config.warmup)
            x, n, target = _batch(features, indices, config, rng)
            x, n, target = (v.to(choice.device) for v in (x, n, target))
            with autocast(choice):
                logits = model(x, n)
            loss = F.cross_entropy(
                logits.float(), target, label_smoothing=config.label_smoothing
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            on_step(step, total, {"loss": loss.item(), "lr": optimizer.param_groups[0]["lr"]})
    model.eval()


def _batch(
    features: Features, indices: list[int], config: TrainConfig, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """An augmented batch: (B, 1, M, T), lengths (B,), class probabilities (B, K)."""
    mels = [features.mels[i] for i in indices]
    if config.crop_frames:
        mels = [random_crop(m[None, None], config.crop_frames, rng)[0, 0] for m in mels]
    x, n = collate(mels, range(len(mels)), pad_value=0.0)
    target = F.one_hot(features.labels[indices], int(features.labels.max()) + 1).float()
    if config.gain:
        x = random_gain(x, config.gain, rng)
    if config.mixup:
        x, partner, lam = mix_pairs(x, config.mixup, rng)
        target = lam[:, None] * target + (1 - lam[:, None]) * target[partner]
        n = torch.where(lam < 1, torch.minimum(n, n[partner]), n)
    if config.mask_bands or config.mask_frames:
        x = random_masks(x, config.mask_bands, config.mask_frames, rng)
    return x, n, target
