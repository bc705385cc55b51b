"""The few answers of the Hugging Face hub that an upload asks for, from a server in this process."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FakeHub(BaseHTTPRequestHandler):
    """Repositories are created, files are taken as regular blobs, and a commit puts and deletes them."""

    files: dict[str, bytes]
    created: list[dict]
    refuse = False

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.refuse:
            return self._answer({"error": "no write access"}, 403)
        if self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            return self._answer({"url": "https://huggingface.co/datasets/me/set"})
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._answer({"files": modes})
        assert self.path.startswith("/api/datasets/me/set/commit/main"), self.path
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del self.files[value["path"]]
        return self._answer(
            {
                "commitUrl": "https://huggingface.co/datasets/me/set/commit/1",
                "commitOid": "1" * 40,
                "pullRequestUrl": None,
            }
        )

    def do_GET(self):
        siblings = [{"rfilename": name} for name in self.files]
        tree = [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in self.files]
        self._answer(tree if "/tree/" in self.path else {"id": "me/set", "sha": "0" * 40, "siblings": siblings})

    def _answer(self, value, status=200):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def fake_hub(files: dict[str, bytes], refuse: bool = False):
    """(address, what was created) of a hub whose only data set holds `files`, which change as it is pushed to."""
    handler = type("Hub", (FakeHub,), {"files": files, "created": [], "refuse": refuse})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.created
    finally:
        server.shutdown()
        server.server_close()
