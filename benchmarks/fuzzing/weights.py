"""Checkpoints, safetensors headers, torch files with code inside, and saved states."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_material import ODD, Rng, WrongAnswerError, change, damage
from safetensors.torch import save

from frami_edge.models.checkpoint import load_checkpoint
from frami_edge.states import load_state, save_state
from frami_edge.teachers.opening import open_teacher
from frami_edge.teachers.weights import read_weights
from fuzzing.case import Case
from fuzzing.material import SPEC

_KEY = "frami.card"


class Payload:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, place: Path, way: int) -> None:
        self.place, self.way = str(place), way

    def __reduce__(self) -> Any:
        """Several doors to the same room."""
        code = f"open({self.place!r}, 'w').close()"
        ways: list[Any] = [
            (os.system, (f"touch {self.place}",)), (eval, (code,)), (exec, (code,)),
            (open, (self.place, "w")), (os.mkdir, (self.place,)),
            (__import__, ("fuzzpayload",)), (getattr, ("x", "upper")),
        ]  # fmt: skip
        return ways[self.way % len(ways)]


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def _joined(header: Any, body: bytes, size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + body


def use_network(path: Path) -> None:
    """Load it and answer: finite logits of as many classes as the card names."""
    loaded = load_checkpoint(path)
    mels_B1MT = torch.zeros(2, 1, loaded.spec.n_mels, 64)
    with torch.no_grad():
        logits_BK = loaded.model(mels_B1MT)
    if logits_BK.shape != (2, len(loaded.card.labels)):
        raise WrongAnswerError(f"logits {tuple(logits_BK.shape)}")


def checkpoint(rng: Rng, case: Case) -> None:
    """A teacher's or student's checkpoint with damaged bytes, or cut."""
    source = case.material.teacher if rng.random() < 0.5 else case.material.student
    data = source.read_bytes()
    way = rng.random()
    if way < 0.3:
        data = data[: int(rng.integers(0, len(data)))]
    else:
        data = damage(rng, data, [case.material.student.read_bytes()], head=2000)
    path = case.write("case.safetensors", data)
    if rng.random() < 0.25:
        case.cli_json("inspect", path)
    else:
        use_network(path)


def card(rng: Rng, case: Case) -> None:
    """A checkpoint whose card was changed: one value, huge networks, odd front ends, deep nests."""
    source = case.material.teacher if rng.random() < 0.5 else case.material.student
    header, body = _split(source.read_bytes())
    values = json.loads(header["__metadata__"][_KEY])
    way = int(rng.integers(0, 6))
    if way == 0:
        huge: list[Any] = [[1024] * 9, [1024] * 500, [4] * 20_000, [8] * 3, [10**9] * 3, []]
        values["arch"]["channels"] = huge[int(rng.integers(0, 6))]
        if "time_kernels" in values["arch"]:
            values["arch"]["time_kernels"] = [3] * len(values["arch"]["channels"])
    elif way == 1:
        many = int(rng.choice([0, 1, 2, 3, 60_000, 100_000, 100_001]))
        values["labels"] = [f"class {i}" for i in range(many)]
    elif way == 2:
        change(rng, values["mel"])
    else:
        for _ in range(int(rng.integers(1, 4))):
            change(rng, values)
    text = json.dumps(values)
    if way == 5:
        depth = int(rng.choice([500, 990, 5000, 200_000]))
        text = text.replace('"licence":', '"x":' + "[" * depth + "]" * depth + ',"licence":', 1)
    header["__metadata__"][_KEY] = text
    path = case.write("case.safetensors", _joined(header, body))
    if rng.random() < 0.25:
        case.cli_json("inspect", path)
    else:
        use_network(path)


def safetensors(rng: Rng, case: Case) -> None:
    """A header that lies: huge sizes and shapes, overlaps, other types, twins; NaN weights."""
    header, body = _split(case.material.student.read_bytes())
    names = [name for name in header if name != "__metadata__"]
    name = names[int(rng.integers(0, len(names)))]
    entry = header[name]
    size: int | None = None
    way = int(rng.integers(0, 10))
    if way == 0:
        size = int(rng.choice([0, 1, 1 << 20, 1 << 40, (1 << 63) - 1]))
    elif way == 1:
        entry["shape"] = [[1 << 40, 1 << 40], [1 << 62, 4], [0], [], [-1], [1] * 2000, [1e9], None][
            int(rng.integers(0, 8))
        ]
    elif way == 2:
        odd = [[0, 1 << 60], [0, 4], [8, 4], [-4, 0], header[names[0]]["data_offsets"], [], "0"]
        entry["data_offsets"] = odd[int(rng.integers(0, 7))]
    elif way == 3:
        entry["dtype"] = str(
            rng.choice(["F64", "I8", "BOOL", "F8_E4M3", "F4", "X", "", "BF16", "C64", "U64"])
        )
    elif way == 4:
        values = np.frombuffer(body, np.float32).copy()
        start = int(rng.integers(0, len(values)))
        values[start : start + int(rng.integers(1, 99))] = rng.choice([np.nan, np.inf, 3e38, 0])
        body = values.tobytes()
    elif way == 5:
        header["x" * int(rng.integers(0, 70_000))] = header.pop(name)
    elif way == 6:
        extra = {"dtype": "F32", "shape": [0], "data_offsets": [len(body), len(body)]}
        header |= {f"{i}": extra for i in range(int(rng.choice([1, 3000])))}
    elif way == 7:
        header["__metadata__"] = [None, {}, {"x": 1}, {_KEY: ""}, [], {_KEY: "{}"}][
            int(rng.integers(0, 6))
        ]
    elif way == 8:
        text = json.dumps(header).encode()
        twin = b'{"%b":%b,' % (name.encode(), json.dumps(entry).encode())
        case_bytes = _joined(twin + text[1:], body)
        return _both(rng, case, case_bytes)
    else:
        body = body[: int(rng.integers(0, len(body)))] + bytes(int(rng.choice([0, 0, 1, 4096])))
    return _both(rng, case, _joined(header, body, size))


def _both(rng: Rng, case: Case, data: bytes) -> None:
    path = case.write("case.safetensors", data)
    way = rng.random()
    if way < 0.2:
        case.cli_json("inspect", path)
    elif way < 0.4:
        read_weights(path)
    else:
        use_network(path)


def torch_file(rng: Rng, case: Case) -> None:
    """A torch file with code inside, odd objects, odd tensors or damaged bytes: nothing runs."""
    mark = case.folder.parent.parent / "RAN"  # outside of the case: its coming is seen
    way = int(rng.integers(0, 7))
    state: Any = torch.load(case.material.weights, weights_only=True)
    payload = Payload(mark, int(rng.integers(0, 7)))
    buffer = io.BytesIO()
    if way == 0:
        torch.save({"state_dict": state, "extra": payload}, buffer)
        data = buffer.getvalue()
    elif way == 1:
        data = pickle.dumps(payload, protocol=int(rng.integers(0, 6)))
    elif way == 2:
        torch.save([payload, state][:: int(rng.choice([1, -1]))], buffer,
                   _use_new_zipfile_serialization=bool(rng.random() < 0.5))  # fmt: skip
        data = buffer.getvalue()
    elif way == 3:
        data = _with_pickle(case.material.weights.read_bytes(), pickle.dumps(payload, protocol=2))
    elif way == 4:
        state = _odd_tensors(rng, state)
        torch.save(state, buffer)
        data = buffer.getvalue()
    elif way == 5:
        odd: list[Any] = [None, [], 3, "x", {}, {"a": 1}, {1: torch.zeros(2)}, [state], set()]
        nested: dict[str, Any] = {}
        nested["model"] = nested
        odd += [nested, {"state_dict": {"model": {"net": state}}}, torch.zeros(3)]
        torch.save(odd[int(rng.integers(0, len(odd)))], buffer)
        data = buffer.getvalue()
    else:
        data = damage(rng, case.material.weights.read_bytes(), [pickle.dumps([1])])
    suffix = str(rng.choice(["pt", "pth", "bin", "safetensors", "ckpt"]))
    path = case.write(f"case.{suffix}", data)
    text = case.material.description.read_text().replace("foreign.pt", path.name)
    description = case.write("case.yaml", text)
    if rng.random() < 0.2:
        case.cli_json("inspect", path if rng.random() < 0.5 else description)
        return
    loaded = open_teacher(description)
    with torch.no_grad():
        logits = loaded.model(torch.zeros(2, 1, SPEC.n_mels, 64))
    if not torch.isfinite(logits).all():
        raise WrongAnswerError("logits that are not finite")


def _with_pickle(data: bytes, pickled: bytes) -> bytes:
    """A torch archive whose data.pkl is another one."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            body = pickled if info.filename.endswith("data.pkl") else old.read(info)
            new.writestr(info.filename, body)
    return out.getvalue()


def _odd_tensors(rng: Rng, state: dict[str, Any]) -> dict[str, Any]:
    name = sorted(state)[int(rng.integers(0, len(state)))]
    value = state[name]
    odd: list[Any] = [
        torch.zeros(1).expand(1 << 20, 1 << 20), value.double(), value.to(torch.complex64),
        value.to_sparse() if value.ndim else value, torch.full_like(value, torch.nan) if
        value.is_floating_point() else value, value.unsqueeze(0), torch.zeros(0), None, "x",
        value.half(), torch.zeros_like(value, device="meta"), value.bool(),
        torch.zeros(()).expand(value.shape),
    ]  # fmt: skip
    return {**state, name: odd[int(rng.integers(0, len(odd)))]}


def state_file(rng: Rng, case: Case) -> None:
    """A job's saved state: damaged it is known to be, whole it is equal; code never runs."""
    path = case.folder / "state.pt"
    saved = {"step": 7, "rng": torch.arange(9), "model": {"w": torch.randn(3, 4)}, "odd": None}
    if rng.random() < 0.3:
        saved["odd"] = ODD[int(rng.integers(0, len(ODD)))]
    save_state(path, saved)
    data = path.read_bytes()
    if rng.random() < 0.6:
        bad = damage(rng, data, [data[::-1]])
        path.write_bytes(bad)
        found = load_state(path)
        if found is not None and bad != data:
            raise WrongAnswerError("a damaged state was taken for whole")
        return
    import hashlib

    mark = case.folder.parent.parent / "RAN"
    buffer = io.BytesIO()
    torch.save({"step": Payload(mark, int(rng.integers(0, 7)))}, buffer)
    bodies = [buffer.getvalue(), b"", pickle.dumps([1]), damage(rng, data[51:], [data])]
    body = bodies[int(rng.integers(0, 4))]
    path.write_bytes(data[:19] + hashlib.sha256(body).digest() + body)
    load_state(path)


def bank_tensors(**tensors: Any) -> bytes:
    """A safetensors file."""
    return bytes(save(tensors))


WEIGHTS = {
    "checkpoint": checkpoint, "card": card, "safetensors": safetensors, "torch-file": torch_file,
    "state-file": state_file,
}  # fmt: skip
