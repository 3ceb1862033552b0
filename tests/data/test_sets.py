from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from frami_edge.data import (
    DataError,
    IncompleteSetError,
    data_root,
    known_sets,
    load_set,
    resolve_fold,
)
from frami_edge.data.layouts import AUDIOMNIST_TEST_SPEAKERS

Makers = dict[str, Callable[[Path], Path]]


def test_fsdd_tests_on_takes_0_to_4(tmp_path: Path, sets: Makers) -> None:
    sets["fsdd"](tmp_path)
    digits = load_set("fsdd", tmp_path)
    train, test = digits.split("test")
    assert (len(train), len(test)) == (2700, 300)
    assert {int(c.path.stem.split("_")[2]) for c in test} == {0, 1, 2, 3, 4}
    assert all(c.label == int(c.path.name[0]) for c in digits.clips)
    assert set(Counter(c.label for c in test).values()) == {30}


def test_fsdd_by_speaker_leaves_one_out(tmp_path: Path, sets: Makers) -> None:
    sets["fsdd"](tmp_path)
    train, test = load_set("fsdd-speaker", tmp_path).split("theo")
    assert len(test) == 500
    assert all("_theo_" in c.name for c in test)
    assert not any("_theo_" in c.name for c in train)


def test_esc_views_partition_the_set(tmp_path: Path, sets: Makers) -> None:
    sets["esc50"](tmp_path)
    all50, ten, forty = (load_set(n, tmp_path) for n in ("esc50", "esc10", "esc40"))
    assert [len(s.clips) for s in (all50, ten, forty)] == [2000, 400, 1600]
    assert [len(s.labels) for s in (all50, ten, forty)] == [50, 10, 40]
    names = {c.name for c in ten.clips}, {c.name for c in forty.clips}
    assert not names[0] & names[1]
    assert names[0] | names[1] == {c.name for c in all50.clips}
    train, test = ten.split(3)
    assert (len(train), len(test)) == (320, 80)
    assert all(c.path.name.startswith("3-") for c in test)
    assert all(ten.labels[c.label] == f"class{int(c.path.stem.split('-')[3]):02d}" for c in test)


def test_urbansound_has_ten_official_folds(tmp_path: Path, sets: Makers) -> None:
    sets["urbansound8k"](tmp_path)
    urban = load_set("urbansound8k", tmp_path)
    assert urban.folds == tuple(str(i) for i in range(1, 11))
    train, test = urban.split(10)
    assert len(train) + len(test) == 8732
    assert all(c.path.parent.name == "fold10" for c in test)


def test_audiomnist_splits_are_speaker_disjoint(tmp_path: Path, sets: Makers) -> None:
    sets["audiomnist"](tmp_path)
    digits = load_set("audiomnist", tmp_path)
    for fold in digits.folds:
        train, test = digits.split(fold)
        parts = [
            {int(c.path.parent.name) for c in p} for p in (train, digits.validation(fold), test)
        ]
        assert [len(p) for p in parts] == [36, 12, 12]
        assert len(set.union(*parts)) == 60
        assert parts[2] == set(AUDIOMNIST_TEST_SPEAKERS[fold])
    assert {int(c.path.parent.name) for c in digits.validation(1)} == set(
        AUDIOMNIST_TEST_SPEAKERS["5"]
    )


@pytest.mark.parametrize(
    ("name", "gone", "sentence"),
    [
        ("fsdd", "recordings/3_theo_7.wav", "2999 clips, not 3000; 1 missing"),
        ("esc50", "audio/2-100-A-10.wav", "1999 clips, not 2000; 1 missing"),
        ("urbansound8k", "audio/fold3/2-0-0-0.wav", "8731 clips, not 8732; 1 missing"),
        ("audiomnist", "data/07/1_07_5.wav", "29999 clips, not 30000; 1 missing"),
    ],
)
def test_a_missing_clip_is_named(
    tmp_path: Path, sets: Makers, name: str, gone: str, sentence: str
) -> None:
    (sets[name](tmp_path) / gone).unlink()
    with pytest.raises(IncompleteSetError) as caught:
        load_set(name, tmp_path)
    assert sentence in caught.value.message
    assert gone in caught.value.message
    assert "fold" in caught.value.message
    assert caught.value.fix


def test_a_clip_too_many_is_named(tmp_path: Path, sets: Makers) -> None:
    folder = sets["fsdd"](tmp_path)
    (folder / "recordings" / "0_me_0.wav").write_bytes(b"x")
    (folder / "recordings" / "._0_theo_0.wav").write_bytes(b"x")
    with pytest.raises(
        IncompleteSetError, match=r"1 not of this set, for example recordings/0_me_0\.wav"
    ):
        load_set("fsdd", tmp_path)


def test_an_incomplete_esc50_can_still_give_a_complete_esc10(tmp_path: Path, sets: Makers) -> None:
    (sets["esc50"](tmp_path) / "audio" / "1-10-A-1.wav").unlink()
    assert len(load_set("esc10", tmp_path).clips) == 400
    with pytest.raises(IncompleteSetError):
        load_set("esc40", tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: "\n".join(text.splitlines()[:-1]), "lists 1999 clips"),
        (lambda text: text.replace("target", "aim", 1), "line 2 lacks"),
        (lambda text: text.replace("1-00-A-0.wav,1,0", "1-00-A-0.wav,one,0"), "line 2 lacks"),
        (lambda text: text.replace("1-00-A-0.wav", "../1-00-A-0.wav", 1), "outside the set"),
    ],
)
def test_damaged_metadata_is_refused(
    tmp_path: Path, sets: Makers, change: Callable[[str], str], sentence: str
) -> None:
    meta = sets["esc50"](tmp_path) / "meta" / "esc50.csv"
    meta.write_text(change(meta.read_text()))
    with pytest.raises(DataError, match=sentence):
        load_set("esc50", tmp_path)


def test_missing_metadata_is_an_incomplete_set(tmp_path: Path, sets: Makers) -> None:
    (sets["esc50"](tmp_path) / "meta" / "esc50.csv").unlink()
    with pytest.raises(IncompleteSetError, match=r"esc50\.csv is missing"):
        load_set("esc10", tmp_path)


def test_the_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sets: Makers) -> None:
    monkeypatch.delenv("FRAMI_EDGE_DATA", raising=False)
    with pytest.raises(DataError, match="No data root") as caught:
        data_root(None)
    assert "--data-root" in caught.value.fix
    assert "FRAMI_EDGE_DATA" in caught.value.fix
    with pytest.raises(DataError, match="is no folder"):
        data_root(tmp_path / "nowhere")
    monkeypatch.setenv("FRAMI_EDGE_DATA", str(tmp_path))
    assert data_root(None) == tmp_path
    with pytest.raises(DataError, match="no folder free-spoken-digit-dataset") as caught:
        load_set("fsdd")
    assert "frami-edge data get fsdd" in caught.value.fix
    folder = sets["fsdd"](tmp_path)
    assert len(load_set("fsdd").clips) == 3000
    assert len(load_set("fsdd", folder).clips) == 3000, "the set's own folder is accepted as well"


def test_an_unknown_set_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_set("esc-50", tmp_path)
    assert "Did you mean esc50?" in caught.value.fix
    assert all(info.name in caught.value.fix for info in known_sets())


def test_folds_are_resolved_or_named(tmp_path: Path, sets: Makers) -> None:
    sets["esc50"](tmp_path)
    sets["fsdd"](tmp_path)
    ten = load_set("esc10", tmp_path)
    assert [resolve_fold(ten, f) for f in (3, "3", "fold3", "Fold-3")] == ["3"] * 4
    assert resolve_fold(load_set("fsdd", tmp_path), None) == "test"
    for bad in (0, 6, "train", "", -1):
        with pytest.raises(DataError) as caught:
            ten.split(bad)
        assert caught.value.fix == "Its folds are 1, 2, 3, 4, 5."
    with pytest.raises(DataError, match="needs a fold"):
        resolve_fold(ten, None)
    assert ten.validation(1) == []
