"""A Hugging Face hub on the loopback address: files, facts about them, refusals and broken lines as real ones have."""

import base64
import hashlib
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40


class HubStub(ThreadingHTTPServer):
    """Serves `files`, {"owner/name": {file: bytes}}; whatever is uploaded comes in there too.

    Attributes:
        refuse: (status, headers) for every request, or None.
        cut_after: bytes after which each answer with a file breaks off, as often as `cuts` says.
        lie: digests that are stated are wrong.
        stated: sizes that are stated in place of the real ones.
        asked: how often each (method, path) was asked.
    """

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), _Answer)
        self.files, self.asked = files, Counter()
        self.refuse, self.cut_after, self.cuts, self.lie, self.stated, self.ranges = None, 0, 0, False, {}, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer()

    def do_HEAD(self):
        self.answer()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked[("POST", self.path)] += 1
        if self.server.refuse:
            return self.refused()
        if self.path.endswith("/validate-yaml"):
            return self.send({"errors": [], "warnings": []})
        if self.path.endswith("/repos/create"):
            wanted = json.loads(body)
            repo = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            self.server.files.setdefault(repo, {})
            self.server.created = wanted
            return self.send({"url": f"{self.server.address}/{repo}", "id": repo, "name": repo})
        repo = "/".join(self.path.split("/")[3:5])
        if "/preupload/" in self.path:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self.send({"files": files})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.server.files[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self.send(
            {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.server.address}/{repo}/commit/{COMMIT}"}
        )

    def answer(self):
        self.server.asked[(self.command, self.path)] += 1
        if self.server.refuse:
            return self.refused()
        path = self.path.partition("?")[0].strip("/")
        if path.startswith("api/models/"):
            return self.facts("/".join(path.split("/")[2:4]))
        parts = path.split("/")
        name = "/".join(parts[4:] if parts[2:3] == ["resolve"] else parts[2:])
        content = self.server.files.get("/".join(parts[:2]), {}).get(name)
        if content is None:
            return self.send({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        return self.file(content, name)

    def facts(self, repo):
        files = self.server.files.get(repo)
        if files is None:
            return self.send({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        siblings = [{"rfilename": name, "size": self.size(name, content)} for name, content in files.items()]
        for one in siblings:
            digest = self.digest(files[one["rfilename"]])
            one["lfs"] = {"sha256": digest, "size": one["size"], "pointerSize": 100}
        return self.send({"id": repo, "sha": COMMIT, "cardData": {"license": "mit"}, "siblings": siblings, "tags": []})

    def file(self, content, name):
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.server.ranges.append(start)
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{self.digest(content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(self.size(name, content) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.cuts and len(content) - start > self.server.cut_after:
            self.server.cuts -= 1
            self.wfile.write(content[start : start + self.server.cut_after])
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True
            return
        self.wfile.write(content[start:])

    def size(self, name, content):
        return self.server.stated.get(name, len(content))

    def digest(self, content):
        return hashlib.sha256(b"other" if self.server.lie else content).hexdigest()

    def refused(self):
        status, headers = self.server.refuse
        self.send({"error": "no"}, status, headers)

    def send(self, told, status=200, headers=()):
        body = json.dumps(told).encode()
        self.send_response(status)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass
