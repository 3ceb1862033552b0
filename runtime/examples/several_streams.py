"""One model, many microphones: python several_streams.py student.onnx a.wav b.wav ...

Files stand in for the microphones. Everything that is due in several of them at one time goes
through the model in one call.
"""

import argparse
import itertools

from frami_edge_runtime.audio import AudioFile
from frami_edge_runtime.classifier import Classifier

arguments = argparse.ArgumentParser(description=__doc__)
arguments.add_argument("model")
arguments.add_argument("files", nargs="+")
options = arguments.parse_args()

clf = Classifier(options.model)
sources = [AudioFile(path) for path in options.files]
rates = {source.sample_rate for source in sources}
if len(rates) > 1:
    raise SystemExit("The streams of a group share one sample rate.")

group = clf.streams(len(sources), rates.pop(), window_s=1.0, hop_s=0.5)


def show(i, results):
    """Print one line per result."""
    for result in results:
        print(f"{options.files[i]}  {result.t1:7.2f} s  {result.label}  {result.score:.2f}")


# 0.2 s of each in turn; None from a stream that has nothing new.
step = group.sample_rate // 5
for blocks in itertools.zip_longest(
    *(iter(lambda source=source: source.read(step), None) for source in sources)
):
    for i, results in enumerate(group.push([block and block[0] for block in blocks])):
        show(i, results)
for i, last in enumerate(group.flush_all()):
    show(i, [last] if last is not None else [])
