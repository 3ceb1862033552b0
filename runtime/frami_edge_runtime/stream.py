"""Streams: samples in any chunking, results as they become final, for one microphone or many.

A stream carries the last receptive_field - stride mel frames: the trunk has no padding along time,
so nothing else of it is state. Runs of the trunk end only after every hop, and at most
`LONGEST_RUN` frames apart. The sequence of runs therefore depends on the clip alone, never on how
it was chunked, and so does every bit of the output, even where a backend rounds other lengths
differently. A clip starts with ``left`` frames of context and is flushed with ``right`` of them,
see `modelfile.Context`: in the middle of a stream there are none.

Shape legend: B streams in a call, M mel bands, T mel frames, C channels, n trunk frames of one run,
D = 2 C, K classes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.audio import check_rate, check_samples
from frami_edge_runtime.backends import LONGEST_RUN, Backend
from frami_edge_runtime.errors import AudioError, ModelFileError, StreamError
from frami_edge_runtime.gate import PRE_ROLL_S, Gate
from frami_edge_runtime.logmel import LogMelStream, MelBlock
from frami_edge_runtime.pooling import Forgetting, SlidingWindow, StreamPool, WholeClip
from frami_edge_runtime.resample import Resampler
from frami_edge_runtime.state import check_alike, read_state, require, save_state

CPU_BATCH: Final = 16
"""Streams in one call on a CPU; measured: 8 to 16 take least for each, 64 overflow its cache."""
GPU_BATCH: Final = 256
"""Streams in one call elsewhere; bounds the memory."""
STEPS_KEPT: Final = 1024
"""Latest steps that the percentiles are taken over: some minutes of a live stream."""
MOST_BLOCKS: Final = 1 << 16
"""Hops in a window; bounds the memory."""
LONGEST_DEFAULT_HOP_S: Final = 0.5
_NOTHING: Final = np.zeros(0, np.float32)
_Method = TypeVar("_Method", bound=Callable[..., Any])


def scores_of(logits: npt.NDArray[np.floating], output: str) -> npt.NDArray[np.float32]:
    """Scores (..., K) of logits: softmax or sigmoid, computed in float64 and rounded once."""
    z = logits.astype(np.float64)
    if output == "sigmoid":
        return (0.5 * (1 + np.tanh(0.5 * z))).astype(np.float32)
    exponents = np.exp(z - z.max(axis=-1, keepdims=True))
    scores: npt.NDArray[np.float32] = exponents / exponents.sum(axis=-1, keepdims=True)
    return scores.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Result:
    """The model's answer to one stretch of audio."""

    label: str
    """Name of the best class."""
    index: int
    """Index of the best class."""
    score: float
    """Score of the best class, in 0..1."""
    scores: npt.NDArray[np.float32]
    """(K,) softmax or sigmoid of the logits, as the model file says."""
    logits: npt.NDArray[np.float32]
    """(K,) output of the head."""
    labels: tuple[str, ...]
    """(K,) class names."""
    t0: float
    """Seconds from the start of the clip to the first sample that counts."""
    t1: float
    """Seconds from the start of the clip to the end of the last sample that counts."""
    gap: int = 0
    """Samples lost since the previous result, at the rate of the stream; see `Stream.gap`."""
    model: str = ""
    """First 12 hex digits of the SHA-256 of the model file."""


@dataclass(frozen=True)
class StreamStats:
    """Counters since the stream was made; `Stream.reset` does not clear them."""

    samples_in: int = 0
    """Samples pushed, at the rate of the stream."""
    dropped: int = 0
    """Lost samples reported to `Stream.gap`."""
    gaps: int = 0
    """Calls of `Stream.gap`."""
    mel_frames: int = 0
    frames: int = 0
    """Trunk frames."""
    results: int = 0
    steps: int = 0
    """Calls of push, flush and gap."""
    audio_s: float = 0.0
    """Seconds of audio pushed."""
    lag_s: float = 0.0
    """Seconds of audio pushed that no trunk frame has covered yet."""
    busy_s: float = 0.0
    """Seconds spent in push, flush and gap."""
    p50_step_ms: float = 0.0
    """Median of the latest steps (1,024 at most)."""
    p99_step_ms: float = 0.0
    """99th percentile of the same steps."""
    max_step_ms: float = 0.0
    """Longest of all steps."""

    @property
    def real_time_factor(self) -> float:
        """Seconds of work per second of audio; below 1 keeps up. 0 before any audio."""
        return self.busy_s / self.audio_s if self.audio_s else 0.0


class _Meter:
    """Counters and step times, in bounded memory."""

    def __init__(self) -> None:
        names = ("samples_in", "dropped", "gaps", "mel_frames", "frames", "results")
        self.counts = dict.fromkeys(names, 0)  # a Counter takes four times as long
        self._steps = 0
        self._busy_s = self._longest_s = 0.0
        self._latest_s = [0.0] * STEPS_KEPT

    def step(self, started: float) -> None:
        """Count one push, flush or gap that started at this `time.perf_counter`."""
        took_s = time.perf_counter() - started
        self._latest_s[self._steps % STEPS_KEPT] = took_s
        self._steps += 1
        self._busy_s += took_s
        if took_s > self._longest_s:
            self._longest_s = took_s

    def stats(self, counts: Mapping[str, int], sample_rate: int, lag_s: float) -> StreamStats:
        latest_s = self._latest_s[: max(1, self._steps)]
        p50_s, p99_s = np.percentile(latest_s, (50, 99))
        return StreamStats(
            **counts,
            steps=self._steps,
            audio_s=counts["samples_in"] / sample_rate,
            lag_s=lag_s,
            busy_s=self._busy_s,
            p50_step_ms=1e3 * float(p50_s),
            p99_step_ms=1e3 * float(p99_s),
            max_step_ms=1e3 * self._longest_s,
        )


def _one_thread(method: _Method) -> _Method:
    """Refuse a second thread while one is inside any such method of the object."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **options: Any) -> Any:
        if not self._inside.acquire(False):
            raise StreamError(
                "A stream was used by two threads at once.",
                fix="Open one stream per thread, or pass the samples through a queue.Queue.",
            )
        try:
            return method(self, *args, **options)
        finally:
            self._inside.release()

    return call  # type: ignore[return-value]


@dataclass
class _Clock:
    """Positions and counts in samples at the stream's rate, from the start of the clip."""

    clock: int = 0  # samples pushed and lost
    end: int = 0  # end of the last sample pushed
    origin: int = 0  # start of the segment
    base: int = 0  # start of the stretch
    segment: int = 0  # samples in the segment
    lost: int = 0  # samples lost since the last result


class Stream:
    """One stream of one model; made by `Classifier.stream`, which explains the arguments.

    A *segment* is audio without a break: log-mel and trunk start anew with each. A *stretch* is
    what the pooled statistics cover: one segment, or several where `gap` kept them. Trunk frames
    occupy *slots* of one frame period each. The first frame of a segment has the slot

        max(slots used so far, round(seconds from the start of the stretch / frame period)),

    so lost time passes for windows and forgetting, no slot is used twice, and the rounding of many
    gaps does not add up.

    A stream belongs to one thread: a call during that of another thread raises a `StreamError`.
    """

    def __init__(
        self,
        model: Backend,
        *,
        sample_rate: int | None = None,
        window_s: float | None = None,
        forget_s: float | None = None,
        hop_s: float | None = None,
        gate_db: float | None = None,
        block: MelBlock | None = None,
    ) -> None:
        """Allocate all working memory; streams that take turns may share a ``block``."""
        info, mel = model.info, model.info.mel
        self._inside = threading.RLock()
        self._model, self._info = model, info
        self._batch = min(CPU_BATCH if model.kind == "cpu" else GPU_BATCH, model.max_batch)
        self.sample_rate = mel.sample_rate if sample_rate is None else check_rate(sample_rate)
        """Hz, of the samples to be pushed."""
        self._hop, self._blocks = plan_results(info.frame_s, window_s, forget_s, hop_s)
        self._made_for = (
            f"model {model.sha256}, {self.sample_rate} Hz, hop {self._hop}, "
            f"{self._blocks} hops, half-life {forget_s}"
        )
        self._pool: StreamPool
        eps = info.pooling.eps
        if self._hop is not None and self._blocks is not None:
            self._pool = SlidingWindow(info.channels, eps, block=self._hop, blocks=self._blocks)
        elif forget_s is not None:
            self._pool = Forgetting(info.channels, eps, half_life=forget_s / info.frame_s)
        else:
            self._pool = WholeClip(info.channels, eps)
        self._resampler = None
        if self.sample_rate != mel.sample_rate:
            self._resampler = Resampler(self.sample_rate, mel.sample_rate)
        self._mel = LogMelStream(mel, block=block)
        self._field, self._stride = info.receptive_field, info.stride
        # Where the audio of trunk frame 0 begins and ends, in samples of the segment.
        self._period = info.stride * mel.hop_length
        self._first_begins = -info.context.left * mel.hop_length - mel.pad
        self._first_ends = info.context.right * mel.hop_length + mel.span - mel.pad
        within = (model.max_mel_frames - self._field) // self._stride + 1
        self._longest = min(LONGEST_RUN, self._hop or LONGEST_RUN, within)
        width = self._field + (self._longest - 1) * self._stride
        self._input = np.zeros((1, 1, mel.n_mels, width), np.float32)
        self._gate = None if gate_db is None else self._make_gate(gate_db)
        self._scored = _NOTHING, _NOTHING, 0  # logits of the last result, their scores, the best
        self._offered: npt.NDArray[np.float32]
        self._held: int  # mel frames in self._input
        self._frames: int  # trunk frames of the segment
        self._resting: bool  # log-mel and trunk have not received all that the gate has
        self._unknown: int  # hops until a window has all its frames again
        self._meter = _Meter()
        self.reset()

    def __reduce__(self) -> NoReturn:
        raise StreamError(
            "A stream cannot be pickled.",
            fix="Pickle its state(), and load_state() it into a new stream of the same options.",
        )

    @property
    def hop_s(self) -> float | None:
        """Seconds between results, after rounding to whole trunk frames; None: only at flush."""
        return None if self._hop is None else self._hop * self._info.frame_s

    @property
    def window_s(self) -> float | None:
        """Seconds of trunk frames in a window, after rounding to whole hops; None: no window."""
        if self._blocks is None or self.hop_s is None:
            return None
        return self._blocks * self.hop_s

    @property
    def stats(self) -> StreamStats:
        """Counters and times since the stream was made; `reset` does not clear them."""
        return self._meter.stats(self._meter.counts, self.sample_rate, self._lag_s)

    @_one_thread
    def push(self, samples: npt.ArrayLike) -> list[Result]:
        """Take samples and return the results that became final.

        Args:
            samples: (N,) int16 or float at ``sample_rate``; any N, also 0. See
                `audio.check_samples` for what is accepted.

        Raises:
            AudioError: The samples are not usable audio; the stream is unchanged then.
            ModelFileError: The model failed, or gave NaN; the stream is reset then.
        """
        started = time.perf_counter()
        x = check_samples(samples)
        self._accept(x)
        results = _run([self])[0] if self._gate is None else self._run_gated(self._gate)
        self._meter.step(started)
        return results

    @_one_thread
    def gap(self, lost_samples: int, *, keep_pooling: bool = True) -> list[Result]:
        """Report lost samples: the clock advances, and the audio is not spliced.

        The audio so far ends as a clip ends at `flush`, and what follows starts as a clip does.
        Time stamps stay those of the sample clock, and ``Result.gap`` of the next result counts the
        samples lost before it.

        The pooled statistics continue across the gap, or start anew:

        - whole clip: all frames before and after it, with equal weight;
        - ``window_s``: the frames in the latest ``window_s`` of the clock, fewer where time was
          lost; results fall due by the clock, and none without audio;
        - ``forget_s``: lost time halves weights as any time does;
        - ``keep_pooling=False``: the same as `flush`, `reset` and a clip that starts later.

        For this, lost time is rounded to whole trunk frames.

        Args:
            lost_samples: At ``sample_rate``; 0 for a break of unknown or no length.
            keep_pooling: Whether the statistics continue.

        Returns:
            Results that fall due as the audio before the gap ends; without ``keep_pooling`` only
            its last one. A piece of audio shorter than one sample at the model's rate gives none.

        Raises:
            StreamError: ``lost_samples`` is no number of samples; the stream is unchanged then.
            ModelFileError: The model failed, or gave NaN; the stream is reset then.
        """
        started = time.perf_counter()
        if not isinstance(lost_samples, (int, np.integer)) or lost_samples < 0:
            raise StreamError(
                f"lost_samples must be a whole number of at least 0, not {lost_samples!r}.",
                fix="Give how many samples were lost, or 0 if that is not known.",
            )
        self._end_segment()
        results = _run([self], ending=not keep_pooling)[0]
        if not keep_pooling:
            self._pool.reset()
        self._time.clock += int(lost_samples)
        self._time.lost += int(lost_samples)
        self._meter.counts["dropped"] += int(lost_samples)
        self._meter.counts["gaps"] += 1
        self._clear_segment()
        self._meter.step(started)
        return results

    @_one_thread
    def flush(self) -> Result | None:
        """End the clip and return its last result; the stream is then reset.

        It covers all audio (of its window), so it replaces a result that falls due while flushing.
        Without ``window_s`` and ``forget_s`` it is the answer of `Classifier.classify`. None where
        there is no audio.

        Raises:
            AudioError: No sample is left at the model's rate: there are too few.
            ModelFileError: The model failed, or gave NaN.
        """
        started = time.perf_counter()
        unfinished = self._time.segment > 0
        result = _flush([self])[0]
        if unfinished and result is None:
            raise AudioError(
                f"The audio at {self.sample_rate} Hz is less than one sample at "
                f"{self._info.mel.sample_rate} Hz.",
                fix="Pass more audio.",
            )
        self._meter.step(started)
        return result

    @_one_thread
    def reset(self) -> None:
        """Forget everything: the next sample is the first of a clip, at 0 s."""
        self._time = _Clock()
        self._pool.reset()
        self._clear_segment()

    @_one_thread
    def state(self) -> dict[str, Any]:
        """All that future results depend on, as plain integers, strings and arrays.

        The counters of `stats` are not part of it.

        Raises:
            StreamError: The stream has a gate.
        """
        if self._gate is not None:
            raise StreamError(
                "The state of a stream with a gate cannot be saved.", fix="Leave out gate_db."
            )
        # Log-mels that no run has needed yet become part of the carry.
        self._offer(self._mel.push_checked(_NOTHING))
        self._due()
        carry = self._input[0, 0, :, : self._held].copy()
        state = {
            "made_for": self._made_for,
            "time": dataclasses.asdict(self._time),
            "trunk": {"mel": carry, "frames_out": self._frames},
            "mel": self._mel.state(),
            "pool": self._pool.state(),
        }
        return state if self._resampler is None else state | {"resampler": self._resampler.state()}

    @_one_thread
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken, in a stream of the same model and options.

        Raises:
            StreamError: The state does not fit; the stream is unchanged then.
        """
        before = self.state()
        check_alike(state, before)
        require(state["made_for"] == self._made_for, state["made_for"])
        try:
            self._load(state)
        except StreamError:
            self._load(before)
            raise

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `state` to a file; an existing one is replaced only when all is written.

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

    def _accept(self, x: npt.NDArray[Any]) -> None:
        if len(x) == 0:
            return
        now = self._time
        if now.segment == 0:
            self._begin_segment()
        now.clock += len(x)
        now.segment += len(x)
        now.end = now.clock
        self._meter.counts["samples_in"] += len(x)
        mono = x if self._resampler is None else self._resampler.push(x)
        if self._gate is not None:
            self._gate.push(mono)
            return
        # Many log-mels at once cost less than one by one: wait until the next run needs them.
        self._offer(self._mel.push_checked(mono, least=self._needed - self._held))

    def _make_gate(self, gate_db: float) -> Gate:
        hop, blocks = self._hop, self._blocks
        if hop is None or blocks is None or hop > self._longest:
            raise StreamError(
                "A gate needs window_s, and a hop that the model runs at once.",
                fix=f"Set window_s, and hop_s of at most {self._longest * self._info.frame_s:g}.",
            )
        mel = self._info.mel
        # In samples: the audio of the last answer, at least what a log-mel takes before it seeks.
        self._window = max(blocks * hop * self._period, mel.min_samples)
        # From where a frame begins to the end of the window before which no answer is exact, and
        # the pre-roll behind it; a clip may end anywhere, and its last answer must be exact too.
        inexact = ((blocks - 1) * hop - 1) * self._period + self._first_ends - self._first_begins
        self._ahead = inexact + max(round(PRE_ROLL_S * mel.sample_rate), hop * self._period)
        return Gate(gate_db, mel.sample_rate)

    def _run_gated(self, gate: Gate) -> list[Result]:
        """Run the judged blocks, or rest where all that the last answer is about was quiet."""
        results: list[Result] = []
        while (block := gate.next()) is not None:
            if gate.loud_to <= self._begins - self._window:
                self._resting = True
                if gate.judged >= self._begins + self._ahead + self._window:
                    results += self._hold(gate.judged)
            else:
                if self._resting:
                    results += self._hold(gate.judged - len(block))
                    block = gate.since(self._wake())
                self._offer(self._mel.push_checked(block, least=self._needed - self._held))
                results += _run([self])[0]
            gate.forget(self._begins)
        return results

    @property
    def _begins(self) -> int:
        """Where the audio of the next trunk frame begins, in samples of the segment."""
        return self._first_begins + self._frames * self._period

    def _wake(self) -> int:
        """Continue with the next trunk frame after a rest; return where its audio begins."""
        self._resting, self._held = False, 0
        self._mel.seek(self._frames * self._stride - self._info.context.left)
        return self._begins

    def _hold(self, quiet_to: int) -> list[Result]:
        """Let hops pass without the model, as many as no exact answer needs after this sample.

        The last answer holds: here in one result, and in the window after.
        """
        assert isinstance(self._pool, SlidingWindow)
        assert self._hop is not None
        assert self._blocks is not None
        hops = (quiet_to - self._ahead - self._begins) // (self._hop * self._period)
        if hops < 1:
            return []
        for _ in range(hops):
            self._pool.hold(self._at_s(self._begins))
            self._frames += self._hop
        self._unknown = self._blocks
        return [self._result(self._scored[0])]

    def _begin_segment(self) -> None:
        now, pool, mel = self._time, self._pool, self._info.mel
        now.origin = now.clock
        if pool.count == 0:
            now.base = now.clock
            pool.reset()
        else:
            passed = (now.origin - now.base) * mel.sample_rate
            period = self.sample_rate * mel.hop_length * self._stride
            pool.skip(max(0, (2 * passed + period) // (2 * period) - pool.slots))
        self._plan_run()

    def _end_segment(self) -> None:
        """End the segment as a clip ends; at least one mel frame gives at least one trunk frame."""
        if self._time.segment == 0:
            return
        rest = [] if self._resampler is None else [self._resampler.flush()]
        if self._gate is not None:
            rest.insert(0, self._gate.rest)
            if self._resting:
                rest.insert(0, self._gate.since(self._wake()))
        if rest:
            self._offer(self._mel.push_checked(np.concatenate(rest)))
        if self._mel.samples_in:
            head_TM = self._offered
            self._offer(self._mel.flush())
            context = self._info.context
            after = np.full((context.right, head_TM.shape[1]), context.value, np.float32)
            self._offered = np.concatenate([head_TM, self._offered, after])
            self._ending = True

    def _clear_segment(self) -> None:
        context = self._info.context
        self._time.segment = 0
        if self._resampler is not None:
            self._resampler.reset()
        self._mel.reset()
        self._held = context.left
        self._input[..., : self._held] = context.value
        self._offered = np.empty((0, self._info.mel.n_mels), np.float32)
        self._ending = False
        self._frames = self._unknown = 0
        self._resting = False
        if self._gate is not None:
            self._gate.reset()
        self._plan_run()

    def _plan_run(self) -> None:
        self._run = self._longest
        if self._hop is not None:
            self._run = min(self._run, self._hop - self._pool.slots % self._hop)
        self._needed = self._field + (self._run - 1) * self._stride

    def _offer(self, mel_TM: npt.NDArray[np.float32]) -> None:
        self._offered = mel_TM
        self._meter.counts["mel_frames"] += len(mel_TM)

    def _due(self) -> int:
        """Move offered mel frames into the input; return the trunk frames of the run now due."""
        step = min(self._needed - self._held, len(self._offered))
        if step > 0:
            self._input[0, 0, :, self._held : self._held + step] = self._offered[:step].T
            self._held += step
            self._offered = self._offered[step:]
        if self._held >= self._needed:
            return self._run
        return max(0, (self._held - self._field) // self._stride + 1) if self._ending else 0

    def _pool_run(self, frames_Cn: npt.NDArray[np.float32]) -> bool:
        """Pool the run that was due and keep its carry; return whether a result is due."""
        n = frames_Cn.shape[1]
        self._pool.push(frames_Cn, self._start_s(self._frames))
        kept = self._held - n * self._stride
        self._input[..., :kept] = self._input[..., self._held - kept : self._held]
        self._held = kept
        self._frames += n
        self._meter.counts["frames"] += n
        self._plan_run()
        due = self._hop is not None and self._pool.slots % self._hop == 0
        self._unknown = max(0, self._unknown - due)
        return due

    def _result(self, logits_K: npt.NDArray[np.float32], *, last: bool = False) -> Result:
        """The result of the statistics that gave these logits; the last covers all audio."""
        if logits_K is not self._scored[0]:
            scores_K = scores_of(logits_K, self._info.output)
            self._scored = logits_K, scores_K, int(logits_K.argmax())
        _, scores_K, index = self._scored
        now, pool = self._time, self._pool
        lost, now.lost = now.lost, 0
        self._meter.counts["results"] += 1
        return Result(
            label=self._info.labels[index],
            index=index,
            score=scores_K.item(index),
            scores=scores_K.copy(),
            logits=logits_K,
            labels=self._info.labels,
            t0=pool.begins if isinstance(pool, SlidingWindow) else now.base / self.sample_rate,
            t1=now.end / self.sample_rate if last else self._end_s(self._frames - 1),
            gap=lost,
            model=self._model.sha256[:12],
        )

    def _start_s(self, frame: int) -> float:
        """Where the audio of this trunk frame of the segment begins."""
        return self._at_s(self._first_begins + frame * self._period)

    def _end_s(self, frame: int) -> float:
        """Where the audio of this trunk frame of the segment ends, within the audio pushed."""
        end_s = self._at_s(self._first_ends + frame * self._period)
        return min(end_s, self._time.end / self.sample_rate)

    def _at_s(self, sample: int) -> float:
        rate = self._info.mel.sample_rate
        return self._time.origin / self.sample_rate + max(0, sample) / rate

    @property
    def _lag_s(self) -> float:
        if self._time.segment == 0:
            return 0.0
        covered_s = self._end_s(self._frames - 1) if self._frames else self._at_s(0)
        return max(0.0, self._time.end / self.sample_rate - covered_s)

    def _load(self, state: Mapping[str, Any]) -> None:
        self._clear_segment()
        self._time = _Clock(**state["time"])
        self._pool.load_state(state["pool"])
        self._frames, carry = state["trunk"]["frames_out"], state["trunk"]["mel"]
        self._plan_run()
        bands, self._held = carry.shape
        least = self._field - self._stride if self._frames else self._info.context.left
        require(bands == self._info.mel.n_mels and least <= self._held < self._needed, "trunk")
        self._input[0, 0, :, : self._held] = carry
        self._mel.load_state(state["mel"])
        if self._resampler is not None:
            self._resampler.load_state(state["resampler"])


class StreamGroup:
    """Streams of one model that share every call of it; made by `Classifier.streams`.

    ``group[i]`` is stream i: its `Stream.gap`, `Stream.flush`, `Stream.state` and the others serve
    a single one. Each is as independent as a `Stream` of its own, with the same answers within
    1e-6. A group belongs to one thread.
    """

    def __init__(self, model: Backend, n: int, **options: Any) -> None:
        """Allocate all working memory of n streams with these options of `Stream`."""
        if not isinstance(n, (int, np.integer)) or n < 1:
            raise StreamError(
                f"A group has at least one stream, not {n!r}.",
                fix="Give the number of microphones.",
            )
        block = MelBlock(model.info.mel)
        self._streams = [Stream(model, **options, block=block) for _ in range(n)]
        self._meter = _Meter()
        self._inside = threading.RLock()

    def __len__(self) -> int:
        return len(self._streams)

    def __getitem__(self, i: int) -> Stream:
        return self._streams[i]

    @property
    def sample_rate(self) -> int:
        """Hz, of the samples to be pushed to every stream."""
        return self[0].sample_rate

    @property
    def stats(self) -> StreamStats:
        """Counters of all streams together, and times of the group's own `push` and `flush_all`.

        ``audio_s`` adds up over the streams, so n live streams keep up while ``real_time_factor``
        is below 1 / n. ``lag_s`` is the largest of all.
        """
        counts: Counter[str] = Counter()
        for stream in self._streams:
            counts.update(stream._meter.counts)
        lag_s = max(stream._lag_s for stream in self._streams)
        return self._meter.stats(counts, self.sample_rate, lag_s)

    @_one_thread
    def push(self, chunks: Sequence[npt.ArrayLike | None]) -> list[list[Result]]:
        """Take samples of every stream and return the results that became final.

        Args:
            chunks: For each stream (N,) samples as `Stream.push` takes them, each with its own N;
                None where a microphone has nothing new.

        Returns:
            For each stream the list that its `Stream.push` would return.

        Raises:
            AudioError: The samples of a stream are not usable audio; all streams are unchanged.
            StreamError: Not one chunk for each stream; all streams are unchanged.
            ModelFileError: The model failed, or gave NaN; all streams are reset then.
        """
        started = time.perf_counter()
        if len(chunks) != len(self._streams):
            raise StreamError(
                f"{len(chunks)} chunks were pushed to {len(self._streams)} streams.",
                fix="Push one chunk for each stream, None where there is nothing.",
            )
        checked: list[npt.NDArray[Any]] = []
        for i, chunk in enumerate(chunks):
            try:
                checked.append(_NOTHING if chunk is None else check_samples(chunk))
            except AudioError as error:
                raise AudioError(f"Stream {i}: {error.message}", fix=error.fix) from None
        for stream, x in zip(self._streams, checked, strict=True):
            stream._accept(x)
        results = _run(self._streams)
        self._meter.step(started)
        return results

    @_one_thread
    def flush_all(self) -> list[Result | None]:
        """End the clips of all streams at once; None where there is too little for an answer.

        Raises:
            ModelFileError: The model failed, or gave NaN.
        """
        started = time.perf_counter()
        results = _flush(self._streams)
        self._meter.step(started)
        return results

    @_one_thread
    def reset(self) -> None:
        """Reset all streams."""
        for stream in self._streams:
            stream.reset()


def _run(streams: Sequence[Stream], *, ending: bool = False) -> list[list[Result]]:
    """Run the trunk wherever enough is offered, runs of equal length of several streams together.

    Args:
        streams: Streams of one model.
        ending: Their clips have ended: each gives one last result that covers all audio, in place
            of those that fall due.

    Returns:
        For each stream the results that became final.

    Raises:
        ModelFileError: The model failed, or gave NaN; all streams are reset then.
    """
    results: dict[Stream, list[Result]] = {stream: [] for stream in streams}
    active = list(streams)
    try:
        while active:
            by_run: dict[int, list[Stream]] = {}
            for stream in active:
                if run := stream._due():
                    by_run.setdefault(run, []).append(stream)
            active, final = [], []
            for run, members in by_run.items():
                active += members
                for part in _batches(members):
                    width = part[0]._field + (run - 1) * part[0]._stride
                    # A copy also for one stream: backends need it contiguous.
                    mel_BMT = np.concatenate([stream._input[..., :width] for stream in part])
                    frames_BCn = part[0]._model.frames(mel_BMT)
                    for stream, frames_Cn in zip(part, frames_BCn, strict=True):
                        if stream._pool_run(frames_Cn):
                            final.append(stream)
            if final and not ending:
                _answer(final, results)
        if ending:
            _answer([stream for stream in streams if not stream._pool.empty], results, last=True)
    except ModelFileError:
        for stream in streams:
            stream.reset()
        raise
    return list(results.values())


def _answer(
    streams: Sequence[Stream], results: dict[Stream, list[Result]], *, last: bool = False
) -> None:
    """Add the result of each stream's pooled statistics; ``last`` if its clip has ended."""
    for part in _batches(streams):
        if part[0]._unknown:  # a stream with a gate, alone
            results[part[0]].append(part[0]._result(part[0]._scored[0]))
            continue
        model = part[0]._model
        logits_BK = model.logits(np.stack([stream._pool.pooled() for stream in part]))
        if not np.isfinite(logits_BK).all():
            raise ModelFileError(
                f"{model.name} gave logits that are not finite.",
                fix="The model is damaged: export it again with frami-edge export.",
            )
        for stream, logits_K in zip(part, logits_BK, strict=True):
            results[stream].append(stream._result(logits_K, last=last))


def _flush(streams: Sequence[Stream]) -> list[Result | None]:
    """The last result of each stream, None where there is none; all are reset."""
    try:
        for stream in streams:
            stream._end_segment()
        return [found[0] if found else None for found in _run(streams, ending=True)]
    finally:
        for stream in streams:
            stream.reset()


def _batches(streams: Sequence[Stream]) -> list[Sequence[Stream]]:
    most = streams[0]._batch if streams else 1
    return [streams[start : start + most] for start in range(0, len(streams), most)]


def plan_results(
    frame_s: float, window_s: float | None, forget_s: float | None, hop_s: float | None
) -> tuple[int | None, int | None]:
    """Trunk frames between results, and how many such hops make a window; None where not wanted.

    The hop is rounded to whole trunk frames and the window to whole hops, each at least one.
    Without ``hop_s`` it is a quarter of ``window_s`` or ``forget_s``, at most 0.5 s; without all
    three there are no results before the end.

    Raises:
        StreamError: A duration is not positive and finite, or two contradict each other.
    """
    for name, value in (("window_s", window_s), ("forget_s", forget_s), ("hop_s", hop_s)):
        if value is not None and not (isinstance(value, (int, float)) and 0 < value < math.inf):
            raise StreamError(
                f"{name} must be a number of seconds above 0, not {value!r}.",
                fix="Use None to leave it out.",
            )
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
            f"hop_s {hop_s} is longer than window_s {window_s}: audio would be skipped.",
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
