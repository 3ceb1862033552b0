"""Continue a stream after a restart, with the same bits.

python save_and_restore.py student.onnx a.wav state.pickle

Each run processes the next few seconds of the file and continues exactly where the last run
stopped, as a device does that is switched off in between: the results are those of a single run.
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
arguments.add_argument("state", type=Path, help="file of the saved state")
arguments.add_argument("--seconds", type=float, default=2.0, help="audio per run")
options = arguments.parse_args()

clf = Classifier(options.model)
audio = AudioFile(options.file)
stream = clf.stream(audio.sample_rate, window_s=1.0, hop_s=0.25)
detector = EventDetector(EventSpec(on=0.3, update_s=None), clf.labels)
position = 0  # samples
if options.state.exists():
    # Unpickle only what this program wrote: a pickle can run any code.
    kept = pickle.loads(options.state.read_bytes())
    stream.load_state(kept["stream"])  # refuses the state of another model, rate or window
    detector, position = kept["detector"], kept["position"]

# A file is skipped up to where the last run stopped; a microphone needs none of this.
to_skip, to_read = position, round(options.seconds * audio.sample_rate)
for samples in audio.blocks():
    skipped = min(to_skip, len(samples))
    to_skip -= skipped
    samples = samples[skipped : skipped + to_read]
    to_read -= len(samples)
    position += len(samples)
    for result in stream.push(samples):
        for event in detector.push(result):
            print(f"{event.at:.3f}  {event.kind}  {event.label}  {event.t0:.3f}-{event.t1:.3f}")

# One file, replaced in one step: a power cut leaves the old state or the new one. Without a
# detector, stream.save(path) and stream.load(path) do the same without pickle.
temporary = options.state.with_suffix(".tmp")
temporary.write_bytes(
    pickle.dumps({"stream": stream.state(), "detector": detector, "position": position})
)
os.replace(temporary, options.state)
