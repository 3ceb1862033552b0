"""Damaged files for `fuzz_runtime`: models, audio, engines and saved states; each from one seed.

A case raises `FramiEdgeError` where the runtime refused its input, `Wrong` where an answer cannot
be right, anything else where an error escaped; it returns where the input was accepted.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import struct
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from frami_edge_runtime import Classifier, FramiEdgeError
from frami_edge_runtime.enginefile import check_content, read_plan_version, read_sidecar
from frami_edge_runtime.listen.cli import main as listen
from frami_edge_runtime.wavfile import AudioFile

Rng = np.random.Generator
ODD: Final[tuple[Any, ...]] = (
    None, True, 0, -1, 1, 3, 1 << 20, 1 << 31, 1 << 63, 10**40, 0.5, -1e-9, 1e29, 1e308, "", "x",
    "1", "\x1b[2J", "\u202e", "\ud800", [], [None], [[]], {}, {"a": 1}, [1e-30] * 16, "NaN" * 99,
)  # fmt: skip
LARGEST_INT: Final = 64


class Wrong(Exception):
    """An answer that cannot be right."""


class Material:
    """What all cases start from.

    Args:
        models: Bytes of intact ONNX model files, of at least two.
        folder: For the damaged files.
    """

    def __init__(self, models: list[bytes], folder: Path) -> None:
        """Load the models; the first one serves the cases that damage something else."""
        self.models, self.folder = models, folder
        self.classifier = Classifier(models[0])
        self.rate = self.classifier.info.mel.sample_rate
        t = np.arange(2 * self.rate) / self.rate
        noise = np.random.default_rng(1).standard_normal(len(t))
        self.clip = (0.3 * np.sin(700 * t) + 0.1 * noise * (t % 0.5)).clip(-1, 1).astype(np.float32)

    def write(self, name: str, data: bytes) -> Path:
        """The file of the case at hand."""
        path = self.folder / name
        path.write_bytes(data)
        return path


def damage(rng: Rng, data: bytes, others: list[bytes], *, head: int = 0) -> bytes:
    """Flip, cut, splice, repeat or overwrite bytes; half of the time within the first ``head``."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        most = head if head and rng.random() < 0.5 else len(out)
        at = int(rng.integers(0, max(1, min(most, len(out)))))
        size = int(rng.integers(1, 65))
        way = rng.integers(0, 7)
        if way == 0:
            out[at : at + 1] = bytes([int(rng.integers(0, 256))])
        elif way == 1:
            out = out[:at]
        elif way == 2:
            other = others[int(rng.integers(0, len(others)))]
            out[at:] = other[int(rng.integers(0, len(other) + 1)) :]
        elif way == 3:
            out[at:at] = out[at : at + size]
        elif way == 4:
            del out[at : at + size]
        elif way == 5:
            out[at : at + size] = bytes([int(rng.choice([0, 1, 127, 128, 255]))]) * size
        else:
            out[at : at + 4] = struct.pack("<I", int(rng.choice([0, 1, 2**31, 2**32 - 1, 65536])))
    return bytes(out)


def model_bytes(rng: Rng, material: Material) -> None:
    """An ONNX file with damaged bytes."""
    model = material.models[int(rng.integers(0, len(material.models)))]
    use_model(rng, material, damage(rng, model, material.models))


def model_metadata(rng: Rng, material: Material) -> None:
    """An ONNX file whose description was changed: one value, deep nesting, twins, or the head."""
    model, entries = _opened(rng, material)
    text = entries["frami.model"]
    way = rng.integers(0, 8)
    if way < 5:
        values = json.loads(text)
        for _ in range(int(rng.integers(1, 3))):
            _change(rng, values)
        text = json.dumps(values)
    elif way == 5:
        text = damage(rng, text.encode(), [text.encode()]).decode("utf-8", "replace")
    elif way == 6:
        depth = int(rng.choice([10, 500, 900, 990, 1000, 5000, 200_000]))
        text = text.replace('"licence":', '"licence":' + "[" * depth + "]" * depth + ',"x":', 1)
    else:
        text = text.replace("1", str(rng.choice(["NaN", "1e999", "-0", "1" * 5000])), 1)
    entries["frami.model"] = text
    if rng.random() < 0.2:
        head = base64.b64decode(entries["frami.head_onnx"])
        other = base64.b64decode(_opened(rng, material)[1]["frami.head_onnx"])
        entries["frami.head_onnx"] = [
            base64.b64encode(damage(rng, head, [other])).decode(),
            base64.b64encode(other).decode(),
            "A" * 4_000_000,
            "\N{SNOWMAN}",
        ][int(rng.integers(0, 4))]
    onnx.helper.set_model_props(model, entries)
    use_model(rng, material, model.SerializeToString())


def model_weights(rng: Rng, material: Material) -> None:
    """An ONNX file whose weights are NaN, infinite, huge, permuted or another model's."""
    model, entries = _opened(rng, material)
    head = onnx.load_from_string(base64.b64decode(entries["frami.head_onnx"]))
    chosen = model if rng.random() < 0.6 else head
    tensors = list(chosen.graph.initializer)
    tensor = tensors[int(rng.integers(0, len(tensors)))]
    values = np.array(numpy_helper.to_array(tensor))
    flat = values.reshape(-1)
    if flat.size and values.dtype.kind == "f":
        at = slice(0, int(rng.integers(1, flat.size + 1)))
        flat[at] = rng.choice([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e20, 0, 1e-45])
    elif flat.size:
        rng.shuffle(flat)
    if rng.random() < 0.2:
        values = values[..., :-1] if values.ndim else values
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
    entries["frami.head_onnx"] = base64.b64encode(head.SerializeToString()).decode()
    onnx.helper.set_model_props(model, entries)
    use_model(rng, material, model.SerializeToString())


def model_graph(rng: Rng, material: Material) -> None:
    """An ONNX file with another graph: names, types, shapes, operators, versions, other files."""
    model, _ = _opened(rng, material)
    graph = model.graph
    node = graph.node[int(rng.integers(0, len(graph.node)))]
    way = rng.integers(0, 11)
    if way == 0:
        node.op_type = str(
            rng.choice(["Relu", "Sigmoid", "Conv", "Nope", "If", "Transpose", "Neg"])
        )
    elif way == 1:
        port = graph.input[0] if rng.random() < 0.5 else graph.output[0]
        port.type.tensor_type.elem_type = int(rng.integers(0, 30))
    elif way == 2:
        port = graph.input[0] if rng.random() < 0.5 else graph.output[0]
        dims = port.type.tensor_type.shape.dim
        dims[int(rng.integers(0, len(dims)))].dim_value = int(rng.choice([0, 1, 7, 1 << 40, -1]))
    elif way == 3:
        model.opset_import[0].version = int(rng.choice([0, 1, 11, 21, 99, 1 << 40]))
        model.ir_version = int(rng.choice([0, 3, 8, 99]))
    elif way == 4:
        del graph.node[int(rng.integers(0, len(graph.node)))]
    elif way == 5:
        for attribute in node.attribute:
            if attribute.ints:
                attribute.ints[0] = int(rng.choice([0, -1, 2, 5, 1 << 30, 1 << 62]))
            attribute.i = int(rng.choice([0, -1, 2, 1 << 62])) if attribute.i else attribute.i
    elif way == 6 and graph.initializer:
        tensor = graph.initializer[int(rng.integers(0, len(graph.initializer)))]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        place = ["/etc/passwd", "../../etc/passwd", "weights.bin", "", "\0", "C:\\x", "file:///x"]
        for key, value in (
            ("location", place[int(rng.integers(0, len(place)))]),
            ("length", str(int(rng.choice([0, 16, 1 << 40])))),
        ):
            tensor.external_data.add(key=key, value=value)
    elif way == 7:
        node.input[0] = str(rng.choice(["", "nowhere", node.output[0], graph.output[0].name]))
    elif way == 8:
        graph.node.extend([node])
    elif way == 9:
        graph.node[-1].output[0], last = "before", graph.node[-1].output[0]
        kind = str(rng.choice(["CumSum", "Softmax", "ReverseSequence", "Exp", "Log", "Reciprocal"]))
        graph.node.append(onnx.helper.make_node(kind, ["before"], [last]))
    else:
        (graph.input if rng.random() < 0.5 else graph.output).append(graph.input[0])
    use_model(rng, material, model.SerializeToString())


def use_model(rng: Rng, material: Material, data: bytes) -> None:
    """Load the model, classify and stream: finite scores of sum 1, both alike."""
    path = material.write("case.onnx", data)
    classifier = Classifier(path if rng.random() < 0.5 else data)
    check_scores(classifier.classify(material.clip), len(classifier.labels))
    mel = classifier.info.mel
    for length in (1, mel.min_samples, len(material.clip)):
        x = material.clip[:length]
        stream = classifier.stream()
        cuts = np.sort(rng.integers(0, len(x) + 1, 3))
        for part in np.split(x, cuts):
            stream.push(part)
        last = stream.flush()
        whole = classifier.classify(x)
        if last is None or not np.array_equal(last.logits, whole.logits):
            raise Wrong(f"stream and whole clip differ for {length} samples")
        check_scores(last, len(classifier.labels))


def check_scores(result: Any, classes: int) -> None:
    """Raise `Wrong` unless these are scores."""
    s = result.scores
    if s.shape != (classes,) or not np.isfinite(s).all() or abs(float(s.sum()) - 1) > 1e-4:
        raise Wrong(f"scores {s}")
    if not 0 <= result.t0 <= result.t1:
        raise Wrong(f"times {result.t0}, {result.t1}")


def wav_file(rng: Rng, material: Material) -> None:
    """A PCM WAV file with damaged bytes, mostly in its header; read and classified."""
    data = _wav(rng, material)
    data = damage(rng, data, [_wav(rng, material)], head=60)
    _use_audio(rng, material, material.write("case.wav", data), intact_peer=True)


def other_audio(rng: Rng, material: Material) -> None:
    """FLAC, OGG, float WAV, AIFF and the like with damaged bytes; read and classified."""
    import soundfile

    kinds = (("flac", "PCM_16"), ("ogg", "VORBIS"), ("wav", "FLOAT"), ("aiff", "PCM_24"),
             ("wav", "ULAW"), ("wav", "DOUBLE"), ("w64", "PCM_16"), ("caf", "PCM_16"))  # fmt: skip
    suffix, subtype = kinds[int(rng.integers(0, len(kinds)))]
    x = material.clip[: int(rng.integers(1, len(material.clip)))]
    if subtype in ("FLOAT", "DOUBLE") and rng.random() < 0.5:
        x = x.copy()
        x[int(rng.integers(0, len(x)))] = rng.choice([np.nan, np.inf, 1e30, 40.0])
    buffer = io.BytesIO()
    soundfile.write(buffer, x, material.rate, format=suffix, subtype=subtype)
    data = buffer.getvalue()
    if rng.random() < 0.8:
        data = damage(rng, data, [_wav(rng, material)], head=200)
    _use_audio(rng, material, material.write(f"case.{suffix}", data))


def listened(rng: Rng, material: Material) -> None:
    """``frami-edge-listen`` on a damaged file or with odd options: exit code, no traceback."""
    model = material.folder / "intact.onnx"
    if not model.exists():
        model.write_bytes(material.models[0])
    data = _wav(rng, material)
    if rng.random() < 0.6:
        data = damage(rng, data, [data], head=60)
    words = [str(model), str(material.write("case.wav", data))]
    words += ["--json"] if rng.random() < 0.6 else ["--plain"]
    for option in rng.choice(
        ["--window", "--hop", "--forget", "--on", "--off", "--min-on", "--duration", "--top",
         "--channel", "--smooth", "--ring", "--min-level", "--watch", "--update", "--rate"],
        int(rng.integers(0, 4)), replace=False,
    ):  # fmt: skip
        value = rng.choice(["0", "-1", "nan", "1e30", "0.5", "1", "3", "x", "", "inf", "0.001"])
        words.append(f"{option}={value}")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = listen(words)
        except SystemExit as stopped:
            code = int(stopped.code or 0)
    said = err.getvalue()
    if "Internal error" in said or "Traceback" in said or code not in (0, 1, 2):
        raise RuntimeError(f"{words[2:]}: {said[-500:]}")
    if "--json" in words:
        for line in out.getvalue().splitlines():
            json.loads(line, parse_constant=_no_constant)
    if code:
        raise FramiEdgeError(said[:80] or "no reason")


def engine_files(rng: Rng, material: Material) -> None:
    """A TensorRT engine and its sidecar, damaged; all that is checked before TensorRT sees it."""
    model, entries = _opened(rng, material)
    del model
    plan = b"ftrt" + bytes(20) + bytes([10, 3, 0, 30]) + bytes(100)
    info = json.loads(entries["frami.model"])
    field, bands = info["receptive_field"], info["mel"]["n_mels"]
    import hashlib

    card: dict[str, Any] = {
        "engine_sha256": hashlib.sha256(plan).hexdigest(), "engine_bytes": len(plan),
        "onnx_name": "a.onnx", "onnx_sha256": "0" * 64, "tensorrt": "10.3.0.30",
        "precision": "fp32", "sm": "8.7", "gpu": "Orin", "driver": "540", "jetpack": None,
        "profile": {key: [1, 1, bands, field + n] for key, n in (("min", 0), ("opt", 9), ("max", 90))},
        "model": entries["frami.model"], "head_onnx": entries["frami.head_onnx"],
        "layers": None, "compat": "none", "created": "", "schema": 1,
    }  # fmt: skip
    way = rng.integers(0, 3)
    if way == 0:
        _change(rng, card)
    text = json.dumps(card).encode()
    if way == 1:
        text = damage(rng, text, [text])
    if way == 2:
        plan = damage(rng, plan, [plan], head=40)
    path = material.write("case.engine", plan)
    material.write("case.engine.json", text)
    read_plan_version(path)
    found = read_sidecar(path)
    check_content(found, plan)
    found.to_json()
    Classifier(path)


def saved_state(rng: Rng, material: Material) -> None:
    """A stream's saved state, damaged as a file or in one value; then used, if it was taken."""
    options = _modes(rng)
    rate = material.rate if rng.random() < 0.7 else 3 * material.rate
    first = material.classifier.stream(rate, **options)
    cut = int(rng.integers(0, len(material.clip)))
    first.push(material.clip[:cut])
    path = material.folder / "case.npz"
    if rng.random() < 0.5:
        first.save(path)
        path.write_bytes(damage(rng, path.read_bytes(), [path.read_bytes()]))
    else:
        with np.errstate(all="ignore"):
            np.savez(path, **_odd_state(rng, first, path))
    stream = material.classifier.stream(rate, **options)
    stream.push(material.clip[:500])
    try:
        stream.load(path)
    except FramiEdgeError:
        same = material.classifier.stream(rate, **options)
        results = [*same.push(material.clip[:500]), *same.push(material.clip)]
        _alike(results, stream.push(material.clip))
        _alike([same.flush()], [stream.flush()])
        raise
    for result in [*stream.push(material.clip), stream.flush()]:
        if result is not None:
            check_scores(result, len(material.classifier.labels))


def _odd_state(rng: Rng, stream: Any, path: Path) -> dict[str, Any]:
    stream.save(path)
    with np.load(path) as archive:
        entries = {key: archive[key] for key in archive.files}
    key = str(rng.choice(sorted(entries)))
    value = entries[key]
    way = rng.integers(0, 5)
    if way == 0:
        entries.pop(key)
    elif way == 1:
        entries[key] = np.asarray(ODD[int(rng.integers(0, 14))], None if value.ndim else (value.dtype.kind == "U" and "U") or None)  # fmt: skip  # noqa: E501
        if entries[key].dtype.kind == "O":
            entries[key] = np.asarray("x")
    elif way == 2 and value.dtype.kind in "iuf":
        flat = np.array(value).reshape(-1)
        flat[: int(rng.integers(0, flat.size + 1))] = rng.choice(np.array([0, 1, -1, 1 << 40]))
        entries[key] = flat.reshape(value.shape)
    elif way == 3:
        entries[key] = np.concatenate([np.atleast_1d(value)] * int(rng.integers(2, 50)))
    else:
        entries[str(rng.choice(["x", "time.x", "mel", f"{key}.y", "." * 99]))] = np.zeros(3)
    return entries


def _modes(rng: Rng) -> dict[str, Any]:
    modes: list[dict[str, Any]] = [{}, {"window_s": 0.6, "hop_s": 0.2}, {"forget_s": 0.5}]
    return modes[int(rng.integers(0, 3))]


def _alike(a: list[Any], b: list[Any]) -> None:
    if len(a) != len(b) or any(
        (x is None) != (y is None) or (x and not np.array_equal(x.logits, y.logits))
        for x, y in zip(a, b, strict=False)
    ):
        raise Wrong("a refused state changed the stream")


def _opened(rng: Rng, material: Material) -> tuple[Any, dict[str, str]]:
    model = onnx.load_from_string(material.models[int(rng.integers(0, len(material.models)))])
    return model, {p.key: p.value for p in model.metadata_props}


def _change(rng: Rng, values: dict[str, Any]) -> None:
    key = str(rng.choice(sorted(values)))
    inner = values[key]
    if isinstance(inner, dict) and inner and rng.random() < 0.8:
        return _change(rng, inner)
    way = rng.integers(0, 6)
    if way == 0:
        del values[key]
    elif way == 1:
        values[str(rng.choice(["x", "", "\ud800"]))] = inner
    elif way == 2 and isinstance(inner, int) and not isinstance(inner, bool):
        values[key] = int(inner + rng.integers(-LARGEST_INT, LARGEST_INT))
    elif way == 3 and isinstance(inner, list) and inner:
        odd = [*inner, inner[0]], inner[:-1], [f"{i:x}" for i in range(60_000)], inner[::-1]
        values[key] = odd[int(rng.integers(0, 4))]
    else:
        values[key] = ODD[int(rng.integers(0, len(ODD)))]
    return None


def _wav(rng: Rng, material: Material) -> bytes:
    width, channels = int(rng.integers(1, 5)), int(rng.integers(1, 4))
    x = material.clip[: int(rng.integers(1, len(material.clip)))]
    values = np.round(x * (2 ** (8 * width - 1) - 1)).astype(np.int64)
    if width == 1:
        values += 128
    raw = values.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width]
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((channels, width, material.rate, 0, "NONE", ""))
        file.writeframes(np.repeat(raw, channels, axis=0).tobytes())
    return buffer.getvalue()


def _use_audio(rng: Rng, material: Material, path: Path, *, intact_peer: bool = False) -> None:
    channel: Any = "mix" if rng.random() < 0.7 else int(rng.integers(0, 4))
    with AudioFile(path, channel) as file:
        blocks = list(file.blocks())
        rate, channels = file.sample_rate, file.channels
    x: npt.NDArray[Any] = np.concatenate([np.empty(0, np.int16), *blocks])
    if intact_peer and channel == "mix" and channels == 1:
        _compare_with_soundfile(path, x, rate)
    stream = material.classifier.stream(rate, window_s=0.5)
    for block in blocks[:50]:
        for result in stream.push(block):
            check_scores(result, len(material.classifier.labels))
    result = stream.flush()
    if result is not None:
        check_scores(result, len(material.classifier.labels))


def _compare_with_soundfile(path: Path, x: npt.NDArray[Any], rate: int) -> None:
    """Where another reader understands the same file alike, the samples must be the same."""
    import soundfile

    try:
        peer, peer_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError):
        return
    if peer.shape != (len(x), 1) or peer_rate != rate or x.dtype.kind not in "if":
        return
    scaled = x / 32768 if x.dtype.kind == "i" else x
    if len(x) and float(np.abs(scaled - peer[:, 0]).max()) > 1e-4:
        raise Wrong("libsndfile reads other samples")


def _no_constant(name: str) -> None:
    raise Wrong(f"{name} in JSON output")


KINDS: Final[dict[str, Callable[[Rng, Material], None]]] = {
    "onnx-bytes": model_bytes,
    "onnx-metadata": model_metadata,
    "onnx-weights": model_weights,
    "onnx-graph": model_graph,
    "wav": wav_file,
    "audio": other_audio,
    "listen": listened,
    "engine": engine_files,
    "state": saved_state,
}
