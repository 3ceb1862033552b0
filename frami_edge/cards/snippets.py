"""Code that runs as it stands, in the folder of the card: a test runs it."""

from __future__ import annotations

import json
import shlex


def runtime_code(file: str, sample_rate: int) -> str:
    """A clip and a stream through the runtime.

    Args:
        file: Path from the card's folder.
        sample_rate: Hz of the model.
    """
    return f"""```python
import numpy as np
from frami_edge_runtime import Classifier

clf = Classifier({json.dumps(file)})
samples = np.zeros({sample_rate}, np.float32)  # your audio: mono, int16 or float
result = clf.classify(samples, sample_rate={sample_rate})
print(result.label, result.score)

stream = clf.stream(sample_rate={sample_rate}, window_s=1.0)
for chunk in np.array_split(samples, 10):  # your microphone: chunks of any length
    for result in stream.push(chunk):
        print(f"{{result.t1:.2f}} s  {{result.label}}  {{result.score:.2f}}")
```"""


def install() -> str:
    """What running takes."""
    return "```sh\npip install frami-edge-runtime\n```"


def listen_commands(file: str) -> str:
    """The same on a command line."""
    name = shlex.quote(file)
    return f"""```sh
frami-edge-listen {name} some.wav
frami-edge-listen {name} mic
```"""


def student_code(sample_rate: int) -> str:
    """A checkpoint of a student, without exporting it."""
    return _checkpoint_code("student", sample_rate)


def teacher_code(sample_rate: int) -> str:
    """Likewise of a teacher."""
    return _checkpoint_code("teacher", sample_rate)


def _checkpoint_code(kind: str, sample_rate: int) -> str:
    return f"""```python
from pathlib import Path

import numpy as np
import torch
from frami_edge.models.checkpoint import load_checkpoint
from frami_edge_runtime import log_mel

{kind} = load_checkpoint(Path("{kind}.safetensors"), "{kind}")
samples = np.zeros({sample_rate}, np.float32)  # your audio: mono, int16 or float
mel_TM = torch.from_numpy(log_mel(samples, {kind}.spec))
with torch.no_grad():
    logits_BK = {kind}.model(mel_TM.T[None, None])
print({kind}.card.labels[int(logits_BK.argmax())])
```"""
