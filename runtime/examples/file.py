"""List the events of audio files of any length: python file.py student.onnx street.wav ...

PCM WAV needs nothing else; FLAC, OGG and MP3 need pip install 'frami-edge-runtime[audio]'.
"""

import argparse
import sys

from frami_edge_runtime.audio import AudioFile
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import FramiEdgeError
from frami_edge_runtime.events import EventDetector, EventSpec

arguments = argparse.ArgumentParser(description=__doc__)
arguments.add_argument("model")
arguments.add_argument("files", nargs="+")
arguments.add_argument("--on", type=float, default=0.5, help="score at which an event starts")
arguments.add_argument("--window", type=float, default=1.0, help="seconds")
options = arguments.parse_args()


def events_of(clf, path):
    """Yield the events; one block is in memory at a time, however long the file is."""
    spec = EventSpec(on=options.on, min_on_s=options.window / 2, update_s=None)
    detector = EventDetector(spec, clf.labels)
    with AudioFile(path) as audio:
        stream = clf.stream(audio.sample_rate, window_s=options.window)
        for samples in audio.blocks():
            for result in stream.push(samples):
                yield from detector.push(result)
        last = stream.flush()  # None for a file without samples
        if last is not None:
            yield from detector.push(last)
        yield from detector.finish()


try:
    clf = Classifier(options.model)
    for path in options.files:
        for event in events_of(clf, path):
            if event.kind == "end":
                print(f"{path}\t{event.t0:.2f}\t{event.t1:.2f}\t{event.label}\t{event.score:.2f}")
except FramiEdgeError as error:  # every expected error has a message and a fix
    sys.exit(f"{error.message}\n{error.fix}")
