from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from frami_edge.data import store as store_module
from frami_edge.data.sets import Clip, load_set
from frami_edge.data.store import FeatureStore, measure_normalisation
from frami_edge.errors import DataError
from frami_edge.frontend import LogMel
from frami_edge_runtime.melspec import MelSpec

Tone = Callable[..., np.ndarray]
Wav = Callable[..., Path]


@pytest.fixture
def clips(tmp_path: Path, make_tone: Tone, make_wav: Wav) -> list[Clip]:
    made = []
    for i in range(8):
        rate = (8_000, 16_000)[i % 2]
        path = make_wav(
            tmp_path / "set" / f"{i}.wav", make_tone(0.3 + 0.1 * (i // 4), rate, 200 + 90 * i), rate
        )
        made.append(Clip(path, i % 3, "1", path.name))
    return made


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the files that are decoded, which is what the cache must save."""
    calls: list[int] = []
    decode = store_module.decode
    monkeypatch.setattr(store_module, "decode", lambda data: (calls.append(1), decode(data))[1])
    return calls


def test_features_are_the_front_end_on_the_file(
    tmp_path: Path, make_tone: Tone, make_wav: Wav
) -> None:
    spec = MelSpec(mean=-3.0, std=2.0)
    samples = make_tone(0.5, 16_000)
    path = make_wav(tmp_path / "a.wav", samples, subtype="FLOAT")
    got = FeatureStore(spec, tmp_path / "cache").load([Clip(path, 7, "1")])
    torch.testing.assert_close(
        got.mels[0], LogMel(spec)(torch.from_numpy(samples)), atol=1e-5, rtol=1e-5
    )
    assert got.labels.tolist() == [7]
    assert got.lengths == [spec.frames(8_000)]


@pytest.mark.parametrize("center", [False, True])
def test_the_second_load_decodes_nothing_and_gives_the_same(
    tmp_path: Path, clips: list[Clip], decoded: list[int], center: bool
) -> None:
    spec = MelSpec(mean=-4.0, std=3.0, center=center)
    first = FeatureStore(spec, tmp_path / "cache").load(clips)
    assert len(decoded) == 8
    second = FeatureStore(spec, tmp_path / "cache").load(clips)
    third = FeatureStore(spec, tmp_path / "cache").load(clips)
    assert len(decoded) == 8
    for a, b, c in zip(first.mels, second.mels, third.mels, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    assert first.sha256 == second.sha256
    assert first.labels.tolist() == [c.label for c in clips]


def test_normalisation_is_applied_after_the_cache(
    tmp_path: Path, clips: list[Clip], decoded: list[int]
) -> None:
    raw = FeatureStore(MelSpec(), tmp_path / "cache").load(clips)
    mean, std = measure_normalisation(raw)
    everything = torch.cat([m.reshape(-1) for m in raw.mels]).double()
    assert mean == pytest.approx(float(everything.mean()), abs=1e-6)
    assert std == pytest.approx(float(everything.std(correction=0)), abs=1e-6)
    fixed = FeatureStore(MelSpec(mean=mean, std=std), tmp_path / "cache").load(clips)
    assert len(decoded) == 8, "measuring and changing the normalisation reads no file again"
    flat = torch.cat([m.reshape(-1) for m in fixed.mels])
    assert abs(float(flat.mean())) < 1e-4
    assert abs(float(flat.std()) - 1) < 1e-3
    assert measure_normalisation(fixed) == pytest.approx((mean, std), abs=1e-4)
    bands = MelSpec(mean=tuple([1.0] * 32 + [2.0] * 32), std=tuple([2.0] * 64))
    banded = FeatureStore(bands, tmp_path / "cache").load(clips)
    torch.testing.assert_close(banded.mels[0][40], (raw.mels[0][40] - 2.0) / 2.0)
    assert measure_normalisation(banded) == pytest.approx((mean, std), abs=1e-4)


def test_another_front_end_or_another_content_is_computed_anew(
    tmp_path: Path, clips: list[Clip], decoded: list[int], make_tone: Tone, make_wav: Wav
) -> None:
    cache = tmp_path / "cache"
    before = FeatureStore(MelSpec(), cache).load(clips)
    FeatureStore(MelSpec(n_mels=40), cache).load(clips)
    assert len(decoded) == 16
    make_wav(clips[0].path, make_tone(0.3, 8_000, 1_000), 8_000)
    after = FeatureStore(MelSpec(), cache).load(clips)
    assert len(decoded) == 17
    assert not torch.equal(before.mels[0], after.mels[0])
    assert before.sha256 != after.sha256


def test_a_copy_elsewhere_needs_no_second_computation(
    tmp_path: Path, clips: list[Clip], decoded: list[int]
) -> None:
    first = FeatureStore(MelSpec(), tmp_path / "cache").load(clips)
    moved = [Clip(c.path.rename(tmp_path / c.path.name), c.label, c.fold, c.name) for c in clips]
    again = FeatureStore(MelSpec(), tmp_path / "cache").load(moved)
    assert len(decoded) == 8
    assert again.sha256 == first.sha256, (
        "the digest names clips within the set, not on this machine"
    )


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text", "swap"])
def test_a_damaged_cache_is_computed_again(
    tmp_path: Path, clips: list[Clip], decoded: list[int], damage: str
) -> None:
    want = FeatureStore(MelSpec(), tmp_path / "cache").load(clips)
    (shard,) = (tmp_path / "cache").glob("*/*.safetensors")
    data = bytearray(shard.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 4
    elif damage == "swap":
        at = data.index(bytes.fromhex(want.hashes[0]))
        data[at : at + 32] = bytes.fromhex(want.hashes[1])
    shard.write_bytes(
        {"cut": data[:-100], "empty": b"", "text": b"no shard"}.get(damage, bytes(data))
    )
    again = FeatureStore(MelSpec(), tmp_path / "cache").load(clips)
    assert len(decoded) > 8
    assert all(torch.equal(a, b) for a, b in zip(want.mels, again.mels, strict=True))
    n = len(decoded)
    FeatureStore(MelSpec(), tmp_path / "cache").load(clips)
    assert len(decoded) == n, "the cache has healed"


@pytest.mark.parametrize("text", ["", "[]", '{"0.wav": 3}', '{"0.wav": [1, 2, "zz"]}', "{"])
def test_a_damaged_hash_memory_is_ignored(tmp_path: Path, clips: list[Clip], text: str) -> None:
    want = FeatureStore(MelSpec(), tmp_path / "cache").load(clips).sha256
    (memory,) = (tmp_path / "cache" / "hashes").glob("*.json")
    memory.write_text(text)
    assert FeatureStore(MelSpec(), tmp_path / "cache").load(clips).sha256 == want


def test_a_stale_hash_memory_heals(tmp_path: Path, clips: list[Clip]) -> None:
    cache = tmp_path / "cache"
    want = FeatureStore(MelSpec(), cache).load(clips).sha256
    (memory,) = (cache / "hashes").glob("*.json")
    memory.write_text(
        memory.read_text().replace(FeatureStore(MelSpec(), cache).load(clips).hashes[0], "0" * 64)
    )
    assert len(FeatureStore(MelSpec(), cache).load(clips).rejected) == 1
    assert FeatureStore(MelSpec(), cache).load(clips).sha256 == want


def test_a_cache_that_cannot_be_written_only_warns(tmp_path: Path, clips: list[Clip]) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="not cached"):
        got = FeatureStore(MelSpec(), tmp_path / "cache").load(clips)
    assert len(got) == 8


def test_nothing_but_whole_files_is_left_in_the_cache(tmp_path: Path, clips: list[Clip]) -> None:
    FeatureStore(MelSpec(), tmp_path / "cache").load(clips)
    files = [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert sorted(p.suffix for p in files) == [".json", ".safetensors"]


def test_bad_files_are_listed_and_counted(
    tmp_path: Path, clips: list[Clip], make_wav: Wav, make_tone: Tone
) -> None:
    bad = {
        "missing.wav": None,
        "silent.wav": np.zeros(4_000),
        "nan.wav": np.full(4_000, np.nan),
        "cut.wav": make_tone(1.0, 16_000),
    }
    for name, samples in bad.items():
        if samples is not None:
            make_wav(tmp_path / "set" / name, samples, subtype="FLOAT")
    cut = tmp_path / "set" / "cut.wav"
    cut.write_bytes(cut.read_bytes()[:5_000])
    extra = [Clip(tmp_path / "set" / name, 0, "1", name) for name in bad]
    for _ in range(2):
        got = FeatureStore(MelSpec(), tmp_path / "cache").load([*extra[:2], *clips, *extra[2:]])
        assert len(got) == 8
        assert got.clips == clips
        reasons = {r.name: r.reason for r in got.rejected}
        assert reasons["missing.wav"] == "missing"
        assert "silent" in reasons["silent.wav"]
        assert "not finite" in reasons["nan.wav"]
        assert "truncated" in reasons["cut.wav"]
        manifest = got.manifest()
        assert manifest["clips"] == 8
        assert manifest["rejected"] == 4
        assert str(tmp_path) not in str(manifest)
    with pytest.raises(DataError, match="None of 4 clips"):
        FeatureStore(MelSpec(), tmp_path / "cache").load(extra)


def test_the_digest_ignores_order_but_not_content(tmp_path: Path, clips: list[Clip]) -> None:
    store = FeatureStore(MelSpec(), tmp_path / "cache")
    assert store.load(clips).sha256 == store.load(clips[::-1]).sha256
    assert store.load(clips).sha256 != store.load(clips[1:]).sha256


def test_equal_contents_under_two_names(
    tmp_path: Path, clips: list[Clip], decoded: list[int]
) -> None:
    twin = tmp_path / "set" / "twin.wav"
    twin.write_bytes(clips[0].path.read_bytes())
    got = FeatureStore(MelSpec(std=2.0), tmp_path / "cache").load(
        [*clips, Clip(twin, 1, "2", "twin.wav")]
    )
    assert len(got) == 9
    assert len(decoded) == 8
    assert torch.equal(got.mels[0], got.mels[8])
    single = FeatureStore(MelSpec(std=2.0), tmp_path / "other").load(clips[:1])
    torch.testing.assert_close(got.mels[0], single.mels[0], atol=1e-4, rtol=1e-4)


def test_a_short_clip_is_repeated_not_padded(
    tmp_path: Path, make_tone: Tone, make_wav: Wav
) -> None:
    path = make_wav(tmp_path / "short.wav", make_tone(0.01, 16_000), subtype="FLOAT")
    got = FeatureStore(MelSpec(), tmp_path / "cache").load([Clip(path, 0, "1")])
    assert got.mels[0].shape == (64, 1)
    silence = torch.from_numpy(MelSpec().floor)
    assert (got.mels[0][:, 0] > silence + 1).any()


def test_progress_reaches_the_end(tmp_path: Path, clips: list[Clip]) -> None:
    for _ in range(2):
        seen: list[tuple[int, int]] = []
        FeatureStore(MelSpec(), tmp_path / "cache").load(
            clips, lambda a, b, seen=seen: seen.append((a, b))
        )
        assert seen[-1] == (8, 8)
        assert [a for a, _ in seen] == sorted(a for a, _ in seen)


def test_clips_come_from_the_cache_in_well_under_a_second(tmp_path: Path, make_wav: Wav) -> None:
    rng = np.random.default_rng(0)
    paths = [make_wav(tmp_path / f"{i}.wav", rng.normal(0, 0.1, 8_000), 8_000) for i in range(300)]
    clips = [Clip(p, 0, "1", p.name) for p in paths]
    FeatureStore(MelSpec(), tmp_path / "cache").load(clips)
    start = time.perf_counter()
    FeatureStore(MelSpec(), tmp_path / "cache").load(clips)
    assert time.perf_counter() - start < 0.6


def test_the_cache_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRAMI_EDGE_CACHE", str(tmp_path))
    assert FeatureStore(MelSpec()).cache_dir == tmp_path / "features"
    monkeypatch.delenv("FRAMI_EDGE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert FeatureStore(MelSpec()).cache_dir == tmp_path / ".cache" / "frami-edge" / "features"


@pytest.mark.data
@pytest.mark.parametrize(("name", "clips"), [("fsdd", 3_000), ("esc10", 400)])
def test_real_sets_are_whole(tmp_path: Path, name: str, clips: int) -> None:
    import os

    if not os.environ.get("FRAMI_EDGE_DATA"):
        pytest.skip("set FRAMI_EDGE_DATA to test on real recordings")
    got = FeatureStore(MelSpec(), tmp_path).load(load_set(name).clips)
    assert len(got) == clips
    assert got.rejected == []
