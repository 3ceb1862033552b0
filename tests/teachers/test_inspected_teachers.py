"""`inspect` on the kinds of networks that people bring: what it says about each."""

import pytest
import teacher_zoo as zoo
import torch
from safetensors.torch import save_file

from frami_edge.inspecting import describe_teacher
from frami_edge.teachers import TeacherDescription

MEL = {"n_mels": zoo.M, "mean": -6.0, "std": 4.0}
RATE = 16_000
# class, arguments, mel or rate: takes, output, one clip length, what a note or a finding says
VERDICTS = [
    ("KeywordNet", {}, MEL, ("mel", "softmax", None), ""),
    ("XVector", {}, MEL, ("mel", "softmax", None), ""),
    ("Attention", {}, MEL, ("mel", "softmax", None), "add --layout B1MT"),
    ("SqueezeExcite", {}, MEL, ("mel", "softmax", None), ""),
    ("Recurrent", {}, MEL, ("mel", "softmax", None), ""),
    ("Shared", {}, MEL, ("mel", "softmax", None), ""),
    ("Sigmoid", {}, MEL, ("mel", "sigmoid", None), ""),
    ("Cnn14", {}, MEL, ("mel", "sigmoid", None), ""),
    ("Patches", {}, MEL, ("mel", "softmax", None), "patches, 2 along frequency"),
    ("Patches", {"frames": 200}, MEL, ("mel", "softmax", 200), "200 frames alone"),
    ("Patches", {"frames": 256}, MEL, ("mel", "softmax", 256), "borrows those of a small student"),
    ("Vggish", {}, MEL, ("mel", "softmax", 96), "96 frames alone"),
    ("Crnn", {}, MEL, ("mel", "sigmoid", None), "answers per frame"),
    ("Crnn", {"clip": "soft"}, MEL, ("mel", "sigmoid", None), "head of its own"),
    ("Crnn", {"clip": "maximum"}, MEL, ("mel", "sigmoid", None), "head of its own"),
    ("Panns", {}, RATE, ("mel", "sigmoid", None), "Its own log-mel, extract"),
    ("Inline", {}, RATE, ("mel", "softmax", None), "Its own log-mel, net@in"),
    ("Inline", {"how": "clip"}, RATE, ("audio", "softmax", None), "normalisation over the clip"),
    ("Kaldi", {}, RATE, ("mel", "softmax", None), "Its own log-mel, fbank"),
    ("M5", {}, RATE, ("audio", "softmax", None), "It takes audio"),
    ("M5", {}, MEL, ("audio", "softmax", None), "It takes audio"),
    ("SampleNet", {}, RATE, ("audio", "softmax", 16_000), "16000 samples alone"),
]


def described(name, arguments, front, folder):
    torch.manual_seed(0)
    save_file(getattr(zoo, name)(**arguments).state_dict(), folder / "w.safetensors")
    source = TeacherDescription(
        factory=f"teacher_zoo:{name}", arguments=arguments, weights=str(folder / "w.safetensors"),
        labels=tuple("abcde"), mel=front if isinstance(front, dict) else None,
        sample_rate=front if isinstance(front, int) else None,
    )  # fmt: skip
    return describe_teacher(source).to_dict()


@pytest.mark.parametrize(("name", "arguments", "front", "verdict", "said"), VERDICTS)
def test_what_is_said_of_a_network(name, arguments, front, verdict, said, tmp_path):
    found = described(name, arguments, front, tmp_path)
    states = found["hidden_states"]
    assert (states["takes"], states["output"], states["clip_length"]) == verdict
    assert said in " ".join(found["notes"] + found["findings"])
    # A finding is a warning: facts about a network are none.
    warned = ("layout", "per frame", "BatchNorm", "front end does not match", "real clips")
    assert all(any(words in line for words in warned) for line in found["findings"])
    assert found["model"]["mel"]["sample_rate"] == RATE


@pytest.mark.parametrize(
    ("name", "front", "said"),
    [
        ("Panns", 8_000, "built for another sample rate than 8000 Hz"),
        ("KeywordNet", RATE, "does not turn audio"),
        ("KeywordNet", {"n_mels": 24}, "log-mels of 16 bands, and the front end has 24"),
    ],
)
def test_what_cannot_work_is_said(name, front, said, tmp_path):
    found = described(name, {}, front, tmp_path)
    assert found["hidden_states"] == {"found": False}
    assert said in found["findings"][0]
