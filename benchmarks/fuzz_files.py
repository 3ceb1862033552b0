"""Damaged audio, engines and saved states for `fuzz_runtime`; each from one seed.

A case raises `FramiEdgeError` where the runtime refused its input, `WrongAnswerError` where an
answer cannot be right, anything else where an error escaped; it returns where it was accepted.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from fuzz_material import (
    ODD,
    Material,
    Rng,
    WrongAnswerError,
    change,
    check_scores,
    damage,
    opened,
)

from frami_edge_runtime import Classifier, FramiEdgeError
from frami_edge_runtime.enginefile import check_content, read_plan_version, read_sidecar
from frami_edge_runtime.listen.cli import main as listen
from frami_edge_runtime.wavfile import AudioFile


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
    model, entries = opened(rng, material)
    del model
    plan = b"ftrt" + bytes(20) + bytes([10, 3, 0, 30]) + bytes(100)
    info = json.loads(entries["frami.model"])
    field, bands = info["receptive_field"], info["mel"]["n_mels"]
    profile = (("min", 0), ("opt", 9), ("max", 90))
    card: dict[str, Any] = {
        "engine_sha256": hashlib.sha256(plan).hexdigest(), "engine_bytes": len(plan),
        "onnx_name": "a.onnx", "onnx_sha256": "0" * 64, "tensorrt": "10.3.0.30",
        "precision": "fp32", "sm": "8.7", "gpu": "Orin", "driver": "540", "jetpack": None,
        "profile": {key: [1, 1, bands, field + n] for key, n in profile},
        "model": entries["frami.model"], "head_onnx": entries["frami.head_onnx"],
        "layers": None, "compat": "none", "created": "", "schema": 1,
    }  # fmt: skip
    way = rng.integers(0, 3)
    if way == 0:
        change(rng, card)
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
        odd = np.asarray(ODD[int(rng.integers(0, 14))])
        entries[key] = np.asarray("x") if odd.dtype.kind == "O" else odd
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
        raise WrongAnswerError("a refused state changed the stream")


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
    last = stream.flush()
    if last is not None:
        check_scores(last, len(material.classifier.labels))


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
        raise WrongAnswerError("libsndfile reads other samples")


def _no_constant(name: str) -> None:
    raise WrongAnswerError(f"{name} in JSON output")


FILES: Final[dict[str, Callable[[Rng, Material], None]]] = {
    "wav": wav_file,
    "audio": other_audio,
    "listen": listened,
    "engine": engine_files,
    "state": saved_state,
}
