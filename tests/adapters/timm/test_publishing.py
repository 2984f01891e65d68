"""A model folder goes to a hub, here a stand-in on this machine, and comes back as a model."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi

from isomax.calibration import Calibration
from isomax_adapters.timm import (
    ModelFolderError,
    create_model,
    load_model,
    publishing,
    push_model,
    save_model,
)


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks for when it makes a repository and commits to it."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        if self.path == "/api/repos/create":
            if self.server.refuses:
                return self._answer({"error": "no rights"}, 403)
            return self._answer({"url": f"{self.server.address}/tree-lover/trees"})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            regular = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            return self._answer({"files": regular})
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        assert self.path == "/api/models/tree-lover/trees/commit/main"
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                value = line["value"]
                self.server.files[value["path"]] = base64.b64decode(value["content"])
        return self._answer(
            {"commitUrl": f"{self.server.address}/tree-lover/trees/commit/1", "commitOid": "1"}
        )

    def do_GET(self):
        """Older clients ask how large files are stored, here as any others."""
        if self.server.refuses:
            return self._answer({"error": "no such repository"}, 404)
        return self._answer({"id": "tree-lover/trees", "xetEnabled": False})

    def _answer(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.files, server.refuses = [], {}, False
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
    monkeypatch.setattr(
        publishing, "HfApi", lambda **given: HfApi(endpoint=server.address, **given)
    )
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = create_model("isomaxplus_test_resnet", num_classes=3).eval()
    logits = -torch.rand(40, 3).double()
    calibration = Calibration.fit(logits, torch.arange(40) % 3, "minimum_distance_score", 0.1)
    save_model(model, tmp_path / "model", ["ash", "birch", "cedar"], calibration=calibration)
    (tmp_path / "model/README.md").write_text('timm.create_model("hf-hub:USER/NAME")')
    return tmp_path / "model"


def test_a_model_folder_is_pushed_whole_and_loads_again(hub, folder, tmp_path):
    assert (
        push_model(folder, "trees", token="hf_secret") == f"{hub.address}/tree-lover/trees/commit/1"
    )
    assert set(hub.files) == {path.name for path in folder.iterdir()}
    assert {given for _, given in hub.asked} == {"Bearer hf_secret"}
    assert hub.files.pop("README.md") == b'timm.create_model("hf-hub:tree-lover/trees")'
    (tmp_path / "back").mkdir()
    for name, content in hub.files.items():
        (tmp_path / "back" / name).write_bytes(content)
    before, after = load_model(folder), load_model(tmp_path / "back")
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(before(x), after(x))


def test_what_is_no_model_folder_is_not_pushed(hub, tmp_path):
    with pytest.raises(ModelFolderError, match=r"has no config\.json; it is not a model folder"):
        push_model(tmp_path, "trees")
    assert not hub.asked


def test_a_hub_that_refuses_is_quoted(hub, folder):
    hub.refuses = True
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError, match="403"):
        push_model(folder, "trees", token="hf_secret")
    assert not hub.files
