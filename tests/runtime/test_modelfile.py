"""The model file's contract: round trip, strictness, bounds, and sentences that help."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frami_edge_runtime.errors import FramiEdgeError, ModelFileError
from frami_edge_runtime.melspec import MelSpec
from frami_edge_runtime.modelfile import (
    HEAD_KEY,
    METADATA_KEY,
    Context,
    ModelInfo,
    Pooling,
    model_metadata,
    read_head,
    read_model_info,
)

INFO = ModelInfo(
    mel=MelSpec(mean=(0.5,) * 64), labels=("dog", "café"), receptive_field=35, stride=4,
    channels=96, context=Context(20, 14, -0.25), pooling=Pooling(eps=1e-4), precision="int8",
    quantisation={"scheme": "S8S8", "per_channel": True}, calibration={"sha256": "ab" * 32},
    teacher_sha256="0" * 64, versions={"onnx": "1.23"}, licence="Apache-2.0",
    created="2026-11-22T00:00:00Z",
)  # fmt: skip
GOOD = json.loads(INFO.to_json())


def test_round_trip_and_derived_numbers():
    entries = model_metadata(INFO, b"\x08\x08head")
    assert set(entries) == {METADATA_KEY, HEAD_KEY}
    assert read_model_info(entries) == INFO
    assert read_model_info(entries).to_json() == INFO.to_json()
    assert read_head(entries) == b"\x08\x08head"
    assert (INFO.pooled_size, INFO.frame_s) == (192, 0.04)
    assert [INFO.trunk_frames(t) for t in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]


def test_a_file_of_the_first_release_opens():
    """Schema 1 as the first exporter wrote it: changing it needs another schema number."""
    mel = (
        '{"center":false,"f_max":0.0,"f_min":0.0,"hop_length":160,"log":"ln","log_eps":1e-06,'
        '"log_floor":"add","mean":-6.0,"mel_scale":"htk","n_fft":512,"n_mels":64,"norm":"none",'
        '"power":2.0,"sample_rate":16000,"std":3.0,"win_length":400}'
    )
    text = (
        '{"calibration":null,"channels":96,"context":{"left":17,"right":17,"value":0.0},'
        '"created":"","labels":["a","b"],"licence":"","mel":' + mel + ',"pooling":{"eps":1e-05,'
        '"kind":"mean_std"},"precision":"fp32","quantisation":null,"receptive_field":35,'
        '"schema":1,"stride":4,"student_sha256":null,"teacher_sha256":null,"versions":{}}'
    )
    expected = ModelInfo(MelSpec(mean=-6.0, std=3.0), ("a", "b"), 35, 4, 96)
    assert ModelInfo.from_json(text) == expected
    assert expected.to_json() == text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 2}, "Upgrade"),
        ({"schema": "1"}, "schema must be 1"),
        ({"gain": 1}, "unknown keys: gain"),
        ({"mel": None}, "mel must be an object"),
        ({"mel": {"n_fft": 0}}, "n_fft"),
        ({"labels": []}, "labels"),
        ({"labels": ["a", "a"]}, "labels"),
        ({"receptive_field": 35.0}, "receptive_field"),
        ({"stride": 36}, "receptive_field 35"),
        ({"pooling": {"kind": "max", "eps": 1e-5}}, "mean_std"),
        ({"pooling": {"kind": "mean_std"}}, "lacks keys: eps"),
        ({"context": {"left": 17, "right": 16, "value": 0}}, "receptive_field - 1 = 34"),
        ({"precision": "bf16"}, "precision"),
        ({"calibration": []}, "calibration"),
        ({"teacher_sha256": "ABC"}, "64 lower-case hex"),
    ],
)
def test_what_does_not_fit_is_named_with_a_fix(changes, words):
    with pytest.raises(ModelFileError) as caught:
        ModelInfo.from_json(json.dumps({**GOOD, **changes}))
    assert words in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, INFO.to_json()[:-9]])
def test_damaged_json_is_refused(text):
    with pytest.raises(ModelFileError, match="JSON"):
        ModelInfo.from_json(text)


def test_missing_and_damaged_entries():
    with pytest.raises(ModelFileError, match="not made by frami-edge export"):
        read_model_info({})
    with pytest.raises(ModelFileError, match="not base64"):
        read_head({HEAD_KEY: "ä!"})


def read_or_refuse(text):
    """Anything but a known error escapes and fails the test."""
    try:
        info = ModelInfo.from_json(text)
    except FramiEdgeError:
        return
    assert ModelInfo.from_json(info.to_json()) == info


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@settings(max_examples=100, deadline=None)
@given(key=st.sampled_from(sorted(GOOD)), name=st.sampled_from(sorted(GOOD["mel"])), value=VALUES)
def test_any_value_is_read_or_refused(key, name, value):
    read_or_refuse(json.dumps({**GOOD, key: value}))
    read_or_refuse(json.dumps({**GOOD, "mel": {**GOOD["mel"], name: value}}))
