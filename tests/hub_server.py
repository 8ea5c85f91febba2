"""A hub on this machine: the few endpoints that uploading and downloading a model need, as huggingface_hub calls them."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_test"


class Hub(ThreadingHTTPServer):
    """Repositories in memory: {repo id: {path: content}}; what was asked for is in ``asked``."""

    daemon_threads = True

    def __init__(self):
        self.repos: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, int] = {}
        self.private: set[str] = set()
        self.messages: list[str] = []
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sha(self, repo: str) -> str:
        """The commit that a repository is at."""
        return hashlib.sha1(f"{repo} {self.commits.get(repo, 0)}".encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Say nothing."""

    def answer(self, status: int, value: object = None, **headers: str) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", headers.pop("length", str(len(content))))
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    @property
    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or self.chunks()
        path = urlsplit(self.path).path
        self.server.asked.append(f"POST {path}")
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if not self.known:
            return self.answer(401, {"error": "Invalid username or password."})
        parts = path.split("/")
        if path == "/api/repos/create":
            values = json.loads(body)
            repo = f"{values['organization']}/{values['name']}" if values.get("organization") else f"me/{values['name']}"
            if repo.startswith("others/"):
                return self.answer(403, {"error": "You don't have the rights to create a model under others."})
            self.server.repos.setdefault(repo, {})
            if values.get("private") or values.get("visibility") == "private":
                self.server.private.add(repo)
            return self.answer(200, {"url": f"{self.server.url}/{repo}", "name": repo, "id": repo})
        repo = "/".join(parts[3:5])
        if parts[5] == "preupload":
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for f in files]
            return self.answer(200, {"files": modes})
        if parts[5] == "commit":
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "header":
                    self.server.messages.append(line["value"]["summary"])
                if line["key"] == "file":
                    self.server.repos[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.server.commits[repo] = self.server.commits.get(repo, 0) + 1
            sha = self.server.sha(repo)
            return self.answer(200, {"commitUrl": f"{self.server.url}/{repo}/commit/{sha}", "commitOid": sha, "success": True})
        return self.answer(404, {"error": "Not found"})

    def chunks(self) -> bytes:
        """Read a body in chunks."""
        out = b""
        while self.headers.get("Transfer-Encoding") == "chunked":
            size = int(self.rfile.readline(), 16)
            out += self.rfile.read(size)
            self.rfile.readline()
            if not size:
                break
        return out

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(f"{self.command} {path}")
        parts = path.split("/")
        repo = "/".join(parts[3:5] if path.startswith("/api/models/") else parts[1:3])
        files = self.server.repos.get(repo)
        if files is None or (repo in self.server.private and not self.known):
            return self.answer(404 if self.known else 401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        sha = self.server.sha(repo)
        if path.startswith("/api/models/"):
            if "tree" in parts:
                return self.answer(200, [{"type": "file", "path": p, "size": len(c), "oid": self.oid(c)} for p, c in files.items()])
            if "revision" in parts and parts[-1] not in ("main", sha):
                return self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
            siblings = [{"rfilename": p} for p in files]
            return self.answer(
                200, {"_id": "1", "id": repo, "modelId": repo, "sha": sha, "siblings": siblings, "private": False, "tags": []}
            )
        name = "/".join(parts[5:])
        if parts[3] != "resolve" or name not in files:
            return self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        return self.answer(200, files[name], ETag=f'"{self.oid(files[name])}"', X_Repo_Commit=sha, X_Linked_Size=str(len(files[name])))

    do_HEAD = do_GET

    @staticmethod
    def oid(content: bytes) -> str:
        """The name that git gives a file's content."""
        return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve on a free port of this machine."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
