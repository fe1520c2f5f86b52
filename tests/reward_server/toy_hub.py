"""A hub on the loopback interface: the few routes that huggingface_hub asks for, over the files of a folder."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MODEL = "toys/judge"
LARGE = 100_000  # bytes from which a file has the name of its SHA-256, as in git-lfs
PIECE = 1 << 14


@dataclass
class ToyHub:
    """What it has, how it misbehaves, and what it was asked for.

    Args:
        folder: the repository's files.
        private: refuse, with this status and code, whoever asks for a file.
        break_at: break the connection after so many bytes of a file, the first time that it is asked for.
        hang_at: say nothing more after so many bytes of a file.
        bytes_per_s: how fast a file goes out.
    """

    folder: Path
    refusal: tuple[int, str] | None = None
    break_at: int | None = None
    hang_at: int | None = None
    bytes_per_s: float = float("inf")
    url: str = ""
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, Range
    broken: set[str] = field(default_factory=set)

    @property
    def commit(self) -> str:
        return hashlib.sha1(str(self.folder).encode()).hexdigest()

    def gets(self, suffix: str) -> list[str | None]:
        """Ranges of the GETs of files whose name ends so."""
        return [wanted for method, path, wanted in self.asked if method == "GET" and path.endswith(suffix)]

    def listing(self) -> list[dict[str, Any]]:
        return [self.entry(path) for path in sorted(self.folder.rglob("*")) if path.is_file()]

    def entry(self, path: Path) -> dict[str, Any]:
        content = path.read_bytes()
        row = {"type": "file", "path": str(path.relative_to(self.folder)), "size": len(content)}
        row["oid"] = hashlib.sha1(content).hexdigest()
        if len(content) >= LARGE:
            sha = hashlib.sha256(content).hexdigest()
            row["lfs"] = {"oid": sha, "sha256": sha, "size": len(content), "pointerSize": 134}
        return row


def _handler(hub: ToyHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self) -> None:
            path = urlsplit(self.path).path
            hub.asked.append((self.command, path, self.headers.get("Range")))
            if path.startswith(f"/api/models/{MODEL}"):
                rest = path.removeprefix(f"/api/models/{MODEL}")
                if rest.startswith("/revision/") and rest.removeprefix("/revision/") not in ("main", hub.commit):
                    return self._refuse(404, "RevisionNotFound")
                return self._json(hub.listing() if rest.startswith("/tree/") else self._info())
            if path.startswith(f"/{MODEL}/resolve/"):
                if hub.refusal is not None:
                    return self._refuse(*hub.refusal)
                name = path.removeprefix(f"/{MODEL}/resolve/").partition("/")[2]
                if (hub.folder / name).is_file():
                    return self._file(hub.folder / name)
                return self._refuse(404, "EntryNotFound")
            return self._refuse(404, "RepoNotFound")

        def _info(self) -> dict[str, Any]:
            siblings = [
                {"rfilename": row["path"], "size": row["size"], "blobId": row["oid"], "lfs": row.get("lfs")}
                for row in hub.listing()
            ]
            return {"_id": "1", "id": MODEL, "modelId": MODEL, "sha": hub.commit, "siblings": siblings}

        def _refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _json(self, value: Any) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _file(self, path: Path) -> None:
            row, content = hub.entry(path), path.read_bytes()
            wanted = self.headers.get("Range")
            begin = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
            self.send_response(206 if wanted else 200)
            self.send_header("X-Repo-Commit", hub.commit)
            self.send_header("ETag", f'"{row["lfs"]["oid"] if "lfs" in row else row["oid"]}"')
            self.send_header("Accept-Ranges", "bytes")
            if wanted:
                self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - begin))
            self.end_headers()
            if self.command == "GET":
                self._send(path.name, content, begin)

        def _send(self, name: str, content: bytes, begin: int) -> None:
            for at in range(begin, len(content), PIECE):
                if hub.break_at is not None and at >= hub.break_at and name not in hub.broken:
                    hub.broken.add(name)
                    self.close_connection = True
                    self.connection.shutdown(2)
                    return
                while hub.hang_at is not None and at >= hub.hang_at:
                    time.sleep(0.05)
                self.wfile.write(content[at : at + PIECE])
                time.sleep(PIECE / hub.bytes_per_s)

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that was killed has broken its connections."""


@contextmanager
def serving(hub: ToyHub) -> Iterator[ToyHub]:
    """The hub answers at its `url` while the context is open."""
    server = _Server(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.hang_at = None
        server.shutdown()
        server.server_close()
        thread.join()
