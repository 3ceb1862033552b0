"""Go on after a restart, with the same bits.

python save_and_restore.py student.onnx a.wav state.pickle

Every run hears the next few seconds of the file, as a device does that is switched off in between,
and goes on exactly where the last one stopped: the same results as in one go.
"""

import argparse
import os
import pickle
from pathlib import Path

from frami_edge_runtime.audio import AudioFile
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.events import EventDetector, EventSpec

arguments = argparse.ArgumentParser(description=__doc__)
arguments.add_argument("model")
arguments.add_argument("file")
arguments.add_argument("state", type=Path, help="file for what is kept between runs")
arguments.add_argument("--seconds", type=float, default=2.0, help="to hear in each run")
options = arguments.parse_args()

clf = Classifier(options.model)
audio = AudioFile(options.file)
stream = clf.stream(audio.sample_rate, window_s=1.0, hop_s=0.25)
detector = EventDetector(EventSpec(on=0.3, update_s=None), clf.labels)
heard = 0
if options.state.exists():
    # Unpickle only what this program wrote: pickle runs whatever a file tells it to.
    kept = pickle.loads(options.state.read_bytes())
    stream.load_state(kept["stream"])  # refuses the state of another model, rate or window
    detector, heard = kept["detector"], kept["heard"]

# A microphone just goes on; a file has to be read up to where the last run stopped.
to_skip, to_hear = heard, round(options.seconds * audio.sample_rate)
for samples in audio.blocks():
    skipped = min(to_skip, len(samples))
    to_skip -= skipped
    samples = samples[skipped : skipped + to_hear]
    to_hear -= len(samples)
    heard += len(samples)
    for result in stream.push(samples):
        for event in detector.push(result):
            print(f"{event.at:.3f}  {event.kind}  {event.label}  {event.t0:.3f}-{event.t1:.3f}")

# All in one file, replaced in one step: a power cut leaves the old one or the new one. Without a
# detector, stream.save(path) and stream.load(path) do the same, and need no pickle.
temporary = options.state.with_suffix(".tmp")
temporary.write_bytes(
    pickle.dumps({"stream": stream.state(), "detector": detector, "heard": heard})
)
os.replace(temporary, options.state)
