"""Print the events of a microphone: python microphone.py student.onnx [--device plughw:1].

Needs sounddevice (pip install 'frami-edge-runtime[mic]') or ALSA's arecord.
"""

import argparse
import sys

from frami_edge_runtime.capture import Microphone
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import FramiEdgeError
from frami_edge_runtime.events import EventDetector, EventSpec

arguments = argparse.ArgumentParser(description=__doc__)
arguments.add_argument("model")
arguments.add_argument("--device", help="sounddevice name or number, or ALSA PCM name")
arguments.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
options = arguments.parse_args()


def listen():
    """Print events until the time is over, or Ctrl-C."""
    clf = Classifier(options.model)
    # An event needs half a second above 0.7; a pause of less than a second continues it.
    spec = EventSpec(on=0.7, min_on_s=0.5, min_off_s=1.0)
    detector = EventDetector(spec, clf.labels)

    with Microphone(clf.info.mel.sample_rate, options.device) as mic:
        stream = clf.stream(mic.sample_rate, window_s=1.0, hop_s=0.25)
        print(f"listening to {mic.name} at {mic.sample_rate} Hz", flush=True)
        clock = 0  # samples, received and lost
        while clock < options.seconds * mic.sample_rate:
            block = mic.read()
            if block is None:
                break
            samples, lost = block
            clock += lost + len(samples)
            # Lost samples advance the stream's clock; nothing is spliced over them.
            results = (stream.gap(lost) if lost else []) + stream.push(samples)
            for result in results:
                for event in detector.push(result):
                    print(
                        f"{event.t0:8.2f} s  {event.kind:6}  {event.label}  {event.score:.2f}",
                        flush=True,
                    )

    print(
        f"{mic.stats.dropped} samples lost, {stream.stats.real_time_factor:.2%} of real time used"
    )


try:
    listen()
except FramiEdgeError as error:  # every expected error has a message and a fix
    sys.exit(f"{error.message}\n{error.fix}")
