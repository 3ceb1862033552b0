"""Log-mel front ends in torch: of audio, of the log-mels of a finer front end, and undone.

Shape legend: B batch, N samples, M mel bands (N those of the other front end), T frames, G
frequencies.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
import torch
import torchaudio
from torch import Tensor, nn
from torch.nn import functional as F

from frami_edge.augment import Energies
from frami_edge.errors import ConfigError
from frami_edge.models import Hidden, TeacherLike
from frami_edge_runtime.errors import AudioError, MelSpecError
from frami_edge_runtime.melspec import MelSpec

MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000
_MAX_KERNEL_TERMS = 1 << 23
"""Upper bound on the resampling kernel's size: about 32 MB."""


class LogMel(nn.Module):
    """Samples to normalised log-mel, as `MelSpec` defines it; differentiable.

    The transform is torchaudio's; the mel filters are the spec's own, so that the trainer and the
    device multiply by the same numbers.
    """

    filterbank: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, spec: MelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.spectrogram = torchaudio.transforms.Spectrogram(
            n_fft=spec.n_fft,
            win_length=spec.win_length,
            hop_length=spec.hop_length,
            power=spec.power,
            center=spec.center,
            pad_mode="reflect",
        )
        if spec.window != "hann":
            self.spectrogram.window = torch.from_numpy(spec.taper).float()
        self.register_buffer("filterbank", torch.from_numpy(spec.filterbank), persistent=False)
        for name in ("mean", "std"):
            value = torch.tensor(getattr(spec, name), dtype=torch.float32).reshape(-1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(self, samples: Tensor) -> Tensor:
        """(..., N) float32 samples in -1..1 to (..., M, T) normalised log-mel.

        Raises:
            AudioError: The samples are integers, or too few for one frame.
        """
        if not samples.is_floating_point():
            raise AudioError(
                f"The mel front end needs float samples in -1..1, not {samples.dtype}.",
                fix="Divide integer samples by their full scale first.",
            )
        if self.spec.frames(samples.shape[-1]) < 1:
            raise AudioError(
                f"{samples.shape[-1]} samples are too short for one frame of {self.spec.span}.",
                fix="Repeat the clip up to one window first: frami_edge.frontend.tile_to_window.",
            )
        # Under autocast the mel product would run in bfloat16: an error of up to 0.4 % of energy.
        with torch.autocast(samples.device.type, enabled=False):
            spectra = self._spectra(samples.float())
            energy = torch.matmul(spectra.transpose(-1, -2), self.filterbank).transpose(-1, -2)
            if self.spec.log_floor == "add":
                energy = energy + self.spec.log_eps
            else:
                energy = energy.clamp(min=self.spec.log_eps)
            normalised: Tensor = (energy.log() * self.spec.log_scale - self.mean) / self.std
            return normalised

    def _spectra(self, samples: Tensor) -> Tensor:
        """(..., N) samples to (..., F, T) energies or magnitudes."""
        spec = self.spec
        spectra: Tensor
        if spec.framing == "fft":
            if spec.pre_emphasis:
                samples = samples[..., 1:] - spec.pre_emphasis * samples[..., :-1]
            spectra = self.spectrogram(samples)
            return spectra
        frames = samples.unfold(-1, spec.win_length, spec.hop_length)
        if spec.remove_dc:
            frames = frames - frames.mean(-1, keepdim=True)
        if spec.pre_emphasis:  # the first sample has no predecessor, and every window starts at 0
            frames = frames - spec.pre_emphasis * frames.roll(1, -1)
        spectra = torch.fft.rfft(frames * self.spectrogram.window, spec.n_fft).abs()
        return (spectra if spec.power == 1 else spectra.square()).transpose(-1, -2)


def tile_to_window(samples: Tensor, spec: MelSpec) -> Tensor:
    """Repeat a clip that is too short for a single frame up to `MelSpec.min_samples`.

    Repetition keeps level and spectrum; zeros would put digital silence into the statistics. A clip
    (..., N) that gives at least one frame is returned as it is.

    Raises:
        AudioError: The clip is empty.
    """
    n = samples.shape[-1]
    if n == 0:
        raise AudioError("The clip is empty.", fix="Use a clip with at least one sample.")
    if spec.frames(n) >= 1:
        return samples
    repeats = [1] * (samples.dim() - 1) + [-(-spec.min_samples // n)]
    return samples.repeat(repeats)[..., : spec.min_samples]


def resample(samples: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """(..., N) samples at ``from_rate`` Hz to ``to_rate`` Hz: torchaudio's windowed sinc.

    The kernel is kept between calls (five times as fast for a 4 s clip at 44.1 kHz). The ratio of
    two rates without common factors is approximated to within 1e-6, since the exact kernel
    would take gigabytes.

    Raises:
        AudioError: A rate is outside 1..768 kHz.
    """
    for rate in (from_rate, to_rate):
        if not MIN_RATE_HZ <= rate <= MAX_RATE_HZ:
            raise AudioError(
                f"A sample rate of {rate} Hz is outside {MIN_RATE_HZ}..{MAX_RATE_HZ} Hz.",
                fix="Convert the file to a usual rate such as 16000 Hz.",
            )
    if from_rate == to_rate:
        return samples
    resampled: Tensor = _kernel(from_rate, to_rate, samples.device, samples.dtype)(samples)
    return resampled


class ResampledLogMel(LogMel):
    """`LogMel` of samples at another rate than the front end's."""

    def __init__(self, spec: MelSpec, rate: int) -> None:
        super().__init__(spec)
        self.rate = rate

    def forward(self, samples: Tensor) -> Tensor:
        """(..., N) float32 samples at `rate` to (..., M, T) normalised log-mel."""
        return super().forward(resample(samples, self.rate, self.spec.sample_rate))


@lru_cache(maxsize=16)
def _kernel(from_rate: int, to_rate: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
    ratio = Fraction(from_rate, to_rate)
    if ratio.numerator * ratio.denominator > _MAX_KERNEL_TERMS:
        ratio = ratio.limit_denominator(max(1, int((_MAX_KERNEL_TERMS / ratio) ** 0.5)))
    transform: nn.Module = torchaudio.transforms.Resample(ratio.numerator, ratio.denominator)
    return transform.to(device=device, dtype=dtype)


# --- From one front end to another without audio: bands are sums of finer bands

_GRID = 4096
_ITERATIONS = 400
WORST_FIT = 0.3
"""Largest relative error of a band's shape at which the other front end can still be computed."""


class MelBridge(nn.Module):
    """Normalised log-mels of one front end, turned into those of another.

    ``e_target = W e_source`` in energy, W >= 0 fitted so that the summed filters of `source` have
    the shape of those of `target`; their sample rates and pre-emphasis are part of it. What it
    cannot reproduce is where a finer band's energy lies inside that band.

    Args:
        source: The finer front end.
        target: The coarser one, with frames of the same length in seconds, at the same distance or
            a multiple of it.

    Raises:
        ConfigError: The target's frames differ, it hears frequencies that the source lacks, or its
            bands are too narrow.
    """

    weight_NM: Tensor

    def __init__(self, source: MelSpec, target: MelSpec) -> None:
        super().__init__()
        self.source, self.target = source, target
        self.every = round(target.hop_s / source.hop_s)
        """Frames of the source per frame of the target."""
        weight, self.error = fit_bands(source, target)
        """Largest relative error of a band's shape."""
        if self.error > WORST_FIT:
            raise ConfigError(
                f"The student's front end cannot be computed from the teacher's: a band differs by "
                f"{100 * self.error:.0f} %.",
                fix="Use fewer bands, or a range of frequencies inside the teacher's.",
            )
        self.register_buffer("weight_NM", torch.from_numpy(weight), persistent=False)
        self.energies, self.energies_out = Energies(source), Energies(target)

    def forward(self, x_B1MT: Tensor) -> Tensor:
        """(B, 1, M, T) of the source to (B, 1, N, ceil(T / every)) of the target."""
        s, t = self.source, self.target
        energy = self.energies.of(x_B1MT[..., :: self.every]).exp()
        if s.log_floor == "add":
            energy = (energy - s.log_eps).clamp_min(0)
        energy = self.weight_NM @ energy
        energy = energy + t.log_eps if t.log_floor == "add" else energy.clamp_min(t.log_eps)
        return self.energies_out.back(energy.log())


def comparable(source: MelSpec, target: MelSpec) -> bool:
    """Whether both are of energy, with frames of the same length in seconds.

    Their distance in the target may be a multiple of that in the source. Magnitudes do not add up:
    their sum over a band depends on how they are spread inside it.
    """
    window = target.win_length / target.sample_rate, source.win_length / source.sample_rate
    every = target.hop_s / source.hop_s
    same = np.allclose(window[0], window[1], rtol=1e-6) and round(every) >= 1
    multiple = np.allclose(every, round(every), rtol=1e-6)
    return bool(same and multiple) and source.power == target.power == 2


def bridge_between(source: MelSpec, target: MelSpec) -> MelBridge | None:
    """The bridge where there is one."""
    try:
        return MelBridge(source, target)
    except ConfigError:
        return None


def fit_bands(source: MelSpec, target: MelSpec) -> tuple[npt.NDArray[np.float32], float]:
    """(N, M) weights >= 0, and the largest relative error of a target band's shape.

    Non-negative least squares over a grid of frequencies, by multiplicative updates.
    Source: D. Lee and S. Seung, *Algorithms for Non-negative Matrix Factorization*, NIPS 2000.

    Raises:
        ConfigError: The frames differ, or the target hears what the source does not.
    """
    if not comparable(source, target):
        raise ConfigError(
            "The student's frames have another length in seconds than the teacher's, a distance "
            "that is no multiple of theirs, or are not of energy.",
            fix=f"Use power 2 and windows of {1000 * source.win_length / source.sample_rate:g} ms "
            f"every {1000 * source.hop_s:g} ms, or a multiple of that.",
        )
    if target.f_min < source.f_min or target.f_high > source.f_high:
        raise ConfigError(
            f"The student hears up to {target.f_high:g} Hz, the teacher from {source.f_min:g} to "
            f"{source.f_high:g} Hz.",
            fix="Choose f_min and f_max of the student inside that range.",
        )
    grid_G = np.linspace(target.f_min, target.f_high, _GRID)
    have_GM, want_GN = (_response(spec, grid_G) for spec in (source, target))
    # A band that ends inside the target's range is judged there: scale to comparable numbers.
    scale_M = have_GM.max(axis=0).clip(1e-30)
    a, b = have_GM / scale_M, want_GN / want_GN.max(axis=0)
    gram, right = a.T @ a, a.T @ b
    w_MN = np.full(right.shape, 0.5)
    for _ in range(_ITERATIONS):
        w_MN *= right / (gram @ w_MN + 1e-12)
    error_N = np.abs(a @ w_MN - b).sum(axis=0) / b.sum(axis=0)
    w_MN = w_MN / scale_M[:, None] * want_GN.max(axis=0)
    return np.ascontiguousarray(w_MN.T, dtype=np.float32), float(error_N.max())


def _response(spec: MelSpec, grid_G: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(G, bands) energy of each band for a sine of each frequency, the same at every rate."""
    bins_F = np.linspace(0.0, spec.sample_rate / 2, spec.n_fft // 2 + 1)
    filters_FM = spec.filterbank.astype(np.float64)
    found = np.stack([np.interp(grid_G, bins_F, column) for column in filters_FM.T], axis=1)
    # The spectrum of a window of fixed seconds grows with the rate, the number of bins with n_fft.
    found *= spec.sample_rate * spec.n_fft
    if spec.pre_emphasis:
        turn_G = np.exp(-2j * np.pi * grid_G / spec.sample_rate)
        found *= (np.abs(1 - spec.pre_emphasis * turn_G) ** 2)[:, None]
    return found


# --- Log-mels as audio: the front end undone as far as it can be

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
