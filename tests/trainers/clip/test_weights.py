"""CLIP's weights by name, from files and from a server on loopback. Nothing in an unknown file is executed."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from clip import tokenize
from clip.model import ResidualAttentionBlock, build_model
from torch import nn
from yacs.config import CfgNode

from dassl.utils import UserError
from datasets.glyphs import THEMES
from runs.directory import REPOSITORY
from tests.dassl.test_checkpoints import Bomb
from tests.datasets.loopback import Server, serve
from tests.oracle import tiny_clip
from trainers.clip.encoders import ImageEncoder
from trainers.clip.weights import OPENAI_URLS, load_clip, sha256_of
from trainers.clip_trainer import CLIPTrainer


def config(name: str, **backbone: object) -> CfgNode:
    node = {"NAME": str(name), "CLIP_ROOT": "", "ALLOW_TORCHSCRIPT": False, **backbone}
    return CfgNode({"MODEL": {"BACKBONE": node}})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "served").mkdir()
    with serve(tmp_path / "served") as server:
        yield server


@pytest.mark.parametrize(("file", "heads"), [("symbols_clip.pt", (8, 1)), ("symbols_vit_clip.pt", (2, 1))])
def test_the_embedded_models_load_by_openais_rule(file: str, heads: tuple[int, int]) -> None:
    """Their texts are 96 wide: one head, as ``clip.build_model`` counts."""
    model = load_clip(config(str(REPOSITORY / "assets" / file)))
    visual = model.visual
    image = visual.attnpool.num_heads if hasattr(visual, "attnpool") else visual.transformer.resblocks[0].attn.num_heads
    assert (image, model.transformer.resblocks[0].attn.num_heads) == heads
    assert model.encode_text(tokenize(["chess pieces"])).isfinite().all()


def test_openai_weights_are_downloaded_once_and_checked(
    server: Server, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    (server.folder / sha256).mkdir()
    (server.folder / sha256 / "RN50.pt").write_bytes(weights.read_bytes())
    monkeypatch.setitem(OPENAI_URLS, "RN50", f"{server.url}/{sha256}/RN50.pt")
    cfg = config("RN50", CLIP_ROOT=str(tmp_path / "clip"))
    model = load_clip(cfg)
    assert model.weights_sha256 == sha256
    (server.folder / sha256 / "RN50.pt").unlink()
    assert load_clip(cfg).weights_sha256 == sha256  # from the cache
    (tmp_path / "clip" / "RN50.pt").write_bytes(b"altered")
    with pytest.raises(UserError, match="cannot download"):
        load_clip(cfg)


def test_a_download_that_fails_says_what_to_do(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = "1" * 64
    (server.folder / sha256).mkdir()
    (server.folder / sha256 / "RN50.pt").write_bytes(b"other bytes")
    url = f"{server.url}/{sha256}/RN50.pt"
    monkeypatch.setitem(OPENAI_URLS, "RN50", url)
    with pytest.raises(UserError) as caught:
        load_clip(config("RN50", CLIP_ROOT=str(tmp_path / "clip")))
    for part in (url, sha256, str(tmp_path / "clip" / "RN50.pt"), "--clip-root"):
        assert part in str(caught.value) and "\n" not in str(caught.value)
    assert not any((tmp_path / "clip").iterdir())  # no partial file


def test_a_state_dict_of_ones_own(weights: Path) -> None:
    model = load_clip(config(weights))
    theirs = build_model(torch.load(weights, weights_only=True)).float()
    image = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.float().encode_image(image), theirs.encode_image(image))


def test_files_that_are_no_weights(weights: Path, tmp_path: Path) -> None:
    whole = weights.read_bytes()
    for name, content in (("cut", whole[: len(whole) // 2]), ("empty", b"")):
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
    state = torch.load(weights, weights_only=True)
    state["visual.layer2.0.conv2.weight"][0, 0] = torch.nan
    torch.save(state, tmp_path / "nan.pt")
    with pytest.raises(UserError, match=r"nan\.pt' is damaged: its 'visual\.layer2\.0\.conv2\.weight' holds"):
        load_clip(config(tmp_path / "nan.pt"))


def test_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Bomb(os.mkdir, str(tmp_path / "ran"))}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"reading 'posix\.mkdir' could run code"):
        load_clip(config(tmp_path / "evil.pt"))
    assert not (tmp_path / "ran").exists()


def test_torchscript_needs_the_users_word(weights: Path, tmp_path: Path) -> None:
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


def test_the_activation_is_the_configs(vit: Path) -> None:
    """In both towers; and no features of one are kept for the other, in half precision, where no factor is folded."""
    image, text = torch.randn(2, 3, 64, 64), torch.randint(1, 49408, (2, 77))
    found, keys = {}, set()
    for activation in ("", "quickgelu", "gelu"):
        model = load_clip(config(vit, ACTIVATION=activation))
        trainer = SimpleNamespace(image_encoder=ImageEncoder(model.visual))
        keys.add(CLIPTrainer._tower_sha256.func(trainer))  # type: ignore[attr-defined]
        model.float()
        found[activation] = model.encode_image(image), model.encode_text(text)
    theirs = build_model(torch.load(vit, weights_only=True)).float()
    assert len(keys) == 2
    for ours, quick, expected in zip(
        found[""], found["quickgelu"], (theirs.encode_image(image), theirs.encode_text(text)), strict=True
    ):
        assert torch.equal(ours, expected) and torch.equal(quick, expected)
    for module in theirs.modules():
        if isinstance(module, ResidualAttentionBlock):
            module.mlp.gelu = nn.GELU()
    assert torch.equal(found["gelu"][0], theirs.encode_image(image))
    assert torch.equal(found["gelu"][1], theirs.encode_text(text))
    assert not any(torch.equal(*pair) for pair in zip(found["gelu"], found[""], strict=True))


def test_kept_features_are_of_their_number_of_heads() -> None:
    """The same weights with other heads give other features."""
    keys = set()
    for heads in (1, 2):
        for kind, parts in (("ViT", "transformer.resblocks"), ("RN", "attnpool")):
            model = tiny_clip(kind, torch.float32)
            part = model.visual.get_submodule(parts)
            for module in [part] if kind == "RN" else [block.attn for block in part]:
                module.num_heads = heads
            trainer = SimpleNamespace(image_encoder=ImageEncoder(model.visual))
            keys.add(CLIPTrainer._tower_sha256.func(trainer))  # type: ignore[attr-defined]
    assert len(keys) == 4


def test_a_hash_that_is_asked_for_is_checked(weights: Path) -> None:
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert load_clip(config(weights, SHA256=sha256)).weights_sha256 == sha256 == sha256_of(str(weights))
    with pytest.raises(UserError, match=r"tiny\.pt' are not those that the run was trained with \(SHA-256"):
        load_clip(config(weights, SHA256="1" * 64))
    assert sha256_of("RN50") == OPENAI_URLS["RN50"].split("/")[-2] and sha256_of("nowhere.pt") == ""


def test_a_token_table_of_some_rows(vit: Path, tmp_path: Path) -> None:
    """The file's rows are as they were. The others are random numbers, always the same, of CLIP's deviation."""
    whole = torch.load(vit, weights_only=True)
    ids = torch.tensor([3, 49407, 49406, 320])
    rows = whole["token_embedding.weight"][ids]
    torch.save({**whole, "token_ids": ids, "token_embedding.weight": rows}, tmp_path / "some.pt")
    one, other = (load_clip(config(tmp_path / "some.pt")).state_dict() for _ in range(2))
    table = one.pop("token_embedding.weight")
    assert torch.equal(table[ids], rows) and torch.equal(table, other["token_embedding.weight"])
    assert table.shape == (49408, 64) and 0.019 < table.float().std() < 0.021
    assert len({tuple(row) for row in table[:1000].tolist()}) == 1000
    assert all(torch.equal(value, whole[key]) for key, value in one.items())
    for damaged in (ids[:3], ids + 1):
        torch.save({**whole, "token_ids": damaged, "token_embedding.weight": rows}, tmp_path / "damaged.pt")
        with pytest.raises(UserError, match=r"damaged\.pt' holds no CLIP model"):
            load_clip(config(tmp_path / "damaged.pt"))


def test_the_embedded_models_are_small_and_know_their_prompts() -> None:
    paths = list((REPOSITORY / "assets").glob("symbols*_clip.pt"))
    assert sum(path.stat().st_size for path in paths) < 8e6
    for path in paths:
        held = set(torch.load(path, weights_only=True)["token_ids"].tolist())
        for name in THEMES:
            prompt = tokenize(f"a photo of a {name}. this is a photo one picture of a {name}")
            assert set(prompt[0].tolist()) <= held, name
