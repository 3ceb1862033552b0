"""Clips that two models are compared on: log-mels of a bank, or audio, real or made.

Audio goes through each model's own front end, the device's; log-mels of a bank fit only models of
the bank's front end.

Shape legend: N clips, M mel bands, T mel frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from frami_edge.data import load_set, read_audio, resolve_fold
from frami_edge.errors import BankError
from frami_edge.frontend import resample
from frami_edge.inversion.bank import Bank
from frami_edge.inversion.procedural.audio import ProceduralAudio
from frami_edge.models.checkpoint import TrainedOn
from frami_edge_export.parity import parity_lengths
from frami_edge_runtime import MelSpec, log_mel

Array = npt.NDArray[np.float32]

MADE_SECONDS: Final = 2.0
"""Of a procedural clip."""
LONGEST_SECONDS: Final = 30.0
"""Of the clips that compare lengths."""


@dataclass
class Batch:
    """Clips of one kind.

    Attributes:
        name: What they are, in one word: ``bank``, ``real``, ``procedural`` or ``lengths``.
        names: Of the clips.
        mels: (M, T) each, of ``spec``; None where there is audio.
        audio: (samples,) float32 each, with their rates in Hz; None where there are log-mels.
        spec: Front end of ``mels``.
    """

    name: str
    names: list[str]
    mels: list[Array] | None = None
    audio: list[tuple[Array, int]] | None = None
    spec: MelSpec | None = None
    _kept: dict[str, list[Array]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """Clips."""
        return len(self.names)

    def mels_for(self, spec: MelSpec) -> list[Array]:
        """(M, T) log-mels of a front end.

        Raises:
            BankError: These are log-mels of another one.
        """
        if self.mels is not None:
            if spec != self.spec:
                raise BankError(
                    "The bank's log-mels are of another front end than the models'.",
                    fix="Give the bank of these models, or compare on audio: --data, or no --bank.",
                )
            return self.mels
        if spec.digest not in self._kept:
            made = [log_mel(x, spec).T for x in self.audio_for(spec.sample_rate)]
            self._kept[spec.digest] = [np.ascontiguousarray(mel) for mel in made]
        return self._kept[spec.digest]

    def audio_for(self, sample_rate: int) -> list[Array]:
        """(samples,) float32 each at a rate.

        Raises:
            BankError: There is no audio behind log-mels.
        """
        if self.audio is None:
            raise BankError(
                "A bank holds log-mels, and this model takes samples.",
                fix="Compare on audio: --data NAME, or no --bank for procedural clips.",
            )
        return [
            x if rate == sample_rate
            else resample(torch.from_numpy(x), rate, sample_rate).numpy()
            for x, rate in self.audio
        ]  # fmt: skip


def bank_batch(folder: Path, count: int) -> Batch:
    """Clips of a bank, as many of each source, spread evenly over it.

    Raises:
        BankError: No whole bank, or an empty one.
    """
    bank = Bank.open(folder)
    sources = list(bank.sources)
    if not sources:
        raise BankError(f"The bank in {folder} is empty.", fix="Make it again.")
    share = max(1, count // len(sources))
    names, mels = [], []
    for source in sources:
        clips = bank.read(source, share).mels_N1MT[:, 0].numpy()
        mels += list(clips)
        names += [f"{source} {i}" for i in _spread(bank.sources[source], len(clips))]
    return Batch("bank", names, mels=mels, spec=bank.spec)


def real_batch(
    data: str, root: Path | None, asked: str | None, heard: TrainedOn | None, count: int
) -> Batch:
    """Real clips of one fold, spread evenly over it; of all folds where nobody names one.

    Args:
        data: Name of a set, or ``folder:PATH``.
        root: Folder that holds the sets.
        asked: Fold; None for the one that the models' teacher held out.
        heard: What that teacher heard, where known.
        count: At most so many.

    Raises:
        DataError: The set or fold is not there.
    """
    sound_set = load_set(data, root)
    if asked is None and heard is not None and heard.data == sound_set.name:
        asked = heard.test_fold
    clips = list(sound_set.clips)
    if asked is not None:
        fold = resolve_fold(sound_set, asked)
        clips = [clip for clip in clips if clip.fold == fold]
    chosen = [clips[i] for i in _spread(len(clips), min(count, len(clips)))]
    return Batch(
        "real", [clip.path.name for clip in chosen], audio=[read_audio(c.path) for c in chosen]
    )


def made_batch(spec: MelSpec, count: int, seed: int) -> Batch:
    """Procedural clips: shaped noise, tones, impacts; no recording."""
    clips = ProceduralAudio(spec.sample_rate, MADE_SECONDS).clips(count, seed)
    audio = [(clip, spec.sample_rate) for clip in clips]
    return Batch("procedural", [f"procedural {i}" for i in range(count)], audio=audio)


def length_batch(spec: MelSpec, receptive_field: int, stride: int, seed: int) -> Batch:
    """One procedural sound cut to many lengths: one frame, around the receptive field, to 30 s."""
    lengths = [
        max(spec.min_samples, (frames - 1) * spec.hop_length + (0 if spec.center else spec.n_fft))
        for frames in parity_lengths(receptive_field, stride, spec)
    ]
    longest = round(LONGEST_SECONDS * spec.sample_rate)
    lengths = sorted({min(n, longest) for n in lengths})
    sound = ProceduralAudio(spec.sample_rate, LONGEST_SECONDS).clips(1, seed)[0]
    # The middle of the sound: its first samples may be silence.
    starts = [(len(sound) - n) // 2 for n in lengths]
    audio = [(sound[i : i + n], spec.sample_rate) for i, n in zip(starts, lengths, strict=True)]
    return Batch("lengths", [f"{n / spec.sample_rate:.3g} s" for n in lengths], audio=audio)


def _spread(total: int, count: int) -> list[int]:
    return [round(i) for i in np.linspace(0, max(total - 1, 0), count)]
