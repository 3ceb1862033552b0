"""From the microphone's rate to the model's, with soxr, which is an extra: it is LGPL-2.1.

soxr does not expose its state, and its rounding depends on where its stream began. So that a saved
stream continues with the same bits, a new soxr stream takes over at every whole second of the clip,
warmed up with `REACH` samples before it: the output depends on the clip alone, never on chunking or
on saving, and the audio since the last takeover is a complete state. One endless soxr stream
differs by rounding only, less than 1e-6 of full scale.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from frami_edge_runtime.errors import AudioError
from frami_edge_runtime.monitor import INT16_SCALE
from frami_edge_runtime.state import check_alike, require

REACH: Final = 128
"""Reach of soxr's HQ filter to each side, in samples at the lower rate: measured 90 for 1e-6."""
_NOTHING: Final = np.empty(0, np.float32)


class Resampler:
    """Streaming resampler of soxr's HQ quality; any chunking gives the same samples.

    Args:
        rate_in: Hz.
        rate_out: Hz.

    Raises:
        AudioError: soxr is not installed.
    """

    def __init__(self, rate_in: int, rate_out: int) -> None:
        # Imported here: most devices record at the model's rate and do not have it.
        try:
            soxr: Any = importlib.import_module("soxr")
        except ImportError:
            raise AudioError(
                f"The samples are at {rate_in} Hz, the model wants {rate_out} Hz, and soxr is not "
                "installed.",
                fix=f"Record at {rate_out} Hz, or: pip install 'frami-edge-runtime[resample]'.",
            ) from None
        self._new_stream: Any = soxr.ResampleStream
        self._rates = rate_in, rate_out
        # A takeover must fall on a sample of both rates.
        self._step_in = rate_in // math.gcd(rate_in, rate_out)
        self._step_out = rate_out // math.gcd(rate_in, rate_out)
        reach = math.ceil(REACH * max(1.0, rate_in / rate_out))
        self.reach = -(-reach // self._step_in) * self._step_in
        """Input samples on either side of a takeover that both streams process."""
        self._history = np.empty(rate_in + 2 * self.reach, np.float32)
        self.reset()

    def push(self, x: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Take (N,) int16 or float32 samples and return the (N',) float32 that became ready."""
        scaled = x * INT16_SCALE if x.dtype.kind == "i" else x
        rest = np.ascontiguousarray(scaled, np.float32)
        given = []
        while len(rest):
            room = (self._second + 1) * self._rates[0] + self.reach - self._fed
            self._feed(rest[:room], last=len(rest) >= room)
            given.append(self._give((self._second + 1) * self._rates[1]))
            if len(rest) >= room:
                self._take_over()
            rest = rest[room:]
        return given[0] if len(given) == 1 else np.concatenate([_NOTHING, *given])

    def flush(self) -> npt.NDArray[np.float32]:
        """Return the samples still owed, and reset."""
        self._run(_NOTHING, last=True)
        tail = self._ready
        self.reset()
        return tail

    def reset(self) -> None:
        """Forget everything: the next sample is the first of a clip."""
        self._open(0, 0)

    def state(self) -> dict[str, Any]:
        """The audio since the last takeover and before it, as far as the filter reaches."""
        return {
            "fed": self._fed,
            "given": self._given,
            "history": self._history[: self._fed - self._start].copy(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue with exactly the samples that would have followed `state`.

        Raises:
            StreamError: The state does not fit these rates; nothing has changed then.
        """
        check_alike(state, self.state(), "the resampler")
        fed, given, history = state["fed"], state["given"], state["history"]
        second = max(0, (fed - self.reach) // self._rates[0])
        require(len(history) == fed - self._first(second), "history")
        self._open(second, given)
        self._feed(history, last=False)

    def _open(self, second: int, given: int) -> None:
        self._stream: Any = self._new_stream(*self._rates, 1, dtype="float32")
        self._second = second  # the one that this soxr stream is responsible for
        self._start = self._fed = self._first(second)  # input that it began with, and comes next
        self._made = self._start // self._step_in * self._step_out  # output that it makes next
        self._given = given  # output to give next, where self._ready begins
        self._ready = _NOTHING

    def _first(self, second: int) -> int:
        return max(0, second * self._rates[0] - self.reach)

    def _feed(self, x: npt.NDArray[np.float32], *, last: bool) -> None:
        position = self._fed - self._start
        self._history[position : position + len(x)] = x
        self._fed += len(x)
        self._run(x, last=last)

    def _run(self, x: npt.NDArray[np.float32], *, last: bool) -> None:
        y = np.asarray(self._stream.resample_chunk(x, last=last), np.float32)
        known = max(0, self._given - self._made)
        self._made += len(y)
        self._ready = np.concatenate([self._ready, y[known:]]) if len(self._ready) else y[known:]

    def _give(self, end: int) -> npt.NDArray[np.float32]:
        n = min(len(self._ready), end - self._given)
        given, self._ready = self._ready[:n], self._ready[n:]
        self._given += n
        return given

    def _take_over(self) -> None:
        kept = self._history[: self._fed - self._start][-2 * self.reach :].copy()
        self._open(self._second + 1, self._given)
        self._feed(kept, last=False)
