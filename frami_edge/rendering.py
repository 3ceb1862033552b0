"""Log-mels as audio: the front end undone as far as it can be.

Shape legend: B batch, M mel bands, F frequency bins, T frames, N samples.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frami_edge.augment import Energies
from frami_edge.bank import Bank
from frami_edge.io import atomic_path
from frami_edge.models import Hidden, TeacherLike
from frami_edge_runtime.errors import MelSpecError
from frami_edge_runtime.melspec import MelSpec

PEAK_DBFS = -1.0
"""Loudest sample of a written clip."""
_STEPS = 64, 100
"""Iterations of Griffin-Lim and updates of the spectrum for a clip that is written to a file. The
mel error no longer falls beyond a few dozen."""
_BANK_STEPS = 16, 10
"""The same for the clips of a bank: an error of 0.6 to 0.9 dB."""
_LOOP_STEPS = 4, 3
"""The same in every step of an inversion through audio: an error of 0.9 to 1.3 dB."""


class Renderer(nn.Module):
    """Normalised log-mels to audio whose log-mel is near them, with a gradient.

    The spectrum is the non-negative least-squares solution of the filter bank (multiplicative
    updates, Lee and Seung 2001). Its phase comes from Griffin-Lim (D. Griffin and J. Lim, *Signal
    estimation from modified short-time Fourier transform*, 1984; the momentum is that of N.
    Perraudin et al., 2013) and is a constant of the gradient, which flows through the magnitudes.

    Args:
        spec: Front end of the log-mels.
        iterations: Iterations of Griffin-Lim.
        updates: Updates of the spectrum.
        seed: Seeds the initial phases; the global generator stays unchanged.

    Raises:
        MelSpecError: The windows do not overlap, so that samples between them are lost.
    """

    filters_FM: Tensor
    window: Tensor
    emphasis_F1: Tensor

    def __init__(
        self,
        spec: MelSpec,
        iterations: int = _BANK_STEPS[0],
        updates: int = _BANK_STEPS[1],
        seed: int = 0,
    ) -> None:
        super().__init__()
        if spec.hop_length >= spec.win_length:
            raise MelSpecError(
                f"MelSpec.hop_length {spec.hop_length} is as long as win_length: "
                "without overlap no waveform can be found.",
                fix="Do not render audio, or use a teacher whose windows overlap.",
            )
        self.spec, self.iterations, self.updates, self.seed = spec, iterations, updates, seed
        turn_F = np.exp(-1j * np.pi * np.linspace(0, 1, spec.n_fft // 2 + 1))
        emphasis_F = np.abs(1 - spec.pre_emphasis * turn_F).astype(np.float32)
        for name, value in (
            ("filters_FM", spec.filterbank),
            ("window", spec.taper.astype(np.float32)),
            ("emphasis_F1", emphasis_F[:, None]),
        ):
            self.register_buffer(name, torch.from_numpy(np.array(value)), persistent=False)
        self.log_energies = Energies(spec)

    def forward(self, mel_B1MT: Tensor) -> Tensor:
        """(B, 1, M, T) to (B, span + (T - 1) hop - 2 pad) float32 samples, at least one hop."""
        spec = self.spec
        # Griffin-Lim centres frame 0 on sample 0, with the window in the middle of n_fft. The held
        # edge frames fill the half window that an uncentred front end reads before and after, and
        # lengthen clips too short to be reflected; they are cut off again below.
        half, frames = spec.n_fft // 2, mel_B1MT.shape[3]
        whole = spec.center and (frames - 1) * spec.hop_length > half
        edge = 0 if whole else math.ceil(half / spec.hop_length)
        with torch.autocast(mel_B1MT.device.type, enabled=False):
            mel_BMT = F.pad(mel_B1MT[:, 0].float(), (edge, edge), mode="replicate")
            spectrum_BFT = self.spectrum(self.energies(mel_BMT))
            # The square root has no slope at 0.
            magnitude_BFT = spectrum_BFT.clamp_min(1e-20) ** (1 / spec.power) / self.emphasis_F1
            with torch.no_grad():
                turns_BFT = self.phases(magnitude_BFT)
            samples_BN = self._istft(magnitude_BFT * turns_BFT)
        unread = (spec.n_fft - spec.win_length) // 2 if spec.framing == "window" else 0
        first = edge * spec.hop_length - (0 if spec.center else half - unread)
        length = max((frames - 1) * spec.hop_length + spec.span - 2 * spec.pad, spec.hop_length)
        samples_BN = samples_BN[:, max(first - spec.warm_up, 0) :][:, :length]
        return F.pad(samples_BN, (0, length - samples_BN.shape[1]))

    def energies(self, mel_BMT: Tensor) -> Tensor:
        """(B, M, T) normalised log-mels back to mel energies (or magnitudes), never below 0."""
        spec = self.spec
        x = (self.log_energies.of(mel_BMT) * spec.power / 2).exp()
        if spec.log_floor == "add":
            return (x - spec.log_eps).clamp_min(0)
        # A clamped value is somewhere at or below eps: silence is the likely one.
        return torch.where(x > 1.001 * spec.log_eps, x, 0.0)

    def spectrum(self, energy_BMT: Tensor) -> Tensor:
        """(B, F, T) energies (or magnitudes) of the frequencies."""
        bank = self.filters_FM
        # From the mean density of each band, which is right where the spectrum is smooth.
        density_BMT = energy_BMT / bank.sum(0)[:, None].clamp_min(1e-20)
        found_BFT = bank @ density_BMT / bank.sum(1)[:, None].clamp_min(1e-20)
        target_BFT = bank @ energy_BMT
        for _ in range(self.updates):
            ratio = target_BFT / (bank @ (bank.T @ found_BFT)).clamp_min(1e-30)
            found_BFT = found_BFT * ratio
        return found_BFT

    def phases(self, magnitude_BFT: Tensor) -> Tensor:
        """(B, F, T) complex numbers of magnitude 1."""
        rng = torch.Generator().manual_seed(self.seed)
        angle = 2 * math.pi * torch.rand(magnitude_BFT.shape[1:], generator=rng)
        turns = torch.polar(torch.ones_like(angle), angle).to(magnitude_BFT.device)
        turns, before = turns.expand_as(magnitude_BFT), None
        for _ in range(self.iterations):
            rebuilt = self._stft(self._istft(magnitude_BFT * turns))
            ahead = rebuilt if before is None else rebuilt - 0.99 / 1.99 * before
            turns, before = ahead / ahead.abs().clamp_min(1e-16), rebuilt
        return turns

    def _stft(self, x_BN: Tensor) -> Tensor:
        s = self.spec
        return torch.stft(
            x_BN, s.n_fft, s.hop_length, s.win_length, self.window, return_complex=True
        )

    def _istft(self, z_BFT: Tensor) -> Tensor:
        s = self.spec
        return torch.istft(z_BFT, s.n_fft, s.hop_length, s.win_length, self.window)


class RenderedTeacher(nn.Module):
    """A teacher that takes audio, asked about log-mels: they are rendered first, with a gradient.

    Everything that learns from a teacher's log-mels can so learn from it. Samples (B, N) reach the
    teacher as they are.
    """

    takes: Literal["mel", "audio"] = "mel"

    def __init__(self, model: TeacherLike, spec: MelSpec) -> None:
        super().__init__()
        self.model = cast(nn.Module, model)
        self.renderer = Renderer(spec, *_LOOP_STEPS)
        self.channels, self.pooled_size = model.channels, model.pooled_size
        # In mel frames, for readers alone: no term compares frames of an inversion by time.
        self.frame_stride = max(1, round(model.frame_stride / spec.hop_length))
        self.frame_offset = model.frame_offset / spec.hop_length

    @property
    def head(self) -> nn.Linear | None:
        """The affine map from pooled state to logits; None where that map is not affine."""
        return cast(TeacherLike, self.model).head

    def hidden(self, x_B1MT: Tensor, lengths_B: Tensor | None = None) -> Hidden:
        """Hidden states and logits of rendered log-mels (B, 1, M, T)."""
        samples = x_B1MT if x_B1MT.ndim == 2 else self.renderer(x_B1MT)
        return cast(TeacherLike, self.model).hidden(samples)


def mel_to_audio(
    mel_MT: Tensor, spec: MelSpec, iterations: int = _STEPS[0], seed: int = 0
) -> npt.NDArray[np.float32]:
    """A waveform whose log-mel is near the given one (about 0.6 dB off on sounds, mean over bins).

    The seed decides the initial phases; the global generator stays unchanged.

    Returns:
        (span + (T - 1) hop,) float32 with `MelSpec.span`; with ``center`` ((T - 1) hop,), at least
        one hop, and one sample more with pre-emphasis.

    Raises:
        MelSpecError: The windows do not overlap, so that samples between them are lost.
    """
    renderer = Renderer(spec, iterations, _STEPS[1], seed)
    with torch.no_grad():
        found: npt.NDArray[np.float32] = renderer(mel_MT.detach().cpu()[None, None])[0].numpy()
    return found


def write_examples(bank: Bank, source: str, folder: Path, per_class: int = 1) -> list[Path]:
    """Write the latest clips of each class that the teacher predicts as 16-bit WAV.

    Each clip is normalised to a peak of -1 dBFS. Its name is ``SOURCE-CLASS-NUMBER``, where
    characters other than letters, digits, ``.`` and ``-`` become ``_``.

    Raises:
        MelSpecError: See `mel_to_audio`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    numbers: Counter[str] = Counter()  # two classes may get the same name
    for label, mels in bank.examples(source, per_class).items():
        for mel in mels:
            samples = mel_to_audio(mel, bank.spec)
            samples *= 10 ** (PEAK_DBFS / 20) / max(float(np.abs(samples).max()), 1e-9)
            stem = re.sub(r"[^\w.-]+", "_", f"{source}-{label}")
            path = folder / f"{stem}-{numbers[stem]}.wav"
            numbers[stem] += 1
            with atomic_path(path) as temporary:
                soundfile.write(
                    temporary, samples, bank.spec.sample_rate, subtype="PCM_16", format="WAV"
                )
            written.append(path)
    return written
