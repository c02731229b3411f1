"""A model hub on 127.0.0.1: the three requests that huggingface_hub makes for a download, and a count of what was sent;
and those for an upload, all in one commit.

with FakeHub({"microsoft/Phi-3-mini-4k-instruct": folder}) as hub:  HF_ENDPOINT=hub.endpoint ...
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """`repositories`: owner/name -> folder. `sent` is file name -> bytes sent of it; `uploaded` is owner/name -> path
    -> content."""

    def __init__(self, repositories: Mapping[str, Path], *, gated: bool = False) -> None:
        self.repositories, self.gated = dict(repositories), gated
        self.sent: dict[str, int] = {}
        self.uploaded: dict[str, dict[str, bytes]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def environment(self, home: Path) -> dict[str, str]:
        """For a process that takes this hub for the real one, with an empty cache in `home`."""
        return {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}

    def __enter__(self) -> FakeHub:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def take_for_real(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """From now on huggingface_hub takes it, in this process, for the real one, with `cache`."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: FakeHub, *arguments: object) -> None:
        self.hub = hub
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self.path.strip("/").split("/")  # api/models/owner/name/what/revision, or api/what
        name, what = "/".join(parts[2:4]), parts[4] if len(parts) > 4 else "/".join(parts[1:])
        if self.hub.gated:
            self._refuse(HTTPStatus.FORBIDDEN, "GatedRepo")
            return
        answers: Mapping[str, Callable[[bytes], dict[str, object]]] = {
            "repos/create": self._create,
            "preupload": _all_regular,
            "commit": partial(self._commit, name),
        }
        content: dict[str, object] = {"errors": [], "warnings": []}
        content = answers[what](data) if what in answers else content
        self._send(HTTPStatus.OK, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _create(self, data: bytes) -> dict[str, object]:
        asked = json.loads(data)
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        self.hub.uploaded[name] = {}
        return {"name": name, "id": name, "url": f"{self.hub.endpoint}/{name}"}

    def _commit(self, name: str, data: bytes) -> dict[str, object]:
        for line in data.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                value = entry["value"]
                self.hub.uploaded[name][value["path"]] = base64.b64decode(value["content"])
        address = f"{self.hub.endpoint}/{name}/commit/{COMMIT}"
        return {"success": True, "commitOid": COMMIT, "commitUrl": address, "hookOutput": ""}

    def _answer(self, body: bool) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[0] == "api":
            self._describe("/".join(parts[2:4]), *(parts[4:6] or ("revision", "main")))
        else:
            self._send_file("/".join(parts[:2]), "/".join(parts[4:]), body)

    def _describe(self, name: str, what: str, revision: str) -> None:
        folder = self.hub.repositories.get(name)
        if folder is None:
            self._refuse(HTTPStatus.NOT_FOUND, "RepoNotFound")
        elif self.hub.gated:
            self._refuse(HTTPStatus.FORBIDDEN, "GatedRepo")
        elif revision not in ("main", COMMIT):
            self._refuse(HTTPStatus.NOT_FOUND, "RevisionNotFound")
        else:
            sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
            files = [{"rfilename": file, "size": size} for file, size in sizes.items()]
            tree = [{"type": "file", "path": file, "size": size, "oid": COMMIT} for file, size in sizes.items()]
            about = {"id": name, "sha": COMMIT, "private": False, "tags": [], "siblings": files}
            content = tree if what == "tree" else about
            self._send(HTTPStatus.OK, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send_file(self, name: str, file: str, body: bool) -> None:
        path = self.hub.repositories.get(name, Path("/nowhere")) / file
        if not path.is_file():
            self._refuse(HTTPStatus.NOT_FOUND, "EntryNotFound")
            return
        content = path.read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        if not body:
            self._send(HTTPStatus.OK, b"", headers, length=len(content))
            return
        first, _, last = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")
        asked = content[int(first) : int(last) + 1 if last else len(content)]
        status = HTTPStatus.PARTIAL_CONTENT if "Range" in self.headers else HTTPStatus.OK
        self.hub.sent[file] = self.hub.sent.get(file, 0) + len(asked)
        self._send(status, asked, headers)

    def _refuse(self, status: HTTPStatus, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: HTTPStatus, content: bytes, headers: Mapping[str, str], length: int | None = None) -> None:
        self._head(status, headers, len(content) if length is None else length)
        self.wfile.write(content)

    def _head(self, status: HTTPStatus, headers: Mapping[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing."""


def _all_regular(data: bytes) -> dict[str, object]:
    """No file is so large that it is sent on its own."""
    files = json.loads(data)["files"]
    return {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]}
