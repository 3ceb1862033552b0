"""Hear a log-mel: undo the front end as far as it can be undone.

Shape legend: M mel bands, F frequency bins, T frames.
Source: D. Griffin and J. Lim, *Signal estimation from modified short-time Fourier transform*, 1984.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from torch import Tensor

from frami_edge.io import atomic_path
from frami_edge_runtime.melspec import MelSpec

PEAK_DBFS = -1.0
"""Loudest sample of a written clip."""


def mel_energies(mel_MT: Tensor, spec: MelSpec) -> Tensor:
    """(M, T) normalised log-mel back to mel energies (or magnitudes), never below 0."""
    std, mean = torch.tensor(spec.std).reshape(-1, 1), torch.tensor(spec.mean).reshape(-1, 1)
    x = torch.exp((mel_MT.double() * std + mean) / spec.log_scale)
    return (x - spec.log_eps if spec.log_floor == "add" else x).clamp_min(0)


def mel_to_audio(
    mel_MT: Tensor, spec: MelSpec, iterations: int = 64, seed: int = 0
) -> npt.NDArray[np.float32]:
    """A waveform whose log-mel is near the given one.

    The spectrum is the non-negative least-squares solution of the filter bank (multiplicative
    updates), its phase comes from Griffin-Lim.

    Args:
        mel_MT: Normalised log-mel.
        spec: Its front end.
        iterations: Of Griffin-Lim.
        seed: Of the phases that it starts from.

    Returns:
        (n_fft + (T - 1) hop,) float32; with ``center`` (T - 1) hop samples.
    """
    import torchaudio

    bank_FM = torch.from_numpy(spec.filterbank).double()
    energy_MT = mel_energies(mel_MT, spec)
    spectrum_FT = bank_FM @ energy_MT
    for _ in range(100):
        ratio = (bank_FM @ energy_MT) / (bank_FM @ (bank_FM.T @ spectrum_FT)).clamp_min(1e-20)
        spectrum_FT = spectrum_FT * ratio
    window = torch.from_numpy(np.asarray(spec.window, dtype=np.float32))
    # Griffin-Lim works on centred frames: without centring, half a frame of silence is lent and cut off.
    magnitude = spectrum_FT.clamp_min(0) ** (1 / spec.power)
    torch.manual_seed(seed)
    length = (mel_MT.shape[1] - 1) * spec.hop_length
    samples = torchaudio.functional.griffinlim(
        magnitude.float(),
        window=window,
        n_fft=spec.n_fft,
        hop_length=spec.hop_length,
        win_length=spec.win_length,
        power=1.0,
        n_iter=iterations,
        momentum=0.99,
        length=length if length > spec.n_fft else None,
        rand_init=True,
    )
    if not spec.center:
        # Frame t is centred half a window after its start: so much is missing in front and behind.
        half = spec.n_fft // 2
        samples = torch.nn.functional.pad(samples, (half, half))
    found: npt.NDArray[np.float32] = samples.numpy().astype(np.float32)
    return found


def write_wavs(
    folder: Path, mels: Sequence[Tensor], names: Sequence[str], spec: MelSpec
) -> list[Path]:
    """Write clips as 16-bit WAV, each as loud as the format allows less 1 dB.

    Args:
        folder: Made where it is not there.
        mels: (M, T) normalised log-mels.
        names: Of the files, without ending; what a file name cannot hold becomes ``_``.
        spec: Front end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for mel, name in zip(mels, names, strict=True):
        samples = mel_to_audio(mel, spec)
        peak = float(np.abs(samples).max())
        if peak > 0:
            samples = samples * (10 ** (PEAK_DBFS / 20) / peak)
        path = folder / (re.sub(r"[^\w.-]+", "_", name).lstrip(".") + ".wav")
        with atomic_path(path) as temporary:
            _write(temporary, samples, spec.sample_rate)
        written.append(path)
    return written


def _write(path: Path, samples: Any, sample_rate: int) -> None:
    soundfile.write(path, samples, sample_rate, subtype="PCM_16", format="WAV")
