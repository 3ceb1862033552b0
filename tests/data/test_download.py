"""`get_set` against a server on this machine: a whole set arrives, or nothing."""

import functools
import http.server
import stat
import threading
import zipfile

import pytest

from frami_edge import quickstart
from frami_edge.data.download import get_set
from frami_edge.data.sets import expected_set, load_set, set_info
from frami_edge.errors import DataError, IncompleteSetError


class Server:
    """Serves one body at `url`."""

    def __init__(self):
        self.url, self.body, self.status, self.requests = "", b"", 200, 0


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
            self.send_response(200)
            self.send_header("Content-Length", str(len(state.body)))
            self.end_headers()
            self.wfile.write(state.body)

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
    arrival = get_set("fsdd-speaker", root, url=server.url, progress=calls.append)
    assert arrival.fetched
    assert arrival.sound_set.name == "fsdd-speaker"
    assert len(load_set("fsdd", root).clips) == 3000
    folder = root / "free-spoken-digit-dataset"
    assert list(root.iterdir()) == [folder]
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "recordings"]
    assert stat.S_IMODE(folder.stat().st_mode) & 0o500 == 0o500
    last = {call.phase: (call.done, call.total) for call in calls}
    assert last["fetch"] == (len(fsdd), len(fsdd))
    assert last["unpack"] == (3001, 3001)
    assert not get_set("fsdd", root, url=server.url).fetched
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
        assert list(tmp_path.iterdir()) == []
