"""The trunk on a stream: mel frames in, trunk frames out, with a short carry between runs.

Because the trunk has no padding along time, its whole state is the last receptive_field - stride
mel frames. Runs end only where the schedule says: after every hop, and at most `LONGEST_RUN` frames
apart. The sequence of runs therefore depends on the clip alone, never on how it was chunked, and so
does every bit of the output, whatever the backend rounds differently for other lengths.

A clip starts with ``left`` frames of context and is flushed with ``right`` of them, see
`modelfile.Context`: in the middle of a stream there are none.

Shape legend: M mel bands, T mel frames, C channels, n trunk frames of one run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from frami_edge_runtime._state import StateReader
from frami_edge_runtime.backends.protocol import Backend

LONGEST_RUN: Final = 64
"""Trunk frames; bounds the memory of a run, and saves nearly all of the recomputed carry."""


class TrunkStream:
    """Trunk frames out of mel frames that arrive in any chunking.

    Args:
        model: What runs the trunk.
        hop: Trunk frames between results: no run crosses a multiple of it. None: no results.
    """

    def __init__(self, model: Backend, *, hop: int | None = None) -> None:
        """Allocate the input of the longest run."""
        info = model.info
        self._model = model
        self._hop = hop
        self._field = info.receptive_field
        self._stride = info.stride
        self._context = info.context
        within = (model.max_mel_frames - self._field) // self._stride + 1
        self._longest = min(LONGEST_RUN, hop or LONGEST_RUN, within)
        width = self._field + (self._longest - 1) * self._stride
        self._mel = np.zeros((1, 1, info.mel.n_mels, width), np.float32)
        self.reset()

    def reset(self, phase: int = 0) -> None:
        """Forget everything; a clip starts with its context.

        Args:
            phase: Frame periods from the last result to the first frame.
        """
        self._held = self._context.left
        self._mel[..., : self._held] = self._context.value
        self._offered = self._mel[0, 0, :, :0].T
        self._phase = phase
        self._ending = False
        self.frames_out = 0

    @property
    def mel_frames_in(self) -> int:
        """Mel frames of the clip that have been taken."""
        return self.frames_out * self._stride + self._held - self._context.left

    def offer(self, mel_TM: npt.NDArray[np.float32]) -> None:
        """Take (T, M) float32 mel frames; call `due` until it gives 0 before offering more."""
        self._offered = mel_TM

    def end(self, mel_TM: npt.NDArray[np.float32]) -> None:
        """As `offer` for the last frames of the clip, and the context after them.

        A clip of at least one mel frame gives at least one trunk frame.
        """
        end = (self._context.right, self._mel.shape[2])
        after = np.full(end, self._context.value, np.float32)
        self._offered = np.concatenate([mel_TM, after])
        self._ending = True

    def due(self) -> int:
        """Trunk frames of the run that is due now; 0: more mel frames are needed."""
        run = self._next_run()
        needed = self._field + (run - 1) * self._stride
        step = min(needed - self._held, len(self._offered))
        if step > 0:
            self._mel[0, 0, :, self._held : self._held + step] = self._offered[:step].T
            self._held += step
            self._offered = self._offered[step:]
        if self._held >= needed:
            return run
        return max(0, (self._held - self._field) // self._stride + 1) if self._ending else 0

    def input(self, run: int) -> npt.NDArray[np.float32]:
        """(1, 1, M, T) float32 for the run of `due`: a view, valid until `advance`."""
        return self._mel[..., : self._field + (run - 1) * self._stride]

    def advance(self, run: int) -> None:
        """The run has been made: keep only what the next one needs of it."""
        kept = self._held - run * self._stride
        self._mel[..., :kept] = self._mel[..., self._held - kept : self._held]
        self._held = kept
        self.frames_out += run

    def in_phase(self, slot: int) -> bool:
        """Whether the first frame may lie in this slot, that is, `reset` was told so."""
        return self._hop is None or slot % self._hop == self._phase

    def state(self) -> dict[str, Any]:
        """What the next frames depend on, as plain integers and arrays."""
        mel = self._mel[0, 0, :, : self._held].copy()
        return {"mel": mel, "frames_out": self.frames_out, "phase": self._phase}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` gave for the same model and hop.

        Raises:
            StreamError: The state does not fit; the stream is unchanged then.
        """
        read = StateReader(state, "TrunkStream")
        frames_out = read.integer("frames_out", 0)
        phase = read.integer("phase", 0, (self._hop or 1) - 1)
        bands, width = self._mel.shape[2:]
        mel = read.array("mel", np.float32, (bands, None), most=width)
        read.done()
        carry = self._field - self._stride if frames_out else self._context.left
        read.require(mel.shape[1] >= carry, "mel")
        before = self._phase, self.frames_out
        self._phase, self.frames_out = phase, frames_out
        needed = self._field + (self._next_run() - 1) * self._stride
        self._phase, self.frames_out = before
        read.require(mel.shape[1] < needed, "mel")
        self.reset(phase)
        self.frames_out = frames_out
        self._held = mel.shape[1]
        self._mel[0, 0, :, : self._held] = mel

    def _next_run(self) -> int:
        if self._hop is None:
            return self._longest
        return min(self._longest, self._hop - (self._phase + self.frames_out) % self._hop)
