"""Downloads, from a server on this machine."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.fetch import fetch
from harness.files import Files

OFFICIAL = {"a.gz": b"first file" * 50_000, "b.gz": b"second file"}


@dataclass
class Site:
    """What a server answers, and what it was asked for."""

    url: str
    bodies: dict[str, bytes]
    promised: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    @property
    def downloads(self) -> tuple[tuple[str, str], ...]:
        return tuple((name, f"{self.url}/{name}") for name in OFFICIAL)

    def verify(self, root: Path) -> None:
        files = Files(root, "toy", self.downloads)
        for name, body in OFFICIAL.items():
            files.read(name, hashlib.sha256(body).hexdigest())

    def fetch(self, root: Path) -> list[Path]:
        return fetch("toy", self.downloads, root, self.verify)


@pytest.fixture
def site() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.lstrip("/")
            served.asked.append(name)
            if name not in served.bodies:
                self.send_error(404)
                return
            body = served.bodies[name]
            self.send_response(200)
            self.send_header("Content-Length", str(served.promised.get(name, len(body))))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Site(f"http://127.0.0.1:{server.server_port}", dict(OFFICIAL))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    server.shutdown()
    server.server_close()
    thread.join()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below the folder, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_puts_the_official_files_in_their_places(site: Site, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    paths = fetch(
        "toy", site.downloads, tmp_path / "new", site.verify, lambda *now: seen.append(now)
    )
    assert paths == [tmp_path / "new/toy/a.gz", tmp_path / "new/toy/b.gz"]
    assert contents(tmp_path / "new/toy") == OFFICIAL
    sizes = {name: len(body) for name, body in OFFICIAL.items()}
    assert {name: (done, total) for name, done, total in seen} == {
        name: (size, size) for name, size in sizes.items()
    }
    assert len(seen) > 2  # more than once for the file that is longer than a chunk


def test_nothing_is_downloaded_twice(site: Site, tmp_path: Path) -> None:
    first = site.fetch(tmp_path)
    site.asked.clear()
    assert site.fetch(tmp_path) == first
    assert site.asked == []


def test_a_valid_file_is_kept_and_only_the_others_are_downloaded(
    site: Site, tmp_path: Path
) -> None:
    (tmp_path / "toy").mkdir()
    kept = tmp_path / "toy/a.gz"
    kept.write_bytes(OFFICIAL["a.gz"])
    inode = kept.stat().st_ino
    site.fetch(tmp_path)
    assert site.asked == ["b.gz"]
    assert kept.stat().st_ino == inode
    assert contents(tmp_path / "toy") == OFFICIAL


@pytest.mark.parametrize("there", [{"a.gz": b"torn"}, {"a.gz": b"torn", "b.gz": b"second file"}])
def test_an_altered_file_is_replaced(site: Site, tmp_path: Path, there: dict[str, bytes]) -> None:
    (tmp_path / "toy").mkdir()
    for name, body in there.items():
        (tmp_path / "toy" / name).write_bytes(body)
    site.fetch(tmp_path)
    assert contents(tmp_path / "toy") == OFFICIAL


def test_data_that_is_not_the_official_is_not_kept(site: Site, tmp_path: Path) -> None:
    site.bodies["b.gz"] = b"second fils"
    with pytest.raises(UsageError) as caught:
        site.fetch(tmp_path)
    message = str(caught.value)
    assert message.startswith("fetch toy: what was downloaded is not kept: b.gz: ")
    for body in (b"second file", b"second fils"):
        assert hashlib.sha256(body).hexdigest() in message
    assert "\n" not in message
    assert str(tmp_path) not in message  # the folder it was in is gone
    assert contents(tmp_path) == {}
    assert list((tmp_path / "toy").iterdir()) == []


def test_a_failure_leaves_what_was_there(site: Site, tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/a.gz").write_bytes(b"torn")
    site.bodies["a.gz"] = b"torn otherwise"
    with pytest.raises(UsageError):
        site.fetch(tmp_path)
    assert contents(tmp_path) == {"toy/a.gz": b"torn"}


def test_a_missing_page_names_the_url_and_the_answer(site: Site, tmp_path: Path) -> None:
    del site.bodies["b.gz"]
    with pytest.raises(UsageError, match=f"fetch toy: {site.url}/b.gz: HTTP Error 404: Not Found"):
        site.fetch(tmp_path)
    assert contents(tmp_path) == {}


def test_a_connection_that_ends_early_is_an_error(site: Site, tmp_path: Path) -> None:
    site.promised["b.gz"] = 20
    with pytest.raises(UsageError, match=r"fetch toy: http.*/b\.gz: .*11"):
        site.fetch(tmp_path)
    assert contents(tmp_path) == {}


def test_a_refused_connection_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and not listening
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UsageError, match=f"fetch toy: {url}/a.gz: .*refused"):
            Site(url, {}).fetch(tmp_path)


def test_only_the_web_is_downloaded_from(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(OFFICIAL["a.gz"])
    downloads = (("a.gz", secret.as_uri()),)
    with pytest.raises(UsageError, match="only http and https"):
        fetch("toy", downloads, tmp_path / "root", Site("", {}).verify)


def test_a_folder_that_cannot_be_written_is_named(site: Site, tmp_path: Path) -> None:
    (tmp_path / "toy").write_bytes(b"a file where the folder should be")
    with pytest.raises(UsageError, match=f"fetch toy: {tmp_path}/toy cannot be written: "):
        site.fetch(tmp_path)
