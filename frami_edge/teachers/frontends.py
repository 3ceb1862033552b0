"""The log-mel inside a network that takes audio: found, and proved equal to a `MelSpec`.

A pass over test signals shows every tensor of the shape of a log-mel before the network proper: the
outputs and inputs of modules, and what methods return. The settings of its transform are read from
the calls of `torch.stft` and its like, its mel filters from the network's own matrix, and logarithm
and normalisation are fitted. Only what then agrees on other signals counts as found.

Shape legend: B batch, N samples, M mel bands, F frequency bins, T frames.
"""

from __future__ import annotations

import dataclasses
import math
import time
import types
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from frami_edge.frontend import LogMel
from frami_edge.teachers.calling import Calling, Input, arrange
from frami_edge_runtime.errors import MelSpecError
from frami_edge_runtime.melspec import MelSpec

TOLERANCE = 1e-3
"""Largest difference of a normalised log-mel on the test signals."""
RATES = (8_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
"""Hz, tried to explain mel filters that do not fit the given rate."""
_SCALES = (("htk", "none"), ("slaney", "slaney"), ("slaney", "none"), ("kaldi", "none"),
           ("htk", "slaney"))  # fmt: skip
_EDGES = (0, 20, 27.5, 30, 40, 50, 55, 60, 64, 80, 100, 125, 3_000, 3_700, 3_800, 4_000, 7_500,
          7_600, 7_800, 8_000, 10_000, 11_000, 11_025, 12_000, 14_000, 15_000, 16_000, 18_000,
          20_000, 22_050)  # fmt: skip
"""Usual ends of filter banks, Hz, tried beside every number that the network holds."""
_FLOORS = (*(10.0**-n for n in range(1, 13)), float(np.finfo(np.float32).eps), 2.0**-24)
_MOST_CANDIDATES = 24
_SEARCH_S = 30.0
"""Seconds spent at most on guessing mel filters that the network does not hold as a matrix."""
_LEAST_BANDS, _MOST_BANDS = 8, 512


@dataclass(frozen=True)
class Spot:
    """Where a log-mel appears in a network."""

    module: str  # its name; "" for the network itself
    method: str  # method that returns it; "" for the module's output, "@in" for its input
    mel_axis: int
    time_axis: int
    axes: int  # of the tensor

    def __str__(self) -> str:
        if self.method == "@in":
            return f"{self.module}@in"
        return ".".join(part for part in (self.module, self.method) if part)


@dataclass(frozen=True)
class FrontEnd:
    """A log-mel that was found and proved."""

    spot: Spot
    mel: MelSpec
    difference: float  # largest, of a log-mel on test signals
    answers: float  # largest, of a logit on test signals


@dataclass(frozen=True)
class NotFound:
    """Why no log-mel was found."""

    reason: str
    rate: int = 0  # Hz at which the mel filters would fit; 0 where unknown


@dataclass
class _Seen:
    """What one pass showed."""

    spots: list[tuple[str, str, Tensor]]  # module, method, tensor
    transforms: list[dict[str, Any]]
    numbers: set[float]
    matrices: list[Tensor]


def signals(sample_rate: int, seconds: float, seed: int) -> Tensor:
    """(B, N) test signals: noise, a chirp, tones, impulses, a decay, silence.

    None has energies so far apart in one frame that float32 would decide about the quiet ones.
    """
    n = int(sample_rate * seconds)
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(5, n, generator=rng).clamp(-3, 3)
    t = torch.arange(n) / sample_rate
    sweep = torch.sin(2 * torch.pi * t * (60 + 0.22 * sample_rate * t / seconds))
    tones = torch.sin(2 * torch.pi * 440 * t) + torch.sin(2 * torch.pi * 0.31 * sample_rate * t)
    impulses = torch.zeros(n)
    impulses[torch.randint(0, n, (5,), generator=rng)] = 0.9
    return torch.stack(
        [
            0.2 * noise[0],
            0.002 * noise[1],
            0.3 * sweep + 0.03 * noise[2],
            0.2 * tones + 0.02 * noise[3],
            impulses,
            noise[4] * torch.exp(-3 * t) * 0.3,
            torch.zeros(n),
        ]
    )


def find_front_end(
    module: nn.Module, sample_rate: int, calling: Calling, given: MelSpec | None = None
) -> FrontEnd | NotFound:
    """The first log-mel in a pass that equals a `MelSpec`; `given` is tried first.

    The module, in evaluation mode, takes audio of that rate in Hz.
    """
    audio, longer = signals(sample_rate, 1.0, 0), signals(sample_rate, 3.0, 1)[:1]
    try:
        seen, more = (_observe(module, calling, x) for x in (audio, longer))
    except Exception:  # somebody else's code; a network of one length is not searched
        return NotFound("it does not take clips of 1 s and 3 s alike")
    candidates = _candidates(seen, more, len(audio))
    rate = 0
    until = time.monotonic() + _SEARCH_S
    for spot, y_BMT, growth in candidates[:_MOST_CANDIDATES]:
        hop = longer.shape[1] - audio.shape[1]
        found = _explain(seen, y_BMT, audio, sample_rate, hop / max(1, growth), given, until)
        if isinstance(found, int):
            rate = rate or found
        elif found is not None:
            proved = _prove(module, calling, spot, found, sample_rate)
            if proved is not None:
                return proved
    if rate:
        return NotFound(f"its mel filters are those of {rate} Hz", rate)
    return NotFound(
        "no log-mel in it equals a MelSpec (learned filters, MFCC, PCEN, a floor below the loudest "
        "frame such as top_db, normalisation over the clip)"
    )


# --- What happens in a pass


@torch.no_grad()
def _observe(module: nn.Module, calling: Calling, audio_BN: Tensor) -> _Seen:
    """One pass with every module, method and transform watched."""
    seen = _Seen([], [], set(), [])

    def keep(name: str, method: str, value: Any) -> None:
        if isinstance(value, tuple) and value:
            value = value[0]
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim in (3, 4):
            seen.spots.append((name, method, value.clone()))

    undo: list[Callable[[], Any]] = []
    for name, part in module.named_modules():
        if name:
            before = part.register_forward_pre_hook(lambda _, x, n=name: keep(n, "@in", x))
            after = part.register_forward_hook(lambda _, __, out, n=name: keep(n, "", out))
            undo += [before.remove, after.remove]
        for method in _methods(part):
            part.__dict__[method] = _recording(getattr(part, method), name, method, keep)
            undo.append(partial(part.__dict__.pop, method, None))
        _numbers(part, seen.numbers)
    seen.matrices = [
        t.detach()
        for t in (*module.buffers(), *module.parameters(), *_plain_tensors(module))
        if t.squeeze().ndim == 2 and t.is_floating_point()
    ]
    try:
        with _Transforms(seen.transforms, seen.matrices):
            module(arrange(audio_BN, calling.layout))
    finally:
        for step in undo:
            step()
    return seen


def _methods(part: nn.Module) -> Iterator[str]:
    """Methods that its author wrote, apart from `forward`."""
    for cls in type(part).__mro__:
        if cls is nn.Module or cls.__module__.split(".")[0] in ("torch", "torchaudio"):
            return
        for name, value in vars(cls).items():
            written = isinstance(value, types.FunctionType) and name not in part.__dict__
            if written and name != "forward" and name[:2] != "__":
                yield name


def _recording(
    method: Callable[..., Any], name: str, label: str, keep: Callable[[str, str, Any], None]
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        out = method(*args, **kwargs)
        if isinstance(out, Tensor):
            keep(name, label, out)
        return out

    return call


def _numbers(part: nn.Module, into: set[float]) -> None:
    for value in vars(part).values():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            into.add(float(value))


def _plain_tensors(module: nn.Module) -> Iterator[Tensor]:
    for part in module.modules():
        yield from (v for v in vars(part).values() if isinstance(v, Tensor))


class _Transforms(TorchFunctionMode):
    """Record short-time Fourier transforms, whatever they are made of, and matrix products."""

    def __init__(self, into: list[dict[str, Any]], matrices: list[Tensor]) -> None:
        super().__init__()
        self.into, self.matrices = into, matrices

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "stft":
            names = ("input", "n_fft", "hop_length", "win_length", "window")
            call: dict[str, Any] = dict(zip(names, args, strict=False)) | kwargs
            n_fft = int(call["n_fft"])
            win, window = call.get("win_length"), call.get("window")
            win = int(win) if win else (n_fft if window is None else len(window))
            self.into.append(
                {
                    "n_fft": n_fft,
                    "hop": int(call.get("hop_length") or n_fft // 4),
                    "win": win,
                    "window": torch.ones(win) if window is None else window.detach().cpu(),
                }
            )
        elif name == "conv1d" and isinstance(args[1], Tensor) and args[1].shape[1] == 1:
            weight = args[1].detach().cpu()[:, 0]
            stride = args[3] if len(args) > 3 else kwargs.get("stride", 1)
            hop = int(stride[0] if isinstance(stride, Sequence) else stride)
            n_fft = weight.shape[1]
            # The row of frequency 0 is the window itself.
            if len(weight) in (n_fft // 2 + 1, n_fft + 2) and float(weight[0].min()) > -1e-6:
                used = (weight[0] > 1e-9).nonzero()[:, 0]
                window = weight[0] / weight[0].max()
                first = max(0, int(used[0]) - 1) if len(used) else 0
                last = n_fft - first if first > 1 else n_fft
                facts = {"n_fft": n_fft, "hop": hop, "win": last - first}
                self.into.append({**facts, "window": window[first:last]})
        elif name in ("matmul", "mm", "bmm", "__matmul__", "__rmatmul__"):
            self.matrices += [m.detach() for m in args if isinstance(m, Tensor) and m.ndim == 2]
        elif name in ("fft_rfft", "rfft"):
            n = kwargs.get("n") or (args[1] if len(args) > 1 and args[1] else args[0].shape[-1])
            self.into.append({"n_fft": int(n), "hop": 0, "win": 0, "window": None})
        return func(*args, **kwargs)


def _candidates(seen: _Seen, more: _Seen, batch: int) -> list[tuple[Spot, Tensor, int]]:
    """Tensors of the shape of a log-mel that appear once, as (B, M, T), and their growth."""
    names = [(name, method) for name, method, _ in seen.spots]
    if names != [(name, method) for name, method, _ in more.spots]:
        return []
    found = []
    for (name, method, y), (_, _, other) in zip(seen.spots, more.spots, strict=True):
        if y.ndim != other.ndim or y.shape[0] != batch or names.count((name, method)) > 1:
            continue
        wide = [i for i in range(1, y.ndim) if y.shape[i] > 1]
        grown = [i for i in wide if other.shape[i] != y.shape[i]]
        if len(wide) != 2 or len(grown) != 1:
            continue
        time_axis, mel_axis = grown[0], next(i for i in wide if i != grown[0])
        if not _LEAST_BANDS <= y.shape[mel_axis] <= _MOST_BANDS:
            continue
        y_BMT = (
            y.movedim((mel_axis, time_axis), (1, 2))
            .flatten(2)
            .reshape(batch, y.shape[mel_axis], -1)
        )
        growth = other.shape[time_axis] - y.shape[time_axis]
        found.append((Spot(name, method, mel_axis, time_axis, y.ndim), y_BMT, growth))
    return found


# --- Which MelSpec it is


def _explain(
    seen: _Seen,
    y_BMT: Tensor,
    audio_BN: Tensor,
    rate: int,
    growth: float,
    given: MelSpec | None,
    until: float,
) -> MelSpec | int | None:
    """A `MelSpec` whose log-mel of the test signals is y; or the rate that its filters are for."""
    bands, frames = y_BMT.shape[1], y_BMT.shape[2]
    loud_MT, quiet_MT, silence_MT = y_BMT[0], y_BMT[1], y_BMT[-1]
    constant = float(silence_MT.std(1).max()) < 1e-3
    if not constant or not float(loud_MT.mean()) > float(silence_MT.mean()):
        return None
    rise = float((loud_MT - silence_MT).mean()) / float((quiet_MT - silence_MT).mean() + 1e-12)
    if rise > 300:  # 100 times the amplitude: before the logarithm, the energies rise 10,000 times
        return None
    if given is not None and given.n_mels == bands and given.frames(audio_BN.shape[1]) == frames:
        fitted = _fit(given, y_BMT, audio_BN)
        if fitted is not None:
            return fitted
    matched: dict[int, MelSpec | None] = {}
    banks: dict[int, npt.NDArray[np.float64] | None] = {}
    for facts in _geometries(seen, audio_BN.shape[1], frames, growth):
        n_fft = facts["n_fft"]
        if bands == n_fft // 2 + 1:
            continue
        if n_fft not in banks:
            bank_FM = banks[n_fft] = _bank(seen, n_fft, bands)
            matched[n_fft] = None
            if bank_FM is not None:
                matched[n_fft] = _match(bank_FM, rate, n_fft, bands, seen.numbers)
        if banks[n_fft] is None:
            guesses = list(_guesses(rate, n_fft, bands, seen.numbers))
        else:
            guesses = [spec for spec in (matched[n_fft],) if spec is not None]
        for spec, power in product(guesses, (2.0, 1.0)):
            if time.monotonic() > until:
                return None
            try:
                whole = spec.replace(
                    win_length=facts["win"], hop_length=facts["hop"], center=facts["center"],
                    window=facts["window"], framing=facts["framing"], power=power,
                    pre_emphasis=facts["pre_emphasis"], remove_dc=facts["remove_dc"],
                )  # fmt: skip
            except MelSpecError:
                continue
            fitted = _fit(whole, y_BMT, audio_BN)
            if fitted is not None:
                return fitted
    for n_fft, bank_FM in banks.items():
        if bank_FM is not None and matched[n_fft] is None:
            for other in RATES:
                if other != rate and _match(bank_FM, other, n_fft, bands, seen.numbers):
                    return other
    return None


def _geometries(seen: _Seen, samples: int, frames: int, growth: float) -> Iterator[dict[str, Any]]:
    """Windows, hops and framings that may have made so many frames of so many samples."""
    done = set()
    for call in seen.transforms:
        hop = call["hop"] or round(growth)
        windows = [(call["win"], _kind(call["window"]))]
        if call["window"] is None:  # Kaldi's frames: a window of its own before the transform
            wins = [int(v) for v in seen.numbers if hop <= v <= call["n_fft"]]
            usual = [int(2.5 * hop), call["n_fft"]]
            kinds = ("hann_symmetric", "povey", "hann")
            windows = list(product(dict.fromkeys(usual + wins), kinds))
        for win, kind in windows:
            if not kind or not 0 < hop <= win <= call["n_fft"]:
                continue
            emphases = {0.0, 0.97, 0.95, *(v for v in seen.numbers if 0.8 < v < 1)}
            framings = ("window", "fft") if call["window"] is None else ("fft",)
            for framing, pre in product(framings, sorted(emphases)):
                inside = framing == "window"
                for center, dc in product(
                    (False,) if inside else (True, False), (True, False) if inside else (False,)
                ):
                    facts = {
                        "n_fft": call["n_fft"], "hop": hop, "win": win, "window": kind,
                        "framing": framing, "pre_emphasis": pre, "center": center, "remove_dc": dc,
                    }  # fmt: skip
                    used = samples - int(pre > 0 and not inside)
                    span = win if inside else call["n_fft"]
                    count = 1 + (used + (2 * (call["n_fft"] // 2) if center else 0) - span) // hop
                    key = tuple(facts.values())
                    if count == frames and key not in done:
                        done.add(key)
                        yield facts


def _kind(window: Tensor | None) -> str:
    """Name of a window in `MelSpec`; "" for others."""
    if window is None or len(window) < 8:
        return ""
    n = len(window)
    for kind in ("hann", "hann_symmetric", "povey"):
        spec = MelSpec(n_fft=n, win_length=n, hop_length=1, window=kind, n_mels=1)
        if np.allclose(
            window.numpy() / float(window.max()), spec.taper / spec.taper.max(), atol=1e-5
        ):
            return kind
    return ""


def _bank(seen: _Seen, n_fft: int, bands: int) -> npt.NDArray[np.float64] | None:
    """(F, M) non-negative matrix of the network of that shape."""
    bins = n_fft // 2 + 1
    for matrix in seen.matrices:
        m = matrix.squeeze().double().cpu().numpy()
        for w in (m, m.T):
            if w.shape[1] == bands and w.shape[0] in (bins, bins - 1) and w.min() >= 0 < w.max():
                return np.pad(w, ((0, bins - w.shape[0]), (0, 0)))
    return None


def _match(
    bank_FM: npt.NDArray[np.float64], rate: int, n_fft: int, bands: int, numbers: set[float]
) -> MelSpec | None:
    """The filter bank as scale, norm and edges; None where nothing fits."""
    used = np.flatnonzero(bank_FM.any(axis=1))
    if not len(used):
        return None
    bin_hz = rate / n_fft
    low, high = (used[0] - 1) * bin_hz, (used[-1] + 1) * bin_hz
    for spec in _guesses(rate, n_fft, bands, numbers, low, high, bin_hz):
        ours = spec.filterbank.astype(np.float64)
        scale = float((ours * bank_FM).sum() / max((ours * ours).sum(), 1e-30))
        if np.abs(bank_FM - scale * ours).max() < 2e-4 * bank_FM.max():
            return spec
    return None


def _guesses(
    rate: int,
    n_fft: int,
    bands: int,
    numbers: set[float],
    low: float = 0.0,
    high: float = math.inf,
    slack: float = 100.0,
) -> Iterator[MelSpec]:
    edges = sorted({float(e) for e in _EDGES} | {n for n in numbers if 0 <= n <= rate / 2})
    high = min(high, rate / 2)
    lows = [e for e in edges if low - slack <= e <= low + 2 * slack and e < high]
    highs = [e for e in {*edges, rate / 2} if high - 2 * slack <= e <= min(high + slack, rate / 2)]
    for (scale, norm), f_min, f_max in product(_SCALES, lows, sorted(highs, reverse=True)):
        if f_min < f_max:
            yield MelSpec(
                sample_rate=rate, n_fft=n_fft, win_length=n_fft, hop_length=1, n_mels=bands,
                f_min=f_min, f_max=0.0 if f_max == rate / 2 else f_max, mel_scale=scale, norm=norm,
            )  # fmt: skip


@torch.no_grad()
def _fit(spec: MelSpec, y_BMT: Tensor, audio_BN: Tensor) -> MelSpec | None:
    """The spec with the logarithm and normalisation of y; None where they do not fit."""
    plain = spec.replace(log="ln", log_eps=1e-30, log_floor="clamp", mean=0.0, std=1.0)
    x_BMT = LogMel(plain)(audio_BN)  # ln of the energies
    loud = x_BMT > x_BMT[0].quantile(0.3)
    slope, shift, worst = _line(x_BMT[loud], y_BMT[loud])
    if not slope > 1e-6 or worst > 0.05 * max(1.0, float(y_BMT[loud].std())):
        return None
    best: MelSpec | None = None
    error = math.inf
    floor = math.exp(max(-69.0, (float(y_BMT[-1].mean()) - shift) / slope))
    near = [e for e in _FLOORS if abs(math.log(e / floor)) < 0.05]
    energies = x_BMT.double().exp()
    for eps, how in product([*near, floor], ("add", "clamp")):
        if not 1e-30 < eps < 1:
            continue
        filled = energies + eps if how == "add" else energies.clamp_min(eps)
        slope, shift, worst = _line(filled.log(), y_BMT)
        if worst < 0.9 * error:
            error = worst
            best = _with_log(spec, eps, how, slope, shift)
    return best if error < TOLERANCE * max(1.0, float(y_BMT.std())) else None


def _line(x: Tensor, y: Tensor) -> tuple[float, float, float]:
    """Slope and intercept of the least-squares line y(x), and the largest distance from it."""
    x, y = x.double().flatten(), y.double().flatten()
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
    shift = float((y - slope * x).mean())
    return slope, shift, float((y - slope * x - shift).abs().max())


def _with_log(spec: MelSpec, eps: float, how: str, slope: float, shift: float) -> MelSpec:
    """The logarithm under which mean and deviation are roundest."""
    scales = {k: spec.replace(log=k).log_scale for k in ("ln", "db", "log10", "log2")}
    kind = next((k for k, scale in scales.items() if abs(scale / slope - 1) < 1e-4), "ln")
    std = scales[kind] / slope
    mean = -shift * std
    rounded = [
        round(v, 4) if abs(v - round(v, 4)) < 2e-5 * max(1, abs(v)) else v for v in (mean, std)
    ]
    return spec.replace(log=kind, log_eps=eps, log_floor=how, mean=rounded[0], std=rounded[1])


# --- In its place, a log-mel that is given


class _Given:
    """The log-mel of the current pass, wherever the network computed its own."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def __call__(self, *_: Any, **__: Any) -> Tensor | None:
        return self.value

    def as_input(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.value, *args[1:])


class _Stub(nn.Module):
    def __init__(self, given: _Given) -> None:
        super().__init__()
        self.given = given

    def forward(self, *_: Any, **__: Any) -> Tensor | None:
        return self.given.value


class LogMelInput(nn.Module):
    """A network that takes audio, as one that takes the log-mel inside it: (B, 1, M, T).

    Args:
        net: The network; changed.
        spot: Where its log-mel is.
        layout: Axes of its audio.
        samples: Length of the silence that it is called with.
    """

    def __init__(self, net: nn.Module, spot: Spot, layout: str, samples: int) -> None:
        super().__init__()
        self.net, self.spot, self.layout, self.samples = net, spot, layout, samples
        self._given = _Given()
        part = net.get_submodule(spot.module)
        if spot.method == "@in":
            part.register_forward_pre_hook(self._given.as_input)
        elif spot.method:
            part.__dict__[spot.method] = self._given
        else:
            parent, _, leaf = spot.module.rpartition(".")
            net.get_submodule(parent)._modules[leaf] = _Stub(self._given)

    @classmethod
    @torch.no_grad()
    def shortened(cls, net: nn.Module, found: FrontEnd, calling: Calling) -> LogMelInput:
        """With as little silence as gives the same answers: the front end's work is not needed."""
        rate, spec = found.mel.sample_rate, found.mel
        audio = signals(rate, 1.0, 3)
        expected, x = calling.raw(net, audio), LogMel(spec)(audio)[:, None]
        made = cls(net, found.spot, calling.layout, spec.min_samples)
        inside = dataclasses.replace(calling, input=Input(n_mels=spec.n_mels), layout="B1MT")
        for samples in (2 * spec.n_fft, rate, audio.shape[1]):
            made.samples = samples
            try:
                answers = inside.raw(made, x)
            except Exception:  # somebody else's code
                continue
            if float((answers - expected).abs().max()) <= 2 * found.answers + 1e-4:
                break
        return made

    def forward(self, x_B1MT: Tensor) -> Any:
        """What the network returns for audio with this log-mel."""
        spot = self.spot
        y = x_B1MT[:, 0] if spot.mel_axis < spot.time_axis else x_B1MT[:, 0].transpose(1, 2)
        if spot.axes == 4:
            y = y.unsqueeze(next(i for i in (1, 2, 3) if i not in (spot.mel_axis, spot.time_axis)))
        audio_BN = x_B1MT.new_zeros(1).expand(len(x_B1MT), self.samples)
        self._given.value = y
        try:
            return self.net(arrange(audio_BN, self.layout))
        finally:
            self._given.value = None


@torch.no_grad()
def _prove(
    module: nn.Module, calling: Calling, spot: Spot, spec: MelSpec, rate: int
) -> FrontEnd | None:
    """Compare on other signals of another length: the log-mels, then the answers."""
    audio = signals(rate, 1.37, 7)
    theirs = next(
        t
        for name, method, t in _observe(module, calling, audio).spots
        if (name, method) == (spot.module, spot.method)
    )
    ours_BMT = LogMel(spec)(audio)
    theirs_BMT = theirs.movedim((spot.mel_axis, spot.time_axis), (1, 2)).reshape(ours_BMT.shape)
    difference = float((theirs_BMT - ours_BMT).abs().max())
    if difference > TOLERANCE * max(1.0, float(ours_BMT.std())):
        return None
    expected = calling.raw(module, audio)
    copied = dataclasses.replace(calling, input=Input(n_mels=spec.n_mels), layout="B1MT")
    given = LogMelInput(deepcopy(module), spot, calling.layout, audio.shape[1])
    answers = float((copied.raw(given, ours_BMT[:, None]) - expected).abs().max())
    if answers > 0.01 * max(1.0, float(expected.abs().max())):
        return None  # the network also reads the audio beside its log-mel
    return FrontEnd(spot, spec, difference, answers)
