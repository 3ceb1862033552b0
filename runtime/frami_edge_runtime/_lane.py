"""All that one stream remembers, and its arithmetic around the model; `_driver` runs the model.

Shape legend: M mel bands, T mel frames, C channels, n trunk frames, D = 2 C, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from frami_edge_runtime._melblock import MelBlock
from frami_edge_runtime._meter import Meter
from frami_edge_runtime._state import StateReader
from frami_edge_runtime._timeline import Timeline
from frami_edge_runtime.audio import check_rate
from frami_edge_runtime.backends.protocol import Backend
from frami_edge_runtime.errors import AudioError, StreamError
from frami_edge_runtime.logmel import LogMelStream
from frami_edge_runtime.pooling import Forgetting, SlidingWindow, StatsPool, WholeClip
from frami_edge_runtime.resample import Resampler
from frami_edge_runtime.result import Result, StreamStats, result_from
from frami_edge_runtime.schedule import plan_results
from frami_edge_runtime.trunk import TrunkStream


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
