"""A classifier's stream: samples in any chunking, results as they become final.

Shape legend: M mel bands, T mel frames, C channels, n trunk frames, D = 2 C, K classes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from frami_edge_runtime._state import StateReader
from frami_edge_runtime.audio import check_rate, check_samples
from frami_edge_runtime.backends.protocol import Backend
from frami_edge_runtime.errors import AudioError, ModelFileError, StreamError
from frami_edge_runtime.logmel import LogMelStream
from frami_edge_runtime.pooling import Forgetting, SlidingWindow, StatsPool, WholeClip
from frami_edge_runtime.resample import Resampler
from frami_edge_runtime.result import Result, StreamStats, result_from
from frami_edge_runtime.schedule import plan_results
from frami_edge_runtime.trunk import TrunkStream


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
        info = model.info
        self._model = model
        self.sample_rate = info.mel.sample_rate if sample_rate is None else check_rate(sample_rate)
        """Hz, of the samples to be pushed."""
        self._hop, self._blocks = plan_results(info.frame_s, window_s, forget_s, hop_s)
        self._resampler = None
        if self.sample_rate != info.mel.sample_rate:
            self._resampler = Resampler(self.sample_rate, info.mel.sample_rate)
        self._mel = LogMelStream(info.mel)
        self._trunk = TrunkStream(model, hop=self._hop)
        eps = info.pooling.eps
        self._pool: StatsPool
        if self._hop is not None and self._blocks is not None:
            self._pool = SlidingWindow(info.channels, eps, block=self._hop, blocks=self._blocks)
        elif forget_s is not None:
            self._pool = Forgetting(info.channels, eps, half_life=forget_s / info.frame_s)
        else:
            self._pool = WholeClip(info.channels, eps)
        self._samples_in = self._mel_frames = self._frames = 0
        self.stats = StreamStats()

    @property
    def hop_s(self) -> float | None:
        """Seconds between results, after rounding to whole trunk frames; None: only at flush."""
        return None if self._hop is None else self._hop * self._model.info.frame_s

    @property
    def window_s(self) -> float | None:
        """Seconds of trunk frames in a window, after rounding to whole hops; None: no window."""
        if self._blocks is None or self.hop_s is None:
            return None
        return self._blocks * self.hop_s

    def push(self, samples: npt.ArrayLike) -> list[Result]:
        """Take samples, give the results that became final.

        Args:
            samples: (N,) int16 or float at ``sample_rate``; any N, also 0. See
                `audio.check_samples` for what is accepted.

        Raises:
            AudioError: The samples are not usable audio; the stream is unchanged then.
            ModelFileError: The model failed, or gave NaN.
        """
        begun = time.perf_counter()
        x = check_samples(samples)
        self._samples_in += len(x)
        mono = x if self._resampler is None else self._resampler.push(x)
        results = self._advance(self._mel.push_checked(mono))
        self._count(len(x), len(results), begun)
        return results

    def flush(self) -> Result | None:
        """End the clip and give its last result; the stream is then reset.

        It covers all audio (of its window), so it replaces a result that falls due while flushing.
        Without ``window_s`` and ``forget_s`` it is the answer of `Classifier.classify`. None if no
        sample was pushed.

        Raises:
            AudioError: So few samples that none is left at the model's rate.
            ModelFileError: The model failed, or gave NaN.
        """
        begun = time.perf_counter()
        if self._samples_in == 0:
            return None
        try:
            if self._resampler is not None:
                self._advance(self._mel.push_checked(self._resampler.flush()), final=True)
            if self._mel.samples_in == 0:
                raise AudioError(
                    f"{self._samples_in} samples at {self.sample_rate} Hz are less than one at "
                    f"{self._model.info.mel.sample_rate} Hz.",
                    fix="Pass more audio.",
                )
            self._advance(self._mel.flush(), final=True)
            for frames_Cn in self._trunk.flush():
                self._add(frames_Cn)
            result = self._result(self._samples_in / self.sample_rate)
            self._count(0, 1, begun)
            return result
        finally:
            self.reset()

    def reset(self) -> None:
        """Forget everything: the next sample is the first of a clip, at 0 s."""
        self._samples_in = 0
        if self._resampler is not None:
            self._resampler.reset()
        self._mel.reset()
        self._trunk.reset()
        self._pool.reset()

    def state(self) -> dict[str, Any]:
        """All that future results depend on: plain integers, strings and arrays, to be pickled.

        Raises:
            StreamError: The stream resamples, and soxr's state cannot be saved.
        """
        self._no_resampler()
        return {
            "model": self._model.sha256,
            "samples_in": self._samples_in,
            "hop": self._hop or 0,
            "mel": self._mel.state(),
            "trunk": self._trunk.state(),
            "pool": self._pool.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue exactly where `state` was taken, in a stream of the same model and options.

        Raises:
            StreamError: The state does not fit; the stream is unchanged then.
        """
        self._no_resampler()
        read = StateReader(state, "this stream")
        read.require(read.value("model") == self._model.sha256, "model")
        samples_in = read.integer("samples_in", 0)
        read.integer("hop", self._hop or 0, self._hop or 0)
        parts = {name: read.value(name) for name in ("mel", "trunk", "pool")}
        read.done()
        before = self._mel.state(), self._trunk.state(), self._pool.state()
        try:
            self._mel.load_state(parts["mel"])
            self._trunk.load_state(parts["trunk"])
            self._pool.load_state(parts["pool"])
            read.require(self._mel.samples_in == samples_in, "samples_in")
            read.require(self._pool.count == self._trunk.frames_out, "frames_out")
            read.require(self._mel.frames_out == self._trunk.mel_frames_in, "mel")
        except StreamError:
            self._mel.load_state(before[0])
            self._trunk.load_state(before[1])
            self._pool.load_state(before[2])
            raise
        self._samples_in = samples_in

    def _advance(self, mel_TM: npt.NDArray[np.float32], *, final: bool = False) -> list[Result]:
        self._mel_frames += len(mel_TM)
        results: list[Result] = []
        for frames_Cn in self._trunk.push(mel_TM):
            self._add(frames_Cn)
            if not final and self._hop is not None and self._pool.count % self._hop == 0:
                results.append(self._result(self._frame_end_s()))
        return results

    def _add(self, frames_Cn: npt.NDArray[np.float32]) -> None:
        self._pool.push(frames_Cn)
        self._frames += frames_Cn.shape[1]

    def _result(self, t1: float) -> Result:
        logits_K = self._model.logits(self._pool.pooled()[None])[0]
        if not np.isfinite(logits_K).all():
            raise ModelFileError(
                f"{self._model.name} gave logits that are not finite.",
                fix="The model is damaged: export it again with frami-edge export.",
            )
        info = self._model.info
        forgotten = 0
        if isinstance(self._pool, SlidingWindow):
            forgotten = self._pool.count - self._pool.frames_in_window
        first = forgotten * info.stride - info.context.left
        t0 = max(0, self._mel_start(first)) / info.mel.sample_rate if forgotten else 0.0
        return result_from(logits_K, info.labels, t0, t1)

    def _mel_start(self, mel_frame: int) -> int:
        mel = self._model.info.mel
        return mel_frame * mel.hop_length - (mel.n_fft // 2 if mel.center else 0)

    def _frame_end_s(self) -> float:
        info = self._model.info
        last = (self._pool.count - 1) * info.stride + info.context.right
        return (self._mel_start(last) + info.mel.n_fft) / info.mel.sample_rate

    def _count(self, samples: int, results: int, begun: float) -> None:
        self.stats = StreamStats(
            samples_in=self.stats.samples_in + samples,
            mel_frames=self._mel_frames,
            frames=self._frames,
            results=self.stats.results + results,
            busy_s=self.stats.busy_s + time.perf_counter() - begun,
        )

    def _no_resampler(self) -> None:
        if self._resampler is not None:
            raise StreamError(
                f"A stream that resamples from {self.sample_rate} Hz has no state to save: soxr "
                "keeps it to itself.",
                fix=f"Push samples at {self._model.info.mel.sample_rate} Hz.",
            )
