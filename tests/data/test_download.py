from __future__ import annotations

import http.server
import stat
import threading
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from frami_edge.data import download as fetch_module
from frami_edge.data import download as unpack_module
from frami_edge.data.download import fetch, get_set, unpack
from frami_edge.data.sets import load_set, read_layout, set_info
from frami_edge.errors import DataError, IncompleteSetError


@dataclass
class Server:
    """Serves one body, with ranges, and can hang up early."""

    url: str = ""
    body: bytes = b""
    etag: str = '"one"'
    ranges: bool = True
    length: bool = True
    hang_up_after: list[int] = field(default_factory=list)
    redirect: str = ""
    status: int = 200
    starts: list[int] = field(default_factory=list)

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        if self.redirect:
            request.send_response(302)
            request.send_header("Location", self.redirect)
            request.end_headers()
            return
        if self.status != 200:
            request.send_error(self.status)
            return
        start = 0
        wanted = request.headers.get("Range", "")
        if self.ranges and wanted and request.headers.get("If-Range") == self.etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
        self.starts.append(start)
        request.send_response(206 if start else 200)
        if start:
            end = len(self.body)
            request.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        if self.length:
            request.send_header("Content-Length", str(len(self.body) - start))
        if self.etag:
            request.send_header("ETag", self.etag)
        request.end_headers()
        end = start + self.hang_up_after.pop(0) if self.hang_up_after else len(self.body)
        with suppress(ConnectionError):  # the client may hang up as well
            request.wfile.write(self.body[start:end])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        state.url = f"http://127.0.0.1:{running.server_address[1]}/set.zip"
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield state
        running.shutdown()
        thread.join()


def _zip(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return path


@pytest.fixture
def fsdd_zip(tmp_path: Path) -> bytes:
    names = [entry.name for entry in read_layout(set_info("fsdd"), tmp_path).entries]
    entries = {f"fsdd-master/{name}": b"x" for name in names}
    entries |= {"fsdd-master/": b"", "fsdd-master/README.md": b"hi", "fsdd-master/utils/a.py": b"1"}
    return _zip(tmp_path / "fsdd.zip", entries).read_bytes()


def test_get_puts_a_whole_set_in_place(tmp_path: Path, server: Server, fsdd_zip: bytes) -> None:
    server.body = fsdd_zip
    root = tmp_path / "new" / "root"
    stages: list[tuple[str, int, int | None]] = []
    arrival = get_set("fsdd-speaker", root, url=server.url, report=lambda *a: stages.append(a))
    assert arrival.fetched
    assert arrival.sound_set.name == "fsdd-speaker"
    assert len(load_set("fsdd", root).clips) == 3000
    assert [p.name for p in root.iterdir()] == ["free-spoken-digit-dataset"]
    folder = root / "free-spoken-digit-dataset"
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "recordings"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert stages[-1] == ("unpack", stages[-1][2], stages[-1][2])
    assert ("fetch", len(fsdd_zip), len(fsdd_zip)) in stages
    assert not get_set("fsdd", root, url=server.url).fetched
    assert len(server.starts) == 1, "a complete set is not fetched again"


def test_an_incomplete_folder_in_the_way_is_not_touched(
    root: Path, without: Callable[[str], AbstractContextManager[Path]], server: Server
) -> None:
    with without("free-spoken-digit-dataset/recordings/0_theo_0.wav") as gone:
        with pytest.raises(IncompleteSetError, match="0_theo_0") as caught:
            get_set("fsdd", root, url=server.url)
        assert "Move" in caught.value.fix
        assert len(list(gone.parent.iterdir())) == 2999
    assert server.starts == []


def test_an_archive_with_too_few_clips_leaves_nothing(tmp_path: Path, server: Server) -> None:
    server.body = _zip(tmp_path / "a.zip", {"top/recordings/0_theo_0.wav": b"x"}).read_bytes()
    root = tmp_path / "root"
    with pytest.raises(IncompleteSetError, match="the archive has 1 clips, not 3000"):
        get_set("fsdd", root, url=server.url)
    assert list(root.iterdir()) == []


def test_a_damaged_archive_leaves_nothing(tmp_path: Path, server: Server, fsdd_zip: bytes) -> None:
    root = tmp_path / "root"
    flipped = bytearray(fsdd_zip)
    flipped[40:60] = bytes(20)
    for body in (fsdd_zip[: len(fsdd_zip) // 2], b"<html>not found</html>", bytes(flipped)):
        server.body = body
        with pytest.raises(DataError, match="no sound zip"):
            get_set("fsdd", root, url=server.url)
        assert list(root.iterdir()) == []


def test_urbansound_says_which_form_to_fill_in(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="may not be fetched") as caught:
        get_set("urbansound8k", tmp_path)
    assert "https://urbansounddataset.weebly.com" in caught.value.fix
    assert str(tmp_path / "UrbanSound8K") in caught.value.fix


def test_an_interrupted_download_is_continued(tmp_path: Path, server: Server) -> None:
    server.body = bytes(range(256)) * 4_000
    server.hang_up_after = [300_000, 500_000]
    fetch(server.url, tmp_path / "a", max_bytes=10**7)
    assert (tmp_path / "a").read_bytes() == server.body
    assert server.starts == [0, 300_000, 800_000]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_the_next_call_goes_on(tmp_path: Path, server: Server) -> None:
    server.body = bytes(range(256)) * 4_000
    server.hang_up_after = [100_000] * 3
    with pytest.raises(DataError, match="closed early") as caught:
        fetch(server.url, tmp_path / "a", max_bytes=10**7)
    assert "again" in caught.value.fix
    assert not (tmp_path / "a").exists()
    fetch(server.url, tmp_path / "a", max_bytes=10**7)
    assert (tmp_path / "a").read_bytes() == server.body
    assert server.starts == [0, 100_000, 200_000, 300_000]


@pytest.mark.parametrize("change", ["content", "no ranges", "weak", "none", "no length"])
def test_a_part_that_may_be_stale_is_started_afresh(
    tmp_path: Path, server: Server, change: str
) -> None:
    server.body = bytes(1_000_000)
    server.etag = {"weak": 'W/"one"', "none": ""}.get(change, server.etag)
    server.hang_up_after = [100_000] * 3
    with pytest.raises(DataError):
        fetch(server.url, tmp_path / "a", max_bytes=10**7)
    server.starts.clear()
    if change == "content":
        server.body, server.etag = bytes([1]) * 900_000, '"two"'
    server.ranges = change != "no ranges"
    server.length = change != "no length"
    fetch(server.url, tmp_path / "a", max_bytes=10**7)
    assert (tmp_path / "a").read_bytes() == server.body
    assert server.starts == [300_000 if change == "no length" else 0]


@pytest.mark.parametrize("length", [True, False])
def test_a_download_is_bounded(tmp_path: Path, server: Server, length: bool) -> None:
    server.body, server.length = bytes(2_000_000), length
    with pytest.raises(DataError, match="larger than 1 MB"):
        fetch(server.url, tmp_path / "a", max_bytes=1_000_000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "http:///x", "nonsense"]
)
def test_other_addresses_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError):
        fetch(url, tmp_path / "a", max_bytes=1)
    assert not (tmp_path / "a").exists()


def test_server_errors_are_one_sentence(tmp_path: Path, server: Server) -> None:
    server.status = 404
    with pytest.raises(DataError, match="answered 404"):
        fetch(server.url, tmp_path / "a", max_bytes=1)
    for address, sentence in (("ftp://127.0.0.1/x", "not secure"), ("file:///x", "answered 302")):
        server.redirect = address
        with pytest.raises(DataError, match=sentence):
            fetch(server.url, tmp_path / "a", max_bytes=1)
    with pytest.raises(DataError, match="could not be fetched"):
        fetch("http://127.0.0.1:9/x", tmp_path / "a", max_bytes=1)


def test_a_secure_address_is_not_left_for_an_insecure_one() -> None:
    secure = urllib.request.Request("https://example.org/a")
    follow = fetch_module._SameSecurity().redirect_request
    assert follow(secure, None, 302, "", {}, "https://example.org/b") is not None
    with pytest.raises(DataError, match="not secure"):
        follow(secure, None, 302, "", {}, "http://example.org/b")


@pytest.mark.parametrize(
    "name",
    [
        "top/audio/../../../evil.wav",
        "../evil.wav",
        "/evil.wav",
        "top/audio/..",
        "top\\audio\\evil.wav",
        "C:/evil.wav",
        "top/audio/a\0.wav",
    ],
)
def test_paths_that_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "a.zip"
    safe = name.replace("\0", "?")
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("top/audio/a.wav", b"x")
        file.writestr(zipfile.ZipInfo(safe), b"x")
    archive.write_bytes(archive.read_bytes().replace(safe.encode(), name.encode()))
    target = tmp_path / "in" / "target"
    target.mkdir(parents=True)
    with pytest.raises(DataError, match="leaves the folder"):
        unpack(archive, target, keep=("audio/",), max_bytes=100)
    assert [p.name for p in (tmp_path / "in").rglob("*")] == ["target"]


def _target(tmp_path: Path) -> Path:
    target = tmp_path / "target"
    target.mkdir()
    return target


def test_links_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("top/audio/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(link, "/etc/hostname")
    with pytest.raises(DataError, match="link"):
        unpack(tmp_path / "a.zip", _target(tmp_path), keep=("audio/",), max_bytes=100)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("twin", ["top/audio/a.wav", "top/audio/A.WAV", "other/audio/a.wav"])
def test_two_entries_of_one_name_are_refused(tmp_path: Path, twin: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("top/audio/a.wav", b"x")
        file.writestr(twin, b"y")
    with pytest.raises(DataError, match="twice"):
        unpack(tmp_path / "a.zip", _target(tmp_path), keep=("audio/",), max_bytes=100)


def test_unpacking_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = _zip(tmp_path / "a.zip", {"top/audio/bomb.wav": bytes(5_000_000), "top/b": b"x"})
    target = _target(tmp_path)
    with pytest.raises(DataError, match="too much"):
        unpack(archive, target, keep=("audio/",), max_bytes=4_000_000)
    monkeypatch.setattr(unpack_module, "_MAX_ENTRIES", 1)
    with pytest.raises(DataError, match="too many"):
        unpack(archive, target, keep=("audio/",), max_bytes=10**7)
    assert list(target.iterdir()) == []


def test_no_space_left_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = _zip(tmp_path / "a.zip", {"top/audio/a.wav": b"xxxx"})
    usage = type("Usage", (), {"free": 3})
    monkeypatch.setattr(unpack_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DataError, match="No space is left"):
        unpack(archive, _target(tmp_path), keep=("audio/",), max_bytes=100)
