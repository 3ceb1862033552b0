"""Public checkpoints that can be teachers: where they are, and a download that is checked.

A downloaded file is kept only if its size and digest are those in the table.
"""

from __future__ import annotations

import difflib
import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from frami_edge.data.sets import fetch
from frami_edge.errors import DataError, TeacherError
from frami_edge.io import atomic_path, atomic_write_text
from frami_edge.progress import ProgressCallback
from frami_edge.yaml_config import dump

DESCRIPTION = "teacher.yaml"


@dataclass(frozen=True)
class PublicFile:
    """A file with its size in bytes and its digest, `sha256:...` or `md5:...`."""

    name: str
    url: str
    size: int
    digest: str
    digest_from: str
    """Who published the digest; `frami-edge` where it was computed for this table."""


@dataclass(frozen=True)
class PublicTeacher:
    """An audio classifier with public weights.

    Those of Hugging Face's hub have neither `files` nor a `description`: transformers downloads
    them and checks their hashes.
    """

    name: str
    classes: int
    parameters: int
    size_mb: int
    licence: str
    """Licence of the weights."""
    page: str
    setup: tuple[str, ...]
    """Commands that bring the code of the network."""
    teacher: str = DESCRIPTION
    """What a command takes as its teacher."""
    options: tuple[str, ...] = ()
    """Options that it needs besides."""
    files: tuple[PublicFile, ...] = ()
    """The weights, and the names of the classes."""
    description: Mapping[str, object] | None = None
    """How to build it and what it takes: keys of `TeacherDescription`."""

    def next_commands(self, folder: Path | None = None) -> tuple[str, ...]:
        """What to run after the download into `folder`."""
        teacher = shlex.quote(str(folder.resolve() / self.teacher)) if folder else self.teacher
        return (*self.setup, " ".join(("frami-edge inspect", teacher, *self.options)))

    def yaml(self) -> str:
        """The description that goes into the folder of its files."""
        weights, labels = (file.name for file in self.files)
        files = {"weights": weights, "labels": labels}
        keys = {**(self.description or {}), **files, "licence": self.licence}
        return f"# From {self.page}, written by `frami-edge teachers {self.name}`.\n{dump(keys)}"


# Byte for byte the file in EfficientAT's repository.
_AUDIOSET_LABELS = PublicFile(
    name="class_labels_indices.csv",
    url="https://raw.githubusercontent.com/qiuqiangkong/audioset_tagging_cnn/"
    "d2f4b8c18eab44737fcc0de1248ae21eb43f6aa4/metadata/class_labels_indices.csv",
    size=14_675,
    digest="sha256:cdd1049833c4b86127c2773ac0d14a2754b6a6d0d1798002ed5c66e699708429",
    digest_from="frami-edge",
)
_EFFICIENTAT_RELEASE = "https://github.com/fschmid56/EfficientAT/releases/download/v0.0.1/"
_EFFICIENTAT: dict[str, object] = {
    "factory": "models.mn.model:get_model",
    "mel": "mel/efficientat-32k-128",
    "output": "sigmoid",
    "layout": "B1MT",
}
_MN04 = PublicTeacher(
    name="efficientat-mn04",
    classes=527,
    parameters=983_599,
    size_mb=4,
    licence="MIT",
    page="https://github.com/fschmid56/EfficientAT",
    setup=(
        "git clone https://github.com/fschmid56/EfficientAT",
        "pip install torchvision",
        "cd EfficientAT",  # when imported, its code reads a file relative to this folder
    ),
    files=(
        PublicFile(
            name="mn04_as_mAP_432.pt",
            url=f"{_EFFICIENTAT_RELEASE}mn04_as_mAP_432.pt",
            size=4_066_513,
            digest="sha256:899a8c6217063f6941793102a2780b3dd788ab11fce468d9cf5f0577c453321c",
            digest_from="frami-edge",
        ),
        _AUDIOSET_LABELS,
    ),
    description=_EFFICIENTAT | {"arguments": {"width_mult": 0.4}},
)
_MN10 = replace(
    _MN04,
    name="efficientat-mn10",
    parameters=4_876_831,
    size_mb=20,
    files=(
        PublicFile(
            name="mn10_as_mAP_471.pt",
            url=f"{_EFFICIENTAT_RELEASE}mn10_as_mAP_471.pt",
            size=19_708_753,
            # Not from its authors, but the same in at least six projects that pin this file.
            digest="sha256:0bd7dc2443af498c289a2e739f02ebb515d6aa3fd3ab9db539c86123ae368a4e",
            digest_from="others",
        ),
        _AUDIOSET_LABELS,
    ),
    description=_EFFICIENTAT | {"arguments": {"width_mult": 1.0}},
)
# The MD5s of Zenodo's record, as several projects quote them; it has no SHA-256.
_PANNS_FILES = "https://zenodo.org/records/3987831/files/"
_PANNS: dict[str, object] = {
    "arguments": {
        "sample_rate": 32_000,
        "window_size": 1024,
        "hop_size": 320,
        "mel_bins": 64,
        "fmin": 50,
        "fmax": 14_000,
        "classes_num": 527,
    },
    "sample_rate": 32_000,
    "output": "sigmoid",
}
_MOBILENET = replace(
    _MN04,
    name="panns-mobilenetv1",
    parameters=4_796_303,
    size_mb=24,
    licence="CC-BY-4.0",
    page="https://zenodo.org/records/3987831",
    setup=(
        "git clone https://github.com/qiuqiangkong/audioset_tagging_cnn",
        "pip install torchlibrosa",
        "cd audioset_tagging_cnn/pytorch",
    ),
    files=(
        PublicFile(
            name="MobileNetV1_mAP=0.389.pth",
            url=f"{_PANNS_FILES}MobileNetV1_mAP%3D0.389.pth?download=1",
            size=23_639_473,
            digest="md5:a419303e1c88aa1b9d2ac3811563d371",
            digest_from="Zenodo",
        ),
        _AUDIOSET_LABELS,
    ),
    description=_PANNS | {"factory": "models:MobileNetV1"},
)
_CNN14 = replace(
    _MOBILENET,
    name="panns-cnn14",
    parameters=80_753_615,
    size_mb=327,
    files=(
        PublicFile(
            name="Cnn14_mAP=0.431.pth",
            url=f"{_PANNS_FILES}Cnn14_mAP%3D0.431.pth?download=1",
            size=327_428_481,
            digest="md5:541141fa2ee191a88f24a3219fff024e",
            digest_from="Zenodo",
        ),
        _AUDIOSET_LABELS,
    ),
    description=_PANNS | {"factory": "models:Cnn14"},
)
_HUB = "https://huggingface.co/"
_AST = PublicTeacher(
    name="ast-audioset",
    classes=527,
    parameters=86_594_063,
    size_mb=346,
    licence="BSD-3-Clause",
    page=f"{_HUB}MIT/ast-finetuned-audioset-10-10-0.4593",
    setup=("pip install 'frami-edge[hf]'",),
    teacher="hf:MIT/ast-finetuned-audioset-10-10-0.4593",
    # Its configuration need not say that every class has a sigmoid of its own.
    options=("--output", "sigmoid"),
)
_AST_WORDS = replace(
    _AST,
    name="ast-speech-commands",
    classes=35,
    parameters=85_395_491,
    size_mb=342,
    page=f"{_HUB}MIT/ast-finetuned-speech-commands-v2",
    teacher="hf:MIT/ast-finetuned-speech-commands-v2",
    options=(),
)
_WAV2VEC2 = replace(
    _AST,
    name="wav2vec2-keywords",
    classes=12,
    parameters=94_571_673,
    size_mb=378,
    licence="Apache-2.0",
    page=f"{_HUB}superb/wav2vec2-base-superb-ks",
    teacher="hf:superb/wav2vec2-base-superb-ks",
    options=(),
)
_TEACHERS = (_MN04, _MN10, _MOBILENET, _CNN14, _AST, _AST_WORDS, _WAV2VEC2)


def public_teachers() -> tuple[PublicTeacher, ...]:
    """Every teacher that `get_teacher` knows by name, and those of the hub."""
    return _TEACHERS


def public_teacher(name: str) -> PublicTeacher:
    """One of them by name.

    Raises:
        TeacherError: None has that name.
    """
    names = {teacher.name: teacher for teacher in public_teachers()}
    key = name.strip().lower()
    if key in names:
        return names[key]
    close = difflib.get_close_matches(key, names, n=1)
    raise TeacherError(
        f"There is no public teacher {name!r}.",
        fix=f"{f'Did you mean {close[0]}? ' if close else ''}Known: {', '.join(names)}.",
    )


def get_teacher(
    teacher: PublicTeacher, folder: Path, progress: ProgressCallback | None = None
) -> list[str]:
    """Put weights, labels and a `teacher.yaml` into a folder.

    A file that is there is checked and kept; a `teacher.yaml` that is there may be edited, and is
    kept as it is. `progress` counts the bytes of the weights.

    Returns:
        The names of the files that were not there.

    Raises:
        TeacherError: A download failed, or a file is not the published one; it is not kept.
        OSError: The folder cannot be written.
    """
    fresh = []
    for file in teacher.files:
        target = folder / file.name
        if target.exists():
            _check(target, file, str(target), "Move it away, and run this command again.")
            continue
        with atomic_path(target) as temporary:
            try:
                fetch(file.url, temporary, progress=progress if file is teacher.files[0] else None)
            except DataError as error:
                raise TeacherError(
                    error.message,
                    fix="Check the connection. Or bring the file from elsewhere, put it there as "
                    f"{target}, and run this command again: it is checked in the same way.",
                ) from None
            _check(temporary, file, file.url, f"Try again, and look at {teacher.page}.")
        fresh.append(file.name)
    if not (folder / DESCRIPTION).exists():
        atomic_write_text(folder / DESCRIPTION, teacher.yaml())
        fresh.append(DESCRIPTION)
    return fresh


def _check(path: Path, file: PublicFile, where: str, fix: str) -> None:
    algorithm, _, published = file.digest.partition(":")
    size = path.stat().st_size
    problem = f"it has {size} bytes instead of {file.size}"
    if size == file.size:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, algorithm).hexdigest()
        problem = f"its {algorithm} is {found} instead of {published}" if found != published else ""
    if problem:
        raise TeacherError(f"{where} is not the published file: {problem}.", fix=fix)
