"""The bank: synthetic clips on disk, read at random in bounded memory, and their health.

A folder of safetensors shards (float16 log-mels or 16-bit audio, target labels, teacher logits) and
a `bank.json` that names them. The index is replaced atomically after each shard, so that a killed
run leaves a whole bank.

Shape legend: N clips, M mel bands, T frames, S samples, D pooled state, K classes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge.config import JourneyConfig, Strict, budget, frames_in, section
from frami_edge.device import Compute, autocast
from frami_edge.errors import BankError
from frami_edge.frontend import MelBridge, ResampledLogMel
from frami_edge.io import atomic_write_bytes, atomic_write_json, read_small, sha256_file
from frami_edge.losses import (
    BatchNormStatistics,
    Output,
    detection_boundary,
    has_class,
    live_batch_norms,
)
from frami_edge.models import TeacherLike
from frami_edge_runtime.errors import MelSpecError
from frami_edge_runtime.melspec import MelSpec

SCHEMA = 2
MAX_INDEX_BYTES = 32 << 20
"""Largest `bank.json` that is read; a shard takes about 250 bytes in it."""


class Shard(Strict):
    """One file of a bank: the clips of `first_step` up to `next_step` of one source."""

    file: str = Field(pattern=r"^(rank-[0-9]+/)?[a-z0-9_-]+\.safetensors$")
    source: str
    clips: int = Field(ge=1, le=1 << 32)
    first_step: int = Field(ge=0)
    next_step: int = Field(ge=1)
    sha256: str


class BankIndex(Strict):
    """`bank.json`: what the bank was made from, its shards in order, and its health."""

    schema_version: int = SCHEMA
    mel: dict[str, Any]  # as MelSpec writes it
    frames: int = Field(ge=1, le=1 << 20)  # mel frames of every clip
    samples: int = Field(default=0, ge=0, le=1 << 28)
    """Samples of every clip at the front end's rate; 0 for a bank of log-mels."""
    recordings: int = Field(default=0, ge=0)
    """Recordings of the user that clips were cut from."""
    labels: tuple[str, ...]
    teacher_sha256: str
    config: dict[str, Any]  # the bank section of the config
    seed: int
    output: Output = "softmax"  # how the teacher's logits become scores
    shards: tuple[Shard, ...] = ()
    health: dict[str, Any] = Field(default_factory=dict)  # by source, see `source_health`


@dataclass
class Clips:
    """Some clips of a bank.

    Attributes:
        mels_N1MT: Normalised log-mels, float32; of a bank of audio they are computed from it.
        labels_N: Target classes, -1 where there was none.
        logits_NK: The teacher's logits, float32.
        audio_NS: Samples in -1..1, of a bank of audio.
    """

    mels_N1MT: Tensor
    labels_N: Tensor
    logits_NK: Tensor
    audio_NS: Tensor | None = None


class Bank:
    """A bank of synthetic clips in a folder; `index` is the content of `bank.json`."""

    def __init__(self, folder: Path, index: BankIndex) -> None:
        self.folder, self.index = folder, index
        self.spec = MelSpec.from_dict(index.mel)
        self._open: dict[str, Any] = {}

    @classmethod
    def create(cls, folder: Path, index: BankIndex) -> Bank:
        """Start a bank with this index."""
        folder.mkdir(parents=True, exist_ok=True)
        bank = cls(folder, index)
        bank.update()
        return bank

    @classmethod
    def open_or_create(cls, folder: Path, index: BankIndex) -> Bank:
        """Open the bank of these settings, or start it where the folder has none.

        Raises:
            BankError: The folder holds a bank of other settings.
        """
        if not (folder / "bank.json").exists():
            return cls.create(folder, index)
        bank = cls.open(folder)
        kept = ("mel", "frames", "samples", "labels", "teacher_sha256", "config", "seed", "output")
        for key in kept:
            if getattr(bank.index, key) != getattr(index, key):
                raise BankError(
                    f"The bank in {folder} was made with another {key}.",
                    fix="Use another --out, or delete the folder.",
                )
        return bank

    @classmethod
    def open(cls, folder: Path) -> Bank:
        """Open a bank and check that its files are complete.

        Raises:
            BankError: No bank, another schema, or a damaged file.
        """
        path = folder / "bank.json"
        try:
            data = json.loads(read_small(path, MAX_INDEX_BYTES))
            version = data.get("schema_version") if isinstance(data, dict) else None
            if isinstance(version, int) and version != SCHEMA:
                raise BankError(
                    f"{path} has schema {version}, this version reads {SCHEMA}.",
                    fix="Make the bank again with this version.",
                )
            bank = cls(folder, BankIndex.model_validate(data))
        except FileNotFoundError as error:
            raise BankError(
                f"There is no bank in {folder}: bank.json is missing.",
                fix="Make one with `frami-edge invert`.",
            ) from error
        except (ValueError, ValidationError, MelSpecError, RecursionError) as error:
            raise BankError(
                f"{path} is damaged or of another version.", fix="Make the bank again."
            ) from error
        for shard in bank.index.shards:
            bank._check(shard)
        return bank

    def __len__(self) -> int:
        return sum(self.sources.values())

    def __repr__(self) -> str:
        listed = ", ".join(f"{n} {name}" for name, n in self.sources.items())
        return f"Bank({self.folder}: {len(self)} clips of {self.index.frames} mel frames; {listed})"

    @property
    def sources(self) -> dict[str, int]:
        """Clips by source."""
        counts: dict[str, int] = {}
        for shard in self.index.shards:
            counts[shard.source] = counts.get(shard.source, 0) + shard.clips
        return counts

    def next_step(self, source: str) -> int:
        """First step of a source whose clips are not in the bank."""
        return max((s.next_step for s in self.index.shards if s.source == source), default=0)

    def append(self, source: str, clips: Clips, first_step: int, next_step: int) -> None:
        """Write one shard, then name it in the index."""
        name = f"shard-{source}-{first_step:06d}.safetensors"
        tensors = {
            **self._stored(clips.mels_N1MT if clips.audio_NS is None else clips.audio_NS),
            "labels": clips.labels_N.contiguous(),
            "logits": clips.logits_NK.float().contiguous(),
        }
        atomic_write_bytes(self.folder / name, save(tensors, metadata={"source": source}))
        shard = Shard(
            file=name,
            source=source,
            clips=len(clips.labels_N),
            first_step=first_step,
            next_step=next_step,
            sha256=sha256_file(self.folder / name),
        )
        shards = sorted((*self.index.shards, shard), key=lambda s: (s.source, s.first_step))
        self.update(shards=tuple(shards))

    def _stored(self, clips: Tensor) -> dict[str, Tensor]:
        if self.index.samples:
            return {"audio": to_int16(clips).contiguous()}
        return {"mels": clips.clamp(-60_000, 60_000).half().contiguous()}

    def drop(self, source: str) -> None:
        """Take a source out of the index, so that it is made again."""
        kept = tuple(s for s in self.index.shards if s.source != source)
        self.update(shards=kept, health={})

    def update(self, **changes: Any) -> None:
        """Change fields of the index, and write it."""
        self.index = self.index.model_copy(update=changes)
        atomic_write_json(self.folder / "bank.json", self.index.model_dump(mode="json"))

    def _damaged(self, what: str) -> BankError:
        return BankError(f"{what}.", fix="Delete the bank's folder and make it again.")

    def _handle(self, shard: Shard) -> Any:
        if shard.file not in self._open:
            path = self.folder / shard.file
            try:
                self._open[shard.file] = safe_open(os.fspath(path), framework="pt")
            except (SafetensorError, OSError) as error:
                raise self._damaged(f"{path} cannot be read: {error}") from error
        return self._open[shard.file]

    def _check(self, shard: Shard) -> None:
        path = self.folder / shard.file
        if not path.is_file() or sha256_file(path) != shard.sha256:
            raise self._damaged(
                f"{path} is missing or damaged: its hash is not the one in bank.json"
            )

    def clips(self, source: str, indices: Tensor) -> Tensor:
        """Clips of one source by their number, float32; only these rows are read.

        Returns:
            (n, 1, M, T) normalised log-mels, or (n, S) samples of a bank of audio.
        """
        if self.index.samples:
            kind, out = "audio", torch.empty(len(indices), self.index.samples)
        else:
            kind = "mels"
            out = torch.empty(len(indices), 1, self.spec.n_mels, self.index.frames)
        start = 0
        for shard in (s for s in self.index.shards if s.source == source):
            here = ((indices >= start) & (indices < start + shard.clips)).nonzero()[:, 0]
            if len(here):
                # The tensor is mapped, not loaded: indexing reads its rows from the file.
                try:
                    rows = self._handle(shard).get_tensor(kind)
                except SafetensorError as error:
                    raise self._damaged(f"{self.folder / shard.file}: {error}") from None
                if rows.shape != (wanted := (shard.clips, *out.shape[1:])):
                    raise self._damaged(
                        f"{self.folder / shard.file} holds {tuple(rows.shape)}, not {wanted}"
                    )
                out[here] = rows[indices[here] - start].float()
            start += shard.clips
        return out / FULL_SCALE if self.index.samples else out

    def keep_out(self, source: str, clips: Tensor) -> None:
        """Store clips of a source that no student is trained on."""
        path = self.folder / f"held-out-{source}.safetensors"
        atomic_write_bytes(path, save(self._stored(clips)))

    def held_out(self, source: str) -> Tensor | None:
        """What `keep_out` stored, float32; None for a source that makes no further clips.

        Raises:
            BankError: The file is damaged.
        """
        name = f"held-out-{source}.safetensors"
        paths = [p for p in (self.folder / name, self.folder / "rank-0" / name) if p.exists()]
        if not paths:
            return None
        try:
            x: Tensor = next(iter(load(paths[0].read_bytes()).values()))
        except (SafetensorError, StopIteration) as error:
            raise BankError(f"{paths[0]} is damaged.", fix="Make the bank again.") from error
        return x.float() / FULL_SCALE if self.index.samples else x.float()

    def mels(self, source: str, indices: Tensor, spec: MelSpec | None = None) -> Tensor:
        """(n, 1, M, T) float32 log-mels of clips of one source by their number.

        Args:
            source: One of `sources`.
            indices: Numbers of the clips.
            spec: Another front end than the bank's own.

        Raises:
            ConfigError: The bank holds log-mels, of which that front end's cannot be computed.
        """
        clips = self.clips(source, indices)
        if self.index.samples:
            return self.heard(clips, spec)
        return clips if spec in (None, self.spec) else MelBridge(self.spec, spec)(clips)

    @torch.no_grad()
    def heard(self, audio_NS: Tensor, spec: MelSpec | None = None) -> Tensor:
        """(n, 1, M, T) log-mels of samples at the bank's rate."""
        front_end = ResampledLogMel(spec or self.spec, self.spec.sample_rate)
        return torch.cat([front_end(part) for part in audio_NS.split(64)])[:, None]

    def read(self, source: str, limit: int | None = None) -> Clips:
        """The clips of one source, or ``limit`` of them spread evenly over all.

        Raises:
            BankError: The bank has none of this source.
        """
        wanted = self.some(source, limit)
        labels, logits = self.answers(source, wanted)
        clips = self.clips(source, wanted)
        if self.index.samples:
            return Clips(self.heard(clips), labels, logits, clips)
        return Clips(clips, labels, logits)

    def some(self, source: str, limit: int | None = None) -> Tensor:
        """Numbers of the clips of one source, or of ``limit`` of them; raises as `read`."""
        total = self.sources.get(source, 0)
        if not total:
            raise BankError(
                f"The bank in {self.folder} has no clips of the source {source}.",
                fix=f"It has: {', '.join(self.sources) or 'none'}.",
            )
        return _spread(total, total if limit is None else min(limit, total))

    def answers(self, source: str, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Target labels (n,) and teacher logits (n, K) of clips by their number, ascending."""
        labels, logits, start = [], [], 0
        for shard in (s for s in self.index.shards if s.source == source):
            here = indices[(indices >= start) & (indices < start + shard.clips)] - start
            labels.append(self._handle(shard).get_tensor("labels")[here])
            logits.append(self._handle(shard).get_tensor("logits")[here])
            start += shard.clips
        return torch.cat(labels), torch.cat(logits)

    def examples(self, source: str, per_class: int = 6) -> dict[str, Tensor]:
        """Log-mels (n, M, T) by label: clips that the teacher assigns to each class.

        They are spread over the second half of the source, where that has such clips: neighbours
        may share one latent.
        """
        numbers, found = self.some(source, 4096), {}
        half = len(numbers) // 2
        _, logits_NK = self.answers(source, numbers)
        for k, label in enumerate(self.index.labels):
            if self.index.output == "sigmoid":  # perhaps none is above 0.5: a detector's likeliest
                best = logits_NK[half:, k].argsort(descending=True)[: 8 * per_class]
                index = half + best.sort().values
            else:
                every = (logits_NK.argmax(1) == k).nonzero()[:, 0]
                late = every[every >= half]
                index = late if len(late) else every
            if len(index):
                index = index[_spread(len(index), min(per_class, len(index)))]
                found[label] = self.mels(source, numbers[index])[:, 0]
        return found


FULL_SCALE = 32_767
"""Largest value of a 16-bit sample."""


def to_int16(audio_NS: Tensor) -> Tensor:
    """Samples as a bank stores them; a clip beyond -1..1 becomes softer as a whole."""
    peak_N1 = audio_NS.abs().amax(1, keepdim=True).clamp_min(1.0)
    return (audio_NS / peak_N1 * FULL_SCALE).round().to(torch.int16)


def _spread(total: int, n: int) -> Tensor:
    """Numbers of n clips, spread evenly."""
    return torch.linspace(0, total - 1, n).round().long()


def merge_parts(folder: Path, ranks: int) -> Bank:
    """One bank over the shards that every rank has written into ``folder/rank-N``."""
    parts = [Bank.open(folder / f"rank-{r}").index for r in range(ranks)]
    shards = [
        shard.model_copy(update={"file": f"rank-{r}/{shard.file}"})
        for r, part in enumerate(parts)
        for shard in part.shards
    ]
    return Bank.create(folder, parts[0].model_copy(update={"shards": tuple(shards)}))


def check_bank(bank: Bank, spec: MelSpec, labels: tuple[str, ...], teacher_sha256: str) -> None:
    """Check that a bank belongs to the teacher that made it.

    Raises:
        BankError: Another teacher, front end or set of classes made this bank; audio fits every
            front end.
    """
    found = bank.index
    for what, same in (
        ("teacher", found.teacher_sha256 == teacher_sha256),
        ("mel front end", bool(found.samples) or found.mel == spec.to_dict()),
        ("set of classes", found.labels == labels),
    ):
        if not same:
            raise BankError(
                f"The bank in {bank.folder} was made with another {what}.",
                fix="Use the teacher it was made from, or make a bank with `frami-edge invert`.",
            )


def check_length(bank: Bank, clip_s: float) -> None:
    """Check that the clips of a bank are as long as a config says, in seconds.

    Raises:
        BankError: They are not.
    """
    if bank.index.frames != frames_in(clip_s, bank.spec):
        length_s = round(bank.index.frames * bank.spec.hop_s, 4)
        raise BankError(
            f"The clips in {bank.folder} are {length_s:g} s long, bank.clip_s is {clip_s:g}.",
            fix=f"Add --set bank.clip_s={length_s:g} (in Python: overrides={{'bank.clip_s': "
            f"{length_s:g}}}), or make another bank.",
        )


def bank_sampler(
    bank: Bank,
    config: JourneyConfig,
    output: Output,
    shares: Mapping[str, float] | None = None,
    limit: int | None = None,
) -> BankSampler:
    """The batches that a student with this config learns from; those of detectors are balanced.

    ``output`` is the teacher's, ``shares`` replaces the config's; see `BankSampler` for the rest.
    """
    shares, d = dict(shares or config.bank.shares), config.distill
    if output == "softmax":
        return BankSampler(bank, shares, limit)
    return BankSampler(bank, shares, limit, balance=d.balance, boundary=d.boundary)


class BankSampler:
    """Random clips of a bank, its sources mixed by weight.

    Args:
        bank: The clips.
        shares: Weight of each source; they sum to 1.
        limit: Draw from this many clips in all, divided by the weights and spread evenly over each
            source; None for all.
        balance: Share of a batch that is drawn class by class, in turns, from the clips whose
            stored logit is above the class's boundary (`losses.detection_boundary`).
        boundary: Share of the clips below that boundary.

    Attributes:
        boundary_K: The boundaries; None where ``balance`` is 0 and ``boundary`` None.

    Raises:
        BankError: The bank lacks a source.
    """

    def __init__(
        self,
        bank: Bank,
        shares: dict[str, float],
        limit: int | None = None,
        *,
        balance: float = 0.0,
        boundary: float | None = None,
    ) -> None:
        missing = sorted(set(shares) - set(bank.sources))
        if missing:
            raise BankError(
                f"The bank in {bank.folder} has no clips of {', '.join(missing)}.",
                fix=f"It has {', '.join(bank.sources)}: change bank.sources or make another bank.",
            )
        self.bank, self.names = bank, list(shares)
        self.weights = torch.tensor([shares[n] for n in self.names])
        self._chosen = {}
        for name, total in ((n, bank.sources[n]) for n in self.names):
            n = total if limit is None else min(total, max(1, round(limit * shares[name])))
            self._chosen[name] = _spread(total, n)
        self.balance = balance
        self.boundary_K: Tensor | None = None
        if balance or boundary is not None:
            self._rank(1.0 if boundary is None else boundary)

    def _rank(self, boundary: float) -> None:
        """Boundaries, and the clips beyond each: (source, number) pairs and their weights."""
        z_NK = torch.cat([self.bank.answers(n, self._chosen[n])[1] for n in self.names])
        sizes = torch.tensor([len(self._chosen[n]) for n in self.names])
        weight_N = (self.weights / sizes).repeat_interleave(sizes)
        rng = torch.Generator().manual_seed(0)
        drawn = torch.multinomial(weight_N, 1 << 14, replacement=True, generator=rng)
        boundary_K = self.boundary_K = detection_boundary(z_NK[drawn], boundary)
        source_N = torch.arange(len(sizes)).repeat_interleave(sizes)
        number_N = torch.cat([self._chosen[n] for n in self.names])
        self._likely: list[tuple[Tensor, Tensor, Tensor]] = []
        for k, least in enumerate(boundary_K.tolist()):
            beyond = (z_NK[:, k] >= least).nonzero()[:, 0]
            if not len(beyond):  # a class that no clip has: its likeliest ones
                beyond = z_NK[:, k].topk(min(8, len(z_NK))).indices
            self._likely.append((source_N[beyond], number_N[beyond], weight_N[beyond]))

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 1, M, T) log-mels, or (n, S) samples; the order within a batch mixes the sources."""
        balanced = round(self.balance * n)
        mixed = n - balanced
        which = torch.multinomial(self.weights, mixed, replacement=True, generator=generator)
        wanted: list[list[Tensor]] = [[] for _ in self.names]
        for i, name in enumerate(self.names):
            count = int((which == i).sum())
            if count:
                chosen = self._chosen[name]
                index = torch.randint(0, len(chosen), (count,), generator=generator)
                wanted[i].append(chosen[index])
        for j in range(balanced):
            source, number, weight = self._likely[j % len(self._likely)]
            at = torch.multinomial(weight, 1, generator=generator)
            wanted[int(source[at])].append(number[at])
        parts = [
            self.bank.clips(name, torch.cat(index))
            for name, index in zip(self.names, wanted, strict=True)
            if index
        ]
        return torch.cat(parts)[torch.randperm(n, generator=generator)]


# --- Health: what the teacher alone shows of a bank, without any real clip


@torch.no_grad()
def source_health(
    teacher: TeacherLike,
    bank: Bank,
    source: str,
    compute: Compute,
) -> dict[str, Any]:
    """Figures of one source, over 768 clips or 32 per class.

    ``hit_rate``: share of clips that the teacher assigns to their target class (a detector: with
    p > 0.5), None without targets, and ``hit_rate_per_class``; ``batch_norm_error``: relative, as
    in the loss; ``entropy``: of the teacher's prediction, in nats; ``embedding_variance`` of the
    pooled statistics, total and within the predicted classes; ``cosine``: mean pairwise cosine of
    the embeddings; ``loudness_spread``: standard deviation of the clips' means; ``class_share``:
    share of clips with each class.
    """
    assert isinstance(teacher, nn.Module)
    clips = bank.read(source, max(768, min(32 * len(bank.index.labels), 4096)))
    pooled, logits, errors = [], [], []
    statistics = BatchNormStatistics(teacher) if live_batch_norms(teacher) else None
    inputs = clips.audio_NS if teacher.takes == "audio" else clips.mels_N1MT
    assert inputs is not None
    output = bank.index.output
    for x in inputs.split(96):
        x = x.to(compute.device)
        with autocast(compute):
            if statistics:
                with statistics:
                    hidden = teacher.hidden(x)
                if len(x) == min(96, len(inputs)):
                    errors.append(statistics.loss())
            else:
                hidden = teacher.hidden(x)
        pooled.append(hidden.pooled_BD.float().cpu())
        logits.append(hidden.logits_BK.float().cpu())
    s_ND, z_NK = torch.cat(pooled), torch.cat(logits)
    prediction_N, target_N = z_NK.argmax(1), clips.labels_N
    k = z_NK.shape[1]
    hits_N = has_class(z_NK, target_N, output).float()

    def hit_rate(of: Tensor) -> float | None:
        return float(hits_N[of].mean()) if of.any() else None

    return {
        "clips": bank.sources[source],
        "hit_rate": hit_rate(target_N >= 0),
        "hit_rate_per_class": [hit_rate(target_N == label) for label in range(k)],
        "batch_norm_error": float(torch.stack(errors).mean()) if errors else None,
        "entropy": float(_entropy(z_NK, output)),
        "embedding_variance": float(s_ND.var(dim=0).sum()),
        "embedding_variance_within": _variance_within(s_ND, prediction_N),
        "cosine": _mean_cosine(s_ND),
        "loudness_spread": float(clips.mels_N1MT.mean(dim=(1, 2, 3)).std()),
        "class_share": [
            float(has_class(z_NK, torch.full_like(target_N, label), output).float().mean())
            for label in range(k)
        ],
    }


def _entropy(z_NK: Tensor, output: Output) -> Tensor:
    """Mean entropy of the answers in nats; of detectors the sum over classes."""
    if output == "softmax":
        return -(z_NK.softmax(1) * z_NK.log_softmax(1)).sum(1).mean()
    return F.binary_cross_entropy_with_logits(z_NK, z_NK.sigmoid(), reduction="none").sum(1).mean()


def _variance_within(s_ND: Tensor, class_N: Tensor) -> float:
    centred = s_ND.clone()
    for k in class_N.unique():
        centred[class_N == k] -= s_ND[class_N == k].mean(dim=0)
    return float(centred.square().sum(dim=1).mean())


def _mean_cosine(s_ND: Tensor) -> float:
    unit = F.normalize(s_ND, dim=1)
    n = len(unit)
    return float((unit.sum(dim=0).square().sum() - n) / max(1, n * (n - 1)))


HEALTHY_HIT_RATE = 2.0
"""Times chance. Below it the generator has not learned the classes. The class term is a gentle
push: good banks of ten classes have 0.25 to 0.33 (ESC-10) and 0.8 (digits)."""
HEALTHY_CLASS = 0.5, 0.1
"""Hit rate and share of a class, times chance: below both in every source, the bank lacks it. A
good bank (ESC-10) has classes that one of its sources never makes."""
HEALTHY_BATCH_NORM = 0.2
"""Above it the clips are far from what the teacher was trained on; a good bank is below 0.05."""
HEALTHY_SHARE = 0.6
"""Above it one class dominates the bank, whatever the targets were."""


def least_hit_rate(classes: int) -> float:
    """The least hit rate of a healthy source."""
    return min(0.8, HEALTHY_HIT_RATE / classes)


def missing_classes(health: dict[str, dict[str, Any]], labels: Sequence[str]) -> list[str]:
    """Classes that the teacher predicts for next to no clip of any source."""
    rate, share = (times / len(labels) for times in HEALTHY_CLASS)
    return [
        label
        for k, label in enumerate(labels)
        if all(
            (h["hit_rate_per_class"][k] or 0.0) < rate and h["class_share"][k] < share
            for h in health.values()
        )
    ]


def health_warnings(health: dict[str, dict[str, Any]], labels: Sequence[str]) -> list[str]:
    """A sentence for each known failure of each source, and for classes that are in none."""
    found = []
    for name, h in health.items():
        hits, error, share = h["hit_rate"], h["batch_norm_error"], max(h["class_share"])
        enough = least_hit_rate(len(labels))
        selected = name == "breeding"  # no loss to weigh
        if hits is not None and hits < enough:
            other = "" if selected else f" or {section(name)}.class_loss"
            found.append(
                f"{name}: the teacher predicts the target class for only {100 * hits:.0f} % of the "
                f"clips ({100 * enough:.0f} % is the least): raise {budget(name)}.steps{other}."
            )
        if not selected and hits is not None and error is not None and error > HEALTHY_BATCH_NORM:
            found.append(
                f"{name}: the BatchNorm statistics are {error:.2f} away from the training data's "
                f"(a good bank: 0.05): raise {section(name)}.batch_norm or the steps."
            )
        if share > HEALTHY_SHARE:
            found.append(
                f"{name}: the teacher predicts one class for {100 * share:.0f} % of the clips."
            )
    if missing := missing_classes(health, labels):
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        found.append(
            f"The teacher predicts {', '.join(missing[:5])}{more} for next to no clip of the bank: "
            "the student learns little about it. Add the source inversion or raise its steps, or "
            "leave it out: --keep."
        )
    return found
