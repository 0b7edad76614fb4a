"""A small Hugging Face Hub on this machine, which answers the client as the real one does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """Repositories, by id: path -> content. `refuse`: id -> (status, the hub's code for the error)."""

    repositories: dict[str, dict[str, bytes]]
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)  # method, path, headers
    breaks: set[str] = field(default_factory=set)  # paths of files that are cut in the middle, once
    endpoint: str = ""

    def fetched(self, repo: str) -> set[str]:
        """The files of a repository that were requested."""
        start = f"/{repo}/resolve/{COMMIT}/"
        return {path.removeprefix(start) for method, path, _ in self.requests if path.startswith(start)}


def etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Runs the hub at `hub.endpoint` until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            hub.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
            path = self.path.partition("?")[0]
            api = path.startswith("/api/models/")
            parts = path.removeprefix("/api/models").strip("/").split("/")
            repo, verb, revision, name = "/".join(parts[:2]), parts[2], parts[3], "/".join(parts[4:])
            files = hub.repositories.get(repo)
            if repo in hub.refuse and (not api or hub.refuse[repo][1] != "GatedRepo"):
                return self.answer(*hub.refuse[repo])
            if files is None:
                return self.answer(401, "RepoNotFound")
            if revision not in ("main", COMMIT):
                return self.answer(404, "RevisionNotFound")
            if verb == "revision":
                return self.answer(200, body=json.dumps({"id": repo, "sha": COMMIT, "siblings": []}).encode())
            if verb == "tree":
                tree = [{"type": "file", "path": p, "size": len(c), "oid": etag(c)} for p, c in files.items()]
                return self.answer(200, body=json.dumps(tree).encode())
            if name not in files:
                return self.answer(404, "EntryNotFound")
            return self.content(files[name])

        def content(self, content: bytes) -> None:
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
            headers = {"ETag": f'"{etag(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            body = content[start:]
            if self.command == "GET" and self.path in hub.breaks:
                hub.breaks.remove(self.path)
                self.answer(200, body=body, headers=headers, sent=len(body) // 2)
            else:
                self.answer(206 if start else 200, body=body, headers=headers)

        def answer(
            self,
            status: int,
            code: str = "",
            body: bytes = b"",
            headers: dict[str, str] | None = None,
            sent: int | None = None,
        ) -> None:
            self.send_response(status)
            said = {"X-Error-Code": code} if code else {}
            for key, value in (said | (headers or {}) | {"Content-Length": str(len(body))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[:sent])

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
