"""Features, their cache, and batches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import tone, wav

from frami_edge.data import store as store_module
from frami_edge.data.clips import Clip
from frami_edge.data.store import FeatureStore, collate, length_buckets, measure_normalisation
from frami_edge.errors import DataError
from frami_edge.frontend import LogMel
from frami_edge_runtime.melspec import MelSpec


@pytest.fixture
def clips(tmp_path):
    made = []
    for i in range(8):
        rate = (8_000, 16_000)[i % 2]
        path = wav(
            tmp_path / "set" / f"{i}.wav", tone(0.3 + 0.1 * (i // 4), rate, 200 + 90 * i), rate
        )
        made.append(Clip(path, i % 3, "1", path.name))
    return made


@pytest.fixture
def decoded(monkeypatch):
    """Counts the files that are decoded, which is what the cache must save."""
    calls = []
    decode = store_module.decode
    monkeypatch.setattr(store_module, "decode", lambda data: (calls.append(1), decode(data))[1])
    return calls


def test_features_are_the_front_end_on_the_file(tmp_path):
    spec = MelSpec(mean=-3.0, std=2.0)
    samples = tone(0.5, 16_000)
    path = wav(tmp_path / "a.wav", samples, subtype="FLOAT")
    got = FeatureStore(spec, tmp_path / "cache").load([Clip(path, 7, "1")])
    torch.testing.assert_close(
        got.mels[0], LogMel(spec)(torch.from_numpy(samples)), atol=1e-5, rtol=1e-5
    )
    assert got.labels.tolist() == [7]
    assert got.lengths == [spec.frames(8_000)]


def test_the_second_load_decodes_nothing_and_gives_the_same(tmp_path, clips, decoded):
    store = FeatureStore(MelSpec(mean=-4.0, std=3.0), tmp_path / "cache")
    calls = []
    first, second = store.load(clips, calls.append), store.load(clips, calls.append)
    assert len(decoded) == 8
    assert [c.done for c in calls if c.done == c.total] == [8, 8]
    assert all(torch.equal(a, b) for a, b in zip(first.mels, second.mels, strict=True))
    assert (first.sha256, first.hashes) == (second.sha256, second.hashes)
    assert first.labels.tolist() == [c.label for c in clips]
    part = store.load([clips[5], *clips[:3]])
    assert torch.equal(part.mels[0], first.mels[5])
    assert part.sha256 != first.sha256 == store.load(clips[::-1]).sha256
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:-100])
    again = store.load(clips)
    assert all(torch.equal(a, b) for a, b in zip(first.mels, again.mels, strict=True))


def test_normalisation_is_applied_after_the_cache(tmp_path, clips, decoded):
    raw = FeatureStore(MelSpec(), tmp_path / "cache").load(clips)
    mean, std = measure_normalisation(raw)
    everything = torch.cat([m.reshape(-1) for m in raw.mels]).double()
    assert mean == pytest.approx(float(everything.mean()), abs=1e-6)
    assert std == pytest.approx(float(everything.std(correction=0)), abs=1e-6)
    fixed = FeatureStore(MelSpec(mean=mean, std=std), tmp_path / "cache").load(clips)
    assert len(decoded) == 8, "measuring and changing the normalisation reads no file again"
    direct = raw.normalised(MelSpec(mean=mean, std=std))
    assert all(torch.equal(a, b) for a, b in zip(direct.mels, fixed.mels, strict=True))
    flat = torch.cat([m.reshape(-1) for m in fixed.mels])
    assert abs(float(flat.mean())) < 1e-4
    assert abs(float(flat.std()) - 1) < 1e-3
    assert measure_normalisation(fixed) == pytest.approx((mean, std), abs=1e-4)
    bands = MelSpec(mean=tuple([1.0] * 32 + [2.0] * 32), std=tuple([2.0] * 64))
    banded = FeatureStore(bands, tmp_path / "cache").load(clips)
    torch.testing.assert_close(banded.mels[0][40], (raw.mels[0][40] - 2.0) / 2.0)
    assert measure_normalisation(banded) == pytest.approx((mean, std), abs=1e-4)


def test_another_front_end_or_another_content_is_computed_anew(tmp_path, clips, decoded):
    cache = tmp_path / "cache"
    before = FeatureStore(MelSpec(), cache).load(clips)
    FeatureStore(MelSpec(n_mels=40), cache).load(clips)
    assert len(decoded) == 16
    wav(clips[0].path, tone(0.3, 8_000, 1_000), 8_000)
    after = FeatureStore(MelSpec(), cache).load(clips)
    assert len(decoded) == 24
    assert not torch.equal(before.mels[0], after.mels[0])
    assert before.sha256 != after.sha256


def test_bad_files_are_listed_and_counted(tmp_path, clips):
    bad = {
        "missing.wav": None,
        "silent.wav": np.zeros(4_000),
        "nan.wav": np.full(4_000, np.nan),
        "cut.wav": tone(1.0, 16_000),
    }
    for name, samples in bad.items():
        if samples is not None:
            wav(tmp_path / "set" / name, samples, subtype="FLOAT")
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


LENGTHS = st.lists(st.integers(1, 3_000), min_size=0, max_size=200)


def _waste(lengths, batch):
    chosen = [lengths[i] for i in batch]
    return 1 - sum(chosen) / (len(chosen) * max(chosen))


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(2, 32), st.one_of(st.none(), st.integers(0, 9)), st.floats(0, 0.9))
def test_every_clip_once_and_little_waste_or_no_batch_of_one(lengths, size, seed, max_waste):
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    batches = length_buckets(lengths, size, generator=generator, max_waste=max_waste)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    assert all(1 <= len(b) <= size for b in batches)
    assert all(_waste(lengths, b) <= max_waste + 1e-9 for b in batches)
    pairs = length_buckets(lengths, size, generator=generator, min_batch=2)
    assert sorted(i for b in pairs for i in b) == list(range(len(lengths)))
    assert all(len(b) >= min(2, len(lengths)) for b in pairs)


def test_padding_lies_right_and_at_the_floor():
    mels = [torch.randn(3, n) for n in (5, 9, 7)]
    floor = np.array([-1.0, -2.0, -3.0], dtype=np.float32)
    x_B1MT, lengths_B = collate(mels, [2, 0], pad_value=floor)
    assert x_B1MT.shape == (2, 1, 3, 7)
    assert lengths_B.tolist() == [7, 5]
    assert torch.equal(x_B1MT[0, 0], mels[2])
    assert torch.equal(x_B1MT[1, 0, :, :5], mels[0])
    assert torch.equal(x_B1MT[1, 0, :, 5:], torch.from_numpy(floor)[:, None].expand(3, 2))
    scalar, _ = collate(mels, [0, 1], pad_value=-7.5)
    assert (scalar[0, 0, :, 5:] == -7.5).all()
    x_B1MT.zero_()
    assert mels[2].abs().sum() > 0, "the batch is a copy"
