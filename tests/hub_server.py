"""A small HTTP server that speaks as much of the hub's API as downloads need."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


class Hub:
    """``files`` maps repo to path to content; ``requests`` records what was asked for. A context manager."""

    def __init__(self, files: dict[str, dict[str, bytes]]) -> None:
        self.files, self.requests = files, []
        self.gated: set[str] = set()
        self.broken = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def log_message(self, *_args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = unquote(urlsplit(request.path).path).strip("/")
        self.requests.append((request.command, path))
        parts = path.split("/")
        headers: dict[str, str] = {}
        if self.broken:
            status, content = 500, b"{}"
        elif parts[:2] == ["api", "models"]:
            status, content, headers = self._api("/".join(parts[2:4]), parts[4:])
        elif len(parts) > 4 and parts[2] == "resolve":
            status, content, headers = self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            status, content = 404, b""
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if body:
            request.wfile.write(content)

    def _refusal(self, repo: str, revision: str) -> tuple[int, bytes, dict[str, str]] | None:
        if repo in self.gated:
            return 403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"}
        if repo not in self.files:
            return 404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "not found"}
        if revision not in ("main", COMMIT):
            return 404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "no revision"}
        return None

    def _api(self, repo: str, rest: list[str]) -> tuple[int, bytes, dict[str, str]]:
        revision = rest[1] if len(rest) > 1 else "main"
        if refusal := self._refusal(repo, revision):
            return refusal
        files = self.files[repo]
        if rest[:1] == ["tree"]:
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
            return 200, json.dumps(entries).encode(), {"Content-Type": "application/json"}
        answer = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        return 200, json.dumps(answer).encode(), {"Content-Type": "application/json"}

    def _file(self, repo: str, revision: str, name: str) -> tuple[int, bytes, dict[str, str]]:
        if refusal := self._refusal(repo, revision):
            return refusal
        if name not in self.files[repo]:
            return 404, b"", {"X-Error-Code": "EntryNotFound", "X-Error-Message": "no file", "X-Repo-Commit": COMMIT}
        content = self.files[repo][name]
        return 200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
