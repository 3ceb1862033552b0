"""Bad input in its short form, and what the long form (benchmarks/fuzz_runtime.py) has found."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frami_edge_runtime.audio import check_samples
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import AudioError, MelSpecError, ModelFileError, StreamError
from frami_edge_runtime.melspec import MelSpec
from frami_edge_runtime.modelfile import ModelInfo
from frami_edge_runtime.state import read_state

SCRIPTS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if not SCRIPTS.is_dir():
        pytest.skip("benchmarks/ is in the repository only")
    pytest.importorskip("soundfile")
    pytest.importorskip("soxr")
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("fuzz_runtime")


def test_bad_input_is_refused_or_answered_right(
    fuzz: Any, tiny: Any, build_model: Any, tmp_path: Path
) -> None:
    other = build_model(channels=7, stride=3, seed=1, labels=("a", "b", "c"))
    material = fuzz.Material([tiny.data, other.data], tmp_path)
    accepted = refused = 0
    for kind in fuzz.ALL:
        for number in range(10):
            outcome, said = fuzz.run_case(kind, number, 77, material)
            assert outcome in ("accepted", "refused"), (kind, number, said)
            accepted += outcome == "accepted"
            refused += outcome == "refused"
    assert min(accepted, refused) > 20


def test_the_fuzzer_sees_wrong_answers_and_tracebacks(
    fuzz: Any, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    material = fuzz.Material([tiny.data], tmp_path)
    whole = Classifier.classify
    monkeypatch.setattr(Classifier, "classify", lambda c, x, r=None: whole(c, x[:5], r))
    monkeypatch.setitem(fuzz.ALL, "x", lambda rng, m: fuzz.FILES["wav"](rng, None))
    monkeypatch.setitem(
        fuzz.ALL,
        "y",
        lambda rng, m: importlib.import_module("fuzz_models").use_model(rng, m, m.models[0]),
    )
    assert fuzz.run_case("x", 0, 0, material)[0] == "traceback"
    assert fuzz.run_case("y", 0, 0, material)[0] == "wrong"


def test_names_that_are_no_utf8(tiny: Any) -> None:
    at = tiny.data.index(b"glass breaking")
    with pytest.raises(ModelFileError, match="metadata is damaged"):
        Classifier(tiny.data[:at] + b"\xff\xfe" + tiny.data[at + 2 :])
    with pytest.raises(ModelFileError):
        Classifier(tiny.data.replace(b"frames", b"fram\xffs"))


@pytest.mark.parametrize("place", ["w.bin", "../w.bin", "/etc/passwd"])
def test_weights_in_other_files_are_refused(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    onnx = pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    model = onnx.load_from_string(tiny.data)
    tensor = model.graph.initializer[0]
    Path("w.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    with pytest.raises(ModelFileError, match="weights in another file"):
        Classifier(model.SerializeToString())


def test_a_class_called_location_is_no_other_file(build_model: Any) -> None:
    labels = ("location", "dog")
    assert Classifier(build_model(labels=labels).data).labels == labels


def test_twins_among_very_many_labels_are_found_at_once(tiny: Any) -> None:
    labels = [f"{i:x}" for i in range(65_535)]
    values = {**json.loads(tiny.info.to_json()), "labels": [*labels, labels[-1]]}
    begun = time.perf_counter()
    with pytest.raises(ModelFileError, match="'fffe' twice"):
        ModelInfo.from_json(json.dumps(values))
    assert time.perf_counter() - begun < 5  # took 38 s when each was counted


def test_numbers_that_would_be_infinite_are_refused(tiny: Any) -> None:
    text = tiny.info.to_json().replace('"quantisation":null', '"quantisation":{"a":1e999}')
    with pytest.raises(ModelFileError, match="1e999 is too large"):
        ModelInfo.from_json(text)


def test_a_receptive_field_is_bounded_before_memory_is_taken(tiny: Any) -> None:
    values = json.loads(tiny.info.to_json())
    values["receptive_field"] = 1 << 20
    with pytest.raises(ModelFileError, match="at most 65536 with 16 mel bands"):
        ModelInfo.from_json(json.dumps(values))


def test_a_front_end_is_bounded_before_memory_is_taken() -> None:
    with pytest.raises(MelSpecError, match="4194304 filter weights") as caught:
        MelSpec(sample_rate=96_000, n_fft=1 << 16, win_length=1 << 16, n_mels=1024)
    assert caught.value.fix
    assert MelSpec(sample_rate=96_000, n_fft=8192, win_length=8192, n_mels=512).n_mels == 512


@pytest.mark.parametrize("options", [{"forget_s": 0.05}, {"window_s": 0.5}])
def test_nothing_heard_since_all_was_forgotten(
    classifier: Classifier, clip: np.ndarray, options: dict[str, float]
) -> None:
    pytest.importorskip("soxr")
    stream = classifier.stream(24_000, **options)
    stream.push(clip)
    stream.gap(1 << 47)
    stream.push(clip[:1])  # less than one sample at the model's rate
    restored = classifier.stream(24_000, **options)
    restored.load_state(stream.state())
    for each in (stream, restored):
        with pytest.raises(AudioError, match="1 samples at 24000 Hz are less than one"):
            each.flush()
    stream.push(clip)
    stream.gap(1 << 47)
    stream.push(clip[:1])
    assert stream.gap(5, keep_pooling=False) == []


@pytest.mark.parametrize("begins", [-1.0, 100.0])
def test_a_state_whose_window_lies_elsewhere_is_refused(
    classifier: Classifier, clip: np.ndarray, begins: float
) -> None:
    stream = classifier.stream(window_s=0.5)
    stream.push(clip)
    stream.reset()
    stream.push(clip[:9000])
    state = stream.state()
    classifier.stream(window_s=0.5).load_state(state)
    state["pool"]["begins"] = np.full_like(state["pool"]["begins"], begins)
    with pytest.raises(StreamError, match="begins does not fit"):
        classifier.stream(window_s=0.5).load_state(state)


def test_an_archive_may_not_unpack_to_more_than_its_size(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(10_000_000))
    with pytest.raises(StreamError, match="more than its size"):
        read_state(tmp_path / "a.npz")


def test_foreign_and_masked_arrays_are_refused() -> None:
    class Tensor:
        def __array__(self, *_: object, **__: object) -> np.ndarray:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad")

    with pytest.raises(AudioError, match="type Tensor"):
        check_samples(Tensor())
    masked = np.ma.masked_array(np.zeros(2, np.float32), [True, False])
    with pytest.raises(AudioError, match="masked"):
        check_samples(masked)
    whole = check_samples(np.ma.masked_array(np.zeros(2, np.float32)))
    assert type(whole) is np.ndarray
