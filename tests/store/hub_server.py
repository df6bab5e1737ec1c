"""A Hub on the loopback, for tests: the part of its HTTP interface that huggingface_hub speaks.

Start ``python hub_server.py --root DIR``; the first line on stdout is its address. It stops when
stdin closes. Token ``hf_alice`` is the user alice, who may write to ``alice/…`` and sees her
private repositories; nobody else does. On disk, which tests may read:

    DIR/<user>/<repo>/repo.json        {"private": …, "branches": {branch: commit}}
    DIR/<user>/<repo>/<commit>/…       the files of a commit
    DIR/lfs/<sha256>                   large files as uploaded

And which tests may write, to have requests go wrong:

    DIR/faults.json    [{"method": "GET", "path": regular expression, "times": how often,
                         "status": …, "headers": {…}}, or in place of a status
                         "cut": bytes after which the connection ends, or "garble": true]
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import shutil
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

REPO = r"(?P<repo>[^/]+/[^/]+?)"
API = rf"/api/models/{REPO}"


class RefusalError(Exception):
    """An answer other than 200; `code` is what the client tells errors apart by."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Hub(BaseHTTPRequestHandler):
    """One request. `ROUTES` below maps method and path to the methods of this class."""

    protocol_version = "HTTP/1.1"
    root: Path
    writing = threading.Lock()

    def answer_request(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.user = token.removeprefix("hf_") or None
        path = urlsplit(self.path).path
        self.fault = self._next_fault(path)
        try:
            if "status" in self.fault:
                headers = self.fault.get("headers", {})
                return self._json({"error": "Injected"}, self.fault["status"], headers)
            for method, pattern, action in ROUTES:
                found = re.fullmatch(pattern, path)
                if found and self.command in method.split():
                    named = found.groupdict()
                    return action(self, **{key: unquote(text) for key, text in named.items()})
            raise RefusalError(404, f"No route {self.command} {path}")
        except RefusalError as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": str(refusal)}
            self._json({"error": str(refusal)}, refusal.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = answer_request  # noqa: N815  # http.server's names

    def _next_fault(self, path: str) -> dict[str, Any]:
        """Return what shall go wrong with this request, and count it."""
        file = self.root / "faults.json"
        with self.writing:
            faults: list[dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else []
            for fault in faults:
                asked = self.command == fault["method"] and re.search(fault["path"], path)
                if asked and fault["times"] > 0:
                    fault["times"] -= 1
                    file.write_text(json.dumps(faults))
                    return fault
        return {}

    def _send(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.fault.get("garble"):
            data = data[:-1] + bytes([data[-1] ^ 1])
        if "cut" in self.fault:
            self.wfile.write(data[: self.fault["cut"]])
            self.close_connection = True
        elif self.command != "HEAD":
            self.wfile.write(data)

    def _json(self, data: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(data).encode(), status, headers)

    # Repositories on disk

    def _state(self, repo: str, *, write: bool = False) -> dict[str, Any]:
        """Return ``repo.json``, or refuse as the Hub does: it does not tell hidden from absent."""
        path = self.root / repo / "repo.json"
        owner = self.user == repo.split("/")[0]
        state: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        if not state or (state["private"] and not owner):
            raise RefusalError(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if write and not owner:
            raise RefusalError(403 if self.user else 401, "You may not write to this repository")
        return state

    def _commit(self, repo: str, state: dict[str, Any], revision: str) -> str:
        commit: str = state["branches"].get(revision, revision)
        if not (self.root / repo / commit).is_dir():
            raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def _store(self, repo: str, state: dict[str, Any]) -> None:
        (self.root / repo / "repo.new").write_text(json.dumps(state))
        (self.root / repo / "repo.new").rename(self.root / repo / "repo.json")

    # Actions

    def create(self) -> None:
        data = json.loads(self.body)
        if self.user is None:
            raise RefusalError(401, "Invalid username or password.")
        repo = f"{data.get('organization') or self.user}/{data['name']}"
        if repo.split("/")[0] != self.user:
            raise RefusalError(403, f"You may not create under {repo.split('/')[0]}")
        url = f"{ADDRESS}/{repo}"
        with self.writing:
            if (self.root / repo).exists():
                return self._json({"error": "You already created this repo", "url": url}, 409)
            first = hashlib.sha1(repo.encode()).hexdigest()
            (self.root / repo / first).mkdir(parents=True)
            (self.root / repo / first / ".gitattributes").write_text("*.safetensors filter=lfs\n")
            private = data.get("visibility") == "private" or data.get("private") is True
            self._store(repo, {"private": private, "branches": {"main": first}})
        return self._json({"url": url})

    def branch(self, repo: str, branch: str) -> None:
        with self.writing:
            state = self._state(repo, write=True)
            if branch in state["branches"]:
                raise RefusalError(409, "Reference already exists")
            start = json.loads(self.body or b"{}").get("startingPoint", "main")
            state["branches"][branch] = self._commit(repo, state, start)
            self._store(repo, state)
        self._json({})

    def validate(self) -> None:
        card = json.loads(self.body)["content"]
        language = re.search(r"^language: (.*)$", card, re.MULTILINE)
        errors = []
        if language and not re.fullmatch(r"[a-z]{2,3}", language[1].strip("\"'")):
            errors = [{"message": f'"language" with value "{language[1]}" is not valid.'}]
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, repo: str, revision: str) -> None:
        folder = self.root / repo / self._commit(repo, self._state(repo, write=True), revision)
        files = []
        for path in (file["path"] for file in json.loads(self.body)["files"]):
            facts = facts_of(folder / path) if (folder / path).is_file() else {}
            oid = facts.get("lfs", facts).get("oid")  # that of an unchanged file: it is not sent
            mode = "lfs" if is_large(path) else "regular"
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": files})

    def batch(self, repo: str) -> None:
        self._state(repo, write=True)
        objects = []
        for each in json.loads(self.body)["objects"]:
            actions = {"upload": {"href": f"{ADDRESS}/lfs/{each['oid']}"}}
            stored = (self.root / "lfs" / each["oid"]).exists()
            objects.append({**each, **({} if stored else {"actions": actions})})
        self._json({"transfer": "basic", "objects": objects})

    def upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise RefusalError(400, "Other content")
        (self.root / "lfs").mkdir(exist_ok=True)
        (self.root / "lfs" / oid).write_bytes(self.body)
        self._send(b"")

    def commit(self, repo: str, revision: str) -> None:
        with self.writing:
            state = self._state(repo, write=True)
            parent = self._commit(repo, state, revision)
            commit = hashlib.sha1(parent.encode() + self.body).hexdigest()
            target = self.root / repo / commit
            shutil.copytree(self.root / repo / parent, target)
            for line in self.body.splitlines():
                key, value = (entry := json.loads(line))["key"], entry["value"]
                if key == "file":
                    (target / value["path"]).parent.mkdir(parents=True, exist_ok=True)
                    (target / value["path"]).write_bytes(base64.b64decode(value["content"]))
                elif key == "lfsFile":
                    (target / value["path"]).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(self.root / "lfs" / value["oid"], target / value["path"])
                elif key == "deletedFile":
                    (target / value["path"]).unlink()
            state["branches"][revision] = commit
            self._store(repo, state)
        url = f"{ADDRESS}/{repo}/commit/{commit}"
        self._json({"success": True, "commitOid": commit, "commitUrl": url})

    def info(self, repo: str, revision: str = "main") -> None:
        state = self._state(repo)
        commit = self._commit(repo, state, revision)
        names = [{"rfilename": path} for path in files_in(self.root / repo / commit)]
        private = state["private"]
        self._json({"id": repo, "sha": commit, "private": private, "siblings": names})

    def search(self) -> None:
        """Answer as the Hub does: filters are tags, which it makes of a card's metadata too."""
        asked = parse_qs(urlsplit(self.path).query)
        found = []
        for file in sorted(self.root.glob("*/*/repo.json")):
            repo = file.parent.relative_to(self.root).as_posix()
            state = json.loads(file.read_text())
            readme = file.parent / state["branches"]["main"] / "README.md"
            card = yaml.safe_load(readme.read_text().split("---")[1]) if readme.is_file() else {}
            tags = [*card.get("tags", []), card.get("library_name")]
            if base := card.get("base_model"):
                tags += [f"base_model:{base}", f"base_model:adapter:{base}"]
            seen = not state["private"] or self.user == repo.split("/")[0]
            named = all(word.lower() in repo.lower() for word in asked.get("search", []))
            if seen and named and set(asked.get("filter", [])) <= set(tags):
                downloads = state.get("downloads", 0)
                found.append({"id": repo, "tags": tags, "cardData": card, "downloads": downloads})
        found.sort(key=lambda one: -one["downloads"])
        self._json(found[: int(asked.get("limit", ["1000"])[0])])

    def tree(self, repo: str, revision: str) -> None:
        folder = self.root / repo / self._commit(repo, self._state(repo), revision)
        files = files_in(folder)
        self._json([{"type": "file", "path": path, **facts_of(folder / path)} for path in files])

    def resolve(self, repo: str, revision: str, path: str) -> None:
        commit = self._commit(repo, self._state(repo), revision)
        file = self.root / repo / commit / path
        if not file.is_file():
            raise RefusalError(404, "Entry not found", "EntryNotFound")
        facts = facts_of(file)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{facts["oid"]}"'}
        if "lfs" in facts:  # the real Hub sends these along with a redirect to its storage
            headers["X-Linked-Etag"] = f'"{facts["lfs"]["oid"]}"'
            headers["X-Linked-Size"] = str(facts["size"])
        data = file.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self._send(data, 200, {**headers, "Accept-Ranges": "bytes"})
        start, end = int(asked[1]), min(int(asked[2] or len(data)) + 1, len(data))
        if start >= len(data):
            raise RefusalError(416, "Range Not Satisfiable")
        span = f"bytes {start}-{end - 1}/{len(data)}"
        self.log_message("%s of %s", span, path)
        return self._send(data[start:end], 206, {**headers, "Content-Range": span})


def is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def files_in(folder: Path) -> list[str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path.relative_to(folder).as_posix() for path in files]


def facts_of(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # git's
    lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return {"size": len(data), "oid": oid, **({"lfs": lfs} if is_large(path.name) else {})}


ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("POST", r"/api/repos/create", Hub.create),
    ("POST", r"/api/validate-yaml", Hub.validate),
    ("POST", rf"{API}/branch/(?P<branch>[^/]+)", Hub.branch),
    ("POST", rf"{API}/preupload/(?P<revision>[^/]+)", Hub.preupload),
    ("POST", rf"{API}/commit/(?P<revision>[^/]+)", Hub.commit),
    ("GET", r"/api/models", Hub.search),
    ("GET", API, Hub.info),
    ("GET", rf"{API}/revision/(?P<revision>[^/]+)", Hub.info),
    ("GET", rf"{API}/tree/(?P<revision>[^/]+)/?", Hub.tree),
    ("GET HEAD", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Hub.resolve),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Hub.batch),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", Hub.upload),
]

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True)
    Hub.root = parser.parse_args().root
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    ADDRESS = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(ADDRESS, flush=True)
    sys.stdin.read()
