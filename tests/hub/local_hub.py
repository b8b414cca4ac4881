"""A stand-in for the hub on this machine: as much of its HTTP API as huggingface_hub asks for."""

import base64
import hashlib
import http.server
import json
import threading
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

TOKEN = "hf_owner0000000000000000000000000"


class Hub:
    """Repositories in memory; a commit is a number, a branch names one.

    Attributes:
        repos: By name: ``branches`` (name to commit), ``commits`` (commit to files), ``private``.
        asked: Every request: method, path, and its token.
    """

    def __init__(self):
        self.repos, self.asked, self.url = {}, [], ""

    def create(self, name, private=False):
        first = self._sha(name, 0)
        return self.repos.setdefault(
            name, {"branches": {"main": first}, "commits": {first: {}}, "private": private}
        )

    def put(self, name, files, branch="main", private=False):
        """Commit files, and return the commit."""
        repo = self.create(name, private)
        before = repo["commits"][repo["branches"].get(branch, repo["branches"]["main"])]
        commit = self._sha(name, len(repo["commits"]))
        repo["commits"][commit] = {**before, **files}
        repo["branches"][branch] = commit
        return commit

    def files(self, name, revision="main"):
        repo = self.repos[name]
        return repo["commits"][repo["branches"].get(revision, revision)]

    def _sha(self, name, count):
        return hashlib.sha1(f"{name} {count}".encode()).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does, with its headers."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    @property
    def hub(self):
        return self.server.hub

    def answer(self, status, body=b"", headers=(), code=None):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
        for key, value in headers:
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def handle_one(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.hub.asked.append((self.command, path, token))
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if path.startswith("api/"):
            return self.api(path.split("/")[1:], token, body)
        return self.resolve(path, token)

    do_GET = do_HEAD = do_POST = handle_one

    def known(self, name, token):
        repo = self.hub.repos.get(name)
        if repo is None or (repo["private"] and token != TOKEN):
            self.answer(401 if not token else 404, code="RepoNotFound")
            return None
        if repo.get("gated"):
            self.answer(403, code="GatedRepo")
            return None
        return repo

    def at(self, repo, revision):
        commit = repo["branches"].get(revision, revision)
        if commit not in repo["commits"]:
            self.answer(404, code="RevisionNotFound")
            return None
        return commit

    def resolve(self, path, token):
        owner, name, _, rest = path.split("/", 3)
        repo = self.known(f"{owner}/{name}", token)
        if repo is None:
            return None
        revision = next(
            (r for r in [*repo["branches"], *repo["commits"]] if rest.startswith(f"{r}/")),
            rest.partition("/")[0],
        )
        commit = self.at(repo, revision)
        if commit is None:
            return None
        content = repo["commits"][commit].get(rest[len(revision) + 1 :])
        if content is None:
            return self.answer(404, code="EntryNotFound", headers=[("X-Repo-Commit", commit)])
        etag = hashlib.sha1(content).hexdigest()
        return self.answer(200, content, [("X-Repo-Commit", commit), ("ETag", f'"{etag}"')])

    def api(self, parts, token, body):
        if parts == ["validate-yaml"]:
            return self.answer(200, {"errors": [], "warnings": []})
        if parts == ["repos", "create"]:
            return self.create(token, json.loads(body))
        if len(parts) < 3:
            return self.answer(404)
        _, owner, name, *rest = parts
        repo = self.known(f"{owner}/{name}", token)
        if repo is None:
            return None
        if rest[:1] == ["branch"]:
            repo["branches"].setdefault("/".join(rest[1:]), repo["branches"]["main"])
            return self.answer(201, {})
        if rest[:1] == ["preupload"]:
            files = [
                {**f, "uploadMode": "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        if rest[:1] == ["commit"]:
            return self.commit(f"{owner}/{name}", "/".join(rest[1:]), token, body)
        revision = "/".join(rest[1:]) if rest[:1] in (["revision"], ["tree"]) else "main"
        commit = self.at(repo, revision)
        if commit is None:
            return None
        known = repo["commits"][commit]
        if rest[:1] == ["tree"]:
            rows = [
                {"type": "file", "path": p, "size": len(c), "oid": "0"} for p, c in known.items()
            ]
            return self.answer(200, rows)
        siblings = [{"rfilename": path} for path in known]
        return self.answer(
            200,
            {
                "id": f"{owner}/{name}",
                "modelId": f"{owner}/{name}",
                "sha": commit,
                "private": repo["private"],
                "siblings": siblings,
                "tags": [],
                "downloads": 0,
            },
        )

    def create(self, token, asked):
        name = f"{asked['organization']}/{asked['name']}"
        if token != TOKEN:
            return self.answer(401)
        if name in self.hub.repos:
            return self.answer(409, {"error": "exists", "url": f"{self.hub.url}/{name}"})
        self.hub.create(name, bool(asked.get("private") or asked.get("visibility") == "private"))
        return self.answer(200, {"url": f"{self.hub.url}/{name}"})

    def commit(self, name, branch, token, body):
        if token != TOKEN:
            return self.answer(403)
        lines = [json.loads(line) for line in body.splitlines()]
        files = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            for line in lines
            if line["key"] == "file"
        }
        asked = "create_pr=1" in self.path
        commit = self.hub.put(name, files, "refs/pr/1" if asked else branch)
        url = f"{self.hub.url}/{name}"
        answer = {"success": True, "commitOid": commit, "commitUrl": f"{url}/commit/{commit}"}
        if asked:
            answer["pullRequestUrl"] = f"{url}/discussions/1"
        return self.answer(200, answer)


@contextmanager
def serving():
    """Yield a hub that listens on this machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub, server.daemon_threads = Hub(), True
    server.hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
