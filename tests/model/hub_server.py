"""A hub on loopback: repositories of files, told, listed and served as huggingface_hub asks for them; with faults."""

import hashlib
import http.server
import json
import socketserver
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "5" * 40
_LARGE_BYTES = 4000
"""Files of this size and more are in large file storage."""


class HubServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """repositories: bytes of files by `owner/name` and path. requests: (method, path, Range or ""). tokens: those sent.

    Faults. cut: the bytes of a path after which the connection ends, once each. hold: those after which it stands still
    until `release`. other: what a path is served as, whatever the list says. closed: status and error code by
    repository.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.revisions = {"main": COMMIT, COMMIT: COMMIT}
        self.requests: list[tuple[str, str, str]] = []
        self.tokens: set[str] = set()
        self.cut: dict[str, list[int]] = {}
        self.other: dict[str, bytes] = {}
        self.closed: dict[str, tuple[int, str]] = {}
        self.hold: dict[str, int] = {}
        self.held, self._released = threading.Event(), threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def ranges(self, path: str) -> list[str]:
        """Of each request for a file's bytes, the Range."""
        return [asked for method, requested, asked in self.requests if method == "GET" and requested.endswith(path)]

    def release(self) -> None:
        self._released.set()

    def wait_for_release(self) -> None:
        self._released.wait(120)

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that was killed


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.requests.append((self.command, path, self.headers.get("Range", "")))
        self.server.tokens.add(self.headers.get("Authorization", ""))
        if path.startswith("api/models/"):
            owner, name, *rest = path.removeprefix("api/models/").split("/")
        else:
            owner, name, *rest = path.split("/")
        repository = f"{owner}/{name}"
        if repository in self.server.closed:
            self._refuse(*self.server.closed[repository])
        elif repository not in self.server.repositories:
            self._refuse(404, "RepoNotFound")
        elif rest[:1] == ["resolve"]:
            self._file(repository, "/".join(rest[2:]))
        elif rest[:1] == ["tree"]:
            self._json([entry(path, data) for path, data in self.server.repositories[repository].items()])
        elif commit := self.server.revisions.get(rest[1] if rest[:1] == ["revision"] else "main"):
            self._json({"id": repository, "modelId": repository, "sha": commit, "siblings": [], "tags": []})
        else:
            self._refuse(404, "RevisionNotFound")

    do_HEAD = do_GET

    def _file(self, repository: str, path: str) -> None:
        listed = self.server.repositories[repository].get(path)
        if listed is None:
            self._refuse(404, "EntryNotFound")
            return
        data = self.server.other.get(path, listed)
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        about = entry(path, listed)
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{about["lfs"]["oid"] if "lfs" in about else about["oid"]}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        body, cuts = data[start:], self.server.cut.get(path, [])
        if cuts:
            body = body[: cuts.pop(0)]
            self.close_connection = True
        if held := self.server.hold.pop(path, None):
            self.wfile.write(body[:held])
            self.server.held.set()
            self.server.wait_for_release()
            body = body[held:]
        self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def entry(path: str, data: bytes) -> dict[str, object]:
    """A file in the list of a repository."""
    about: dict[str, object] = {"type": "file", "path": path, "size": len(data)}
    about["oid"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    if len(data) >= _LARGE_BYTES:
        about["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return about


def files_of(folder: Path) -> dict[str, bytes]:
    """The bytes of the files below `folder` by path."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
