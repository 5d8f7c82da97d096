"""Weights that open_clip and huggingface_hub download, from a hub on loopback, and what is said when they cannot."""

from __future__ import annotations

import hashlib
import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from dassl.utils import UserError
from trainers.clip.weights import load_clip, pictures, sha256_of

from .libraries import config, of_open_clip, open_clip, save_open_clip, save_transformers, transformers

PICTURES = """{"crop_size": {"height": 64, "width": 64}, "size": {"shortest_edge": 64}, "resample": 2,
"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}"""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose OWNER/NAME/FILE a hub serves; the library's cache is tmp_path/cache."""
    served = tmp_path / "served"

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            owner, name, _, _, file = self.path.strip("/").split("/", 4)
            path = served / owner / name / file
            if not path.is_file():
                self.send_response(404)
                self.send_header("X-Repo-Commit", "1" * 40)  # where it is known, the cache remembers what is absent
                self.send_header("X-Error-Code", "EntryNotFound" if path.parent.is_dir() else "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content = path.read_bytes()
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", "1" * 40)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

    import huggingface_hub.constants as constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)  # as HF_ENDPOINT sets it when the library is imported
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield served
    server.shutdown()


def tiny_transformers() -> torch.nn.Module:
    torch.manual_seed(0)
    small = {"hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 96}
    vision = {**small, "num_attention_heads": 4, "patch_size": 32, "image_size": 64, "hidden_act": "gelu"}
    text = {**small, "num_attention_heads": 2, "hidden_act": "gelu"}
    cfg = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=32)
    return transformers.CLIPModel(cfg).eval()


@pytest.mark.medium
@pytest.mark.parametrize("form", ["safetensors", "sharded bin"])
def test_hugging_faces_names_are_downloaded_once(form: str, hub: Path, tmp_path: Path) -> None:
    model = tiny_transformers()
    folder = save_transformers(model, hub / "owner/tiny", form)
    (folder / "preprocessor_config.json").write_text(PICTURES)
    cfg = config("hf:owner/tiny")
    assert sha256_of("hf:owner/tiny") == ""  # not there yet
    assert pictures(cfg) == {
        "INPUT.SIZE": (64, 64), "INPUT.PIXEL_MEAN": [0.5] * 3, "INPUT.PIXEL_STD": [0.25] * 3,
        "INPUT.INTERPOLATION": "bilinear",
    }  # fmt: skip
    assert not list((tmp_path / "cache").rglob("*.bin"))  # the configs alone
    ours, image = load_clip(cfg), torch.randn(2, 3, 64, 64)
    theirs = model.get_image_features(image).pooler_output
    torch.testing.assert_close(ours.encode_image(image), theirs, rtol=1e-4, atol=1e-5)
    shutil.rmtree(hub)
    assert load_clip(cfg).weights_sha256 == ours.weights_sha256 == sha256_of("hf:owner/tiny")
    if form == "safetensors":
        (file,) = (tmp_path / "cache").rglob("model.safetensors")
        assert ours.weights_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.medium
def test_open_clips_names_are_downloaded_once(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name says the architecture and the pictures; its tag says the activation where the architecture's differs."""
    model, cfg = of_open_clip("ViT-S-32-alt", None, 64)
    save_open_clip(model, cfg, hub / "owner/tiny", "safetensors")
    (hub / "owner/tiny/open_clip_config.json").unlink()
    tags = {"some_v1": {"hf_hub": "owner/tiny/", "mean": (0.5,) * 3, "std": (1.0,) * 3, "interpolation": "bicubic"}}
    tags["quick"] = {**tags["some_v1"], "quick_gelu": True}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "ViT-S-32-alt", tags)
    name = "open_clip:ViT-S-32-alt/some-v1"
    ours, image = load_clip(config(name)), torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours.encode_image(image), model.encode_image(image), rtol=1e-4, atol=1e-5)
    assert pictures(config(name)) == {
        "INPUT.SIZE": (224, 224), "INPUT.PIXEL_MEAN": [0.5] * 3, "INPUT.PIXEL_STD": [1.0] * 3,
        "INPUT.INTERPOLATION": "bicubic",
    }  # fmt: skip
    shutil.rmtree(hub)
    assert load_clip(config(name)).weights_sha256 == sha256_of(name) != ""
    quick = load_clip(config("open_clip:ViT-S-32-alt/quick"))
    assert not torch.allclose(quick.encode_image(image), ours.encode_image(image), rtol=1e-3)


@pytest.mark.medium
def test_open_clips_files_win_over_others_beside_them(hub: Path) -> None:
    """Repositories of timm have its image tower under Hugging Face's names."""
    model, cfg = of_open_clip("ViT-S-32-alt", 1, 64)
    folder = save_open_clip(model, cfg, hub / "owner/both", "safetensors").parent
    (folder / "config.json").write_text('{"architecture": "vit_small_patch32_224"}')
    (folder / "model.safetensors").write_bytes(b"")
    for name in ("hf:owner/both", folder):
        assert pictures(config(name))["INPUT.SIZE"] == (64, 64)
        assert torch.equal(load_clip(config(name)).ln_final.weight, model.ln_final.weight)


def test_a_download_that_fails_is_no_absent_file(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config that did not come would leave INPUT at other pictures' values. The first failure ends it."""
    import huggingface_hub

    folder = save_transformers(tiny_transformers(), hub / "owner/tiny", "safetensors")
    (folder / "preprocessor_config.json").write_text(PICTURES)
    download, asked = huggingface_hub.hf_hub_download, []

    def failing(repository: str, file: str) -> str:
        asked.append(file)
        if file == "preprocessor_config.json":
            raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")
        return str(download(repository, file))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", failing)
    with pytest.raises(UserError, match="cannot get the weights 'hf:owner/tiny': no connection; HF_ENDPOINT"):
        pictures(config("hf:owner/tiny"))
    assert asked[-1] == "preprocessor_config.json"


def test_names_that_cannot_be_had_give_one_line(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.mkdir()
    for name, said in (
        ("hf:owner/none", r"cannot get the weights 'hf:owner/none': .* HF_ENDPOINT names a mirror"),
        ("hf:none", r"'hf:none' is no repository: the form is hf:OWNER/NAME"),
        ("open_clip:ViT-B-16/laion2b_s34b", r"open_clip has no weights .* nearest are ViT-B-16/laion2b_s34b_b88k"),
        ("open_clip:ViT-B-16", r"open_clip has no weights '/ViT-B-16'; the nearest are"),
        ("open_clip:ViT-B-16-SigLIP/webli", r"is not causal \(open_clip:ViT-B-16-SigLIP/webli\).*PLAIN_TEXT True"),
        (
            "open_clip:EVA02-B-16/merged2b_s8b_b131k",
            r"vision_cfg\.timm_model_name .* not computed here.*PLAIN_TEXT True",
        ),
        ("open_clip:ViT-B-16/laion2b_s34b_b88k", r"cannot get the weights 'open_clip:ViT-B-16/laion2b_s34b_b88k': "),
    ):
        with pytest.raises(UserError, match=said) as caught:
            pictures(config(name))
            load_clip(config(name))
        assert "\n" not in str(caught.value)
    for library, name in (("open_clip", "open_clip:ViT-B-16/openai"), ("huggingface_hub", "hf:owner/tiny")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, library, None)
            with pytest.raises(UserError, match=rf"{library} is not installed .*pip install -e '\.\[backbones\]'"):
                load_clip(config(name))
