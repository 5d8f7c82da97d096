"""Pictures of the plans, and the words of the prompts."""

from __future__ import annotations

import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from clip.simple_tokenizer import SimpleTokenizer
from PIL import Image
from torch.nn import functional as F
from yacs.config import CfgNode

import train
from experiments.pictures import tsne, visualize, words
from runs.directory import REPOSITORY
from runs.loaded import load
from tests.runs.test_train import SHORT, command
from trainers.sinkhorn import sinkhorn

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def runs_of(weights: Path, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """PLOT, PLOT with class-specific contexts, PLOT with MATCH mean, CoOp, zero-shot CLIP."""
    out = tmp_path_factory.mktemp("runs")
    flags = ["--root", str(data_root), "--seed", "1", "--backbone", str(weights)]
    plot = ["TRAINER.PLOT.N", "2", "TRAINER.PLOT.N_CTX", "3"]
    for name, trainer, config, options in (
        ("PLOT", "PLOT", "rn50", plot),
        ("csc", "PLOT", "rn50", [*plot, "TRAINER.PLOT.CSC", "True"]),
        ("mean", "PLOT", "rn50", [*plot, "TRAINER.PLOT.MATCH", "mean"]),
        ("CoOp", "CoOp", "rn50_ep50", []),
        ("ZeroshotCLIP", "ZeroshotCLIP", "rn50", []),
    ):
        argv = ["--output-dir", str(out / name), *command(flags, trainer, config), *SHORT, *options]
        assert train.main(argv) == 0
    return {path.name: path for path in out.iterdir()}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Four quarters of different colours, larger than the model's input."""
    pixels = np.zeros((128, 128, 3), dtype=np.uint8)
    pixels[:64, :64], pixels[:64, 64:], pixels[64:, :64], pixels[64:, 64:] = (250, 5, 5), (5, 250, 5), (5, 5, 250), 128
    Image.fromarray(pixels).save(tmp_path / "quarters & more.png")
    return tmp_path / "quarters & more.png"


def test_the_normalization_is_undone(runs_of: dict[str, Path], picture: Path) -> None:
    run = load(runs_of["PLOT"])
    shown = visualize.unnormalized(run, run.read(picture))
    assert shown.shape == (64, 64, 3)
    for (row, column), colour in (((16, 16), (250, 5, 5)), ((16, 48), (5, 250, 5)), ((48, 16), (5, 5, 250))):
        assert (255 * shown[row, column]).tolist() == pytest.approx(colour, abs=1.5)


def test_plans_are_the_heads_and_lie_where_their_features_do(runs_of: dict[str, Path], picture: Path) -> None:
    run = load(runs_of["PLOT"])
    image, model = run.read(picture), run.trainer.model
    probabilities, plans = visualize.look(run, image)
    with torch.no_grad():
        local = F.normalize(model.image_encoder(image[None])[1][0], dim=-1)
        text = F.normalize(model.text_features(), dim=-1)
    assert plans.shape == (5, 2, 2, 2) and probabilities.sum() == pytest.approx(1, abs=1e-5)
    for k in range(5):
        plan = sinkhorn(1 - local @ text[:, k].t())  # [M, N], M row by row
        for n in range(2):
            for row in range(2):
                for column in range(2):
                    assert plans[k, n, row, column] == pytest.approx(plan[2 * row + column, n].item(), rel=1e-4)
    assert model.meter is None
    assert plans.sum(dim=(1, 2, 3)).tolist() == pytest.approx([1] * 5, abs=1e-3)


def test_a_png_an_image_and_a_page(
    runs_of: dict[str, Path], picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = tmp_path / "more" / tmp_path.name
    same.mkdir(parents=True)
    (same / picture.name).write_bytes(picture.read_bytes())
    to = tmp_path / "drawn"
    argv = [str(runs_of["PLOT"]), str(picture), "nowhere.png", str(same / picture.name)]
    assert visualize.main([*argv, "--to", str(to), "--html"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "error: image not found: nowhere.png\n"
    files = sorted(to.glob("*.png"))
    assert len(files) == 2 and all(Image.open(file).width > 800 for file in files)
    page = (to / "index.html").read_text()
    sources = [unquote(html.unescape(source)) for source in re.findall(r'src="([^"]+)"', page)]
    assert sorted(sources) == [file.name for file in files]
    assert "quarters &amp; more.png" in page and "& more" not in page.replace("&amp;", "")
    assert page.count("%") >= 10


@pytest.mark.parametrize("name", ["$x^$ #1?.png", "$x_{$.png", os.fsdecode(b"caf\xe9.png")])
def test_names_that_are_no_mathematics_and_no_text(
    name: str, runs_of: dict[str, Path], picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(picture.read_bytes())
    to = tmp_path / "drawn"
    assert visualize.main([str(runs_of["PLOT"]), str(tmp_path / name), "--to", str(to), "--html"]) == 0
    assert capsys.readouterr().err == ""
    (source,) = re.findall(r'src="([^"]+)"', (to / "index.html").read_text())
    assert (to / unquote(source, errors="surrogateescape")).is_file() and not {*"$#? "} & {*source}


def test_class_names_are_no_mathematics(runs_of: dict[str, Path], picture: Path) -> None:
    run = load(runs_of["PLOT"])
    run.classnames[:] = [f"$x_{{{k}$" for k in range(5)]
    image = run.read(picture)
    seen = visualize.view(run, image)
    figure = visualize.draw(visualize.unnormalized(run, image), seen, "$a^$", visualize.scale([seen]))
    figure.savefig(io.BytesIO())
    assert figure.get_suptitle().count("$") == 2 and figure.axes[0].get_title() == "$a^$"


def test_the_figure_has_the_picture_n_plans_a_bar_and_the_top_five(runs_of: dict[str, Path], picture: Path) -> None:
    run = load(runs_of["PLOT"])
    image = run.read(picture)
    seen = visualize.view(run, image, label=2, truth=1)
    figure = visualize.draw(visualize.unnormalized(run, image), seen, "picture", visualize.scale([seen]))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:3] == ["picture", "prompt 1", "prompt 2"] and len(figure.axes) == 5  # the bars, the colour bar
    probabilities, plans = visualize.look(run, image)
    assert f"named class: leopard {100 * probabilities[2]:.1f}%" in figure.get_suptitle() and len(seen.top) == 5
    assert seen.weights == pytest.approx(plans[2].numpy() * 8)  # 2 prompts, 2 x 2 places
    bars = [patch.get_width() for patch in figure.axes[3].patches]
    assert sorted(bars, reverse=True) == pytest.approx([100 * p for _, p in seen.top])


def test_cells_are_drawn_as_they_are_on_one_diverging_scale() -> None:
    """3 x 3 cells over 7 x 9 white pixels: white at the uniform weight, the ends of the scale far from it."""
    weights = np.array([[1, 1, 2], [0.5, 1, 1], [1, 1, 0]])
    seen = [visualize.View(x, ("a", 1.0), [("a", 1.0)], None, False) for x in (weights, np.ones((3, 3)))]
    norm = visualize.scale(seen)
    assert (norm.vmin, norm.vmax) == (0, 2) == (visualize.scale(seen[:1]).vmin, visualize.scale(seen[:1]).vmax)
    drawn = visualize.overlay(np.ones((7, 9, 3)), weights, norm)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 4
    assert drawn[0, 0] == pytest.approx([1] * 3) and drawn[3:5, :3].std(axis=(0, 1)) == pytest.approx([0] * 3)
    more, less = drawn[0, 8], drawn[6, 8]
    assert more[0] > more[2] + 0.3 and less[2] > less[0] + 0.3  # red, blue
    assert visualize.overlay(np.ones((7, 9, 3)), np.ones((3, 3)), visualize.scale(seen[1:])) == pytest.approx(1)


def test_the_true_class_stands_beside_the_predicted_one(
    runs_of: dict[str, Path], picture: Path, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a test image, of a picture in a class's folder, and of one whose class nothing says."""
    kept = json.loads((runs_of["PLOT"] / "predictions.json").read_text())
    image, names = kept["image"][0], load(runs_of["PLOT"]).classnames
    (tmp_path / "Sea Horse").mkdir()
    shutil.copy(picture, tmp_path / "Sea Horse/mine.png")
    paths = [str(data_root / image), str(tmp_path / "Sea Horse/mine.png"), str(picture)]
    assert visualize.main([str(runs_of["PLOT"]), *paths, "--to", str(tmp_path / "drawn")]) == 0
    first, second, third = capsys.readouterr().out.splitlines()
    true, guess = (names[kept[key][0]].replace("_", " ") for key in ("label", "prediction"))
    assert f"predicted: {guess} " in first and (first.endswith("right") or f"; true: {true} " in first)
    assert second.endswith("right") or "; true: sea horse " in second
    assert third.endswith("; its true class is not known")


def test_tokens_that_a_model_does_not_have_are_no_words() -> None:
    """The embedded models store the tokens of their texts alone; the rest of the table says nothing."""
    path = REPOSITORY / "assets/symbols_clip.pt"
    stored = torch.load(path, weights_only=True)["token_ids"]
    run = SimpleNamespace(trainer=SimpleNamespace(cfg=CfgNode({"MODEL": {"BACKBONE": {"NAME": str(path)}}})))
    embedding = words.vocabulary(run)  # type: ignore[arg-type]
    found = words.nearest(torch.randn(2, embedding.shape[1]), embedding, len(stored))
    assert len(stored) < len(embedding) and embedding.isfinite().all(dim=1).sum() == len(stored)
    assert all({word for word, _ in row} == {words.word(token) for token in stored.tolist()} for row in found)


def test_words_are_the_nearest_tokens(
    runs_of: dict[str, Path], weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words.main([str(runs_of["PLOT"]), "--top", "2"]) == 0
    text = capsys.readouterr().out
    rows = [line.split("|")[1:-1] for line in text.splitlines() if re.match(r"\| \d", line)]
    assert text.count("prompt ") == 2 and len(rows) == 6
    ctx = torch.load(runs_of["PLOT"] / "prompt_learner/model.pth.tar-2", weights_only=True)["state_dict"]["ctx"]
    embedding = torch.load(weights, weights_only=True)["token_embedding.weight"].float()
    distance = (embedding - ctx[1, 2].float()).norm(dim=1)
    token = int(distance.argmin())
    assert rows[5][1].strip() == f"{words.word(token)} ({distance[token]:.3f})"


def test_tokens_as_text() -> None:
    encoder = SimpleTokenizer().encoder
    assert words.word(encoder["dog</w>"]) == "dog" and words.word(encoder["dog"]) == "dog-"
    assert words.word(encoder["<|startoftext|>"]) == "<|startoftext|>-"
    spelled = SimpleTokenizer().byte_encoder
    assert [words.word(encoder[spelled[byte]]) for byte in (0xFE, 0xFF)] == [r"\xfe-", r"\xff-"]
    assert len({words.word(token) for token in range(256)}) == 256


def test_class_specific_contexts_speak_class_by_class(
    runs_of: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert words.main([str(runs_of["csc"]), "--class", "leopard"]) == 0
    text = capsys.readouterr().out
    assert re.findall(r"^prompt.*$", text, re.M) == ["prompt 1, class leopard", "prompt 2, class leopard"]


def test_a_plane_of_prompts_and_local_features(
    runs_of: dict[str, Path], data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dot each of the 2 x 2 local features of a picture, a star each of the prompts of the classes that are shown."""
    paths = sorted(map(str, data_root.rglob("test_*.jpg")))[::4]
    run = load(runs_of["PLOT"])
    features, label, is_prompt = tsne.points(run, paths)
    shown = set(run.classes(paths))
    assert {run.classnames[k] for k in label.tolist()} == shown
    assert (is_prompt.sum(), (~is_prompt).sum()) == (2 * len(shown), 4 * len(paths))
    text = F.normalize(run.text_features()[:, label[-1]], dim=-1)
    torch.testing.assert_close(features[is_prompt][label[is_prompt] == label[-1]].diff(dim=0), text.diff(dim=0))
    for name, more in (("PLOT", []), ("CoOp", ["--class", load(runs_of["CoOp"]).classes(paths[0])[0]])):
        to = tmp_path / f"{name}.png"
        assert tsne.main([str(runs_of[name]), *paths, "--to", str(to), *more]) == 0
        assert capsys.readouterr().out == f"{to}\n" and Image.open(to).width > 800


@pytest.mark.slow
@pytest.mark.parametrize("program", ["visualize", "words", "tsne"])
def test_a_program_runs_by_its_path(program: str, tmp_path: Path) -> None:
    """From any folder; that it asks for its arguments shows that it has begun."""
    command = [sys.executable, str(REPOSITORY / "experiments/pictures" / f"{program}.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: the following arguments are required: RUN")


@pytest.mark.parametrize(
    ("program", "run", "extra", "says"),
    [
        ("visualize", "CoOp", [], "this run of CoOp keeps no transport plans"),
        ("visualize", "mean", [], "this run of PLOT keeps no transport plans"),
        ("visualize", "PLOT", ["--class", "tiger"], "--class 'tiger' is none of the run's classes"),
        ("visualize", "PLOT", ["--to", __file__], "is no folder; name one with --to"),
        ("tsne", "PLOT", ["--class", "tiger"], "--class 'tiger' is none of the run's classes"),
        ("tsne", "PLOT", ["--to", "."], "'.' is a folder; name a file with --to"),
        ("words", "ZeroshotCLIP", [], "a run of ZeroshotCLIP has no learned context"),
        ("words", "PLOT", ["--class", "leopard"], "common ones"),
    ],
)
def test_a_mistake_gives_one_line(
    program: str,
    run: str,
    extra: list[str],
    says: str,
    runs_of: dict[str, Path],
    picture: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main = {"visualize": visualize, "words": words, "tsne": tsne}[program].main
    more = [] if program == "words" else [str(picture)]
    assert main([str(runs_of.get(run, "nowhere")), *more, *extra]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and says in error
