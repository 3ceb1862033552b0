"""What the tests of streams share: pooling modes, answers by definition, and comparisons."""

import math
import sys
import wave

import numpy as np

from frami_edge_runtime.errors import AudioError
from frami_edge_runtime.logmel import log_mel

ARECORD_OPENS = """\
HW Params of device "{device}":
--------------------
ACCESS:  MMAP_INTERLEAVED MMAP_NONINTERLEAVED MMAP_COMPLEX RW_INTERLEAVED RW_NONINTERLEAVED
SUBFORMAT:  STD
CHANNELS: [1 1073741823]
RATE: [1 4294967295]
--------------------
Its setup is:
  stream       : CAPTURE
  format       : {format}
  channels     : {channels}
  rate         : {rate}
  exact rate   : {rate} ({rate}/1)
"""
"""Part of what arecord 1.2.8 prints with our flags; test_capture compares it with the program."""

PROGRAM = [sys.executable, "-m", "frami_edge_runtime.listen"]
EASY = ["--window", "0.4", "--hop", "0.1", "--on", "0.25", "--off", "0.2", "--min-on", "0.1"]
"""A program, and options with which the tiny models begin and end events within a second."""
NO_SOXR = "soxr, the runtime's extra 'resample', is not installed"
MODES = {
    "whole clip": {},
    "whole clip, hop": {"hop_s": 0.2},
    "window": {"window_s": 0.6, "hop_s": 0.2},
    "forget": {"forget_s": 0.5, "hop_s": 0.1},
}


class Offline:
    """A model's answers by definition: whole segments, one call of the trunk, float64 statistics.

    Args:
        classifier: The model; only its trunk and head are used.
    """

    def __init__(self, classifier):
        self.info, self._model = classifier.info, classifier._model

    def frames(self, x):
        """(C, n) float64 trunk frames of one whole segment (N,) at the model's rate."""
        context = self.info.context
        around = (context.left, context.right)
        mel_TM = np.pad(log_mel(x, self.info.mel), (around, (0, 0)), constant_values=context.value)
        frames = self._model.frames(np.ascontiguousarray(mel_TM.T[None, None]))
        return frames[0].astype(np.float64)

    def logits(self, frames_Cn, weights_n):
        """(K,) logits of the weighted statistics of the frames."""
        mean_C = np.average(frames_Cn, axis=1, weights=weights_n)
        var_C = np.average((frames_Cn - mean_C[:, None]) ** 2, axis=1, weights=weights_n)
        pooled = np.concatenate([mean_C, np.sqrt(var_C + self.info.pooling.eps)])
        logits_K = self._model.logits(pooled[None].astype(np.float32))[0]
        return logits_K

    def slots(self, segments, rate):
        """Slots of the frames of segments (start in samples, frames), one after the other."""
        slots = []
        for start, frames in segments:
            seconds = (start - segments[0][0]) / rate
            passed = math.floor(seconds / self.info.frame_s + 0.5 + 1e-9)
            first = max(passed, slots[-1] + 1 if slots else 0)
            slots += range(first, first + frames)
        return np.array(slots)

    def weights(self, slots, n, options):
        """Weights of frames in these slots for a result after slot n - 1."""
        weights = np.where(slots < n, 1.0, 0.0)
        hop = round(options.get("hop_s", 0) / self.info.frame_s)
        if "window_s" in options:
            length = hop * round(options["window_s"] / (hop * self.info.frame_s))
            weights *= slots >= hop * -(-n // hop) - length
        if "forget_s" in options:
            weights *= 2.0 ** (-(n - 1 - slots) * self.info.frame_s / options["forget_s"])
        return weights


def as_int16(clip):
    return (clip * 32767).clip(-32768, 32767).astype("<i2")


def write_wav(path, clip, width=2, channels=1, rate=8000):
    """Write a float clip as 16-bit mono, or the bytes of PCM."""
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, width, rate, 0, "NONE", ""))
        file.writeframes(clip if isinstance(clip, bytes) else as_int16(clip).tobytes())
    return path


def listen(stream, x, chunks):
    """All results of a clip in these chunks, the rest in one, flushed."""
    results, start = [], 0
    for n in chunks:
        results += stream.push(x[start : start + n])
        start += n
    return results + stream.push(x[start:]) + ended(stream)


def ended(stream):
    """The last result, if there is one."""
    try:
        last = stream.flush()
    except AudioError:  # not one sample is left at the model's rate
        return []
    return [] if last is None else [last]


def same(one, two, *, tolerance=0.0):
    """Whether two lists of results are equal, logits within a tolerance."""
    return len(one) == len(two) and all(
        np.abs(a.logits - b.logits).max() <= tolerance
        and (a.t0, a.t1, a.gap, a.label) == (b.t0, b.t1, b.gap, b.label)
        for a, b in zip(one, two, strict=True)
    )
