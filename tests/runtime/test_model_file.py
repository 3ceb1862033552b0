"""The model file's contract: round trip, strictness, bounds, and sentences that help."""

from __future__ import annotations

import json
from typing import Any

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
    mel=MelSpec(mean=(0.5,) * 64),
    labels=("dog", "café"),
    receptive_field=35,
    stride=4,
    channels=96,
    context=Context(20, 14, -0.25),
    pooling=Pooling(eps=1e-4),
    precision="int8",
    quantisation={"scheme": "S8S8", "per_channel": True},
    calibration={"sha256": "ab" * 32},
    teacher_sha256="0" * 64,
    versions={"onnx": "1.23"},
    licence="Apache-2.0",
    created="2026-11-22T00:00:00Z",
)
GOOD: dict[str, Any] = json.loads(INFO.to_json())


def test_round_trip() -> None:
    entries = model_metadata(INFO, b"\x08\x08head")
    assert set(entries) == {METADATA_KEY, HEAD_KEY}
    assert read_model_info(entries) == INFO
    assert read_head(entries) == b"\x08\x08head"
    assert read_model_info(entries).to_json() == INFO.to_json()


def test_derived_numbers() -> None:
    assert (INFO.pooled_size, INFO.frame_s) == (192, 0.04)
    assert [INFO.trunk_frames(t) for t in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]


@pytest.mark.parametrize(("field", "left", "right"), [(1, 0, 0), (2, 0, 1), (31, 15, 15)])
def test_the_usual_context_centres_frames(field: int, left: int, right: int) -> None:
    info = ModelInfo(MelSpec(), ("a", "b"), receptive_field=field, stride=1, channels=4)
    assert info.context == Context(left, right, 0.0)
    assert json.loads(info.to_json())["context"] == {"left": left, "right": right, "value": 0.0}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 2}, "Upgrade"),
        ({"schema": 0}, "schema must be 1"),
        ({"schema": True}, "schema must be 1"),
        ({"schema": "1"}, "schema must be 1"),
        ({"gain": 1}, "unknown keys: gain"),
        ({"mel": None}, "mel must be an object"),
        ({"mel": {"n_fft": 0}}, "n_fft"),
        ({"mel": {"hop": 1}}, "no key hop"),
        ({"labels": "dog"}, "labels"),
        ({"labels": []}, "labels"),
        ({"labels": ["a", ""]}, "labels"),
        ({"labels": ["a", 1]}, "labels"),
        ({"labels": ["a", "a"]}, "'a' twice"),
        ({"labels": ["x" * 600]}, "512 characters"),
        ({"receptive_field": 0}, "receptive_field"),
        ({"receptive_field": 35.0}, "receptive_field"),
        ({"stride": True}, "stride"),
        ({"stride": 36}, "unheard"),
        ({"channels": 10**9}, "channels"),
        ({"pooling": {"kind": "max", "eps": 1e-5}}, "mean_std"),
        ({"pooling": {"kind": "mean_std"}}, "lacks keys: eps"),
        ({"pooling": {"kind": "mean_std", "eps": 0}}, "eps"),
        ({"context": [17, 17]}, "context must be an object"),
        ({"context": None}, "context must be an object"),
        ({"context": {"left": 17, "right": 17}}, "lacks keys: value"),
        ({"context": {"left": 17, "right": 16, "value": 0}}, "receptive_field - 1 = 34"),
        ({"context": {"left": 35, "right": -1, "value": 0}}, "context.right"),
        ({"context": {"left": 34.0, "right": 0, "value": 0}}, "context.left"),
        ({"context": {"left": True, "right": 33, "value": 0}}, "context.left"),
        ({"context": {"left": 17, "right": 17, "value": "0"}}, "context.value"),
        ({"context": {"left": 17, "right": 17, "value": 1e30}}, "context.value"),
        ({"pooling": [1]}, "pooling"),
        ({"precision": "bf16"}, "precision"),
        ({"quantisation": 3}, "quantisation"),
        ({"calibration": []}, "calibration"),
        ({"teacher_sha256": "ABC"}, "64 lower-case hex"),
        ({"versions": {"onnx": 1}}, "versions"),
        ({"licence": None}, "licence"),
        ({"created": 5}, "created"),
    ],
)
def test_what_does_not_fit_is_named_with_a_fix(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        ModelInfo.from_json(json.dumps({**GOOD, **changes}))
    assert words in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize("key", sorted(set(GOOD) - {"schema"}))
def test_every_key_is_needed(key: str) -> None:
    with pytest.raises(ModelFileError, match=f"lacks keys: {key}"):
        ModelInfo.from_json(json.dumps({k: v for k, v in GOOD.items() if k != key}))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{",
        '{"schema": 1, "schema": 1}',
        '{"schema": NaN}',
        "[" * 100_000,
        "1" * 6000,
        '{"schema": 1, "labels": "' + "x" * (1 << 20) + '"}',
    ],
)
def test_damaged_json_is_refused(text: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        ModelInfo.from_json(text)
    assert caught.value.fix


def test_missing_and_damaged_entries() -> None:
    with pytest.raises(ModelFileError, match="not made by frami-edge export"):
        read_model_info({})
    with pytest.raises(ModelFileError, match=HEAD_KEY):
        read_head({METADATA_KEY: INFO.to_json()})
    with pytest.raises(ModelFileError, match="not base64"):
        read_head({HEAD_KEY: "ä!"})
    with pytest.raises(ModelFileError, match="bytes"):
        model_metadata(INFO, b"")


def test_what_json_cannot_say_is_refused() -> None:
    for value in (float("nan"), object(), b"bytes"):
        with pytest.raises(ModelFileError, match="cannot be written"):
            INFO.replace(calibration={"x": value}).to_json()
    with pytest.raises(ModelFileError, match="store their hash"):
        INFO.replace(calibration={"table": "x" * (1 << 20)}).to_json()


def read_or_refuse(text: str) -> ModelInfo | None:
    """Anything but a known error escapes and fails the test."""
    try:
        return ModelInfo.from_json(text)
    except FramiEdgeError:
        return None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None)
@given(key=st.sampled_from(sorted(GOOD)), value=VALUES, where=st.sampled_from(["top", "mel"]))
def test_any_value_is_read_or_refused(key: str, value: Any, where: str) -> None:
    changed = {**GOOD, key: value}
    if where == "mel":
        name = sorted(GOOD["mel"])[len(key) % len(GOOD["mel"])]
        changed = {**GOOD, "mel": {**GOOD["mel"], name: value}}
    info = read_or_refuse(json.dumps(changed))
    assert info is None or ModelInfo.from_json(info.to_json()) == info


@settings(max_examples=300, deadline=None)
@given(cut=st.integers(0, 3000), insert=st.text(max_size=4), keep=st.integers(0, 3000))
def test_any_cut_text_is_read_or_refused(cut: int, insert: str, keep: int) -> None:
    text = INFO.to_json()
    damaged = text[:cut] + insert + text[keep:]
    info = read_or_refuse(damaged)
    assert info is None or ModelInfo.from_json(info.to_json()) == info
