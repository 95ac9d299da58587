"""A Hugging Face hub on loopback, for as much of it as downloads and pushes ask for.

A real HTTP server on a free port of 127.0.0.1; a process is pointed to it by
`HF_ENDPOINT`. It can also do what the real one does on bad days: refuse, fail, cut
a stream off, send something damaged, or be slow.
"""

import hashlib
import json
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from tests.hub_uploads import Uploads

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_API = re.compile(r"^/api/models/(?P<id>[^/]+(/[^/]+)??)(/revision/(?P<revision>[^/]+))?$")
_FILE = re.compile(r"^/(?P<id>[^/]+(/[^/]+)??)/resolve/(?P<revision>[^/]+)/(?P<name>.+)$")
LARGE = (".safetensors", ".bin", ".msgpack", ".onnx", ".h5")
_CHUNK_BYTES = 4096


@dataclass
class HubModel:
    """One model: its files, and who may have it."""

    files: dict[str, bytes]
    revisions: tuple[str, ...] = ("main", COMMIT)
    gated: bool = False
    token: str = ""
    """Only a request with this token gets an answer."""
    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files of branches that are not as `files`."""
    commit: str = COMMIT

    def files_of(self, revision: str) -> dict[str, bytes]:
        return self.branches.get(revision, self.files)


@dataclass
class HubDouble:
    """The server; `with HubDouble({"org/name": HubModel({...})}) as hub: hub.url`."""

    models: dict[str, HubModel]
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """(method, path, Range header) of each request, in order of arrival."""
    failures: dict[str, int] = field(default_factory=dict)
    """How many more requests of a path's end are answered with 500."""
    cuts: dict[str, int] = field(default_factory=dict)
    """After how many bytes the next GET of a path's end is cut off, once."""
    damaged: dict[str, bytes] = field(default_factory=dict)
    """What a file's GET sends instead of its content."""
    stalls: dict[str, int] = field(default_factory=dict)
    """After how many bytes a GET of a path's end waits for `go_on`."""
    elsewhere: str = ""
    """Where large files are, if not here; HEAD and GET of them are redirected there."""
    tokens: dict[str, str] = field(default_factory=dict)
    """The last Authorization header ('' for none) for each path."""
    go_on: threading.Event = field(default_factory=threading.Event)
    stalled: threading.Event = field(default_factory=threading.Event)
    """Set when a request waits."""
    writers: tuple[str, ...] = ()
    """Tokens that may make repositories and write to them."""
    large_files: dict[str, bytes] = field(default_factory=dict)
    """What was uploaded to go into commits, by SHA-256."""

    def __enter__(self) -> "HubDouble":
        hub = self

        class Handler(_Handler):
            double = hub

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def gets(self, ending: str) -> list[str]:
        """The Range header ('' for none) of each GET of a path that ends so."""
        return [r for method, path, r in self.requests if method == "GET" and path.endswith(ending)]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that were killed."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(Uploads, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    double: HubDouble

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: `HubDouble.requests` is the log."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.double.requests.append((self.command, path, self.headers.get("Range", "")))
        self.double.tokens[path] = self.headers.get("Authorization", "")
        if self._fails(path):
            return self._send(500, {}, b"trouble")
        raw = urlsplit(self.path).path  # a revision's slash is %2F here
        if match := _API.match(raw):
            return self._answer_api(match["id"], unquote(match["revision"] or "main"))
        if match := _FILE.match(raw):
            return self._answer_file(
                match["id"], unquote(match["revision"]), unquote(match["name"])
            )
        return self._send(404, {"X-Error-Code": "EntryNotFound"}, b"")

    def _fails(self, path: str) -> bool:
        failing = _matching(self.double.failures, path)
        if failing:
            self.double.failures[failing] -= 1
        return bool(failing) and self.double.failures[failing] >= 0

    def _admitted(self, id: str, revision: str) -> HubModel | None:
        """The model, or None after a refusal was sent, worded as the hub words it."""
        model = self.double.models.get(id)
        authorization = self.headers.get("Authorization", "")
        if model is None or (model.token and authorization != f"Bearer {model.token}"):
            # The hub does not tell a private model from a missing one.
            self._send(401, {"X-Error-Code": "RepoNotFound"}, b"")
            return None
        if revision not in model.revisions:
            self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"")
            return None
        return model

    def _answer_api(self, id: str, revision: str) -> None:
        model = self._admitted(id, revision)
        if model is None:
            return
        files = model.files_of(revision)
        siblings = [_sibling(name, content) for name, content in files.items()]
        body = {"id": id, "modelId": id, "sha": model.commit, "siblings": siblings}
        body |= {"private": model.private}
        self._send(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def _answer_file(self, id: str, revision: str, name: str) -> None:
        model = self._admitted(id, revision)
        if model is None:
            return
        if model.gated:
            return self._send(403, {"X-Error-Code": "GatedRepo"}, b"")
        files = model.files_of(revision)
        if name not in files:
            return self._send(404, {"X-Error-Code": "EntryNotFound"}, b"")
        content = files[name]
        headers = {
            "ETag": f'"{digest(name, content)}"',
            "X-Repo-Commit": model.commit,
            "Accept-Ranges": "bytes",
        }
        if self.double.elsewhere and name.endswith(LARGE):
            headers |= {"X-Linked-Etag": headers.pop("ETag"), "X-Linked-Size": str(len(content))}
            headers["Location"] = f"{self.double.elsewhere}{self.path}"
            return self._send(302, headers, b"")
        if self.command == "GET":
            content = self.double.damaged.get(name, content)
        asked = re.match(r"bytes=(\d+)-$", self.headers.get("Range", ""))
        if asked:
            start = int(asked[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self._send(206, headers, content[start:])
        return self._send(200, headers, content)

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(body)

    def _send_body(self, body: bytes) -> None:
        path = urlsplit(self.path).path
        cutting = _matching(self.double.cuts, path)
        stop = self.double.cuts.pop(cutting, len(body)) if cutting else len(body)
        stalling = _matching(self.double.stalls, path)
        wait_at = self.double.stalls[stalling] if stalling else len(body)
        for start in range(0, min(stop, len(body)), _CHUNK_BYTES):
            if start >= wait_at:
                self.double.stalled.set()
                self.double.go_on.wait()
            try:
                self.wfile.write(body[start : min(start + _CHUNK_BYTES, stop)])
                self.wfile.flush()
            except (BrokenPipeError, ConnectionResetError):  # the client was ended
                stop = 0
                break
        if stop < len(body):
            self.close_connection = True


def _matching(table: dict[str, int], path: str) -> str:
    return next((ending for ending in table if path.endswith(ending)), "")


def _sibling(name: str, content: bytes) -> dict[str, object]:
    sibling: dict[str, object] = {"rfilename": name, "size": len(content)}
    if name.endswith(LARGE):
        sha256 = digest(name, content)
        sibling["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
        sibling["blobId"] = "0" * 40
    else:
        sibling["blobId"] = digest(name, content)
    return sibling


def digest(name: str, content: bytes) -> str:
    """SHA-256 of a large file, git's blob id of a small one."""
    if name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
