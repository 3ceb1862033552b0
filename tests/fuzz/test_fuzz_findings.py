"""What the fuzzer has found, each once more, by name."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save

from frami_edge import config as _yaml
from frami_edge.bank import Bank
from frami_edge.checkpoint import load_checkpoint
from frami_edge.data.download import unpack
from frami_edge.data.sets import decode, read_audio
from frami_edge.errors import (
    BankError,
    CheckpointError,
    DataError,
    RunError,
    TeacherError,
    UnusableClipError,
)
from frami_edge.io import read_small
from frami_edge.plots import LONGEST_NAME, MOST_CLASSES, confusion, mel_grid, short
from frami_edge.runs import load_state, read_manifest, save_state
from frami_edge.teachers.opening import build_module, labels_of, open_teacher, read_description
from frami_edge_runtime.backends import open_session
from frami_edge_runtime.classifier import Classifier
from frami_edge_runtime.errors import ModelFileError


def _ogg(material: Any) -> bytes:
    data: bytes = importlib.import_module("fuzzing.material").audio(material.clip, "ogg")
    return data


def test_an_ogg_page_that_is_damaged_or_missing(material: Any) -> None:
    data = _ogg(material)
    assert len(decode(data)[0]) == len(material.clip)
    starts = [i for i in range(len(data)) if data[i : i + 4] == b"OggS"]
    assert len(starts) >= 3
    bad = bytearray(data)
    bad[starts[2] + 400] ^= 1
    with pytest.raises(UnusableClipError, match="checksum"):
        decode(bytes(bad))
    with pytest.raises(UnusableClipError, match="missing"):
        decode(data[: starts[1]] + data[starts[2] :])
    with pytest.raises(UnusableClipError, match="no page"):
        decode(data + b"more")


@pytest.mark.parametrize("bit", range(5))
def test_a_flac_whose_header_promises_fewer_samples(material: Any, bit: int) -> None:
    data = bytearray(
        importlib.import_module("fuzzing.material").audio(material.clip[:4000], "flac")
    )
    assert decode(bytes(data))[0].size == 4000
    data[24] ^= 1 << bit  # of the number of samples, which no checksum of FLAC covers
    with pytest.raises(UnusableClipError, match=r"checksum of the samples|truncated|longer"):
        decode(bytes(data))


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
@pytest.mark.parametrize("channels", [1, 2])
def test_whole_flacs_pass_the_checksum(subtype: str, channels: int) -> None:
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, (3000, channels))
    file = io.BytesIO()
    soundfile.write(file, wave, 16000, format="FLAC", subtype=subtype)
    samples, rate = decode(file.getvalue())
    assert rate == 16000
    np.testing.assert_allclose(samples, wave.mean(axis=1), atol=0.01)


def test_a_clip_that_is_a_device_is_not_read(tmp_path: Path) -> None:
    os.symlink("/dev/zero", tmp_path / "a.wav")
    with pytest.raises(UnusableClipError, match="no regular file"):
        read_audio(tmp_path / "a.wav")


def test_a_model_that_is_a_device_is_not_read(tmp_path: Path) -> None:
    os.symlink("/dev/zero", tmp_path / "m.onnx")
    for path in (tmp_path / "m.onnx", tmp_path):
        with pytest.raises(ModelFileError, match=r"no regular file|folder"):
            Classifier(path)


def test_small_files_are_regular_and_small(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_small(tmp_path / "a", 5) == b"12345"
    for path, most in ((tmp_path / "a", 4), (tmp_path, 9), (Path("/dev/zero"), 9)):
        with pytest.raises(OSError, match=r"bytes|regular"):
            read_small(path, most)


def test_labels_from_a_device_or_without_end(material: Any, tmp_path: Path) -> None:
    description = read_description(material.description)
    with pytest.raises(TeacherError, match="no regular file"):
        labels_of(description.model_copy(update={"labels": "/dev/zero"}))
    (tmp_path / "labels").write_text("\n".join(map(str, range(100_001))))
    with pytest.raises(TeacherError, match="100001 classes, more than"):
        labels_of(description.model_copy(update={"labels": str(tmp_path / "labels")}))


def test_a_factory_that_ends_the_program() -> None:
    with pytest.raises(TeacherError, match="fails"):
        build_module("sys:exit", {})


def test_an_archive_with_a_nameless_file_or_too_much(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name, message in (("", "without a name"), ("top/audio/a", "too much")):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
            file.writestr(zipfile.ZipInfo(name), bytes(99))
        with pytest.raises(DataError, match=message) as caught:
            unpack(tmp_path / "a.zip", tmp_path / "out", keep=("audio/",), max_bytes=9)
        assert caught.value.fix
    assert not list((tmp_path / "out").iterdir())


def _shard(material: Any, folder: Path, change: Any) -> Path:
    """A copy of the bank with one shard changed, under a hash that fits."""
    import shutil

    shutil.copytree(material.bank, folder)
    index = json.loads((folder / "bank.json").read_text())
    entry = index["shards"][0]
    tensors = load_file(folder / entry["file"])
    change(tensors)
    data = save(tensors)
    (folder / entry["file"]).write_bytes(data)
    entry["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "bank.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("logits"),
        lambda t: t.update(mels=t["mels"][:1].clone()),
        lambda t: t.update(mels=t["mels"].float()),
        lambda t: t.update(labels=torch.full_like(t["labels"], 99)),
        lambda t: t.update(logits=t["logits"][:, :1].clone()),
    ],
)
def test_a_bank_whose_tensors_are_not_those_of_its_index(
    material: Any, tmp_path: Path, change: Any
) -> None:
    with pytest.raises(BankError, match="does not hold what"):
        Bank.open(_shard(material, tmp_path / "bank", change))


def test_a_bank_of_values_that_are_not_finite(material: Any, tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["mels"].fill_(torch.nan)

    bank = Bank.open(_shard(material, tmp_path / "bank", change))
    with pytest.raises(BankError, match="not finite"):
        bank.read(bank.index.shards[0].source)


def test_a_card_that_asks_for_a_huge_network(material: Any, tmp_path: Path) -> None:
    data = material.teacher.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    card = json.loads(header["__metadata__"]["frami.card"])
    card["arch"]["channels"] = [1024] * 500
    header["__metadata__"]["frami.card"] = json.dumps(card)
    text = json.dumps(header).encode()
    path = tmp_path / "huge.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    with pytest.raises(CheckpointError, match="do not fit"):
        load_checkpoint(path)


def test_a_state_with_code_under_a_hash_that_fits(fuzz: Any, tmp_path: Path) -> None:
    payload = importlib.import_module("fuzzing.weights").Payload(tmp_path / "RAN", 0)
    save_state(tmp_path / "s", {"step": 1})
    head = (tmp_path / "s").read_bytes()[:19]
    buffer = io.BytesIO()
    torch.save({"step": payload}, buffer)
    for body in (buffer.getvalue(), b""):
        (tmp_path / "s").write_bytes(head + hashlib.sha256(body).digest() + body)
        assert load_state(tmp_path / "s") is None
    assert not (tmp_path / "RAN").exists()


def test_a_manifest_that_is_nested_too_deeply(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(RunError, match="damaged"):
        read_manifest(tmp_path)


def test_class_names_that_a_picture_cannot_show(material: Any, tmp_path: Path) -> None:
    names = ["$\\frac{", "x" * 5000, "\x00\x1b[2J", "../../x"]
    confusion(tmp_path / "c.png", torch.eye(4), names, "Confusion")
    assert (tmp_path / "c.png").stat().st_size > 1000
    assert [len(short(name)) for name in names] == [7, LONGEST_NAME, 5, 7]
    assert short("\x1bx") == "?x"


def test_a_mel_grid_of_many_classes_shows_some(
    material: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load_checkpoint(material.teacher).spec
    monkeypatch.setattr("frami_edge.plots.MOST_CLASSES", 3)
    clips = {f"{i}": torch.zeros(1, spec.n_mels, 9) for i in range(MOST_CLASSES)}
    mel_grid(tmp_path / "m.png", clips, spec, "Mels")
    assert int.from_bytes((tmp_path / "m.png").read_bytes()[20:24], "big") < 600


def test_a_model_with_weights_elsewhere(material: Any, sandbox: Any, tmp_path: Path) -> None:
    import onnx

    model = onnx.load_from_string(material.models[0])
    tensor = model.graph.initializer[0]
    values = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    (tmp_path / "w.bin").write_bytes(values)  # even where it lies beside the model
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match="another file"):
        open_session(path.read_bytes(), 1, path.name)
    case = sandbox.open("model")
    assert "another file" in " ".join(case.cli_json("inspect", path)["findings"])


@pytest.mark.parametrize("kind", ["meta", "sparse", "complex", "nan"])
def test_weights_without_plain_values(material: Any, tmp_path: Path, kind: str) -> None:
    state = torch.load(material.weights, weights_only=True)
    value = state["head.weight"]
    state["head.weight"] = {
        "meta": lambda: torch.zeros_like(value, device="meta"),
        "sparse": value.to_sparse,
        "complex": lambda: value.to(torch.complex64),
        "nan": lambda: torch.full_like(value, torch.nan),
    }[kind]()
    torch.save(state, tmp_path / "w.pt")
    description = read_description(material.description)
    with pytest.raises(CheckpointError, match=r"missing|complex|finite"):
        open_teacher(description.model_copy(update={"weights": str(tmp_path / "w.pt")}))


@pytest.mark.parametrize(
    "text",
    ["a: !!bool x", "a: !!timestamp x", "a: !!binary aGk=", "!!set {a, b}", 'a: "\\ud800"',
     "!!python/object/apply:os.system ['true']", "a: !own x"],
)  # fmt: skip
def test_yaml_with_tags_or_half_characters(text: str) -> None:
    with pytest.raises(ValueError, match=r"^line 1: (tags|half)"):
        _yaml.parse(text)
    assert _yaml.parse("a: ! x") == {"a": "x"}
