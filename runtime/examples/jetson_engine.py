"""Run a TensorRT engine, or the ONNX file where the engine cannot be used.

python jetson_engine.py student.engine student.onnx a.wav

An engine runs only on the machine and with the TensorRT that built it. Elsewhere the reason is
printed, and the ONNX file gives the same results.
"""

import argparse

from frami_edge_runtime.audio import AudioFile
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import FramiEdgeError

arguments = argparse.ArgumentParser(description=__doc__)
arguments.add_argument("engine", help="student.engine, built on this Jetson")
arguments.add_argument("fallback", help="student.onnx of the same export")
arguments.add_argument("file")
options = arguments.parse_args()

try:
    clf = Classifier(options.engine, backend="tensorrt")
except FramiEdgeError as error:  # another GPU or TensorRT, no TensorRT, no such file
    print(f"without the engine: {error}")
    clf = Classifier(options.fallback, backend="cpu")

with clf, AudioFile(options.file) as audio:
    print(f"on {clf.backend}: {clf.backend_reason}")
    stream = clf.stream(audio.sample_rate, window_s=1.0)
    for samples in audio.blocks():
        for result in stream.push(samples):
            print(f"{result.t1:8.2f} s  {result.label}  {result.score:.2f}")
    print(f"p99 of a step: {stream.stats.p99_step_ms:.2f} ms")
