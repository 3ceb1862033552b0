"""The log-mel front end in torch, built from a `MelSpec` with torchaudio's transforms.

Shape legend: N samples, M mel bands, T frames.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

import torch
import torchaudio

from frami_edge_runtime.errors import AudioError
from frami_edge_runtime.melspec import MelSpec

MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000
_MAX_KERNEL_TERMS = 1 << 23
"""Upper bound on the resampling kernel's size: about 32 MB."""


class LogMel(torch.nn.Module):
    """Samples to normalised log-mel, as `MelSpec` defines it; differentiable.

    The transform is torchaudio's; the mel filters are the spec's own, so that the trainer and the
    device multiply by the same numbers.
    """

    filterbank: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor

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

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
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
            normalised: torch.Tensor = (energy.log() * self.spec.log_scale - self.mean) / self.std
            return normalised

    def _spectra(self, samples: torch.Tensor) -> torch.Tensor:
        """(..., N) samples to (..., F, T) energies or magnitudes."""
        spec = self.spec
        spectra: torch.Tensor
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


def tile_to_window(samples: torch.Tensor, spec: MelSpec) -> torch.Tensor:
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


def resample(samples: torch.Tensor, from_rate: int, to_rate: int) -> torch.Tensor:
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
    resampled: torch.Tensor = _kernel(from_rate, to_rate, samples.device, samples.dtype)(samples)
    return resampled


class ResampledLogMel(LogMel):
    """`LogMel` of samples at another rate than the front end's."""

    def __init__(self, spec: MelSpec, rate: int) -> None:
        super().__init__(spec)
        self.rate = rate

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """(..., N) float32 samples at `rate` to (..., M, T) normalised log-mel."""
        return super().forward(resample(samples, self.rate, self.spec.sample_rate))


@lru_cache(maxsize=16)
def _kernel(
    from_rate: int, to_rate: int, device: torch.device, dtype: torch.dtype
) -> torch.nn.Module:
    ratio = Fraction(from_rate, to_rate)
    if ratio.numerator * ratio.denominator > _MAX_KERNEL_TERMS:
        ratio = ratio.limit_denominator(max(1, int((_MAX_KERNEL_TERMS / ratio) ** 0.5)))
    transform: torch.nn.Module = torchaudio.transforms.Resample(ratio.numerator, ratio.denominator)
    return transform.to(device=device, dtype=dtype)
