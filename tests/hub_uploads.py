"""What a push asks of the hub: make a repository, take files, put them into one commit.

The part of tests/hub_double.py that writes. Large files go to a store of their own first, named
by their SHA-256 (git LFS); a commit names them, and is refused where one never arrived.
"""

import base64
import hashlib
import json
import re
from typing import Any
from urllib.parse import unquote, urlsplit

_PREUPLOAD = re.compile(r"^/api/models/(?P<id>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)$")
_BATCH = re.compile(r"^/(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch$")
_COMMIT = re.compile(r"^/api/models/(?P<id>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)$")
_BRANCH = re.compile(r"^/api/models/(?P<id>[^/]+/[^/]+)/branch/(?P<branch>[^/]+)$")
_PLACE = "/large-files/"


class Uploads:
    """POST and PUT of the hub's handler."""

    double: Any
    path: str
    headers: Any
    rfile: Any

    def do_PUT(self) -> None:  # noqa: N802
        """A large file, to the address that the batch named; it carries no token."""
        content, oid = self._body(), self.path.removeprefix(_PLACE)
        if self._fails(self.path):  # type: ignore[attr-defined]
            return self._json(500, {})
        if hashlib.sha256(content).hexdigest() != oid:
            return self._json(400, {"error": "not what was announced"})
        self.double.large_files[oid] = content
        return self._json(200, {})

    def do_POST(self) -> None:  # noqa: N802
        path, body = urlsplit(self.path).path, self._body()
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.double.tokens[path] = token
        if self._fails(path):  # type: ignore[attr-defined]
            return self._json(500, {"error": "trouble"})
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if not token:
            return self._json(401, {"error": "Unauthorized"})
        if token not in self.double.writers:
            return self._json(403, {"error": "Forbidden: no role of writing"})
        if path == "/api/repos/create":
            return self._create(json.loads(body), token)
        for pattern, answer in (
            (_PREUPLOAD, self._preupload),
            (_BATCH, self._batch),
            (_COMMIT, self._commit),
            (_BRANCH, self._branch),
        ):
            if match := pattern.match(path):
                return self._on_model(answer, match.groupdict(), body)
        return self._json(404, {})

    def _on_model(self, answer: Any, named: dict[str, str], body: bytes) -> None:
        model = self.double.models.get(named.pop("id"))
        if model is None:
            return self._json(404, {"error": "Repository not found"})
        return answer(model, body, *map(unquote, named.values()))

    def _validate(self, card: str) -> None:
        found = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
        import yaml

        try:
            head = yaml.safe_load(found[1]) if found else None
        except yaml.YAMLError as error:
            return self._json(400, {"errors": [{"message": str(error)}]})
        if not isinstance(head, dict):
            return self._json(400, {"errors": [{"message": "no metadata"}]})
        return self._json(200, {"errors": [], "warnings": []})

    def _create(self, asked: dict[str, Any], token: str) -> None:
        from tests.hub_double import HubModel

        id = f"{asked['organization']}/{asked['name']}"
        if id in self.double.models:
            return self._json(409, {"error": "exists"})
        private = asked["visibility"] == "private"
        self.double.models[id] = HubModel(
            {".gitattributes": b"*"}, private=private, token=token if private else ""
        )
        return self._json(200, {"url": f"{self.double.url}/{id}"})

    def _branch(self, model: Any, _: bytes, branch: str) -> None:
        if branch in model.revisions:
            return self._json(409, {"error": "exists"})
        model.revisions += (branch,)
        model.branches[branch] = dict(model.files)
        return self._json(200, {})

    def _preupload(self, model: Any, body: bytes, revision: str) -> None:
        from tests.hub_double import LARGE, digest

        there = model.files_of(revision)
        files = [
            {
                "path": (name := file["path"]),
                "uploadMode": "lfs" if name.endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": digest(name, there[name]) if name in there else None,
            }
            for file in json.loads(body)["files"]
        ]
        return self._json(200, {"files": files})

    def _batch(self, model: Any, body: bytes) -> None:
        """Source: https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md"""
        objects = json.loads(body)["objects"]
        for wanted in objects:
            if wanted["oid"] not in self.double.large_files:
                href = f"{self.double.url}{_PLACE}{wanted['oid']}"
                wanted["actions"] = {"upload": {"href": href, "header": {}}}
        return self._json(200, {"transfer": "basic", "objects": objects})

    def _commit(self, model: Any, body: bytes, revision: str) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        if lines[0]["value"].get("parentCommit", model.commit) != model.commit:
            return self._json(412, {"error": "the branch has another commit by now"})
        files = dict(model.files_of(revision))
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.double.large_files:
                    return self._json(400, {"error": f"{value['path']} was never uploaded"})
                files[value["path"]] = self.double.large_files[value["oid"]]
            else:
                del files[value["path"]]
        if revision == "main":
            model.files = files
        else:
            model.branches[revision] = files
        self._give_a_number(model, revision, body)
        [id] = [id for id, one in self.double.models.items() if one is model]
        url = f"{self.double.url}/{id}/commit/{model.commit}"
        return self._json(200, {"commitUrl": url, "commitOid": model.commit})

    def _give_a_number(self, model: Any, revision: str, body: bytes) -> None:
        """The commit's id, by which its files can be asked for."""
        model.commit = hashlib.sha1(model.commit.encode() + body).hexdigest()
        model.revisions += (model.commit,)
        model.branches[model.commit] = model.files_of(revision)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, status: int, body: dict[str, Any]) -> None:
        headers = {"Content-Type": "application/json"}
        self._send(status, headers, json.dumps(body).encode())  # type: ignore[attr-defined]
        self.double.requests.append((self.command, self.path, ""))  # type: ignore[attr-defined]
