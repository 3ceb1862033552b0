"""How a network is called: what it takes, in which order of axes, and what its outputs are.

Layouts and clip lengths are tried, because the code of a network does not state them.

Shape legend: B batch, M mel bands, T mel frames, N samples, T' frames, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor, nn

from frami_edge.errors import TeacherError

LAYOUTS = ("B1MT", "BMT", "B1TM", "BTM", "B3MT", "B3TM")
"""Orders of the input's axes, tried in this order where none is given."""
AUDIO_LAYOUTS = ("BN", "B1N")
BATCH = 4
_USUAL_LENGTHS = (32, 48, 49, 50, 61, 63, 64, 80, 96, 98, 99, 100, 101, 125, 126, 128, 200, 201,
                  250, 251, 256, 300, 301, 400, 401, 500, 501, 512, 998, 1000, 1001,
                  1024)  # fmt: skip
"""Mel frames of the clips that networks of one length are commonly built for."""
_USUAL_SECONDS = (0.5, 0.975, 1, 1.5, 1.51125, 2, 3, 4, 5, 6, 8, 10)
_USUAL_SAMPLES = (15_600, 30_225, 59_049)  # YAMNet's patch, ACDNet, SampleCNN
_SEARCH_S = 4.0
"""Seconds spent at most on finding an unusual fixed length."""


Answers = Literal["logits", "log-probabilities", "probabilities", "sigmoid probabilities"]


@dataclass(frozen=True)
class Input:
    """What a teacher takes: log-mels of so many bands, or audio."""

    n_mels: int = 0  # 0: audio
    sample_rate: int = 0  # Hz, of audio
    known: tuple[int, ...] = ()  # sizes behind the batch that an ONNX file declares; 0: any

    @property
    def lengths(self) -> tuple[int, int]:
        """Mel frames, or samples, of the two passes that are compared."""
        if self.n_mels:
            return 256, 512
        unit = 1 << max(10, (self.sample_rate // 3).bit_length())  # a third to two thirds of 1 s
        return 2 * unit, 6 * unit

    @property
    def usual_lengths(self) -> tuple[int, ...]:
        """Lengths of the clips that networks of one length are commonly built for."""
        if self.n_mels:
            return _USUAL_LENGTHS
        whole = {int(s * self.sample_rate) for s in _USUAL_SECONDS}
        return tuple(sorted(whole | {*_USUAL_SAMPLES}))

    @property
    def unit(self) -> str:
        """What lengths are counted in."""
        return "frames" if self.n_mels else "samples"

    @property
    def layouts(self) -> tuple[str, ...]:
        """Orders of axes that may fit; all of them where none fits the known sizes."""
        orders = LAYOUTS if self.n_mels else AUDIO_LAYOUTS
        sizes = {"1": 1, "3": 3, "M": self.n_mels}
        fitting = [
            order
            for order in orders
            if len(order) == 1 + len(self.known)
            and all(n in (0, sizes.get(a, n)) for a, n in zip(order[1:], self.known, strict=True))
        ]
        return tuple(fitting) or orders

    def probe(self, length: int, batch: int = BATCH) -> Tensor:
        """(B, 1, M, T) or (B, N) test signals."""
        if self.n_mels:
            return probe_mels(self.n_mels, length, batch=batch)
        draw = torch.Generator().manual_seed(0)
        noise_BN = torch.randn(batch, length, generator=draw)
        knots = max(2, length // 400)
        loudness = nn.functional.interpolate(
            torch.rand(batch, 1, knots, generator=draw), size=length, mode="linear"
        )[:, 0]
        t = torch.arange(length) / self.sample_rate
        rise_B1 = 200 * (1 + torch.arange(batch)[:, None].float())
        return (
            loudness * (0.1 * noise_BN + 0.3 * torch.sin(6.2832 * rise_B1 * t * (1 + t)))
        ).clamp(-1, 1)


@dataclass(frozen=True)
class Calling:
    """How a teacher is called, and what it returns."""

    input: Input
    classes: int
    layout: str  # order of its input's axes
    length: int | None = None  # the only clip length that it takes; None: any
    frame_axis: int | None = (
        None  # axis of time where it answers per frame, (B, T', K) or (B, K, T')
    )

    @property
    def lengths(self) -> tuple[int, ...]:
        """Lengths of the passes that are compared."""
        return self.input.lengths if self.length is None else (self.length,)

    def raw(self, model: nn.Module, x: Tensor) -> Tensor:
        """The teacher's outputs for our (B, 1, M, T) or (B, N): (B, K), or per frame."""
        return answer(model(arrange(x, self.layout)), self.classes)

    def logits(self, raw: Tensor, answers: Answers) -> Tensor:
        """(B, K) logits in such outputs; those of frames are averaged over time."""
        logits = as_logits(raw, answers)
        return logits if self.frame_axis is None else logits.mean(self.frame_axis)

    def rows(self, raw: Tensor) -> Tensor:
        """Outputs as rows of K columns, frame by frame where there are frames."""
        if self.frame_axis is None:
            return raw
        return raw.movedim(self.frame_axis, 1).reshape(-1, self.classes)


def arrange(x: Tensor, layout: str) -> Tensor:
    """Our (B, 1, M, T), or (B, N), in the teacher's order of axes."""
    if layout in AUDIO_LAYOUTS:
        return x[:, None] if "1" in layout else x
    x = x.transpose(2, 3) if layout.endswith("TM") else x
    if "3" in layout:  # networks for pictures take the same mel in each colour
        return x.expand(-1, 3, -1, -1)
    return x if "1" in layout else x.squeeze(1)


def probe_mels(n_mels: int, frames: int, *, batch: int = BATCH) -> Tensor:
    """(B, 1, M, T) normalised log-mels, smooth enough to excite most units."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.randn(batch, 1, max(2, n_mels // 8), max(2, frames // 8), generator=draw)
    fine = torch.randn(batch, 1, n_mels, frames, generator=draw)
    size = (n_mels, frames)
    smooth = nn.functional.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    return smooth + 0.5 * fine


def answer(out: Any, classes: int) -> Tensor:
    """The logits in a teacher's output: the first tensor of K columns, else the first of all.

    Some return (embedding, logits), others (logits, embedding), a mapping or a data class.

    Raises:
        TeacherError: There is no tensor in it.
    """
    tensors = list(_tensors(out))
    if not tensors:
        raise TeacherError(
            f"The teacher returns {type(out).__name__} without a tensor in it.",
            fix="Wrap it in a module whose forward returns the logits.",
        )
    wanted = [t for t in tensors if t.ndim == 2 and t.shape[1] == classes]
    wanted += [t for t in tensors if t.ndim == 3 and classes in t.shape[1:]]
    return (wanted or tensors)[0]


def _tensors(out: Any) -> Iterator[Tensor]:
    if is_dataclass(out) and not isinstance(out, Mapping | type):
        out = {field.name: getattr(out, field.name) for field in fields(out)}
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, Mapping):
        known = [k for k in ("logits", "clipwise_output", "output") if k in out]
        for key in [*known, *(k for k in out if k not in known)]:
            yield from _tensors(out[key])
    elif isinstance(out, tuple | list):
        for part in out:
            yield from _tensors(part)


def first_tensor(out: Any) -> Tensor | None:
    """The first tensor in a tensor, tuple, list, mapping or data class."""
    return next(_tensors(out), None)


def in_words(error: BaseException) -> str:
    """Type and first line of an error from code that is not ours."""
    first = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def find_calling(model: nn.Module, taken: Input, classes: int, asked: str = "auto") -> Calling:
    """The order of axes in which the teacher answers clips of two lengths, or of one.

    Raises:
        TeacherError: None of them does, with the outcome of each attempt; or two do, which differ.
    """
    layouts = taken.layouts if asked == "auto" else (asked,)
    tried = []
    for layout in layouts:
        shapes = _shapes(model, taken, classes, layout, taken.lengths)
        if fits(shapes, classes):
            # Both orders of three axes are common, so neither may be assumed.
            if asked == "auto" and layout == "BMT" and takes(model, taken, classes, "BTM"):
                raise TeacherError(
                    "The teacher takes (batch, bands, frames) and (batch, frames, bands) alike, "
                    "and only one of them is what it was trained on.",
                    fix="Name it: --layout BMT or --layout BTM, or `layout:` in its description.",
                )
            return Calling(taken, classes, layout, None, _frame_axis(shapes))
        gives = "" if isinstance(shapes[-1], str) else "gives "
        tried.append(f"{layout}: {gives}{' and '.join(map(str, shapes))}")
    if fixed := _fixed(model, taken, classes, layouts):
        return fixed
    attempts = f"Tried: {'; '.join(tried)}."
    if not taken.n_mels:
        raise TeacherError(
            f"The teacher does not turn audio, (batch, samples) at {taken.sample_rate} Hz, into "
            f"(batch, {classes}) logits. {attempts}",
            fix="Check the labels; wrap a network that needs more than one argument in a module "
            "that takes audio alone. For a network that takes log-mels, leave the sample rate out "
            "and give --mel.",
        )
    raise TeacherError(
        f"The teacher does not turn log-mels of {taken.n_mels} bands and {taken.lengths[0]} or "
        f"{taken.lengths[1]} frames into (batch, {classes}) logits. {attempts}",
        fix="Check mel and labels. A network that takes waveforms needs its sample rate: "
        "--sample-rate HZ. One that needs more than one argument has to be wrapped in a module "
        "that takes log-mels alone: docs/MY_TEACHER.md shows how.",
    )


def fits(shapes: Sequence[tuple[int, ...] | str], classes: int) -> bool:
    """Whether outputs of these shapes are answers: (B, K), or one (B, T', K) or (B, K, T')."""
    if any(isinstance(shape, str) or shape[0] != BATCH for shape in shapes):
        return False
    if all(shape == (BATCH, classes) for shape in shapes):
        return True
    return all(len(shape) == 3 for shape in shapes) and _frame_axis(shapes) is not None


def _frame_axis(shapes: Sequence[tuple[int, ...] | str]) -> int | None:
    """The axis that grows in answers of three axes."""
    grown = [i for i, sizes in enumerate(zip(*shapes, strict=False)) if len(set(sizes)) > 1]
    return grown[0] if len(grown) == 1 else None


def _fixed(model: nn.Module, taken: Input, classes: int, layouts: Sequence[str]) -> Calling | None:
    """How a network of one clip length is called; None where no length works."""
    for layout, lengths in product(layouts, (taken.known, taken.usual_lengths)):
        works = [
            n for n in lengths if _shapes(model, taken, classes, layout, (n,)) == [(BATCH, classes)]
        ]
        if works:
            # A network that takes any length up to some limit knows the longest best; one that
            # rounds its length down takes a few frames more than it was built for.
            return Calling(
                taken, classes, layout, works[-1] if works[-1] > 1.3 * works[0] else works[0]
            )
    if not taken.n_mels:
        return None
    until = time.monotonic() + _SEARCH_S
    for n in range(16, 1200):
        for layout in layouts:
            if _shapes(model, taken, classes, layout, (n,)) == [(BATCH, classes)]:
                _check_bands(model, taken, classes, layout, n)
                return Calling(taken, classes, layout, n)
        if time.monotonic() > until:
            break
    return None


def _check_bands(model: nn.Module, taken: Input, classes: int, layout: str, length: int) -> None:
    """Refuse a length that is the number of bands: the other axis then takes any size."""
    longer = Input(n_mels=3 * taken.n_mels)
    if fits(_shapes(model, longer, classes, layout, (length,)), classes):
        raise TeacherError(
            f"The teacher takes log-mels of {length} bands, and the front end has {taken.n_mels}.",
            fix="Correct n_mels in --mel, or name another front end.",
        )


def shortest_clip(model: nn.Module, calling: Calling) -> int:
    """Fewest mel frames or samples that it takes, by bisection."""
    if calling.length is not None:
        return calling.length
    too_few, enough, length = 0, calling.lengths[0], 1
    while enough - too_few > max(1, enough // 50 if not calling.input.n_mels else 1):
        try:
            with torch.no_grad():
                calling.raw(model, calling.input.probe(length, 1))
            enough = length
        except Exception:  # the teacher is somebody else's code
            too_few = length
        length = (too_few + enough) // 2
    return enough


def takes(model: nn.Module, taken: Input, classes: int, layout: str) -> bool:
    """Whether clips of two lengths in this order of axes give answers."""
    return fits(_shapes(model, taken, classes, layout, taken.lengths), classes)


def _shapes(
    model: nn.Module, taken: Input, classes: int, layout: str, lengths: tuple[int, ...]
) -> list[tuple[int, ...] | str]:
    """Shapes of the outputs for clips of these lengths; an error in words, where there was one."""
    clips = [arrange(taken.probe(length), layout) for length in lengths]
    try:
        with torch.no_grad():
            return [tuple(answer(model(x), classes).shape) for x in clips]
    except Exception as error:  # the teacher is somebody else's code
        return [in_words(error)]


def kind_of_answers(out_BK: Tensor) -> Answers:
    """What the teacher's outputs are, by their range and sum."""
    if bool((out_BK >= 0).all()) and bool((out_BK <= 1).all()):
        if bool(((out_BK.sum(1) - 1).abs() < 1e-3).all()):
            return "probabilities"
        if bool((out_BK != out_BK[:1]).any()):
            return "sigmoid probabilities"
    if torch.allclose(out_BK.logsumexp(1), torch.zeros(()), atol=1e-3):
        return "log-probabilities"
    return "logits"


def as_logits(out_BK: Tensor, answers: Answers) -> Tensor:
    """The teacher's outputs before a softmax or sigmoid."""
    out_BK = out_BK.to(torch.promote_types(out_BK.dtype, torch.float32))  # in bf16 1 - 1e-7 is 1
    if answers == "probabilities":
        return out_BK.clamp_min(1e-12).log()
    if answers == "sigmoid probabilities":
        return out_BK.logit(eps=1e-7)
    return out_BK


def looks_like_detectors(logits_BK: Tensor) -> bool:
    """Whether logits on test signals look as if they were trained with a sigmoid per class.

    A softmax does not change when all logits shift, so that training with one leaves them around
    zero; a tagger says no to nearly everything.
    """
    many = logits_BK.shape[1] >= 10
    return many and bool((logits_BK < 0).float().mean() > 0.95) and float(logits_BK.mean()) < -2
