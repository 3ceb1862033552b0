"""Data sets and public teachers from a server on this machine: all of it arrives, or nothing."""

import functools
import hashlib
import http.server
import io
import json
import re
import stat
import threading
import zipfile
from dataclasses import replace

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from frami_edge import public_teachers, quickstart
from frami_edge.cli import app
from frami_edge.data.sets import expected_set, get_set, load_set, set_info
from frami_edge.errors import DataError, IncompleteSetError
from frami_edge.teachers import load_teacher
from frami_edge.teachers.opening import read_description, read_mel


class Server:
    """Serves one body, or `files` by their paths, at `url`; a `cut` ends it after some bytes."""

    def __init__(self):
        self.url, self.body, self.status, self.requests = "", b"", 200, 0
        self.files = {}
        self.cut = None


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state.requests += 1
            if state.status != 200:
                self.send_error(state.status)
                return
            body = state.files.get(self.path, state.body)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.cut])

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        state.url = f"http://127.0.0.1:{running.server_address[1]}/set.zip"
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield state
        running.shutdown()
        thread.join()


def archive(folder, names):
    with zipfile.ZipFile(folder / "a.zip", "w") as file:
        for name in names:
            file.writestr(name, b"x")
    return (folder / "a.zip").read_bytes()


@pytest.fixture
def fsdd(tmp_path):
    clips = expected_set(set_info("fsdd"), tmp_path).clips
    others = ["top/", "top/README.md", "top/utils/a.py"]
    return archive(tmp_path, [*others, *(f"top/{clip.name}" for clip in clips)])


def test_get_puts_a_whole_set_in_place(tmp_path, server, fsdd):
    server.body = fsdd
    root = tmp_path / "new" / "root"
    calls = []
    sounds, fetched = get_set("fsdd-speaker", root, url=server.url, progress=calls.append)
    assert (sounds.name, fetched) == ("fsdd-speaker", True)
    assert len(load_set("fsdd", root).clips) == 3000
    folder = root / "free-spoken-digit-dataset"
    assert list(root.iterdir()) == [folder]
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "recordings"]
    assert stat.S_IMODE(folder.stat().st_mode) & 0o500 == 0o500
    last = {call.phase: (call.done, call.total) for call in calls}
    assert last["fetch"] == (len(fsdd), len(fsdd))
    assert last["unpack"] == (3001, 3001)
    assert not get_set("fsdd", root, url=server.url)[1]
    assert server.requests == 1, "a complete set is not fetched again"


def test_the_quickstart_fetches_what_it_lacks(tmp_path, server, fsdd, monkeypatch, caplog):
    monkeypatch.setattr(quickstart, "get_set", functools.partial(get_set, url=server.url))
    monkeypatch.setenv("FRAMI_EDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FRAMI_EDGE_DATA", raising=False)
    caplog.set_level("INFO", "frami_edge")
    server.status, server.body = 503, fsdd
    assert quickstart.digits_root(fetch=True) is None
    assert "It could not be fetched" in caplog.text
    assert quickstart.digits_root(fetch=False) is None
    assert server.requests == 1
    server.status = 200
    assert quickstart.digits_root(fetch=True) == tmp_path / "cache"
    assert len(load_set("fsdd", tmp_path / "cache").clips) == 3000
    assert quickstart.digits_root(fetch=True) == tmp_path / "cache"
    assert server.requests == 2


def test_an_incomplete_folder_is_not_touched(root, without, server):
    with without("free-spoken-digit-dataset/recordings/0_theo_0.wav"):
        with pytest.raises(IncompleteSetError, match="0_theo_0") as caught:
            get_set("fsdd", root, url=server.url)
        assert "Move" in caught.value.fix
    assert server.requests == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda whole, _: whole[: len(whole) // 2], "not a sound zip"),
        (lambda *_: b"<html>not found</html>", "not a sound zip"),
        (lambda _, tmp: archive(tmp, ["top/recordings/0_theo_0.wav"]), "the archive has 1 clips"),
        (lambda _, tmp: archive(tmp, ["top/recordings/../../../evil.wav"]), "leaves its folder"),
    ],
)
def test_a_bad_archive_leaves_nothing(tmp_path, server, fsdd, make, message):
    server.body = make(fsdd, tmp_path)
    with pytest.raises(DataError, match=message):
        get_set("fsdd", tmp_path / "root", url=server.url)
    assert list((tmp_path / "root").iterdir()) == []
    assert not (tmp_path / "evil.wav").exists()


def test_addresses_that_do_not_work_are_one_sentence(tmp_path, server):
    server.status = 404
    for url in (server.url, "http://127.0.0.1:9/x.zip", "ftp://127.0.0.1:9/x.zip"):
        with pytest.raises(DataError) as caught:
            get_set("fsdd", tmp_path, url=url)
        assert caught.value.fix
        assert "Pool(" not in caught.value.message
        assert list(tmp_path.iterdir()) == []


# --- Public teachers

LABELS = b'index,mid,display_name\n0,/m/0,"Bark, yip"\n1,/m/1,Siren\n'
NETWORK = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, width):
        super().__init__(
            nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(width, 2),
        )
"""


@pytest.fixture
def tiny(server, tmp_path, monkeypatch):
    """A teacher that the server has, in the table instead of efficientat-mn04."""
    (tmp_path / "tiny_net.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Identity(), nn.Identity(),
                           nn.Identity(), nn.Linear(4, 2))  # fmt: skip
    weights = io.BytesIO()
    torch.save(layers.state_dict(), weights)
    server.files = {"/w.pt": weights.getvalue(), "/labels.csv": LABELS}
    base = server.url.removesuffix("/set.zip")
    known = public_teachers.public_teacher("efficientat-mn04")

    def file(entry, name, algorithm):
        body = server.files[name]
        digest = f"{algorithm}:{hashlib.new(algorithm, body).hexdigest()}"
        return replace(entry, url=base + name, size=len(body), digest=digest)

    row = replace(
        known,
        files=(file(known.files[0], "/w.pt", "md5"), file(known.files[1], "/labels.csv", "sha256")),
        description={
            **(known.description or {}),
            "factory": "tiny_net:Net",
            "arguments": {"width": 4},
        },
    )
    rest = public_teachers.public_teachers()[1:]
    monkeypatch.setattr(public_teachers, "_TEACHERS", (row, *rest))
    return row


def program(*arguments, code=0):
    """What `frami-edge teachers --json` says."""
    result = CliRunner().invoke(app, ["teachers", *map(str, arguments), "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def test_a_teacher_arrives_and_opens(tmp_path, server, tiny):
    folder = tmp_path / "new" / "a tagger"
    found = program(tiny.name, "--out", folder)
    names = ["mn04_as_mAP_432.pt", "class_labels_indices.csv", "teacher.yaml"]
    assert found["downloaded"] == names
    assert sorted(p.name for p in folder.iterdir()) == sorted(names)
    assert stat.S_IMODE((folder / names[0]).stat().st_mode) == stat.S_IMODE(
        (folder / "teacher.yaml").stat().st_mode
    )
    assert found["next"][-1] == f"frami-edge inspect '{folder}/teacher.yaml'"
    teacher = load_teacher(found["teacher"])
    assert teacher.card.labels == ("Bark, yip", "Siren")
    assert teacher.card.licence == "MIT"

    (folder / "teacher.yaml").write_text("edited: true\n")
    assert program(tiny.name, "--out", folder)["downloaded"] == []
    assert server.requests == 2, "files that are there are not fetched again"
    assert (folder / "teacher.yaml").read_text() == "edited: true\n"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda server: setattr(server, "cut", 1000), "could not be fetched"),
        (lambda server: setattr(server, "status", 404), "could not be fetched.*404"),
        (
            lambda server: server.files.update({"/w.pt": b"<html>gone</html>"}),
            "17 bytes instead of",
        ),
        (
            lambda server: server.files.update({"/w.pt": bytes(len(server.files["/w.pt"]))}),
            "its md5 is .* instead of",
        ),
    ],
)
def test_a_bad_download_of_a_teacher_leaves_nothing(tmp_path, server, tiny, spoil, message):
    spoil(server)
    error = program(tiny.name, "--out", tmp_path / "tagger", code=1)["error"]
    assert re.search(message, error["message"])
    assert error["fix"]
    assert list((tmp_path / "tagger").iterdir()) == []


def test_a_teacher_without_a_connection_can_be_brought_by_hand(tmp_path, server, tiny):
    folder = tmp_path / "tagger"
    server.status = 503
    error = program(tiny.name, "--out", folder, code=1)["error"]
    assert str(folder / "mn04_as_mAP_432.pt") in error["fix"]
    (folder / "mn04_as_mAP_432.pt").write_bytes(server.files["/w.pt"])
    (folder / "class_labels_indices.csv").write_bytes(b"other")
    error = program(tiny.name, "--out", folder, code=1)["error"]
    assert "5 bytes instead of" in error["message"]
    assert "Move it away" in error["fix"]
    assert (folder / "class_labels_indices.csv").read_bytes() == b"other"
    (folder / "class_labels_indices.csv").write_bytes(LABELS)
    assert program(tiny.name, "--out", folder)["downloaded"] == ["teacher.yaml"]


def test_the_list_of_teachers_and_wrong_usage(tmp_path):
    rows = {row["name"]: row for row in program()["teachers"]}
    assert rows["efficientat-mn04"]["files"][0]["digest"].startswith("sha256:899a8c62")
    assert "Did you mean panns-cnn14?" in program("panns-cn14", code=1)["error"]["fix"]
    assert "--out" in program("panns-cnn14", code=1)["error"]["fix"]
    assert "No teacher" in program("--out", tmp_path / "x", code=1)["error"]["message"]
    found = program("ast-audioset", "--out", tmp_path / "x")
    model = "hf:MIT/ast-finetuned-audioset-10-10-0.4593"
    assert found["teacher"] == model
    assert found["next"][-1] == f"frami-edge inspect {model} --output sigmoid"
    assert found["downloaded"] == []
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("teacher", public_teachers.public_teachers(), ids=lambda row: row.name)
def test_every_row_describes_a_teacher(teacher, tmp_path):
    if not teacher.files:
        assert teacher.teacher.startswith("hf:")
        return
    assert teacher.size_mb == round(teacher.files[0].size / 1e6)
    for file in teacher.files:
        assert file.url.startswith("https://")
        assert re.fullmatch("sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", file.digest)
    (tmp_path / "teacher.yaml").write_text(teacher.yaml())
    described = read_description(tmp_path / "teacher.yaml")
    assert described.weights == str(tmp_path / teacher.files[0].name)
    assert described.sample_rate or read_mel(described.mel or "")
