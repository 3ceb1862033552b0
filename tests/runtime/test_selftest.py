"""Golden vectors: the same machine passes, another one is named."""

import json

import numpy as np
import pytest

from frami_edge_runtime import Classifier, ModelFileError, log_mel, logmel
from frami_edge_runtime.backends import OrtModel
from frami_edge_runtime.listen import main
from frami_edge_runtime.selftest import TOLERANCE, golden_clip, golden_vectors


@pytest.fixture
def tested(build_model, tmp_path):
    """A model file that carries its own answers."""
    plain = build_model()
    clip = golden_clip(plain.info.mel, 50)
    logits = Classifier(plain.data).classify(clip).logits
    golden = golden_vectors(plain.info.mel, 50, logits)
    path = tmp_path / "student.onnx"
    path.write_bytes(build_model(golden=golden).data)
    return path


def test_this_machine_passes_and_the_entry_is_small(tested):
    classifier = Classifier(tested)
    found = classifier.selftest()
    assert found
    assert found.mel_difference == found.logit_difference == 0
    assert len(json.dumps(classifier.info.golden)) < 1000


def test_the_clip_is_loud_noisy_and_silent_and_never_changes(tiny):
    clip = golden_clip(tiny.info.mel, 50)
    assert clip.dtype == np.int16
    assert clip[:5].tolist() == [8064, 7906, 7772, 7317, 7093]
    assert not clip[-400:].any()
    mel_TM = log_mel(clip, tiny.info.mel)
    assert mel_TM[:40].min() > -1  # no band near the front end's floor, where FFTs differ most


@pytest.mark.parametrize("wrong", ["front end", "weights"])
def test_a_machine_that_differs_exits_with_3(tested, wrong, monkeypatch, capsys):
    if wrong == "front end":
        exact = logmel.rfft

        def louder(*given, **named):
            spectrum = exact(*given, **named)
            spectrum *= 1.01
            return spectrum

        monkeypatch.setattr(logmel, "rfft", louder)
    else:
        exact = OrtModel.frames
        monkeypatch.setattr(OrtModel, "frames", lambda self, x: exact(self, x) * 0.9)
    assert main([str(tested), "--selftest", "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert not found["passed"]
    assert (found["mel_difference"] > 1e-4) == (wrong == "front end")
    assert found["logit_difference"] > TOLERANCE["fp32"]


def test_files_without_golden_vectors_or_with_damaged_ones_are_refused(tiny, build_model):
    with pytest.raises(ModelFileError, match="carries no golden vectors"):
        Classifier(tiny.data).selftest()
    damaged = build_model(golden={"frames": 50, "mel": "AAAA", "logits": "?"}).data
    with pytest.raises(ModelFileError, match="golden vectors are damaged"):
        Classifier(damaged).selftest()
