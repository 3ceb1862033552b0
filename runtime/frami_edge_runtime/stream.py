"""Many microphones on one model: what is due in several streams goes through it in one call."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.audio import check_rate, check_samples
from frami_edge_runtime.backends import Backend, TrunkStream
from frami_edge_runtime.errors import AudioError, ModelFileError, StreamError
from frami_edge_runtime.logmel import LogMelStream, MelBlock
from frami_edge_runtime.modelfile import ModelInfo
from frami_edge_runtime.pooling import Forgetting, SlidingWindow, StatsPool, WholeClip
from frami_edge_runtime.resample import Resampler
from frami_edge_runtime.state import StateReader, read_state, save_state

# --- What a stream answers, and what it counts. K classes


@dataclass(frozen=True, eq=False)
class Result:
    """What the model says about one stretch of audio."""

    label: str
    """Of the best class."""
    index: int
    """Of the best class."""
    score: float
    """Of the best class, in 0..1."""
    scores: npt.NDArray[np.float32]
    """(K,) softmax of the logits."""
    logits: npt.NDArray[np.float32]
    """(K,) as the model gives them."""
    labels: tuple[str, ...]
    """(K,) class names."""
    t0: float
    """Seconds from the start of the clip to the first sample that counts."""
    t1: float
    """Seconds from the start of the clip to the end of the last sample that counts."""
    gap: int = 0
    """Samples lost since the result before, at the rate of the stream; see `Stream.gap`."""


@dataclass(frozen=True)
class StreamStats:
    """Counters since the stream was made; `Stream.reset` does not clear them."""

    samples_in: int = 0
    """Heard, at the rate of the stream."""
    dropped: int = 0
    """Samples that `Stream.gap` was told were lost."""
    gaps: int = 0
    """Calls of `Stream.gap`."""
    mel_frames: int = 0
    frames: int = 0
    """Trunk frames."""
    results: int = 0
    steps: int = 0
    """Calls of push, flush and gap that had something to do."""
    audio_s: float = 0.0
    """Seconds of audio heard."""
    lag_s: float = 0.0
    """Seconds of audio heard that no trunk frame has covered yet."""
    busy_s: float = 0.0
    """Seconds spent in push, flush and gap."""
    p50_step_ms: float = 0.0
    """Median of the latest steps (1,024 at most)."""
    p99_step_ms: float = 0.0
    """99th percentile of the same."""
    max_step_ms: float = 0.0
    """Of all steps."""

    @property
    def real_time_factor(self) -> float:
        """Seconds of work for a second of audio; below 1 keeps up. 0 before any audio."""
        return self.busy_s / self.audio_s if self.audio_s else 0.0


def result_from(
    logits_K: npt.NDArray[np.float32],
    labels: tuple[str, ...],
    t0: float,
    t1: float,
    gap: int = 0,
) -> Result:
    """The `Result` of finite logits (K,): softmax in float64, rounded once to float32."""
    exponents = np.exp(logits_K.astype(np.float64) - float(logits_K.max()))
    scores_K = (exponents / exponents.sum()).astype(np.float32)
    index = int(logits_K.argmax())
    return Result(
        label=labels[index],
        index=index,
        score=float(scores_K[index]),
        scores=scores_K,
        logits=logits_K,
        labels=labels,
        t0=t0,
        t1=t1,
        gap=gap,
    )


# --- What a stream counts while it runs, in bounded memory

STEPS_KEPT: Final = 1024
"""Latest steps that the percentiles are taken over: some minutes of a live stream."""


class Meter:
    """Counters and step times; cheap to add to, summed up only when asked.

    Args:
        sample_rate: Hz of the samples counted.
    """

    def __init__(self, sample_rate: int) -> None:
        """Start at zero."""
        self.samples_in = self.dropped = self.gaps = 0
        self.mel_frames = self.frames = self.results = self.steps = 0
        self.busy_s = self.max_step_s = 0.0
        self._rate = sample_rate
        self._ring = np.zeros(STEPS_KEPT)

    def step(self, begun: float) -> None:
        """Count one push, flush or gap that began at this `time.perf_counter`."""
        took = time.perf_counter() - begun
        self._ring[self.steps % STEPS_KEPT] = took
        self.steps += 1
        self.busy_s += took
        self.max_step_s = max(self.max_step_s, took)

    def stats(self, lag_s: float) -> StreamStats:
        """Everything so far."""
        kept = self._ring[: self.steps]
        p50, p99 = np.percentile(kept, (50, 99)) * 1e3 if len(kept) else (0.0, 0.0)
        return StreamStats(
            samples_in=self.samples_in,
            dropped=self.dropped,
            gaps=self.gaps,
            mel_frames=self.mel_frames,
            frames=self.frames,
            results=self.results,
            steps=self.steps,
            audio_s=self.samples_in / self._rate,
            lag_s=lag_s,
            busy_s=self.busy_s,
            p50_step_ms=float(p50),
            p99_step_ms=float(p99),
            max_step_ms=self.max_step_s * 1e3,
        )


# --- The sample clock of a stream: what was heard, what was lost, and when every frame was
# A *segment* is heard without a break: mel and trunk start anew with each. A *stretch* is what the
# pooled statistics cover: one segment, or several where they were kept across gaps. Trunk frames lie
# in *slots* of one frame period each. Frame j of a segment has slot P + j, where
#
#     P = max(slots used so far, round(seconds from the start of the stretch / frame period)),
#
# so lost time passes for windows and forgetting, no slot is used twice, and the rounding of many gaps
# does not add up.

_FIELDS = ("clock", "end", "origin", "base", "segment", "stretch", "lost")


class Timeline:
    """Positions in samples at the stream's rate, from the start of the clip.

    Args:
        info: The model, for the place of its frames.
        sample_rate: Hz, of the stream.
    """

    def __init__(self, info: ModelInfo, sample_rate: int) -> None:
        """Start at 0 s."""
        mel = info.mel
        self._rate, self._model_rate = sample_rate, mel.sample_rate
        self._hop, self._n_fft = mel.hop_length, mel.n_fft
        self._pad = mel.n_fft // 2 if mel.center else 0
        self._stride, self._context = info.stride, info.context
        self.reset()

    def reset(self) -> None:
        """Back to 0 s."""
        self.clock = 0  # heard and lost
        self.end = 0  # after the last sample heard
        self.origin = 0  # of the segment
        self.base = 0  # of the stretch
        self.segment = self.stretch = 0  # samples heard in each
        self.lost = 0  # since the last result

    def begin(self, slots: int, heard_before: bool) -> int:
        """Start a segment here; give its first slot, where ``slots`` are used already."""
        self.origin = self.clock
        if not heard_before:
            self.base = self.clock
            return 0
        period = self._rate * self._hop * self._stride
        passed = (2 * (self.origin - self.base) * self._model_rate + period) // (2 * period)
        return max(slots, passed)

    def hear(self, samples: int) -> None:
        """Count samples of this segment."""
        self.clock += samples
        self.segment += samples
        self.stretch += samples
        self.end = self.clock

    def lose(self, samples: int, *, keep_stretch: bool) -> None:
        """Count lost samples and end the segment, and the stretch unless it is kept."""
        self.clock += samples
        self.lost += samples
        self.segment = 0
        if not keep_stretch:
            self.stretch = 0

    def take_lost(self) -> int:
        """Samples lost since this was last asked."""
        lost, self.lost = self.lost, 0
        return lost

    def frame_start_s(self, frame: int) -> float:
        """Where the audio of this trunk frame of the segment begins."""
        start = self._mel_start(frame * self._stride - self._context.left)
        return self.origin_s + max(0, start) / self._model_rate

    def frame_end_s(self, frame: int) -> float:
        """Where the audio of this trunk frame of the segment ends; never after what was heard."""
        end = self._mel_start(frame * self._stride + self._context.right) + self._n_fft
        return min(self.origin_s + max(0, end) / self._model_rate, self.end_s)

    @property
    def origin_s(self) -> float:
        """Where the segment begins."""
        return self.origin / self._rate

    @property
    def base_s(self) -> float:
        """Where the stretch begins."""
        return self.base / self._rate

    @property
    def end_s(self) -> float:
        """Where the last sample heard ends."""
        return self.end / self._rate

    def state(self) -> dict[str, Any]:
        """Plain integers."""
        return {name: getattr(self, name) for name in _FIELDS}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` gave.

        Raises:
            StreamError: The state does not fit; nothing has changed then.
        """
        read = StateReader(state, "the sample clock of this stream")
        values = {name: read.integer(name, 0) for name in _FIELDS}
        read.done()
        ordered = values["base"] <= values["origin"] <= values["end"] <= values["clock"]
        read.require(ordered or not values["stretch"], "clock")
        read.require(values["segment"] <= values["stretch"] <= values["end"], "segment")
        if values["segment"]:
            read.require(values["end"] == values["origin"] + values["segment"], "end")
            read.require(values["end"] == values["clock"], "end")
        for name, value in values.items():
            setattr(self, name, value)

    def _mel_start(self, mel_frame: int) -> int:
        return mel_frame * self._hop - self._pad


# --- When a stream gives results: seconds as asked for, rounded to whole trunk frames

LONGEST_S: Final = 7 * 86_400.0
MOST_BLOCKS: Final = 1 << 16
LONGEST_DEFAULT_HOP_S: Final = 0.5


def plan_results(
    frame_s: float, window_s: float | None, forget_s: float | None, hop_s: float | None
) -> tuple[int | None, int | None]:
    """Trunk frames between results, and how many such hops make a window.

    The hop is rounded to the nearest whole number of trunk frames, at least one; the window to the
    nearest whole number of hops, at least one. Without ``hop_s`` it is a quarter of ``window_s`` or
    ``forget_s``, at most 0.5 s; without all three there are no results before the end.

    Args:
        frame_s: Seconds between trunk frames.
        window_s: Seconds that a result looks back, or None for no limit.
        forget_s: Half-life in seconds, or None.
        hop_s: Seconds between results, or None.

    Returns:
        (hop in trunk frames or None, blocks of one hop in a window or None).

    Raises:
        StreamError: A duration is not positive and finite, or two contradict each other.
    """
    for name, value in (("window_s", window_s), ("forget_s", forget_s), ("hop_s", hop_s)):
        _check_duration(name, value)
    if window_s is not None and forget_s is not None:
        raise StreamError(
            "window_s and forget_s exclude each other.",
            fix="A window forgets all at once, forget_s gradually: choose one.",
        )
    span = window_s if window_s is not None else forget_s
    if hop_s is None and span is not None:
        hop_s = min(LONGEST_DEFAULT_HOP_S, span / 4)
    if hop_s is None:
        return None, None
    hop = max(1, math.floor(hop_s / frame_s + 0.5))
    if window_s is None:
        return hop, None
    if hop_s > window_s:
        raise StreamError(
            f"hop_s {hop_s} is longer than window_s {window_s}: audio would go unheard.",
            fix="Use a hop of at most one window.",
        )
    blocks = max(1, math.floor(window_s / (hop * frame_s) + 0.5))
    if blocks > MOST_BLOCKS:
        raise StreamError(
            f"window_s {window_s} holds {blocks} hops of {hop * frame_s:.3g} s; at most "
            f"{MOST_BLOCKS} are kept.",
            fix="Raise hop_s, or use forget_s, whose memory does not grow.",
        )
    return hop, blocks


def _check_duration(name: str, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (number and 0 < value <= LONGEST_S):
        raise StreamError(
            f"{name} must be a number of seconds in 0..{LONGEST_S:g}, above 0, not "
            f"{str(value)[:40]!r}.",
            fix="Use None to leave it out.",
        )


# --- All that one stream remembers, and its arithmetic around the model; `_driver` runs the mode
# Shape legend: M mel bands, T mel frames, C channels, n trunk frames, D = 2 C, K classes.


class _Part(Protocol):
    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: Mapping[str, Any]) -> None: ...


class Lane:
    """One stream without its model calls; see `Stream` for the meaning of every step."""

    def __init__(
        self,
        model: Backend,
        sample_rate: int | None,
        window_s: float | None,
        forget_s: float | None,
        hop_s: float | None,
        block: MelBlock | None = None,
    ) -> None:
        """Allocate everything that the stream will need; a ``block`` can serve all of a thread."""
        info = model.info
        self.info = info
        self._sha256 = model.sha256
        self.sample_rate = info.mel.sample_rate if sample_rate is None else check_rate(sample_rate)
        self.hop, self.blocks = plan_results(info.frame_s, window_s, forget_s, hop_s)
        self._resampler = None
        if self.sample_rate != info.mel.sample_rate:
            self._resampler = Resampler(self.sample_rate, info.mel.sample_rate)
        self._mel = LogMelStream(info.mel, block=block)
        self.trunk = TrunkStream(model, hop=self.hop)
        eps = info.pooling.eps
        self.pool: StatsPool
        if self.hop is not None and self.blocks is not None:
            self.pool = SlidingWindow(info.channels, eps, block=self.hop, blocks=self.blocks)
        elif forget_s is not None:
            self.pool = Forgetting(info.channels, eps, half_life=forget_s / info.frame_s)
        else:
            self.pool = WholeClip(info.channels, eps)
        self.time = Timeline(info, self.sample_rate)
        self.meter = Meter(self.sample_rate)

    def hear(self, x: npt.NDArray[Any]) -> None:
        """Take samples that `check_samples` has passed; then ask `TrunkStream.due`."""
        if len(x) == 0:
            return
        if self.time.segment == 0:
            self._begin()
        self.time.hear(len(x))
        self.meter.samples_in += len(x)
        mono = x if self._resampler is None else self._resampler.push(x)
        mel_TM = self._mel.push_checked(mono)
        self.meter.mel_frames += len(mel_TM)
        self.trunk.offer(mel_TM)

    def end(self) -> None:
        """End the segment as a clip ends; then ask `TrunkStream.due`."""
        if self.time.segment == 0:
            return
        tails = []
        if self._resampler is not None:
            tails.append(self._mel.push_checked(self._resampler.flush()))
        if self._mel.samples_in:
            tails.append(self._mel.flush())
            mel_TM = np.concatenate(tails)
            self.meter.mel_frames += len(mel_TM)
            self.trunk.end(mel_TM)

    def take(self, frames_Cn: npt.NDArray[np.float32]) -> bool:
        """Pool the run that was due; say whether a result is due."""
        n = frames_Cn.shape[1]
        self.pool.push(frames_Cn, self.time.frame_start_s(self.trunk.frames_out))
        self.trunk.advance(n)
        self.meter.frames += n
        return self.hop is not None and self.pool.slots % self.hop == 0

    def result(self, logits_K: npt.NDArray[np.float32], *, last: bool) -> Result:
        """The result of these logits of what is pooled now; the last one covers all audio."""
        time, pool = self.time, self.pool
        t0 = pool.begins if isinstance(pool, SlidingWindow) else time.base_s
        t1 = time.end_s if last else time.frame_end_s(self.trunk.frames_out - 1)
        self.meter.results += 1
        return result_from(logits_K, self.info.labels, t0, t1, time.take_lost())

    def lose(self, samples: int, *, keep_pooling: bool) -> None:
        """After `end`: lose samples, and the statistics too unless they are kept."""
        self.time.lose(samples, keep_stretch=keep_pooling)
        self.meter.dropped += samples
        self.meter.gaps += 1
        self._clear_segment()
        if not keep_pooling:
            self.pool.reset()

    def unheard(self, samples: int) -> AudioError:
        """Why there is nothing to answer with though samples came."""
        return AudioError(
            f"{samples} samples at {self.sample_rate} Hz are less than one at "
            f"{self.info.mel.sample_rate} Hz.",
            fix="Pass more audio.",
        )

    def reset(self) -> None:
        """Forget everything but the counters."""
        self.time.reset()
        self.pool.reset()
        self._clear_segment()

    @property
    def hop_s(self) -> float | None:
        """Seconds between results; None: only at the end."""
        return None if self.hop is None else self.hop * self.info.frame_s

    @property
    def window_s(self) -> float | None:
        """Seconds of frames in a window; None: no window."""
        if self.blocks is None or self.hop_s is None:
            return None
        return self.blocks * self.hop_s

    @property
    def lag_s(self) -> float:
        """Seconds of audio that no trunk frame has covered yet."""
        if self.time.segment == 0:
            return 0.0
        done = self.trunk.frames_out
        behind = self.time.frame_end_s(done - 1) if done else self.time.origin_s
        return max(0.0, self.time.end_s - behind)

    def stats(self) -> StreamStats:
        """The counters so far."""
        return self.meter.stats(self.lag_s)

    def state(self) -> dict[str, Any]:
        """See `Stream.state`."""
        parts = {name: part.state() for name, part in self._parts().items()}
        return {"model": self._sha256, "rate": self.sample_rate, "hop": self.hop or 0, **parts}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See `Stream.load_state`."""
        read = StateReader(state, "this stream")
        read.text("model", self._sha256)
        read.require(read.integer("rate", 0) == self.sample_rate, "rate")
        read.require(read.integer("hop", 0) == (self.hop or 0), "hop")
        parts = self._parts()
        states = {name: read.value(name) for name in parts}
        read.done()
        before = {name: part.state() for name, part in parts.items()}
        try:
            for name, part in parts.items():
                part.load_state(states[name])
            self._check_parts(read)
        except StreamError:
            for name, part in parts.items():
                part.load_state(before[name])
            raise

    def _parts(self) -> dict[str, _Part]:
        parts: dict[str, _Part] = {
            "time": self.time,
            "mel": self._mel,
            "trunk": self.trunk,
            "pool": self.pool,
        }
        return parts if self._resampler is None else {**parts, "resampler": self._resampler}

    def _check_parts(self, read: StateReader) -> None:
        heard = self.time.segment
        if self._resampler is not None:
            read.require(self._resampler.samples_in == heard, "resampler")
            heard = self._resampler.samples_out
        read.require(self._mel.samples_in == heard, "mel")
        read.require(self._mel.frames_out == self.trunk.mel_frames_in, "trunk")
        read.require(self.pool.count >= self.trunk.frames_out, "pool")
        if isinstance(self.pool, SlidingWindow):
            read.require(self.pool.latest <= self.time.end_s, "begins")
        if self.time.segment:
            slot = self.pool.slots - self.trunk.frames_out
            read.require(slot >= 0 and self.trunk.in_phase(slot), "slots")

    def _begin(self) -> None:
        slot = self.time.begin(self.pool.slots, self.pool.count > 0)
        if self.pool.count == 0:
            self.pool.reset()
        elif slot > self.pool.slots:
            self.pool.skip(slot - self.pool.slots)
        self.trunk.reset(slot % self.hop if self.hop else 0)

    def _clear_segment(self) -> None:
        if self._resampler is not None:
            self._resampler.reset()
        self._mel.reset()
        self.trunk.reset()


# --- The model over the lanes: runs of equal length that are due in several lanes go in one call
# Shape legend: B lanes in a call, M mel bands, T mel frames, C channels, n trunk frames, D = 2 C,
# K classes.

_T = TypeVar("_T")
CPU_LANES: Final = 16
"""Lanes in one call on a CPU; measured: 8 to 16 take least for each, 64 overflow its cache."""
GPU_LANES: Final = 256
"""Elsewhere; bounds the memory."""
MOST_LOST: Final = 1 << 48
"""Samples; over ten years at any rate."""


class Driver:
    """Runs one model for any number of lanes.

    Whatever raises `ModelFileError` resets all lanes that it was given: they would be useless.

    Args:
        model: What runs trunk and head.
    """

    def __init__(self, model: Backend) -> None:
        """Keep the model."""
        self._model = model
        lanes = CPU_LANES if model.kind == "cpu" else GPU_LANES
        self._most = max(1, min(lanes, model.max_batch))

    def push(self, lanes: Sequence[Lane], chunks: Sequence[npt.NDArray[Any]]) -> list[list[Result]]:
        """Take samples that `check_samples` has passed; give the results that became final."""
        for lane, x in zip(lanes, chunks, strict=True):
            lane.hear(x)
        return self._advance(lanes)

    def gap(self, lane: Lane, lost: int, *, keep_pooling: bool) -> list[Result]:
        """See `Stream.gap`; ``lost`` has passed `check_lost`."""
        lane.end()
        results = self._advance([lane], wanted=keep_pooling)[0]
        if not keep_pooling and lane.time.stretch and not lane.pool.empty:
            results = self._results([lane], last=True)
        lane.lose(lost, keep_pooling=keep_pooling)
        return results

    def flush(self, lanes: Sequence[Lane]) -> list[Result | None]:
        """The last result of each lane, None where there is nothing to say; all are reset."""
        try:
            found = [i for i, lane in enumerate(lanes) if lane.time.stretch]
            for i in found:
                lanes[i].end()
            self._advance([lanes[i] for i in found], wanted=False)
            found = [i for i in found if not lanes[i].pool.empty]
            results: list[Result | None] = [None] * len(lanes)
            for i, result in zip(
                found, self._results([lanes[i] for i in found], last=True), strict=True
            ):
                results[i] = result
            return results
        finally:
            for lane in lanes:
                lane.reset()

    def _advance(self, lanes: Sequence[Lane], *, wanted: bool = True) -> list[list[Result]]:
        results: list[list[Result]] = [[] for _ in lanes]
        try:
            active = list(range(len(lanes)))
            while active:
                due, active = self._round(lanes, active)
                if due and wanted:
                    answers = self._results([lanes[i] for i in due], last=False)
                    for i, result in zip(due, answers, strict=True):
                        results[i].append(result)
        except ModelFileError:
            for lane in lanes:
                lane.reset()
            raise
        return results

    def _round(self, lanes: Sequence[Lane], active: list[int]) -> tuple[list[int], list[int]]:
        """Make at most one run of each lane; give where results are due, and where runs were."""
        by_run: dict[int, list[int]] = {}
        for i in active:
            if run := lanes[i].trunk.due():
                by_run.setdefault(run, []).append(i)
        due, ran = [], []
        for run, members in by_run.items():
            ran += members
            for part in _parts(members, self._most):
                # A copy also for one: backends need it contiguous.
                mel_BMT = np.concatenate([lanes[i].trunk.input(run) for i in part])
                for i, frames_Cn in zip(part, self._model.frames(mel_BMT), strict=True):
                    if lanes[i].take(frames_Cn):
                        due.append(i)
        return due, ran

    def _results(self, lanes: Sequence[Lane], *, last: bool) -> list[Result]:
        """The result of each lane from what it has pooled; ``last`` if its clip has ended."""
        found: list[Result] = []
        for part in _parts(lanes, self._most):
            logits_BK = self._model.logits(np.stack([lane.pool.pooled() for lane in part]))
            if not np.isfinite(logits_BK).all():
                for lane in lanes:
                    lane.reset()
                raise ModelFileError(
                    f"{self._model.name} gave logits that are not finite.",
                    fix="The model is damaged: export it again with frami-edge export.",
                )
            found += [
                lane.result(logits_K, last=last)
                for lane, logits_K in zip(part, logits_BK, strict=True)
            ]
        return found


def check_lost(lost_samples: Any) -> int:
    """A number of lost samples as a plain integer.

    Raises:
        StreamError: Not an integer of 0..2^48.
    """
    integer = isinstance(lost_samples, (int, np.integer)) and not isinstance(lost_samples, bool)
    if not integer or not 0 <= lost_samples <= MOST_LOST:
        raise StreamError(
            f"lost_samples must be a whole number in 0..{MOST_LOST}, not "
            f"{str(lost_samples)[:40]!r}.",
            fix="Give how many samples were lost, or 0 if that is not known.",
        )
    return int(lost_samples)


def _parts(members: Sequence[_T], most: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(members), most):
        yield members[start : start + most]


# --- A classifier's stream: samples in any chunking, results as they become final


class Stream:
    """One stream of one model; made by `Classifier.stream`, which explains the arguments."""

    def __init__(
        self,
        model: Backend,
        *,
        sample_rate: int | None = None,
        window_s: float | None = None,
        forget_s: float | None = None,
        hop_s: float | None = None,
    ) -> None:
        """Allocate everything that the stream will need."""
        self._lane = Lane(model, sample_rate, window_s, forget_s, hop_s)
        self._driver = Driver(model)

    @property
    def sample_rate(self) -> int:
        """Hz, of the samples to be pushed."""
        return self._lane.sample_rate

    @property
    def hop_s(self) -> float | None:
        """Seconds between results, after rounding to whole trunk frames; None: only at flush."""
        return self._lane.hop_s

    @property
    def window_s(self) -> float | None:
        """Seconds of trunk frames in a window, after rounding to whole hops; None: no window."""
        return self._lane.window_s

    @property
    def stats(self) -> StreamStats:
        """Counters and times since the stream was made; `reset` does not clear them."""
        return self._lane.stats()

    def push(self, samples: npt.ArrayLike) -> list[Result]:
        """Take samples, give the results that became final.

        Args:
            samples: (N,) int16 or float at ``sample_rate``; any N, also 0. See
                `audio.check_samples` for what is accepted.

        Raises:
            AudioError: The samples are not usable audio; the stream is unchanged then.
            ModelFileError: The model failed, or gave NaN; the stream is reset then.
        """
        begun = time.perf_counter()
        results = self._driver.push([self._lane], [check_samples(samples)])[0]
        self._lane.meter.step(begun)
        return results

    def gap(self, lost_samples: int, *, keep_pooling: bool = True) -> list[Result]:
        """Say that samples were lost here: the clock goes on, the audio is not spliced.

        What was pushed so far ends as a clip ends at `flush`, what follows starts as a clip does.
        Time stamps stay those of the sample clock, and the next result says how many samples were
        lost before it in ``Result.gap``.

        The statistics that results are made of go on across the gap, or start anew:

        - whole clip: of all frames heard before and after, with equal weight;
        - ``window_s``: of the frames heard in the latest ``window_s`` of the clock, so the lost
          time passes and there are fewer of them; results fall due when the clock says, none while
          nothing is heard;
        - ``forget_s``: lost time halves weights as any time does;
        - ``keep_pooling=False``: this is `flush`, `reset` and a clip that starts later.

        For this, time after a gap counts in whole trunk frames, rounded to the nearest.

        Args:
            lost_samples: At ``sample_rate``; 0 for a break of unknown or no length.
            keep_pooling: Whether the statistics go on.

        Returns:
            Results that fall due as the audio before the gap ends, and without ``keep_pooling`` its
            last one only. A piece of audio shorter than one sample at the model's rate says
            nothing.

        Raises:
            StreamError: ``lost_samples`` is no number of samples; the stream is unchanged then.
            ModelFileError: The model failed, or gave NaN; the stream is reset then.
        """
        begun = time.perf_counter()
        lost = check_lost(lost_samples)
        results = self._driver.gap(self._lane, lost, keep_pooling=keep_pooling)
        self._lane.meter.step(begun)
        return results

    def flush(self) -> Result | None:
        """End the clip and give its last result; the stream is then reset.

        It covers all audio (of its window), so it replaces a result that falls due while flushing.
        Without ``window_s`` and ``forget_s`` it is the answer of `Classifier.classify`. None if no
        sample was pushed since the start, or since a gap that did not keep the statistics.

        Raises:
            AudioError: So few samples that none is left at the model's rate, since the start or
                since a gap that took all that was heard before out of the window.
            ModelFileError: The model failed, or gave NaN.
        """
        begun = time.perf_counter()
        heard = self._lane.time.segment or self._lane.time.stretch
        result = self._driver.flush([self._lane])[0]
        if heard and result is None:
            raise self._lane.unheard(heard)
        self._lane.meter.step(begun)
        return result

    def reset(self) -> None:
        """Forget everything: the next sample is the first of a clip, at 0 s."""
        self._lane.reset()

    def state(self) -> dict[str, Any]:
        """All that future results depend on, as plain integers, strings and arrays.

        The counters of `stats` are no part of it.
        """
        return self._lane.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken, in a stream of the same model and options.

        Raises:
            StreamError: The state does not fit; the stream is unchanged then.
        """
        self._lane.load_state(state)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `state` to a file; the one that was there is replaced only when all is written.

        Raises:
            StreamError: It cannot be written.
        """
        save_state(self.state(), path)

    def load(self, path: str | os.PathLike[str]) -> None:
        """`load_state` from a file that `save` wrote.

        Raises:
            StreamError: The file cannot be read, or does not fit; the stream is unchanged then.
        """
        self.load_state(read_state(path))


# --- Many microphones on one model: what is due in several streams goes through it in one call

MOST_STREAMS: Final = 65_536
_NOTHING: Final = np.zeros(0, np.float32)


class StreamGroup:
    """Streams 0 .. n - 1 of one model; made by `Classifier.streams`, which explains the arguments.

    Each is as independent of the others as a `Stream` of its own, with the same answers within
    1e-6. A group belongs to one thread.
    """

    def __init__(
        self,
        model: Backend,
        n: int,
        *,
        sample_rate: int | None = None,
        window_s: float | None = None,
        forget_s: float | None = None,
        hop_s: float | None = None,
    ) -> None:
        """Allocate everything that the streams will need."""
        if (
            isinstance(n, bool)
            or not isinstance(n, (int, np.integer))
            or not 1 <= n <= MOST_STREAMS
        ):
            raise StreamError(
                f"A group has 1..{MOST_STREAMS} streams, not {str(n)[:40]!r}.",
                fix="Give the number of microphones.",
            )
        block = MelBlock(model.info.mel)
        self._lanes = [Lane(model, sample_rate, window_s, forget_s, hop_s, block) for _ in range(n)]
        self._driver = Driver(model)
        self._meter = Meter(self.sample_rate)

    def __len__(self) -> int:
        """How many streams."""
        return len(self._lanes)

    @property
    def sample_rate(self) -> int:
        """Hz, of the samples to be pushed."""
        return self._lanes[0].sample_rate

    @property
    def hop_s(self) -> float | None:
        """As `Stream.hop_s`."""
        return self._lanes[0].hop_s

    @property
    def window_s(self) -> float | None:
        """As `Stream.window_s`."""
        return self._lanes[0].window_s

    @property
    def stats(self) -> StreamStats:
        """Counters of all streams together, and times of the steps of the group.

        ``audio_s`` adds up over the streams, so n live streams keep up while ``real_time_factor``
        is below 1 / n. ``lag_s`` is the largest of all.
        """
        meter, lanes = self._meter, self._lanes
        for name in ("samples_in", "dropped", "gaps", "mel_frames", "frames", "results"):
            setattr(meter, name, sum(getattr(lane.meter, name) for lane in lanes))
        return meter.stats(max(lane.lag_s for lane in lanes))

    def stats_of(self, i: int) -> StreamStats:
        """Counters of one stream; work is shared, so times are those of the group only."""
        return self._lane(i).stats()

    def push(self, chunks: Sequence[npt.ArrayLike | None]) -> list[list[Result]]:
        """Take samples of every stream, give the results that became final.

        Args:
            chunks: For each stream (N,) samples as `Stream.push` takes them, each with its own N;
                None where a microphone has nothing new.

        Returns:
            For each stream the list that its `Stream.push` would give.

        Raises:
            AudioError: The samples of a stream are not usable audio; all streams are unchanged.
            StreamError: Not one chunk for each stream; all streams are unchanged.
            ModelFileError: The model failed, or gave NaN; all streams are reset then.
        """
        begun = time.perf_counter()
        given = len(chunks) if isinstance(chunks, (Sequence, np.ndarray)) else "No sequence of"
        if given != len(self._lanes):
            raise StreamError(
                f"{given} chunks were pushed to {len(self._lanes)} streams.",
                fix="Push one chunk for each stream, None where there is nothing.",
            )
        checked: list[npt.NDArray[Any]] = []
        for i, chunk in enumerate(chunks):
            try:
                checked.append(_NOTHING if chunk is None else check_samples(chunk))
            except AudioError as error:
                raise AudioError(f"Stream {i}: {error.message}", fix=error.fix) from None
        results = self._driver.push(self._lanes, checked)
        self._meter.step(begun)
        return results

    def gap(self, i: int, lost_samples: int, *, keep_pooling: bool = True) -> list[Result]:
        """As `Stream.gap` for one stream.

        Raises:
            StreamError: No such stream, or ``lost_samples`` is no number of samples.
            ModelFileError: The model failed, or gave NaN; the stream is reset then.
        """
        begun = time.perf_counter()
        lane, lost = self._lane(i), check_lost(lost_samples)
        results = self._driver.gap(lane, lost, keep_pooling=keep_pooling)
        self._meter.step(begun)
        return results

    def flush(self, i: int) -> Result | None:
        """As `Stream.flush` for one stream.

        Raises:
            StreamError: No such stream.
            AudioError: So few samples that none is left at the model's rate.
            ModelFileError: The model failed, or gave NaN.
        """
        begun = time.perf_counter()
        lane = self._lane(i)
        heard = lane.time.segment or lane.time.stretch
        result = self._driver.flush([lane])[0]
        if heard and result is None:
            raise lane.unheard(heard)
        self._meter.step(begun)
        return result

    def flush_all(self) -> list[Result | None]:
        """End the clips of all streams at once; None where there is too little for an answer.

        Raises:
            ModelFileError: The model failed, or gave NaN.
        """
        begun = time.perf_counter()
        results = self._driver.flush(self._lanes)
        self._meter.step(begun)
        return results

    def reset(self, i: int | None = None) -> None:
        """As `Stream.reset` for one stream, or for all.

        Raises:
            StreamError: No such stream.
        """
        for lane in self._lanes if i is None else [self._lane(i)]:
            lane.reset()

    def state(self, i: int) -> dict[str, Any]:
        """As `Stream.state` for one stream; either takes the other's.

        Raises:
            StreamError: No such stream.
        """
        return self._lane(i).state()

    def load_state(self, i: int, state: Mapping[str, Any]) -> None:
        """As `Stream.load_state` for one stream.

        Raises:
            StreamError: No such stream, or the state does not fit; it is unchanged then.
        """
        self._lane(i).load_state(state)

    def _lane(self, i: int) -> Lane:
        integer = isinstance(i, (int, np.integer)) and not isinstance(i, bool)
        if not integer or not 0 <= i < len(self._lanes):
            raise StreamError(
                f"There is no stream {str(i)[:40]!r} among {len(self._lanes)}.",
                fix=f"Streams are numbered 0..{len(self._lanes) - 1}.",
            )
        return self._lanes[i]
