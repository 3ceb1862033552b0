"""Checkpoints: safetensors with a card, never a pickle.

A checkpoint says everything needed to use it: network, front end, labels, what it was trained on.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, overload

import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from frami_edge.config import Strict, StudentArch, TeacherArch
from frami_edge.errors import CheckpointError
from frami_edge.frontend import LogMel
from frami_edge.io import atomic_write_bytes, sha256_file
from frami_edge.models import Hidden, ResNetTeacher, StudentNet
from frami_edge_runtime import __version__
from frami_edge_runtime.errors import MelSpecError
from frami_edge_runtime.melspec import MelSpec

SCHEMA = 1
_KEY = "frami.card"
ASSETS = Path(__file__).parent / "assets"
DIGITS_TEACHER = ASSETS / "digits-teacher.safetensors"
"""Ten spoken digits, trained by `frami-edge train-teacher fsdd-teacher`; see digits-teacher.md."""


def teacher_assets() -> dict[str, Path]:
    """Teachers that ship in the package, by name."""
    return {file.stem: file for file in sorted(ASSETS.glob("*.safetensors"))}


class TrainedOn(Strict):
    """The real clips that a network was trained on."""

    data: str  # name of the set
    test_fold: str  # the fold that was held out
    clips: int = Field(ge=0)
    sha256: str  # over names and contents of the clips
    licence: str = ""  # licence of the clips
    source: str = ""  # where they come from
    audio: str = ""
    """Hashes of the clips' samples, 8 bytes each in base64; "" where only names can be compared."""

    def heard(self, audio: Iterable[str]) -> list[bool]:
        """Which clips, by `Features.audio`, are among them; none where it holds no hashes."""
        packed = base64.b64decode(self.audio)
        known = {packed[i : i + 8].hex() for i in range(0, len(packed), 8)}
        return [digest in known for digest in audio]

    @staticmethod
    def pack(audio: Iterable[str]) -> str:
        """`Features.audio` as the field `audio`."""
        return base64.b64encode(bytes.fromhex("".join(sorted(set(audio))))).decode()


class Card(Strict):
    """What a checkpoint says about its network."""

    schema_version: int = SCHEMA
    kind: Literal["teacher", "student"]
    arch: dict[str, Any]
    """Shape of the network: `TeacherArch`, `StudentArch`, or how a foreign teacher is built."""
    mel: dict[str, Any]
    """Front end with its statistics, as MelSpec writes it."""
    labels: tuple[str, ...] = Field(min_length=1, max_length=100_000)
    """Class names, in the order of the logits."""
    output: Literal["softmax", "sigmoid"] = "softmax"
    """One of K classes, or a detector per class."""
    keep: dict[str, tuple[str, ...]] | None = None
    """Labels of the original teacher behind each label; None for all of them, unchanged."""
    trained_on: TrainedOn | None = None
    """Real clips of a teacher's training; None for a student, which saw none."""
    teacher_sha256: str | None = None
    """The teacher that a student was distilled from."""
    teacher_trained_on: TrainedOn | None = None
    """Real clips of that teacher's training: a student must not be scored on them either."""
    recordings: int = Field(default=0, ge=0)
    """The user's own recordings that a student learned from; 0 for a student without real audio."""
    recipe: dict[str, Any] = Field(default_factory=dict)
    """The config that made it, seed included."""
    metrics: dict[str, Any] = Field(default_factory=dict)
    """Measured after the last step."""
    licence: str = ""
    """Licence of the weights."""
    version: str = __version__
    """Version of frami-edge."""

    @model_validator(mode="after")
    def _has_a_choice(self) -> Card:
        if self.output == "softmax" and len(self.labels) < 2:
            raise ValueError("a softmax over one class says nothing")
        return self

    @property
    def real_clips(self) -> TrainedOn | None:
        """Real clips behind the weights, directly or through the teacher."""
        return self.trained_on or self.teacher_trained_on


@dataclass(eq=False, repr=False)
class _Opened:
    """A network, in evaluation mode and without gradients, with what is needed to use it."""

    model: Any
    card: Card
    mel: MelSpec
    sha256: str
    """Hash of the weights file; of the weights themselves for a module in memory."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, in the order of the logits."""
        return self.card.labels

    @property
    def output(self) -> Literal["softmax", "sigmoid"]:
        """How logits become scores: one of K classes, or a detector per class."""
        return self.card.output

    @property
    def sample_rate(self) -> int:
        """Sample rate of the front end, in Hz."""
        return self.mel.sample_rate

    def __repr__(self) -> str:
        size = f"{len(self.labels)} classes, {parameters(self.model):,} parameters"
        front = f"{self.sample_rate} Hz, {self.mel.n_mels} mel bands"
        return f"{type(self).__name__}({size}, {front})"

    def __call__(self, x_B1MT: Tensor) -> Tensor:
        """(B, 1, M, T) normalised log-mels to (B, K) logits."""
        return cast(Tensor, self.model(x_B1MT))

    def hidden(self, x_B1MT: Tensor) -> Hidden:
        """Frame features, pooled state and logits of (B, 1, M, T) normalised log-mels."""
        return cast(Hidden, self.model.hidden(x_B1MT))


@dataclass(eq=False, repr=False)
class Teacher(_Opened):
    """A trained classifier: ours, or any network that `load_teacher` accepts.

    Its model has what `models.TeacherLike` lists. Where `takes` is ``audio``, `mel` is only the
    front end that is proposed for the student.
    """

    description: Strict | None = None
    """How a teacher in Python code is built, a `teachers.TeacherDescription`."""

    @property
    def takes(self) -> Literal["mel", "audio"]:
        """What its network takes: normalised log-mels, or samples at `sample_rate`."""
        return cast(Literal["mel", "audio"], self.model.takes)

    @property
    def step_s(self) -> float:
        """Seconds per step of its input: per mel frame, or per sample."""
        return self.mel.hop_s if self.takes == "mel" else 1 / self.sample_rate

    def listen(self, audio_BN: Tensor) -> Tensor:
        """(B, N) samples at `sample_rate` to what its network takes."""
        if self.takes == "audio":
            return audio_BN
        return cast(Tensor, LogMel(self.mel).to(audio_BN.device)(audio_BN))[:, None]


@dataclass(eq=False, repr=False)
class Student(_Opened):
    """A distilled student with its front end and labels."""

    model: StudentNet

    def save(self, path: str | os.PathLike[str]) -> str:
        """Write the student as one safetensors file; returns its SHA-256."""
        self.sha256 = save_checkpoint(Path(path), self.model, self.card)
        return self.sha256


def save_checkpoint(path: Path, model: nn.Module, card: Card) -> str:
    """Write weights and card; returns the file's SHA-256."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    atomic_write_bytes(path, save(tensors, metadata={_KEY: card.model_dump_json()}))
    return sha256_file(path)


def read_card(path: Path) -> tuple[Card, dict[str, Tensor]]:
    """Card and tensors of a checkpoint; nothing in the file is executed.

    Raises:
        CheckpointError: Missing, damaged, not ours, or of another schema.
    """
    if not path.is_file():
        raise CheckpointError(
            f"There is no checkpoint {path}.",
            fix="Check the path; `frami-edge train-teacher` writes RUN/teacher.safetensors, "
            "`frami-edge distill` RUN/student.safetensors.",
        )
    if path.suffix.lower() in (".onnx", ".ort"):
        raise CheckpointError(
            f"{path} is an ONNX file, and a checkpoint is needed here.",
            fix="Give the .safetensors file of `frami-edge train-teacher` or `frami-edge distill`; "
            "a network from elsewhere can be a teacher: docs/MY_TEACHER.md.",
        )
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        fix = (
            "Give a .safetensors file. Pickled .pt and .pth files are not read: they can run code."
        )
        if path.suffix.lower() == ".safetensors":
            fix = "Copy it again."
        raise CheckpointError(
            f"{path} is not a whole safetensors file: {error}.", fix=fix
        ) from error
    if _KEY not in metadata:
        raise CheckpointError(
            f"{path} is a safetensors file, but not one of frami-edge: it has no card.",
            fix="Use a file written by `frami-edge train-teacher` or `frami-edge distill`.",
        )
    try:
        card = Card.model_validate_json(metadata[_KEY])
        if card.schema_version != SCHEMA:
            raise ValueError
    except ValueError as error:
        raise CheckpointError(
            f"The card in {path} is damaged or from another version of frami-edge.",
            fix="Write the checkpoint again with this version.",
        ) from error
    return card, tensors


@overload
def load_checkpoint(path: Path, kind: Literal["teacher"]) -> Teacher: ...
@overload
def load_checkpoint(path: Path, kind: Literal["student"]) -> Student: ...
@overload
def load_checkpoint(path: Path, kind: None = None) -> Teacher | Student: ...


def load_checkpoint(
    path: Path, kind: Literal["teacher", "student"] | None = None
) -> Teacher | Student:
    """Build the network that a checkpoint describes and load its weights.

    Raises:
        CheckpointError: As `read_card`; or weights and card do not match, or the file holds the
            other ``kind``.
    """
    card, tensors = read_card(path)
    if kind and card.kind != kind:
        raise CheckpointError(
            f"{path} holds a {card.kind}, and a {kind} is needed here.",
            fix=f"Give the {kind}'s checkpoint.",
        )
    try:
        mel = MelSpec.from_dict(card.mel)
        with torch.device("meta"):  # shapes alone: a card may ask for more than the file holds
            shapes = {name: t.shape for name, t in _network(card, mel).state_dict().items()}
        if shapes != {name: t.shape for name, t in tensors.items()}:
            raise RuntimeError("names or shapes differ")
        model = _network(card, mel)
        model.load_state_dict(tensors)
    except (MelSpecError, ValueError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(
            f"The weights in {path} do not fit the network that its card describes ({first}).",
            fix="The file was changed after it was written: use the original.",
        ) from error
    if not all(torch.isfinite(t).all() for t in tensors.values() if t.is_floating_point()):
        raise CheckpointError(
            f"{path} holds weights that are not finite.",
            fix="Its training diverged: train again with a smaller learning rate.",
        )
    model.eval().requires_grad_(False)
    if isinstance(model, StudentNet):
        return Student(model, card, mel, sha256_file(path))
    return Teacher(model, card, mel, sha256_file(path))


def _network(card: Card, mel: MelSpec) -> ResNetTeacher | StudentNet:
    k = len(card.labels)
    if card.kind == "teacher":
        return ResNetTeacher(TeacherArch.model_validate(card.arch), mel.n_mels, k)
    return StudentNet(StudentArch.model_validate(card.arch), mel.n_mels, k)


def parameters(model: nn.Module) -> int:
    """Number of weights."""
    return sum(p.numel() for p in model.parameters())
