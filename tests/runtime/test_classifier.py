"""The classifier against a reference that shares no code with it, and what it refuses."""

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import ModelFileError, StreamError
from frami_edge_runtime.modelfile import HEAD_KEY, METADATA_KEY, Context, model_metadata


def reference(tiny, x):
    """Logits in float64, by the definitions: mel, two convolutions, statistics, affine head."""
    spec, info = tiny.info.mel, tiny.info
    x = np.resize(x.astype(np.float64), max(len(x), spec.n_fft))
    left = (spec.n_fft - spec.win_length) // 2
    n = np.arange(spec.win_length)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / spec.win_length)
    rows = []
    for start in range(0, len(x) - spec.n_fft + 1, spec.hop_length):
        frame = np.zeros(spec.n_fft)
        frame[left : left + spec.win_length] = (
            x[start + left : start + left + spec.win_length] * window
        )
        rows.append(spec.compress(np.abs(np.fft.rfft(frame)) ** 2 @ spec.filterbank))
    mel = np.stack(rows)
    around = (info.context.left, info.context.right)
    mel = np.pad(mel, (around, (0, 0)), constant_values=info.context.value)
    w1, b1, w2 = (tiny.weights[k].astype(np.float64) for k in ("w1", "b1", "w2"))
    hidden = []
    for t in range(0, len(mel) - 4, info.stride):
        hidden.append(np.maximum(np.einsum("cmk,km->c", w1[:, 0], mel[t : t + 5]) + b1, 0))
    h = np.stack(hidden, axis=1)
    frames = [
        np.maximum(np.einsum("dck,ck->d", w2[:, :, 0], h[:, t : t + 3]), 0)
        for t in range(h.shape[1] - 2)
    ]
    f = np.stack(frames, axis=1)
    pooled = np.concatenate([f.mean(axis=1), np.sqrt(f.var(axis=1) + info.pooling.eps)])
    weight, bias = tiny.head
    return np.asarray(pooled @ weight + bias)


@pytest.mark.parametrize("samples", [30_001, 256, 255, 1])
@pytest.mark.parametrize("context", [(4, 4), (8, 0, 1.5), (3, 5, -2)])
def test_agrees_with_the_reference(build_model, clip, samples, context):
    tiny = build_model(context=Context(*context))
    x = clip[5000 : 5000 + samples] if samples < 25_000 else clip
    result, expected = Classifier(tiny.data).classify(x), reference(tiny, x)
    assert np.abs(result.logits - expected).max() < 2e-4 * max(1, np.abs(expected).max())
    scores = np.exp(expected - expected.max()) / np.exp(expected - expected.max()).sum()
    assert np.abs(result.scores - scores).max() < 1e-3


def test_detectors_score_each_label_by_itself(tiny, build_model, clip):
    result = Classifier(build_model(output="sigmoid").data).classify(clip)
    assert (result.logits == Classifier(tiny.data).classify(clip).logits).all()
    expected = 1 / (1 + np.exp(-result.logits.astype(np.float64)))
    assert np.abs(result.scores - expected).max() < 1e-6
    assert result.index == int(np.argmax(result.scores))


def test_path_bytes_and_dtypes_give_the_same_answer(classifier, model_path, clip):
    pcm = (clip * 32767).astype(np.int16)
    from_path = Classifier(model_path).classify(pcm)
    from_string = Classifier(str(model_path), threads=2).classify(pcm / 32768, 8000)
    expected = classifier.classify(pcm.astype(np.float32) / 32768, sample_rate=8000.0)
    assert np.array_equal(from_path.logits, expected.logits)
    assert np.allclose(from_string.logits, expected.logits, atol=1e-5)


def test_one_classifier_serves_threads(classifier, clip):
    parts = [clip[i * 3000 : (i + 1) * 3000 + 500 * i] for i in range(8)]
    expected = [classifier.classify(p).logits for p in parts]
    with ThreadPoolExecutor(8) as pool:
        found = [result.logits for result in pool.map(classifier.classify, parts)]
    assert np.array_equal(found, expected)


def test_a_trunk_that_pads_time_is_refused(build_model):
    with pytest.raises(ModelFileError, match=r"is not a function|mel frames give"):
        Classifier(build_model(pad_time=True).data)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"receptive_field": 10, "context": Context.around(10)}, "receptive_field 10"),
        ({"receptive_field": 8, "context": Context.around(8)}, "receptive_field 8"),
        ({"stride": 3}, "stride 3"),
        ({"channels": 13}, "frames"),
        ({"labels": ("a", "b")}, "logits"),
    ],
)
def test_metadata_that_the_graph_contradicts_is_refused(build_model, changes, words):
    tiny = build_model()
    entries = {METADATA_KEY: tiny.info.replace(**changes).to_json()}
    data = build_model(metadata=entries).data
    with pytest.raises(ModelFileError, match=words) as caught:
        Classifier(data)
    assert caught.value.fix


def test_files_that_are_no_model_are_refused(tmp_path, tiny, build_model):
    for name, data in (
        ("plain.onnx", b"this is no protocol buffer"),
        ("empty.onnx", b""),
        ("cut.onnx", tiny.data[: len(tiny.data) // 2]),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ModelFileError, match=name):
            Classifier(tmp_path / name)
    for wrong in (tmp_path, tmp_path / "none.onnx"):
        with pytest.raises(ModelFileError, match="Cannot read"):
            Classifier(wrong)
    foreign = build_model(metadata={METADATA_KEY: ""}).data
    with pytest.raises(ModelFileError, match="not made by frami-edge export"):
        Classifier(foreign)
    named = tiny.data.index(b"glass breaking")
    for damaged in (
        tiny.data[:named] + b"\xff" + tiny.data[named + 1 :],
        tiny.data.replace(b"frames", b"fram\xffs"),
    ):
        with pytest.raises(ModelFileError):
            Classifier(damaged)
    headless = build_model(metadata={HEAD_KEY: model_metadata(tiny.info, b"junk")[HEAD_KEY]}).data
    with pytest.raises(ModelFileError, match=HEAD_KEY):
        Classifier(headless)


def test_a_model_that_gives_nan_is_reported(build_model, clip):
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(build_model().data)
    bias = next(t for t in model.graph.initializer if t.name == "b1")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.full(12, np.inf, np.float32), "b1"))
    with pytest.raises(ModelFileError):
        Classifier(model.SerializeToString()).classify(clip)


def test_a_classifier_is_pickled_by_its_file(model_path, clip, monkeypatch, build_model):
    monkeypatch.chdir(model_path.parent)
    saved = pickle.dumps(Classifier(model_path.name, threads=2))
    monkeypatch.chdir("/")
    again = pickle.loads(saved)
    np.testing.assert_array_equal(
        again.classify(clip).logits, Classifier(model_path).classify(clip).logits
    )
    model_path.write_bytes(build_model(seed=1).data)
    with pytest.raises(ModelFileError, match="changed since"):
        pickle.loads(saved)
    with pytest.raises(StreamError, match=r"cannot be pickled. Pickle its state\(\)"):
        pickle.dumps(again.stream())


def test_a_stream_refuses_a_second_thread(model_path, clip, monkeypatch):
    model = Classifier(model_path)
    stream, expected = model.stream(), model.classify(clip)
    inside, leave = threading.Event(), threading.Event()
    frames = model.model.frames

    def slow(mel_BMT):
        inside.set()
        assert leave.wait(10)
        return frames(mel_BMT)

    monkeypatch.setattr(model.model, "frames", slow)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(stream.push, clip)
        assert inside.wait(10)
        for call in (lambda: stream.push(clip), stream.flush, stream.state, stream.reset):
            with pytest.raises(StreamError, match="two threads at once"):
                call()
        leave.set()
        assert first.result(10) == []
    result = stream.flush()  # of the first thread's samples alone
    np.testing.assert_array_equal(result.logits, expected.logits)
