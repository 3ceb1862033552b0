"""A classifier's stream: samples in any chunking, results as they become final."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from frami_edge_runtime._driver import Driver, check_lost
from frami_edge_runtime._lane import Lane
from frami_edge_runtime._statefile import read_state, save_state
from frami_edge_runtime.audio import check_samples
from frami_edge_runtime.backends.protocol import Backend
from frami_edge_runtime.result import Result, StreamStats


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
