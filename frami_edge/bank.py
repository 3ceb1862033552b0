"""Health of a bank: what can be said of it with the teacher alone, without any real clip.

Shape legend: N clips, M mel bands, T frames, D pooled statistics, K classes.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge.config import Strict, budget, section
from frami_edge.device import Compute, autocast
from frami_edge.errors import BankError
from frami_edge.io import atomic_write_bytes, atomic_write_json, read_small, sha256_file
from frami_edge.losses import BatchNormStatistics, live_batch_norms
from frami_edge.models import TeacherLike
from frami_edge_runtime.errors import MelSpecError
from frami_edge_runtime.melspec import MelSpec

# --- The bank: synthetic log-mels on disk, made once, read at random in bounded memory
# A folder of safetensors shards (float16 log-mels, requested labels, teacher logits) and a
# `bank.json` that names them; the index is replaced atomically after each shard, so that a killed
# run leaves a whole bank. Shape legend: N clips, M mel bands, T frames, K classes.

SCHEMA = 1
MAX_INDEX_BYTES = 32 << 20
"""Of `bank.json`; a shard takes about 250 bytes in it."""


class Shard(Strict):
    """One file of a bank."""

    file: str = Field(pattern=r"^[a-z0-9_-]+\.safetensors$")
    """Name inside the bank's folder."""
    source: str
    """Which source made the clips."""
    clips: int = Field(ge=1, le=1 << 32)
    """How many."""
    first_step: int = Field(ge=0)
    """First step of the source whose clips are inside."""
    next_step: int = Field(ge=1)
    """First step whose clips are not."""
    sha256: str
    """Of the file."""


class BankIndex(Strict):
    """`bank.json`."""

    schema_version: int = SCHEMA
    """Of this file."""
    mel: dict[str, Any]
    """Front end, as MelSpec writes it."""
    frames: int = Field(ge=1, le=1 << 20)
    """Mel frames of every clip."""
    labels: tuple[str, ...]
    """Class names of the teacher."""
    teacher_sha256: str
    """Of the teacher's checkpoint."""
    config: dict[str, Any]
    """The bank section of the configuration."""
    seed: int
    """Of every source."""
    shards: tuple[Shard, ...] = ()
    """Files, in the order in which they were written."""
    health: dict[str, Any] = Field(default_factory=dict)
    """Figures of each source; see `frami_edge.inversion.health`."""


@dataclass
class Clips:
    """Some clips of a bank.

    Attributes:
        mels_N1MT: Normalised log-mels, float32.
        labels_N: Requested classes, -1 where none was.
        logits_NK: What the teacher said, float32.
    """

    mels_N1MT: Tensor
    labels_N: Tensor
    logits_NK: Tensor


class Bank:
    """A bank of synthetic clips.

    Args:
        folder: Where it lies.
        index: What `bank.json` says.
    """

    def __init__(self, folder: Path, index: BankIndex) -> None:
        self.folder, self.index = folder, index
        self.spec = MelSpec.from_dict(index.mel)
        self._open: dict[str, Any] = {}

    @classmethod
    def create(cls, folder: Path, index: BankIndex) -> Bank:
        """Start an empty bank."""
        folder.mkdir(parents=True, exist_ok=True)
        bank = cls(folder, index)
        bank._write_index()
        return bank

    @classmethod
    def open(cls, folder: Path) -> Bank:
        """Open a bank and check that its files are there and whole.

        Raises:
            BankError: No bank, another schema, or a damaged file.
        """
        path = folder / "bank.json"
        try:
            index = BankIndex.model_validate(json.loads(read_small(path, MAX_INDEX_BYTES)))
            bank = cls(folder, index)
        except FileNotFoundError as error:
            raise BankError(
                f"There is no bank in {folder}: bank.json is missing.",
                fix="Make one with `frami-edge invert`.",
            ) from error
        except (ValueError, ValidationError, MelSpecError, RecursionError) as error:
            raise BankError(
                f"{path} is damaged or of another version.", fix="Make the bank again."
            ) from error
        if index.schema_version != SCHEMA:
            raise BankError(
                f"{path} has schema {index.schema_version}, this version reads {SCHEMA}.",
                fix="Make the bank again with this version.",
            )
        for shard in index.shards:
            file = folder / shard.file
            if not file.is_file() or sha256_file(file) != shard.sha256:
                raise BankError(
                    f"{file} is missing or damaged: its hash is not the one in bank.json.",
                    fix="Delete the bank's folder and make it again.",
                )
            bank._check_tensors(shard)
        return bank

    def __len__(self) -> int:
        """Clips of all sources."""
        return sum(s.clips for s in self.index.shards)

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
        """Where a source has to go on."""
        return max((s.next_step for s in self.index.shards if s.source == source), default=0)

    def append(self, source: str, clips: Clips, first_step: int, next_step: int) -> None:
        """Write one shard, then name it in the index."""
        number = len(self.index.shards)
        name = f"shard-{number:05d}-{source}.safetensors"
        mels = clips.mels_N1MT.clamp(-60_000, 60_000).half().contiguous()
        data = save(
            {
                "mels": mels,
                "labels": clips.labels_N.contiguous(),
                "logits": clips.logits_NK.float().contiguous(),
            },
            metadata={"source": source},
        )
        atomic_write_bytes(self.folder / name, data)
        shard = Shard(
            file=name,
            source=source,
            clips=mels.shape[0],
            first_step=first_step,
            next_step=next_step,
            sha256=sha256_file(self.folder / name),
        )
        self.index = self.index.model_copy(update={"shards": (*self.index.shards, shard)})
        self._write_index()

    def drop(self, source: str) -> None:
        """Take a source out of the index, so that it is made again; its files are overwritten."""
        kept = tuple(s for s in self.index.shards if s.source != source)
        self.index = self.index.model_copy(update={"shards": kept, "health": {}})
        self._write_index()

    def set_health(self, health: dict[str, Any]) -> None:
        """Store the figures."""
        self.index = self.index.model_copy(update={"health": health})
        self._write_index()

    def _write_index(self) -> None:
        atomic_write_json(self.folder / "bank.json", self.index.model_dump(mode="json"))

    def _handle(self, shard: Shard) -> Any:
        if shard.file not in self._open:
            try:
                self._open[shard.file] = safe_open(
                    os.fspath(self.folder / shard.file), framework="pt"
                )
            except (SafetensorError, OSError) as error:
                raise BankError(
                    f"{self.folder / shard.file} cannot be read: {error}.",
                    fix="Delete the bank's folder and make it again.",
                ) from error
        return self._open[shard.file]

    def _check_tensors(self, shard: Shard) -> None:
        """The tensors are those that the index promises: whoever wrote the hash wrote both.

        Raises:
            BankError: One is missing, or of another type or shape.
        """
        n, k = shard.clips, len(self.index.labels)
        wanted = {
            "mels": ("F16", [n, 1, self.spec.n_mels, self.index.frames]),
            "labels": ("I64", [n]),
            "logits": ("F32", [n, k]),
        }
        handle = self._handle(shard)
        slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
        found = {name: (s.get_dtype(), s.get_shape()) for name, s in slices.items()}
        labels = handle.get_tensor("labels") if found == wanted else torch.tensor([k])
        if bool((labels < -1).any()) or bool((labels >= k).any()):
            raise BankError(
                f"{self.folder / shard.file} does not hold what bank.json says of it.",
                fix="Delete the bank's folder and make it again.",
            )

    def mels(self, source: str, indices: Tensor) -> Tensor:
        """(n, 1, M, T) float32 clips of one source by their number; only these rows are read."""
        shards = [s for s in self.index.shards if s.source == source]
        out = torch.empty(len(indices), 1, self.spec.n_mels, self.index.frames)
        start = 0
        for shard in shards:
            here = ((indices >= start) & (indices < start + shard.clips)).nonzero()[:, 0]
            if len(here):
                rows = self._handle(shard).get_slice("mels")
                for i in here.tolist():
                    row = int(indices[i]) - start
                    out[i] = rows[row : row + 1][0].float()
            start += shard.clips
        if not torch.isfinite(out).all():
            raise self._not_finite()
        return out

    def _not_finite(self) -> BankError:
        return BankError(
            f"The bank in {self.folder} holds values that are not finite.",
            fix="Delete the bank's folder and make it again.",
        )

    def read(self, source: str, limit: int | None = None) -> Clips:
        """The clips of one source, or ``limit`` of them spread evenly over all.

        Raises:
            BankError: The bank has none of this source.
        """
        shards = [s for s in self.index.shards if s.source == source]
        total = sum(s.clips for s in shards)
        if not total:
            raise BankError(
                f"The bank in {self.folder} has no clips of the source {source}.",
                fix=f"It has: {', '.join(self.sources) or 'none'}.",
            )
        n = total if limit is None else min(limit, total)
        wanted = torch.linspace(0, total - 1, n).round().long()
        labels, logits = [], []
        start = 0
        for shard in shards:
            here = wanted[(wanted >= start) & (wanted < start + shard.clips)] - start
            handle = self._handle(shard)
            labels.append(handle.get_tensor("labels")[here])
            logits.append(handle.get_tensor("logits")[here])
            start += shard.clips
        if not all(torch.isfinite(part).all() for part in logits):
            raise self._not_finite()
        return Clips(self.mels(source, wanted), torch.cat(labels), torch.cat(logits))


class BankFeed:
    """Random clips of a bank, its sources mixed by weight.

    Args:
        bank: Where the clips lie.
        shares: Weight of each source; they sum to 1.
        limit: Draw from this many clips in all, shared out by the weights and spread evenly over
            each source; None for all.
    """

    def __init__(self, bank: Bank, shares: dict[str, float], limit: int | None = None) -> None:
        missing = sorted(set(shares) - set(bank.sources))
        if missing:
            raise BankError(
                f"The bank in {bank.folder} has no clips of {', '.join(missing)}.",
                fix=f"It has {', '.join(bank.sources)}: change bank.sources or make another bank.",
            )
        self.bank, self.names = bank, list(shares)
        self.weights = torch.tensor([shares[n] for n in self.names])
        self._chosen = {n: _spread(bank.sources[n], limit, shares[n]) for n in self.names}

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, 1, M, T) float32; the order within a batch mixes the sources."""
        which = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        parts = []
        for i, name in enumerate(self.names):
            count = int((which == i).sum())
            if count:
                chosen = self._chosen[name]
                index = torch.randint(0, len(chosen), (count,), generator=generator)
                parts.append(self.bank.mels(name, chosen[index]))
        return torch.cat(parts)[torch.randperm(n, generator=generator)]


def _spread(total: int, limit: int | None, share: float) -> Tensor:
    """Numbers of the clips that a feed may draw."""
    n = total if limit is None else min(total, max(1, round(limit * share)))
    return torch.linspace(0, total - 1, n).round().long()


def check_bank(bank: Bank, spec: MelSpec, labels: tuple[str, ...], teacher_sha256: str) -> None:
    """A bank belongs to the teacher that made it.

    Raises:
        BankError: Another teacher, front end or set of classes made this bank.
    """
    found = bank.index
    for what, same in (
        ("teacher", found.teacher_sha256 == teacher_sha256),
        ("mel front end", found.mel == spec.to_dict()),
        ("set of classes", found.labels == labels),
    ):
        if not same:
            raise BankError(
                f"The bank in {bank.folder} was made with another {what}.",
                fix="Give the teacher it was made from, or make a bank with `frami-edge invert`.",
            )


# --- Health of a bank: what can be said of it with the teacher alone, without any real clip


@torch.no_grad()
def source_health(
    teacher: TeacherLike, bank: Bank, source: str, compute: Compute, limit: int = 768
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
        x = x.to(compute.device)
        with autocast(compute):
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
