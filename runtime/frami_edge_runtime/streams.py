"""Many microphones on one model: what is due in several streams goes through it in one call."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from frami_edge_runtime._driver import Driver, check_lost
from frami_edge_runtime._lane import Lane
from frami_edge_runtime._melblock import MelBlock
from frami_edge_runtime._meter import Meter
from frami_edge_runtime.audio import check_samples
from frami_edge_runtime.backends.protocol import Backend
from frami_edge_runtime.errors import AudioError, StreamError
from frami_edge_runtime.result import Result, StreamStats

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
