"""The report page: what stands on it, what it says of missing runs, and how a browser shows it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import train
from experiments import report
from experiments.recipes import prescribed_epochs
from tests.experiments.trees import write_run, write_table
from tests.runs.test_train import SHORT, command

pytestmark = pytest.mark.medium

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --hide-scrollbars --timeout=60000"
PARTS = ["Methods side by side", "Few-shot curves", "By class", "PLOT&#39;s plans on test pictures"]
PARTS += ["PLOT&#39;s nearest words", "What the plan changes", "Cost"]


def written(out: Path, *arguments: str) -> str:
    assert report.main([str(out), *arguments]) == 0
    return (out / "report.html").read_text(encoding="utf-8")


def cells(page: str, caption: str) -> list[list[str]]:
    """The rows of the table of a caption, or else of the first table after a text; the head first."""
    before, _, after = page.partition(caption)
    inside = before.rpartition("<table>")[2].count("</table>") == 0 and "<table>" in before
    table = (after if inside else after.partition("<table>")[2]).partition("</table>")[0]
    rows = (re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table, re.S))
    return [[html.unescape(re.sub(r"<[^>]+>", "", cell)) for cell in row] for row in rows]


@pytest.fixture(scope="module")
def trained(weights: Path, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of PLOT and one of zero-shot CLIP, which say that they followed the recipe."""
    out = tmp_path_factory.mktemp("trained")
    flags = ["--root", str(data_root), "--seed", "1", "--backbone", str(weights)]
    for trainer, options in (("PLOT", ["TRAINER.PLOT.N_CTX", "3"]), ("ZeroshotCLIP", [])):
        folder = out / "caltech101" / trainer / "rn50_2shots/default/seed1"
        argv = ["--output-dir", str(folder), *command(flags, trainer, "rn50"), *SHORT, *options]
        assert train.main(argv) == 0
        result = json.loads((folder / "result.json").read_text())
        shots = 2 if trainer == "PLOT" else 0
        recipe = {"overrides": {}, "shots": shots, "epochs": prescribed_epochs(trainer, "caltech101", shots)}
        (folder / "result.json").write_text(json.dumps({**result, **recipe}))
    return out


def test_methods_side_by_side_with_intervals_tests_and_commands(tmp_path: Path) -> None:
    write_table(tmp_path, ("symbols",), (1, 16))
    page = written(tmp_path)
    assert re.findall(r'<h3 id="1-\d">(.*)</h3>', page)[:7] == PARTS and page.count("<h2") == 1
    head, *rows = cells(page, "<h4>16 shots</h4>")
    row = dict(zip(head, next(row for row in rows if row[0] == "PLOT"), strict=True))
    assert re.fullmatch(r"\d+\.\d\d to \d+\.\d\d", row["95% interval"]) and float(row["paired t p"].strip("<")) < 1
    assert page.count("<svg") == 1 and len(page) < 1e6  # the curves; there are no pictures
    made = re.findall(r"made these runs .*?<pre>(.*?)</pre>", page, re.S)
    assert f"OUT={tmp_path} bash scripts/plot/main.sh symbols 16" in made[0].splitlines()
    (empty, *_) = re.findall(r"<p>Nothing to show: (.*)</p>", page)
    assert "config.yaml" in html.unescape(empty)


def test_missing_runs_are_named_with_their_commands(tmp_path: Path) -> None:
    write_run(tmp_path, "CoOp", "symbols", 4, 2, predictions=[0, 1, 1, 0])
    page = written(tmp_path)
    assert (
        "4 shots: no finished run of zero-shot CLIP, " in page
        and "Nothing to show: no finished run of PLOT with 4 shots." in page
    )
    blank = re.findall(r"Blank cells: .*?<pre>(.*?)</pre>", page, re.S)
    assert f"OUT={tmp_path} bash scripts/plot/main.sh symbols 4" in blank[0].splitlines()
    assert f"OUT={tmp_path} SEEDS=&#39;1 3&#39; bash scripts/coop/main.sh symbols 4" in blank[0].splitlines()
    assert cells(page, "Accuracy of each class") == [["class", "CoOp"], ["cat", "50.0"]]
    assert cells(page, "The worst confusions of CoOp")[1] == ["cat", "dog", "50.0"]
    asked = written(tmp_path, "--dataset", "symbols", "dtd")
    assert asked.count("<h2") == 2 and "No finished run for this table." in asked


def test_a_chapter_a_backbone(tmp_path: Path) -> None:
    write_table(tmp_path, ("dtd",), (16,))
    write_run(tmp_path, "PLOTPP", "dtd", backbone={"name": "ViT-B/16", "sha256": "5806e77cd80f"})
    page = written(tmp_path)
    assert re.findall(r'<h2 id="\d">(.*)</h2>', page) == ["dtd, RN50", "dtd, ViT-B/16"]
    second = page[page.index('<h2 id="2">') :]
    assert [row[0] for row in cells(second, "<h4>16 shots</h4>")] == ["method", "PLOT++"]


def test_plans_stand_beside_right_and_wrong_predictions(trained: Path) -> None:
    page = written(trained, "--pictures", "4")
    assert (
        not re.search(r"""(src|href)\s*=\s*(?!["'](data:|#))""", page)
        and "url(http" not in page
        and "@import" not in page
    )
    kept = json.loads(next(trained.glob("caltech101/PLOT/*/*/seed1/predictions.json")).read_text())
    hits = sum(label == guess for label, guess in zip(kept["label"], kept["prediction"], strict=True))
    right, wrong = page.count("<b>✓ predicted: "), page.count("<b>✗ predicted: ")
    assert (right, wrong) == (min(2, hits), min(2, 35 - hits)) and wrong
    assert len(re.findall(r"✗ predicted: [\w ]+ [\d.]+%; true: [\w ]+ [\d.]+%", page)) == wrong
    assert page.count("data:image/webp") == right * (1 + 4) + wrong * (1 + 4 + 4)  # the true class's plans too
    assert [len(row) for row in cells(page, "nearest words</h3>")] == [5] * (1 + 3)
    assert len(cells(page, "Accuracy of each class")) == 1 + 5


def test_pictures_that_are_elsewhere(
    trained: Path, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page is written without the data; DATA says where they are now."""
    monkeypatch.setenv("DATA", str(tmp_path))
    page = written(trained)
    assert "✗" not in page and "Nothing to show: " in page and "nearest words" in page
    shutil.copytree(data_root, tmp_path / "moved")
    monkeypatch.setenv("DATA", str(tmp_path / "moved"))
    assert "✗" in written(trained)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "no folder of runs at 'nowhere'"),
        (["."], "no finished run under '.'; bash scripts/compare.sh symbols 16 makes some"),
        ([".", "--pictures", "-1"], "--pictures is -1; it must be 0 or more"),
        ([".", "--to", "."], "'.' is a folder; name a file with --to"),
        ([".", "--dataset", "nothing"], "no dataset 'nothing'"),
    ],
)
def test_a_mistake_gives_one_line(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert report.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and says in error
    assert not [*tmp_path.iterdir()]


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_sorts_and_fits_the_page_to_a_phone(dark: bool, trained: Path, tmp_path: Path) -> None:
    """In a frame of a phone's width, a script clicks on heads and writes what it finds into the title."""
    clicks = """<script>
    const table = document.querySelector("table"), heads = [...table.tHead.rows[0].cells], found = [];
    const i = heads.findIndex(head => head.textContent.startsWith("accuracy"));
    for (const column of [i, i, 0]) {
      heads[column].firstChild.click();
      found.push([heads[column].ariaSort, ...[...table.tBodies[0].rows].map(row => row.cells[column].textContent)]);
    }
    const page = getComputedStyle(document.body).backgroundColor, needed = document.documentElement.scrollWidth;
    parent.document.title = JSON.stringify({found, page, needed, width: innerWidth});
    </script>"""
    frame = f'<title></title><iframe width=390 height=844 srcdoc="{html.escape(written(trained) + clicks)}"></iframe>'
    (tmp_path / "page.html").write_text(frame, encoding="utf-8")
    shade = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    argv = [str(CHROMIUM), *FLAGS.split(), shade, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    argv += [f"file://{tmp_path / 'page.html'}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    seen = json.loads(html.unescape(re.findall(r"<title>(.*?)</title>", done.stdout)[0]))
    down, up, names = seen["found"]
    assert down[0] == "descending" and [*map(float, down[1:])] == sorted(map(float, down[1:]), reverse=True)
    assert up == ["ascending", *down[:0:-1]] and names == ["ascending", "PLOT", "zero-shot CLIP"]
    assert seen["needed"] <= seen["width"] <= 390  # only tables scroll sideways
    assert seen["page"] == ("rgb(22, 24, 28)" if dark else "rgb(255, 255, 255)")
