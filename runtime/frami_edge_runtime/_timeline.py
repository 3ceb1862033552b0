"""The sample clock of a stream: what was heard, what was lost, and when every frame was.

A *segment* is heard without a break: mel and trunk start anew with each. A *stretch* is what the
pooled statistics cover: one segment, or several where they were kept across gaps. Trunk frames lie
in *slots* of one frame period each. Frame j of a segment has slot P + j, where

    P = max(slots used so far, round(seconds from the start of the stretch / frame period)),

so lost time passes for windows and forgetting, no slot is used twice, and the rounding of many gaps
does not add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from frami_edge_runtime._state import StateReader
from frami_edge_runtime.modelfile import ModelInfo

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
