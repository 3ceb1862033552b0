"""Log-mels as audio: the front end undone as far as it can be.

Shape legend: M mel bands, F frequency bins, T frames.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

from frami_edge.bank import Bank
from frami_edge.io import atomic_path
from frami_edge_runtime.errors import MelSpecError
from frami_edge_runtime.melspec import MelSpec

PEAK_DBFS = -1.0
"""Loudest sample of a written clip."""
_FILTER_UPDATES = 100
"""Multiplicative updates of the spectrum: the mel error no longer falls beyond a few dozen."""


def mel_energies(mel_MT: Tensor, spec: MelSpec) -> Tensor:
    """(M, T) normalised log-mel back to mel energies (or magnitudes), never below 0."""
    std, mean = torch.tensor(spec.std).reshape(-1, 1), torch.tensor(spec.mean).reshape(-1, 1)
    x = torch.exp((mel_MT.double() * std + mean) / spec.log_scale)
    if spec.log_floor == "add":
        return (x - spec.log_eps).clamp_min(0)
    # A clamped value is somewhere at or below eps: silence is the likely one.
    return torch.where(x > 1.001 * spec.log_eps, x, torch.zeros_like(x))


def mel_to_audio(
    mel_MT: Tensor, spec: MelSpec, iterations: int = 64, seed: int = 0
) -> npt.NDArray[np.float32]:
    """A waveform whose log-mel is near the given one (about 0.6 dB off on sounds, mean over bins).

    The spectrum is the non-negative least-squares solution of the filter bank (multiplicative
    updates, Lee and Seung 2001), its phase comes from Griffin-Lim (D. Griffin and J. Lim, *Signal
    estimation from modified short-time Fourier transform*, 1984).

    Args:
        mel_MT: Normalised log-mel.
        spec: Its front end.
        iterations: Iterations of Griffin-Lim.
        seed: Seeds the initial phases; the global generator stays unchanged.

    Returns:
        (span + (T - 1) hop,) float32 with `MelSpec.span`; with ``center`` ((T - 1) hop,), at least
        one hop, and one sample more with pre-emphasis.

    Raises:
        MelSpecError: The windows do not overlap, so that samples between them are lost.
    """
    import torchaudio

    if spec.hop_length >= spec.win_length:
        raise MelSpecError(
            f"MelSpec.hop_length {spec.hop_length} is as long as win_length: "
            "without overlap no waveform can be found.",
            fix="Do not render audio, or use a teacher whose windows overlap.",
        )
    # Griffin-Lim centres frame 0 on sample 0, with the window in the middle of n_fft. The held edge
    # frames fill the half window that an uncentred front end reads before and after, and lengthen
    # clips too short to be reflected; they are cut off again below.
    half, frames = spec.n_fft // 2, mel_MT.shape[1]
    whole = spec.center and (frames - 1) * spec.hop_length > half
    edge = 0 if whole else math.ceil(half / spec.hop_length)
    mel_MT = F.pad(mel_MT.detach().cpu()[None], (edge, edge), mode="replicate")[0]
    energy_MT = mel_energies(mel_MT, spec)
    bank_FM = torch.from_numpy(spec.filterbank).double()
    target_FT = bank_FM @ energy_MT
    spectrum_FT = target_FT
    for _ in range(_FILTER_UPDATES):
        found_FT = bank_FM @ (bank_FM.T @ spectrum_FT)
        spectrum_FT = spectrum_FT * (target_FT / found_FT.clamp_min(1e-30))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        samples = torchaudio.functional.griffinlim(
            (spectrum_FT ** (1 / spec.power)).float(),
            window=torch.from_numpy(np.array(spec.taper)),
            n_fft=spec.n_fft,
            hop_length=spec.hop_length,
            win_length=spec.win_length,
            power=1.0,
            n_iter=iterations,
            momentum=0.99,
            length=None,
            rand_init=True,
        )
    unread = (spec.n_fft - spec.win_length) // 2 if spec.framing == "window" else 0
    first = edge * spec.hop_length - (0 if spec.center else half - unread)
    length = (frames - 1) * spec.hop_length + (0 if spec.center else spec.span - spec.warm_up)
    samples = samples[first : first + max(length, spec.hop_length)]
    if spec.pre_emphasis:
        samples = F.pad(samples, (spec.warm_up, 0))
        samples = torchaudio.functional.deemphasis(samples, spec.pre_emphasis)
    found: npt.NDArray[np.float32] = samples.numpy()
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
