"""Audio files, data folders, feature caches and archives: damaged, cut, hostile."""

from __future__ import annotations

import io
import os
import stat
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_material import Rng, WrongAnswerError, damage

from frami_edge.data import UnusableClipError
from frami_edge.data.reading import LOUDEST_PEAK, MAX_CLIP_S, decode
from frami_edge.data.unpack import unpack
from frami_edge_runtime.errors import FramiEdgeError
from fuzzing.case import Case
from fuzzing.material import SPEC, audio

_COVERED = ("flac", "ogg")
"""Formats whose every byte of sound lies under a checksum."""
NAMES = (
    "../escape.wav", "../../escape.wav", "/tmp/escape.wav", "a/../../escape.wav", "..\\escape.wav",
    "C:\\escape.wav", "C:escape.wav", "./a.wav", "a//b.wav", "a\0b.wav", "con.wav", "x" * 300,
    "\N{SNOWMAN}.wav", "a\nb.wav", "~/escape.wav", "audio/../../../escape.wav", "", ".", "..",
    "\x1b[2J.wav", "audio/./../../escape.wav", "-rf",
)  # fmt: skip


def wav(rng: Rng, case: Case) -> None:
    """A WAV file, damaged mostly in its header, or cut."""
    _sound(rng, case, str(rng.choice(["wav", "wav24", "float"])), head=60)


def flac(rng: Rng, case: Case) -> None:
    """A FLAC file, damaged or cut; its frames have checksums."""
    _sound(rng, case, "flac", head=120)


def compressed(rng: Rng, case: Case) -> None:
    """An Ogg or MP3 file, damaged or cut; Ogg pages have checksums."""
    _sound(rng, case, str(rng.choice(["ogg", "ogg", "mp3"])), head=200)


def _sound(rng: Rng, case: Case, kind: str, head: int) -> None:
    x = case.material.clip[: int(rng.integers(400, len(case.material.clip)))]
    if kind == "float" and rng.random() < 0.4:
        x = x.copy()
        x[int(rng.integers(0, len(x)))] = rng.choice([np.nan, np.inf, 1e30, 40.0, -1e38])
    data = audio(x, kind)
    other = audio(case.material.clip[::-1], kind)
    way = int(rng.integers(0, 4))
    if way == 0:
        bad = data[: int(rng.integers(0, len(data)))]
    elif way == 1:
        at = int(rng.integers(0, len(data)))
        bad = data[:at] + bytes([data[at] ^ (1 << int(rng.integers(0, 8)))]) + data[at + 1 :]
    elif way == 2:
        bad = _odd_sizes(rng, data)
    else:
        bad = damage(rng, data, [other], head=head)
    case.write(f"case.{kind}", bad)
    samples, rate = decode(bad)
    if samples.ndim != 1 or samples.dtype != np.float32 or not np.isfinite(samples).all():
        raise WrongAnswerError(f"samples {samples.dtype} {samples.shape}")
    if not len(samples) or np.abs(samples).max() > LOUDEST_PEAK or rate < 1:
        raise WrongAnswerError("samples out of range")
    if len(samples) > MAX_CLIP_S * rate:
        raise WrongAnswerError("longer than the limit")
    if way == 0 or (way == 1 and kind in _COVERED):
        intact, right = decode(data)
        if rate == right and not np.array_equal(samples, intact):
            raise WrongAnswerError(
                f"{kind} that was {'cut' if way == 0 else 'damaged under a checksum'} is accepted "
                f"with other sound ({len(samples)} of {len(intact)} samples)"
            )


def _odd_sizes(rng: Rng, data: bytes) -> bytes:
    """A four-byte number of the header made huge, zero or negative."""
    out = bytearray(data)
    at = int(rng.integers(0, 64))
    value = int(rng.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFE, 1 << 24]))
    out[at : at + 4] = struct.pack(str(rng.choice(["<I", ">I"])), value)
    return bytes(out)


def dataset(rng: Rng, case: Case) -> None:
    """A folder of classes with odd names, links, damaged clips and a damaged feature cache."""
    import torch

    from frami_edge.data import load_set
    from frami_edge.data.store import FeatureStore

    tones = case.copy(case.material.sounds, "tones")
    cache = case.folder / "cache"
    files = sorted(tones.rglob("*.wav"))
    way = int(rng.integers(0, 5))
    if way == 0:
        for path in rng.choice(np.array(files, object), int(rng.integers(1, len(files))), False):
            path.write_bytes(damage(rng, path.read_bytes(), [b"\0" * 99], head=60))
    elif way == 1:
        name = str(rng.choice([n for n in NAMES if n and "/" not in n and "\0" not in n]))
        (tones / "train" / name[:200]).mkdir(exist_ok=True)
        odd = [b"", audio(case.material.clip[:3000], "wav"), b"RIFF"]
        (tones / "train" / name[:200] / "0.wav").write_bytes(odd[int(rng.integers(0, 3))])
    elif way == 2:
        target = [tones, Path("/etc/passwd"), Path("nowhere"), Path("/dev/zero"), tones / "train"]
        link = tones / "train" / "high" / "link.wav"
        os.symlink(target[int(rng.integers(0, 5))], link)
    right = None
    if way >= 3:
        right = FeatureStore(SPEC, cache).load(load_set(f"folder:{tones}").clips)
        stored = sorted(path for path in cache.rglob("*") if path.is_file())
        path = stored[int(rng.integers(0, len(stored)))]
        path.write_bytes(damage(rng, path.read_bytes(), [bytes(99)], head=300))
    features = FeatureStore(SPEC, cache).load(load_set(f"folder:{tones}").clips)
    if not all(bool(torch.isfinite(mel).all()) for mel in features.mels):
        raise WrongAnswerError("a log-mel that is not finite")
    if right is not None and not all(map(torch.equal, features.mels, right.mels)):
        raise WrongAnswerError("a damaged cache changed the features")


def metadata(rng: Rng, case: Case) -> None:
    """ESC-50's and UrbanSound8K's own table of clips: damaged, or naming files elsewhere."""
    from frami_edge.data import load_set

    esc = bool(rng.random() < 0.5)
    rows = []
    for i in range(2000 if esc else 8732):
        fold = i % 5 + 1 if esc else i % 10 + 1
        k = i % 50 if esc else i % 10
        rows.append([f"{i}.wav", str(fold), str(k), f"class{k}", str(k < 10)])
    head = "filename,fold,target,category,esc10" if esc else "slice_file_name,fold,classID,class,x"
    odd = [*NAMES, "9" * 5000, "\N{SUPERSCRIPT TWO}", "-1", "nan", '"', "1.0", "\ud800", "1" * 200]
    for _ in range(int(rng.integers(0, 4))):
        row = rows[int(rng.integers(0, len(rows)))]
        row[int(rng.integers(0, 5))] = odd[int(rng.integers(0, len(odd)))]
    text = "\n".join([head, *(",".join(row) for row in rows)])
    data = text.encode("utf-8", "surrogatepass")
    if rng.random() < 0.3:
        data = damage(rng, data, [data[:900]], head=90)
    where = "ESC-50-master/meta/esc50.csv" if esc else "UrbanSound8K/metadata/UrbanSound8K.csv"
    case.write(f"data/{where}", data)
    name = str(rng.choice(["esc50", "esc10"])) if esc else "urbansound8k"
    load_set(name, case.folder / "data")
    raise WrongAnswerError("a set without one clip was accepted")


def archive(rng: Rng, case: Case) -> None:
    """A zip with paths that leave the folder, links, twins, bombs, or damaged bytes; or no zip."""
    target = case.folder / "out"
    target.mkdir()
    path = case.folder / "case-archive.zip"
    way = int(rng.integers(0, 9))
    if way == 0:
        _tar(path)
    else:
        path.write_bytes(_zip(rng, way))
    limit = 1 << 20
    try:
        count = unpack(path, target, keep=("audio/", "meta/"), max_bytes=limit)
    finally:
        inside = [p for p in target.rglob("*") if p.is_symlink() or p.is_file()]
        if any(p.is_symlink() for p in inside):
            raise WrongAnswerError("a link was made")
        if sum(p.stat().st_size for p in inside) > limit:
            raise WrongAnswerError("more was written than allowed")
    if count != len(inside):
        raise WrongAnswerError(f"{count} files promised, {len(inside)} there")


def _zip(rng: Rng, way: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for i in range(int(rng.integers(0, 4))):
            file.writestr(f"top/audio/{i}.wav", bytes(100 * i))
        if way in (1, 2):
            file.writestr(zipfile.ZipInfo(f"top/audio/{rng.choice(NAMES)}"), b"escape")
            file.writestr(zipfile.ZipInfo(str(rng.choice(NAMES))), b"escape")
        elif way == 3:
            info = zipfile.ZipInfo("top/audio/link")
            kinds = [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFBLK, stat.S_IFDIR]
            info.external_attr = (kinds[int(rng.integers(0, 4))] | 0o777) << 16
            file.writestr(info, "/etc/passwd")
            file.writestr("top/audio/link/x", b"through the link")
        elif way == 4:
            file.writestr("top/audio/bomb", bytes(int(rng.choice([1 << 20, 1 << 24]))))
        elif way == 5:
            for name in ("top/audio/A.wav", "top/audio/a.wav", "top/audio/a.wav/b"):
                file.writestr(zipfile.ZipInfo(name), b"twin")
    data = buffer.getvalue()
    if way == 6:  # sizes that lie: the directory says little, the stream holds much
        at = data.find(b"PK\1\2")
        size = struct.pack("<I", int(rng.choice([0, 1, 0xFFFFFFFF, 1 << 30])))
        if at >= 0:
            data = data[: at + 24] + size + data[at + 28 :]
    if way >= 7:
        data = damage(rng, data, [data[::-1]])
    return data


def _tar(path: Path) -> None:
    with tarfile.open(path, "w:gz") as file:
        info: Any = tarfile.TarInfo("../escape.wav")
        info.size = 6
        file.addfile(info, io.BytesIO(b"escape"))


SOUNDS = {
    "wav": wav, "flac": flac, "ogg-mp3": compressed, "dataset": dataset, "metadata": metadata,
    "archive": archive,
}  # fmt: skip
REASON_ONLY: tuple[type[FramiEdgeError], ...] = (UnusableClipError,)
"""Their message is a reason for a list of left-out clips; the fix is the list's."""
