"""Where CLIP's weights come from: names, files, a real server on loopback; nothing in an unknown file is run."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from clip.model import build_model
from yacs.config import CfgNode

from dassl.utils import UserError
from trainers.clip import weights


def config(name: str, **backbone: object) -> CfgNode:
    node = {"NAME": str(name), "CLIP_ROOT": "", "ALLOW_TORCHSCRIPT": False, **backbone}
    return CfgNode({"MODEL": {"BACKBONE": node}})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """(address, folder) of an HTTP server on loopback."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}", folder
        httpd.shutdown()


def offer(monkeypatch: pytest.MonkeyPatch, address: str, sha256: str) -> str:
    url = f"{address}/{sha256}/RN50.pt"
    monkeypatch.setitem(weights.OPENAI_URLS, "RN50", url)
    return url


def test_openai_weights_are_downloaded_once_and_checked(
    server: tuple[str, Path], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainers.clip.weights import load_clip

    address, folder = server
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    (folder / sha256).mkdir()
    (folder / sha256 / "RN50.pt").write_bytes(weights.read_bytes())
    offer(monkeypatch, address, sha256)
    cfg = config("RN50", CLIP_ROOT=str(tmp_path / "clip"))
    model = load_clip(cfg)
    assert model.weights_sha256 == sha256
    (folder / sha256 / "RN50.pt").unlink()
    assert load_clip(cfg).weights_sha256 == sha256  # from the cache: the server has it no more
    (tmp_path / "clip" / "RN50.pt").write_bytes(b"altered")
    with pytest.raises(UserError, match="cannot download"):
        load_clip(cfg)


def test_a_download_that_fails_says_what_to_do(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder = server
    for sha256 in ("0" * 64, "1" * 64):
        url = offer(monkeypatch, address, sha256)
        with pytest.raises(UserError) as caught:
            weights.load_clip(config("RN50", CLIP_ROOT=str(tmp_path / "clip")))
        for part in (url, sha256, str(tmp_path / "clip" / "RN50.pt"), "--clip-root"):
            assert part in str(caught.value)
        assert not any((tmp_path / "clip").iterdir())  # nothing half-written
        (folder / ("1" * 64)).mkdir(exist_ok=True)  # the second time: there, with another content
        (folder / ("1" * 64) / "RN50.pt").write_bytes(b"other bytes")


def test_a_state_dict_of_ones_own(weights: Path) -> None:
    from trainers.clip.weights import load_clip

    model = load_clip(config(weights))
    theirs = build_model(torch.load(weights, weights_only=True)).float()
    image = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.float().encode_image(image), theirs.encode_image(image))


@pytest.mark.parametrize("name", ["RN5O", "ViT-B16", "nowhere/weights.pt"])
def test_an_unknown_backbone_names_the_nearest(name: str) -> None:
    nearest = {"RN5O": "RN50", "ViT-B16": "ViT-B/16"}.get(name, "")
    with pytest.raises(UserError, match=f"unknown backbone '{name}'.*nearest is '{nearest}"):
        weights.load_clip(config(name))


def test_files_that_are_no_weights(weights: Path, tmp_path: Path) -> None:
    from trainers.clip.weights import load_clip

    whole = weights.read_bytes()
    for name, content in (("cut", whole[: len(whole) // 2]), ("text", b"hello"), ("empty", b"")):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{name}' cannot be read as weights"):
            load_clip(config(path))
    torch.save({"layer.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="holds no CLIP model"):
        load_clip(config(tmp_path / "other.pt"))
    state = torch.load(weights, weights_only=True)
    state["text_projection"] = state["text_projection"][:3]
    torch.save(state, tmp_path / "misshapen.pt")
    with pytest.raises(UserError, match="holds no CLIP model"):
        load_clip(config(tmp_path / "misshapen.pt"))


class _Runs:
    """Touches a file when unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.mkdir, (self.path,)


def test_weights_that_are_no_numbers(weights: Path, tmp_path: Path) -> None:
    from trainers.clip.weights import load_clip

    state = torch.load(weights, weights_only=True)
    state["visual.layer2.0.conv2.weight"][0, 0] = torch.nan
    torch.save(state, tmp_path / "nan.pt")
    with pytest.raises(UserError, match=r"nan\.pt' is damaged: its 'visual\.layer2\.0\.conv2\.weight' holds"):
        load_clip(config(tmp_path / "nan.pt"))


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    torch.save({"state_dict": _Runs(str(tmp_path / "ran"))}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="cannot be read as weights"):
        weights.load_clip(config(tmp_path / "evil.pt"))
    assert not (tmp_path / "ran").exists()


def test_torchscript_needs_the_users_word(weights: Path, tmp_path: Path) -> None:
    from trainers.clip.weights import load_clip

    state = torch.load(weights, weights_only=True)
    archive = torch.jit.script(_holder(state))
    archive.save(str(tmp_path / "archive.pt"))
    with pytest.raises(UserError, match="ALLOW_TORCHSCRIPT True"):
        load_clip(config(tmp_path / "archive.pt"))
    model = load_clip(config(tmp_path / "archive.pt", ALLOW_TORCHSCRIPT=True))
    assert torch.equal(model.text_projection, state["text_projection"])


def _holder(state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """A module with the given state dict."""
    root = torch.nn.Module()
    for key, value in state.items():
        *path, name = key.split(".")
        module = root
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        module.register_buffer(name, value)
    return root
