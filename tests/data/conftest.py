"""Fixtures of the data room: no caches of this machine, no network but a server on 127.0.0.1."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from stalwart.data.download import Remote


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point every search path of the user at an empty folder."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.delenv("STALWART_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return folder / "stalwart"


@dataclass
class Publisher:
    """A file server whose transfers can be made to break: ``cuts`` holds how many bytes each answer gets to send."""

    base: str
    files: dict[str, bytes] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    ranges: bool = True
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def remote(self, name: str, content: bytes) -> Remote:
        self.files[name] = content
        return Remote(name, f"{self.base}/{name}", hashlib.md5(content).hexdigest())


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            shop.asked.append((self.path, wanted))
            content = shop.files.get(self.path.lstrip("/"))
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and shop.ranges else 0
            if content is None:
                self.send_error(404)
                return
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            limit = shop.cuts.pop(0) if shop.cuts else len(content)
            self.wfile.write(content[start : start + limit])

        def log_message(self, format: str, *args: object) -> None:
            """Keep the tests' output clean."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    shop = Publisher(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield shop
    server.shutdown()
    server.server_close()
    thread.join()
