"""What a whole stream costs: mel, trunk, pooling and head, chunk after chunk, as on a device."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from frami_edge.inversion.procedural.audio import ProceduralAudio
from frami_edge.measuring.subject import Subject
from frami_edge_export.latency import Latency

WINDOW_S: Final = 1.0
"""What a result looks back on; with a result for each chunk, the head runs as often as it can."""
_WARM_UP = 10
_LONGEST_S = 60.0


@dataclass(frozen=True)
class StreamLoad:
    """Of one model."""

    latency: Latency
    """Of a push."""
    real_time_factor: float
    """Seconds of wall clock for a second of audio."""
    core_share: float
    """Seconds of CPU time for a second of audio: the share of one core that the stream takes."""
    audio_s: float
    results: int


def measure_streams(
    subjects: Mapping[str, Subject], chunk_s: float, rounds: int
) -> dict[str, StreamLoad]:
    """Push procedural audio into every model that streams, in turns.

    Args:
        subjects: By name.
        chunk_s: Seconds of each push.
        rounds: Pushes; at most 60 s of audio.
    """
    streams, audio, sizes = {}, {}, {}
    pushes = max(1, min(rounds, int(_LONGEST_S / chunk_s)))
    for name, subject in subjects.items():
        if subject.classifier is None:
            continue
        rate = subject.info.mel.sample_rate
        sizes[name] = max(1, round(chunk_s * rate))
        seconds = max(0.1, (pushes + _WARM_UP) * sizes[name] / rate)
        audio[name] = ProceduralAudio(rate, seconds).clips(1, 0)[0]
        window = max(WINDOW_S, chunk_s)
        streams[name] = subject.classifier.stream(window_s=window, hop_s=chunk_s)
    names = list(streams)
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu = dict.fromkeys(names, 0.0)
    results = dict.fromkeys(names, 0)
    for i in range(_WARM_UP + pushes):
        turn = i % max(1, len(names))
        for name in names[turn:] + names[:turn]:
            chunk = audio[name][i * sizes[name] : (i + 1) * sizes[name]]
            busy, begun = time.process_time(), time.perf_counter()
            found = streams[name].push(chunk)
            took, busy = time.perf_counter() - begun, time.process_time() - busy
            if i >= _WARM_UP:
                wall[name].append(took)
                cpu[name] += busy
                results[name] += len(found)
    loads = {}
    for name in names:
        heard_s = pushes * sizes[name] / subjects[name].info.mel.sample_rate
        latency = Latency.of([1000 * t for t in wall[name]])
        loads[name] = StreamLoad(
            latency, sum(wall[name]) / heard_s, cpu[name] / heard_s, heard_s, results[name]
        )
    return loads
