"""Known sets with their official folds, and plain folders."""

import hashlib
import os
import unicodedata
from collections import Counter

import pytest

from frami_edge.data.clips import resolve_fold
from frami_edge.data.sets import (
    AUDIOMNIST_TEST_SPEAKERS,
    data_root,
    expected_set,
    load_set,
    set_info,
)
from frami_edge.errors import DataError, IncompleteSetError


def test_fsdd_tests_on_takes_0_to_4(root):
    digits = load_set("fsdd", root)
    train, test = digits.split("test")
    assert (len(train), len(test)) == (2700, 300)
    assert {int(c.path.stem.split("_")[2]) for c in test} == {0, 1, 2, 3, 4}
    assert all(c.label == int(c.path.name[0]) for c in digits.clips)
    assert set(Counter(c.label for c in test).values()) == {30}


def test_esc_views_partition_the_set(root):
    all50, ten, forty = (load_set(n, root) for n in ("esc50", "esc10", "esc40"))
    assert [len(s.clips) for s in (all50, ten, forty)] == [2000, 400, 1600]
    assert [len(s.labels) for s in (all50, ten, forty)] == [50, 10, 40]
    names = {c.name for c in ten.clips}, {c.name for c in forty.clips}
    assert not names[0] & names[1]
    assert names[0] | names[1] == {c.name for c in all50.clips}
    train, test = ten.split(3)
    assert (len(train), len(test)) == (320, 80)
    assert all(c.path.name.startswith("3-") for c in test)
    assert all(ten.labels[c.label] == f"class{int(c.path.stem.split('-')[3]):02d}" for c in test)


def test_urbansound_has_ten_official_folds(root):
    urban = load_set("urbansound8k", root)
    assert urban.folds == tuple(str(i) for i in range(1, 11))
    train, test = urban.split(10)
    assert len(train) + len(test) == 8732
    assert all(c.path.parent.name == "fold10" for c in test)


def test_audiomnist_splits_are_speaker_disjoint(tmp_path):
    info = set_info("audiomnist")
    digits = expected_set(info, tmp_path)
    assert len(digits.clips) == 30_000
    for fold in digits.folds:
        train, test = digits.split(fold)
        validation = [c for c in digits.clips if c.fold == digits.validation_of[fold]]
        parts = [{int(c.path.parent.name) for c in p} for p in (train, validation, test)]
        assert [len(p) for p in parts] == [36, 12, 12]
        assert set.union(*parts) == set(range(1, 61))
        assert parts[1] == set(AUDIOMNIST_TEST_SPEAKERS[{"1": "5"}.get(fold, str(int(fold) - 1))])
        assert parts[2] == set(AUDIOMNIST_TEST_SPEAKERS[fold])
        assert all(c.name == f"data/{c.path.parent.name}/{c.path.name}" for c in test)


@pytest.mark.parametrize(
    ("name", "gone", "sentence"),
    [
        ("fsdd", "recordings/3_theo_7.wav", "2999 clips, not 3000; 1 missing"),
        ("esc50", "audio/2-100-A-10.wav", "1999 clips, not 2000; 1 missing"),
        ("urbansound8k", "audio/fold3/2-0-0-0.wav", "8731 clips, not 8732; 1 missing"),
    ],
)
def test_a_missing_clip_is_named(root, without, name, gone, sentence):
    folder = set_info(name).folders[0]
    with without(f"{folder}/{gone}"), pytest.raises(IncompleteSetError) as caught:
        load_set(name, root)
    assert sentence in caught.value.message
    assert gone in caught.value.message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "\n".join(text.splitlines()[:-1]), "lists 1999 clips"),
        (lambda text: "\ufeff" + "\n".join(text.splitlines()[:-1]), "lists 1999 clips"),
        (lambda text: text.replace("target", "aim", 1), "cannot be read: KeyError"),
        (lambda text: text.replace("1-00-A-0.wav,1,0", "1-00-A-0.wav,1,one"), "cannot be read"),
    ],
)
def test_damaged_metadata_is_refused(root, without, change, message):
    meta = root / "ESC-50-master" / "meta" / "esc50.csv"
    text = meta.read_text()
    with without("ESC-50-master/meta/esc50.csv"):
        with pytest.raises(IncompleteSetError, match=r"esc50\.csv is missing"):
            load_set("esc50", root)
        meta.write_text(change(text))
        with pytest.raises(DataError, match=message):
            load_set("esc50", root)


def test_the_data_root(tmp_path, monkeypatch, root):
    monkeypatch.delenv("FRAMI_EDGE_DATA", raising=False)
    with pytest.raises(DataError, match="No data root") as caught:
        data_root(None)
    assert "--data-root" in caught.value.fix
    assert "FRAMI_EDGE_DATA" in caught.value.fix
    with pytest.raises(DataError, match="is not a folder"):
        data_root(tmp_path / "nowhere")
    with pytest.raises(DataError, match="There is no folder ~nobody-here/x"):
        load_set("folder:~nobody-here/x")
    monkeypatch.setenv("FRAMI_EDGE_DATA", str(tmp_path))
    assert data_root(None) == tmp_path
    with pytest.raises(DataError, match="no folder free-spoken-digit-dataset") as caught:
        load_set("fsdd")
    assert "frami-edge data get fsdd" in caught.value.fix
    monkeypatch.setenv("FRAMI_EDGE_DATA", str(root))
    assert len(load_set("fsdd").clips) == 3000
    own_folder = load_set("fsdd", root / "free-spoken-digit-dataset")
    assert len(own_folder.clips) == 3000, "the set's own folder is accepted as well"


def test_folds_are_resolved_or_named(root):
    ten = load_set("esc10", root)
    assert [resolve_fold(ten, f) for f in (3, "3", "fold3", "Fold-3")] == ["3"] * 4
    assert resolve_fold(load_set("fsdd", root), None) == "test"
    for bad in (0, 6, "train", "", -1):
        with pytest.raises(DataError) as caught:
            ten.split(bad)
        assert caught.value.fix == "Its folds are 1, 2, 3, 4, 5."
    with pytest.raises(DataError, match="needs a fold"):
        resolve_fold(ten, None)
    for name, meant in (("esc-50", "esc50"), (str(root), f"folder:{root}")):
        with pytest.raises(DataError) as caught:
            load_set(name, root)
        assert f"Did you mean {meant}?" in caught.value.fix


def _tree(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def _many(prefix=""):
    return [f"{prefix}{label}/{i}.wav" for label in ("cat", "dog") for i in range(40)]


def test_a_plain_tree_gets_stated_hash_folds(tmp_path):
    _tree(tmp_path, *_many(), "cat/deep/er.FLAC", "cat/._1.wav", "cat/notes.txt", ".git/x/1.wav")
    pets = load_set(f"folder:{tmp_path}")
    assert pets.labels == ("cat", "dog")
    assert len(pets.clips) == 81
    assert pets.folds == ("1", "2", "3", "4", "5")
    for clip in pets.clips:
        digest = hashlib.sha256(clip.name.encode()).hexdigest()
        assert clip.fold == str(1 + int(digest[:8], 16) % 5)
    before = {c.name: c.fold for c in pets.clips}
    _tree(tmp_path, "dog/new.wav")
    after = {c.name: c.fold for c in load_set(f"folder:{tmp_path}").clips}
    assert before.items() <= after.items(), "adding a file moves no other"


def test_given_splits_are_kept(tmp_path):
    _tree(tmp_path / "a", *_many("train/"), *_many("Test/"), "valid/cat/1.wav", "notes/cat.txt")
    pets = load_set(f"folder:{tmp_path / 'a'}")
    train, test = pets.split("test")
    assert (len(train), len(test), len(pets.clips)) == (80, 80, 161)
    assert pets.folds == ("test",)
    assert all(c.name.startswith("Test/") for c in test)
    numbered = load_set(f"folder:{_tree(tmp_path / 'b', *_many('fold2/'), *_many('fold10/'))}")
    assert numbered.folds == ("2", "10")
    assert all(c.name.startswith("fold10/") for c in numbered.split(10)[1])


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ([], "0 class folders"),
        (["1.wav"], "0 class folders. It holds 1 audio files in no folder"),
        (["cat/1.wav", "dog/1.txt"], "no audio in dog"),
        (["pets/cat/1.wav", "pets/dog/1.wav"], r"only folder holds folders.* pets/ \(cat/, dog/\)"),
        (["fold1/cat/1.wav", "fold2/cat/1.wav", "more/cat/1.wav"], r"more holds audio as well"),
        (["train/cat/1.wav", "test/cat/1.wav", "bird/1.wav"], r"bird holds audio as well"),
        (["training/1.wav", "testing/1.wav"], r"testing, training holds audio without class"),
        (["train/cat/1.wav", "train/dog/1.wav"], "no test split"),
        (["fold1/cat/1.wav", "fold2/cat/1.wav", "test/cat/1.wav"], "numbered folds beside"),
        (["cat/train/1.wav", "cat/test/1.wav", "dog/train/1.wav"], "splits are inside the class"),
    ],
)
def test_other_layouts_are_refused(tmp_path, names, sentence):
    """With the layout that was seen, and those that are wanted."""
    with pytest.raises(DataError, match=sentence) as caught:
        load_set(f"folder:{_tree(tmp_path, *names)}")
    assert "CLASS" in caught.value.fix


@pytest.mark.parametrize(
    ("names", "folds", "train"),
    [
        (["training/cat/1.wav", "testing/cat/2.wav"], ("test",), 1),
        (["train/cat/1.wav", "val/cat/2.wav"], ("validation",), 1),
        (["test/cat/1.wav", "test/dog/1.wav"], ("test",), 0),
        (["val/cat/1.wav", "Evaluation/dog/1.wav", "train/cat/2.wav"], ("test",), 1),
        (["cat/1.wav", "train/1.wav", "train/2.wav"], ("1", "2"), 2),  # train is a class here
    ],
)
def test_splits_by_their_usual_names(tmp_path, names, folds, train):
    pets = load_set(f"folder:{_tree(tmp_path, *names)}")
    assert pets.folds == folds
    assert set(pets.labels) <= {"cat", "dog", "train"}
    assert sum(clip.fold in ("train", "1") for clip in pets.clips) == train


def test_every_fold_tests_and_trains_each_class_of_few_clips(tmp_path):
    few = [f"{label}/{i}.wav" for label, n in (("a", 5), ("b", 2), ("c", 7)) for i in range(n)]
    pets = load_set(f"folder:{_tree(tmp_path, *few)}")
    for fold in pets.folds:
        train, test = pets.split(fold)  # raises where a class has no training clip
        assert {pets.labels[clip.label] for clip in test} >= {"a", "c"}
        assert len(train) + len(test) == 14


def test_names_that_are_no_text_and_other_files_are_said(tmp_path):
    _tree(tmp_path, *_many(), "cat/voice.m4a", "cat/a.txt", "cat/b.txt", "beside.wav")
    latin = os.fsdecode(b"caf\xe9")
    _tree(tmp_path, f"{latin}/1.wav", f"cat/{latin}.wav")
    pets = load_set(f"folder:{tmp_path}")
    assert pets.labels == ("cat", "dog")
    names = [clip.name for clip in pets.clips]
    assert len(names) == 82
    assert r"cat/caf\xe9.wav" in names
    assert "cat/voice.m4a" in names, "a file that cannot be decoded is a clip that is left out"
    said = " ".join(pets.notes)
    assert r"caf\xe9 is left out: its name is not UTF-8" in said
    assert "not audio: 2 .txt" in said
    assert "beside the folders, which are not read: 1" in said


@pytest.mark.parametrize("split", ["", "train/"])
def test_hidden_files_and_folders_are_no_clips(tmp_path, split):
    names = _many(split) + (_many("test/") if split else [])
    strays = [".cache/1.wav", ".cache/a/2.wav", ".cache/.b/3.wav", "__MACOSX/._1.wav"]
    strays += ["._1.wav", "deep/._2.wav"]
    _tree(tmp_path, *names, *(f"{split}cat/{stray}" for stray in strays))
    pets = load_set(f"folder:{tmp_path}")
    assert sorted(clip.name for clip in pets.clips) == sorted(names)
    (said,) = pets.notes
    assert said == "Hidden audio files, which are left out: 3 .cache/, 2 ._*, 1 __MACOSX/."


def test_composed_and_decomposed_names_are_one(tmp_path):
    one, other = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    _tree(tmp_path, f"train/{one}/1.wav", f"test/{other}/2.wav", "train/b/1.wav", "test/b/2.wav")
    pets = load_set(f"folder:{tmp_path}")
    assert pets.labels == ("b", one)
    assert [len(side) for side in pets.split("test")] == [2, 2]


def test_a_part_of_a_set_is_taken_when_asked_for(root, without):
    meta, gone = "metadata/UrbanSound8K.csv", "audio/fold3/2-0-0-0.wav"
    with without(f"UrbanSound8K/{gone}"):
        with pytest.raises(IncompleteSetError) as caught:
            load_set("urbansound8k", root)
        assert "--allow-partial" in caught.value.fix
        assert "folder:PATH" in caught.value.fix
        part = load_set("urbansound8k-part", root)
    assert (part.name, len(part.clips), len(part.folds)) == ("urbansound8k-part", 8731, 10)
    assert "8731 of 8732 clips" in part.notes[0]
    lines = (root / "UrbanSound8K" / meta).read_text().splitlines()
    listed = root / "UrbanSound8K" / "metadata" / "of-a-part.csv"
    with without(f"UrbanSound8K/{meta}"):
        listed.write_text("\ufeff" + "\n".join(lines[:12]), "utf-8")  # folds 1 to 10, then 1
        try:
            part = load_set("urbansound8k-part", root)
            listed.write_text(lines[0])
            with pytest.raises(IncompleteSetError, match="has 0 clips") as caught:
                load_set("urbansound8k-part", root)
            assert "get the set again" in caught.value.fix
        finally:
            listed.unlink()
        with pytest.raises(IncompleteSetError, match="csv is missing") as caught:
            load_set("urbansound8k-part", root)
        assert "--allow-partial" not in caught.value.fix
    assert part.labels == ("kind0", "kind1")
    assert "fold 1: 2, fold 2: 1" in part.notes[0]
    assert load_set("urbansound8k-part", root).name == "urbansound8k"


def test_a_fold_that_leaves_a_class_untrained_is_refused(tmp_path):
    _tree(tmp_path, "fold1/cat/1.wav", "fold1/dog/1.wav", "fold2/dog/1.wav")
    with pytest.raises(DataError, match="no training clip of cat"):
        load_set(f"folder:{tmp_path}").split(1)
