"""A stand-in for the hub: as much of its interface as an upload needs.

It keeps each repository's files of the last commit, and what was asked.
"""

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SHA = "0" * 40


class Hub(ThreadingHTTPServer):
    """The server.

    Attributes:
        repositories: files by name, of each repository.
        requests: method and path of each request.
        private: whether each repository is private.
        refuses: paths that are answered with a status and a message.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.requests: list[tuple[str, str]] = []
        self.blobs: dict[str, bytes] = {}
        self.refuses: dict[str, tuple[int, str]] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """Answers a request."""

    server: Hub

    def log_message(self, *args) -> None:
        pass

    def answer(self, values, status: int = 200) -> None:
        data = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def refused(self) -> bool:
        self.server.requests.append((self.command, self.path))
        path = self.path.partition("?")[0]
        for part, (status, message) in self.server.refuses.items():
            if part in path:
                self.body()
                self.answer({"error": message}, status)
                return True
        return False

    def do_GET(self) -> None:
        if not self.refused():
            self.answer({"error": "Entry not found"}, 404)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        if not self.refused():
            self.server.blobs[self.path.rpartition("/")[2]] = self.body()
            self.answer({})

    def do_POST(self) -> None:
        if self.refused():
            return
        path, body = self.path.partition("?")[0], self.body()
        if path.endswith("/commit/main"):
            self.commit("/".join(path.split("/")[3:5]), body.splitlines())
            return
        asked = json.loads(body) if body else {}
        if path == "/api/repos/create":
            name = f"{asked['organization']}/{asked['name']}"
            new = name not in self.server.repositories
            self.server.repositories.setdefault(name, {})
            hidden = asked.get("visibility") == "private" or asked.get("private")
            self.server.private.setdefault(name, bool(hidden))
            url = {"url": f"{self.server.address}/{name}"}
            self.answer(url | ({} if new else {"error": "exists"}), 200 if new else 409)
        elif path.endswith("/preupload/main"):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if "safetensors" in file["path"] else "regular",
                    "shouldIgnore": False,
                }
                for file in asked["files"]
            ]
            self.answer({"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {
                    **blob,
                    "actions": {
                        "upload": {"href": f"{self.server.address}/blob/{blob['oid']}"}
                    },
                }
                for blob in asked["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        else:  # validate-yaml
            self.answer({"warnings": [], "errors": []})

    def commit(self, name: str, lines: list[bytes]) -> None:
        files = self.server.repositories[name]
        for line in map(json.loads, lines):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
        url = f"{self.server.address}/{name}/commit/{SHA}"
        self.answer({"success": True, "commitUrl": url, "commitOid": SHA})


@contextlib.contextmanager
def hub() -> Iterator[Hub]:
    """Runs the server in a thread."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
