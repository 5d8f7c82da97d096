"""The photo CLIP's text tower: WordNet's nouns, their targets, the training, and the inputs' checks."""

import hashlib
import os
from pathlib import Path

import clip
import numpy as np
import pytest
import torch
from clip.model import CLIP
from torch import Tensor
from torch.nn import functional

from dassl.extras.cli import guarded
from experiments.pretrain import minilm, photo
from experiments.pretrain.photo_teacher import Teacher, image_side
from experiments.pretrain.photo_text import Names, Recipe, state_of, train
from experiments.pretrain.text_tower import TextTower
from experiments.pretrain.wordnet import WordNet, read_wordnet

INPUTS = os.environ.get("PHOTO_INPUTS", "")
ASSET = Path(__file__).parents[2] / "assets" / "photo_clip.pt"

# offset, lexicographer file, lemmas, pointers, gloss
SYNSETS = [
    ("00000001", 3, ["entity"], [], "that which exists"),
    ("00000002", 14, ["taxonomic_group"], [("@", "00000001")], "animal or plant group"),
    ("00000003", 5, ["Felis", "genus_Felis"], [("@", "00000002")], "a genus of cats"),
    ("00000004", 5, ["feline"], [("@", "00000001")], "a lithe-bodied mammal"),
    ("00000005", 5, ["cat", "Felis_catus", "F._catus"], [("@", "00000004")], 'a domestic feline; "the cat sat"'),
    ("00000006", 5, ["wildcat"], [("@", "00000004")], "a wild feline"),
    ("00000007", 6, ["cat", "Caterpillar"], [("@", "00000001")], "a large vehicle on tracks; for farms"),
    ("00000008", 18, ["cat"], [("@", "00000001")], "a spiteful woman"),
    ("00000009", 17, ["Rhine"], [("@i", "00000001")], "a river"),
    ("00000010", 13, ["German_sausage"], [("@", "00000001")], "a sausage"),
]
INDEX = {
    "entity": ["00000001"],
    "taxonomic_group": ["00000002"],
    "felis": ["00000003"],
    "genus_felis": ["00000003"],
    "feline": ["00000004"],
    "cat": ["00000008", "00000007", "00000005"],
    "felis_catus": ["00000005"],
    "wildcat": ["00000006"],
    "caterpillar": ["00000007"],
    "rhine": ["00000009"],
    "german_sausage": ["00000010"],
}


@pytest.fixture
def wordnet(tmp_path: Path) -> WordNet:
    """A small WordNet in its own format, wndb(5WN)."""
    lines = ["  1 a licence"]
    for offset, kind, lemmas, pointers, gloss in SYNSETS:
        words = " ".join(f"{lemma} 0" for lemma in lemmas)
        to = "".join(f"{symbol} {target} n 0000 " for symbol, target in pointers)
        lines.append(f"{offset} {kind:02d} n {len(lemmas):02x} {words} {len(pointers):03d} {to}| {gloss}  ")
    (tmp_path / "data.noun").write_text("\n".join(lines))
    rows = (f"{lemma} n {len(to)} 1 @ {len(to)} 0 {' '.join(to)}  " for lemma, to in INDEX.items())
    (tmp_path / "index.noun").write_text("\n".join(["  1 a licence", *rows]))
    return read_wordnet(tmp_path / "data.noun", tmp_path / "index.noun")


def test_the_nouns_of_wordnet_are_what_can_be_photographed(wordnet: WordNet) -> None:
    assert wordnet.nouns == {
        "feline": ["00000004"],
        "cat": ["00000007", "00000005"],  # the most frequent first, and no person
        "wildcat": ["00000006"],
        "caterpillar": ["00000007"],
        "german sausage": ["00000010"],
    }
    assert wordnet.synsets["00000005"].gloss == "a domestic feline"
    assert wordnet.synsets["00000007"].gloss == "a large vehicle on tracks; for farms"
    assert wordnet.above("00000005") == {"00000005", "00000004", "00000001"}


def embed(texts: list[str]) -> Tensor:
    """Bags of words, hashed."""
    rows = torch.zeros(len(texts), 64)
    for row, text in zip(rows, texts, strict=True):
        for word in text.replace(",", " ").replace(".", " ").split():
            row[int(hashlib.sha256(word.encode()).hexdigest(), 16) % 64] += 1
    return functional.normalize(rows, dim=1)


@pytest.fixture
def teacher(wordnet: WordNet) -> Teacher:
    """ImageNet has the domestic cat and the sausage."""
    random = torch.Generator().manual_seed(0)
    classifier = {
        "_fc.weight": torch.randn(3, 1280, generator=random),
        "_bn1.bias": torch.zeros(1280),
        "_bn1.weight": torch.full((1280,), 2.0),
    }
    return Teacher(wordnet, ["00000005", "00000010", "00000007"], image_side(classifier, 2), embed)


def test_names_of_imagenet_have_its_classifiers_weights_and_others_attend(teacher: Teacher) -> None:
    target = dict(zip(teacher.names, teacher.targets, strict=True))
    raw = functional.normalize(teacher.image.synsets - teacher.mean, dim=1)
    assert torch.allclose(target["german sausage"], raw[1])
    assert torch.allclose(target["cat"], raw[2]), "the most frequent of the senses that ImageNet has"
    assert not torch.allclose(target["feline"], raw[0], atol=1e-3), "a hypernym is no synset of ImageNet's"
    assert target["wildcat"] @ raw[0] > target["wildcat"] @ raw[1]
    assert torch.allclose(teacher.of(["German_Sausage", "wild cat"])[0], target["german sausage"])
    assert torch.allclose(teacher.of(["wild cat"])[0], target["wildcat"])
    assert teacher.of(["unheard of"]).norm().item() == pytest.approx(1)


def test_the_mean_is_that_of_the_features_by_their_batch_norm(teacher: Teacher) -> None:
    drawn = (2 * torch.randn(100_000, generator=torch.Generator().manual_seed(1))).clamp(0, 6).mean()
    assert torch.allclose(teacher.image.mean, drawn.expand(1280), atol=0.02)
    assert torch.allclose(teacher.image.projection.T @ teacher.image.projection, torch.eye(2), atol=1e-5)


def test_the_tower_computes_what_clips_own_code_computes() -> None:
    torch.manual_seed(0)
    tower = TextTower(49408, 128, 2, 96)
    model = CLIP(96, 32, 1, 64, 32, 77, 49408, 128, 2, 2)
    assert not model.load_state_dict(tower.state_dict(), strict=False).unexpected_keys
    texts = clip.tokenize(["a photo of a red panda.", "a photo of a sea horse."])
    embedded = tower.token_embedding(texts)
    ours = tower(embedded[0, :5], embedded[:, 5 : 1 + int(texts[0].argmax())])
    assert torch.allclose(ours, model.encode_text(texts), atol=1e-5)
    (ours.square().sum()).backward()
    (model.encode_text(texts).square().sum()).backward()
    for name, parameter in tower.named_parameters():
        assert torch.allclose(parameter.grad, model.get_parameter(name).grad, atol=1e-3), name


RECIPE = Recipe(width=64, layers=1, steps=60, batch=4, rate=5e-3, warmup=5)


def test_a_second_run_gives_the_same_bits_and_the_names_their_targets(teacher: Teacher) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        names = photo.names_of(teacher)
        states = [state_of(train(names, 2, RECIPE), names) for _ in range(2)]
    finally:
        torch.set_num_threads(threads)
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
        assert value.dtype == (torch.int64 if key == "token_ids" else torch.float16)
    assert states[0]["token_embedding.weight"].shape == (len(names.token_ids), 64)
    tower = TextTower(len(names.token_ids), 64, 1, 2)
    tower.load_state_dict({k: v.float() for k, v in states[0].items() if not k.startswith("token_") or "." in k})
    row = names.row
    prefix = tower.token_embedding(
        torch.tensor([row[t] for t in [49406, *clip.clip._tokenizer.encode("a photo of a")]])
    )
    for name, target in zip(teacher.names, teacher.targets, strict=True):
        tokens = [*clip.clip._tokenizer.encode(f"{name}."), 49407]
        text = tower(prefix, tower.token_embedding(torch.tensor([[row[t] for t in tokens]])))
        assert functional.cosine_similarity(text[0], target, dim=0) > 0.8, name


def test_names_are_drawn_by_their_weights_and_by_length() -> None:
    names = Names(["cat", "dog", "red panda"], torch.eye(3), [1.0, 0.0001, 1.0])
    rng = np.random.default_rng(0)
    drawn = [names.draw(1, rng) for _ in range(50)]
    assert {rows.shape[1] for rows, _ in drawn} == {1, 2}
    assert not any(targets[0, 1] for _, targets in drawn)


@pytest.mark.parametrize("case", ["absent", "altered"])
def test_an_input_that_is_not_the_stated_one_is_refused(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    if case == "altered":
        (tmp_path / "data.noun").write_text("altered")
    out = tmp_path / "out.pt"
    assert guarded(lambda: photo.main(["--inputs", str(tmp_path), "--out", str(out)])) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "data.noun" in line and ("another SHA-256" if case == "altered" else str(tmp_path)) in line
    assert not out.exists()


@pytest.mark.medium
@pytest.mark.skipif(not INPUTS, reason="PHOTO_INPUTS does not name the folder of the inputs")
def test_the_real_inputs(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    inputs = photo.find_inputs(Path(INPUTS))
    wordnet = read_wordnet(inputs["data.noun"], inputs["index.noun"])
    assert len(wordnet.nouns) == 38697
    texts = ["a photo of a cat.", "a photo of a kitten.", "a photo of a bridge."]
    rows = [minilm.embed(texts, inputs["model.onnx"], inputs["tokenizer.json"], tmp_path) for _ in range(2)]
    assert torch.equal(*rows) and len(list(tmp_path.iterdir())) == 1
    assert rows[0][0] @ rows[0][1] > 0.6 > rows[0][0] @ rows[0][2]


@pytest.mark.skipif(not ASSET.is_file(), reason="the photo CLIP is not there")
def test_the_file_in_the_repository() -> None:
    assert ASSET.stat().st_size <= 8_000_000
    state = torch.load(ASSET, weights_only=True)
    assert all(v.dtype == torch.float16 for k, v in state.items() if k != "token_ids")
    width, d = state["text_projection"].shape
    assert state["visual.projection"].shape == (1280, d) and state["visual.mean"].shape == (1280,)
    assert state["token_embedding.weight"].shape == (len(state["token_ids"]), width) and width % 64 == 0
