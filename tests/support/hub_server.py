"""A hub on the loopback interface that answers the requests of an upload and writes what it receives to a folder."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlparse

TOKEN = "hf_no_real_token_0123456789"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    folder: Path
    """The content of repositories: OWNER/NAME/BRANCH/FILE."""
    url: str = ""
    visibility: str = ""
    """Visibility of the repository; '' before it exists."""
    role: str = "write"
    """What the token may do."""
    messages: list[str] = field(default_factory=list)


@contextmanager
def hub_server(folder: Path) -> Iterator[Hub]:
    hub = Hub(folder)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: ClassVar[Hub]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self._answer(self.rfile.read(length) if length else self._chunks())

    def log_message(self, *_: Any) -> None:
        """Silent."""

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, body: bytes) -> None:
        path = urlparse(self.path).path
        status, answer = 200, None
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            status, answer = 401, {"error": "Invalid username or password."}
        else:
            answer = self._route(path, body)
            if answer is None:
                status, answer = 404, {"error": "Repository not found"}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _route(self, path: str, body: bytes) -> Any:
        match path.strip("/").split("/"):
            case ["api", "repos", "create"]:
                asked = json.loads(body)
                # As on the real hub, an existing repository does not change.
                self.hub.visibility = self.hub.visibility or asked.get("visibility", "public")
                return {"url": f"{self.hub.url}/{asked.get('organization', 'me')}/{asked['name']}"}
            case ["api", "whoami-v2"]:
                return {"name": "someone", "auth": {"accessToken": {"role": self.hub.role}}}
            case ["api", "validate-yaml"]:
                return {"errors": [], "warnings": []}
            case ["api", "models", owner, name] if self.hub.visibility:
                private = self.hub.visibility == "private"
                return {"id": f"{owner}/{name}", "sha": COMMIT, "private": private, "siblings": []}
            case ["api", "models", owner, name, "branch", branch]:
                self._branch(owner, name, branch).mkdir(parents=True, exist_ok=True)
                return {}
            case ["api", "models", owner, name, "tree", branch]:
                held = self._branch(owner, name, branch)
                return [
                    {"type": "file", "path": file.relative_to(held).as_posix(), "size": file.stat().st_size, "oid": "0"}
                    for file in sorted(held.rglob("*"))
                ]
            case ["api", "models", _, _, "preupload", _]:
                files = json.loads(body)["files"]
                return {
                    "files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in files]
                }
            case ["api", "models", owner, name, "commit", branch]:
                return self._commit(f"{owner}/{name}", self._branch(owner, name, branch), body)
        return None

    def _branch(self, owner: str, name: str, branch: str) -> Path:
        return self.hub.folder / owner / name / branch

    def _commit(self, repo: str, branch: Path, body: bytes) -> dict[str, Any]:
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "header":
                    self.hub.messages.append(value["summary"])
                case "file":
                    file = branch / value["path"]
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(base64.b64decode(value["content"]))
                case "deletedFile":
                    (branch / value["path"]).unlink()
        url = f"{self.hub.url}/{repo}/commit/{COMMIT}"
        return {"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""}
