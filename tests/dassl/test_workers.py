"""The loader's workers: shared memory that is too small for their batches, and workers that the machine fails."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from clip.model import CLIP
from PIL import Image

import runs
from dassl.data import DataManager, workers
from dassl.extras.cli import guarded
from tests.conftest import in_half

from .conftest import MakeCfg

pytestmark = pytest.mark.medium
REPOSITORY = Path(runs.__file__).parents[1]


def batches(cfg: Any) -> list[dict[str, Any]]:
    dm = DataManager(cfg)
    try:
        return [batch for loader in (dm.train_loader_x, dm.test_loader) for batch in loader]
    finally:
        dm.train_loader_x.close()


def test_batches_through_pipes_are_the_same(
    make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = make_cfg(DATALOADER__NUM_WORKERS=1)
    expected = batches(cfg)
    assert "Shared memory" not in capsys.readouterr().out
    monkeypatch.setattr(workers, "free_bytes", lambda: 50_000)
    for given, batch in zip(batches(cfg), expected, strict=True):
        assert given.keys() == batch.keys() and given["impath"] == batch["impath"]
        assert all(torch.equal(given[key], batch[key]) for key in ("img", "label", "domain", "index"))
        assert not given["img"].is_shared() and batch["img"].is_shared()
    assert capsys.readouterr().out.count("pictures go through pipes") == 1
    batches(make_cfg(DATALOADER__NUM_WORKERS=0))
    assert "pictures go through pipes" not in capsys.readouterr().out


class Fails:
    """A transform that ends its worker, or fails, as a machine does."""

    def __init__(self, how: Any) -> None:
        self.how = how

    def __call__(self, image: Image.Image) -> torch.Tensor:
        if isinstance(self.how, Exception):
            raise self.how
        os.kill(os.getpid(), self.how)
        raise AssertionError


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (signal.SIGBUS, "is killed by signal: Bus error|exited unexpectedly"),
        (signal.SIGKILL, "is killed by signal: Killed|exited unexpectedly"),
        (OSError(5, "Input/output error", "/nfs/1.jpg"), r"has failed: OSError: \[Errno 5\] Input/output error"),
        (
            RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)"),
            r"has failed: unable to allocate shared memory\(shm\)",
        ),
    ],
)
def test_a_worker_that_the_machine_fails_is_one_line(
    how: Any, says: str, make_cfg: MakeCfg, capfd: pytest.CaptureFixture[str]
) -> None:
    dm = DataManager(make_cfg(DATALOADER__NUM_WORKERS=1), custom_tfm_test=Fails(how))
    assert guarded(lambda: list(dm.test_loader) and None) == 2
    err = capfd.readouterr().err
    (line,) = re.findall("error: a worker that loads images (.*)", err)  # torch itself says a word of a bus error
    assert re.match(says, line) and "NUM_WORKERS 0" in line and "Traceback" not in err


def test_an_error_of_the_program_keeps_its_traceback(make_cfg: MakeCfg) -> None:
    dm = DataManager(make_cfg(DATALOADER__NUM_WORKERS=1), custom_tfm_test=Fails(RuntimeError("a shape is wrong")))
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        guarded(lambda: list(dm.test_loader) and None)


@pytest.mark.slow
def test_plot_at_batch_128_with_64_mb_of_shared_memory(tmp_path: Path) -> None:
    """The same bits as with enough; a batch of 128 pictures of 224 x 224 takes 77 MB."""
    small = ["unshare", "-m", "sh", "-ec", 'mount -t tmpfs -o size=64m tmpfs /dev/shm; exec "$@"', "sh"]
    if sys.platform != "linux" or subprocess.run([*small, "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    torch.manual_seed(0)
    weights = in_half(CLIP(64, 224, (1, 1, 1, 1), 8, None, 77, 49408, 64, 1, 2), tmp_path / "tiny.pt")
    for part, n in (("train", 70), ("test", 3)):
        for label in range(2):
            (tmp_path / "pictures" / part / f"class_{label}").mkdir(parents=True)
            for i in range(n):
                picture = Image.new("RGB", (40, 40), (i, 90 * label, 200))
                picture.save(tmp_path / "pictures" / part / f"class_{label}" / f"{i}.png")
    command = [sys.executable, str(REPOSITORY / "train.py"), "--root", str(tmp_path / "pictures"), "--seed", "1"]
    command += ["--dataset-config-file", str(REPOSITORY / "configs/datasets/image_folder.yaml"), "--trainer", "PLOT"]
    command += ["--config-file", str(REPOSITORY / "configs/trainers/PLOT/rn50.yaml"), "--backbone", str(weights)]
    options = ["DATALOADER.TRAIN_X.BATCH_SIZE", "128", "DATALOADER.TEST.BATCH_SIZE", "2", "OPTIM.MAX_EPOCH", "1"]
    learned, accuracies = [], []
    for out, before in (("small", small), ("large", [])):
        env = {**os.environ, "PLOT_CACHE": str(tmp_path / out)}
        argv = [*before, *command, "--output-dir", str(tmp_path / out), *options, "USE_CUDA", "False"]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("pictures go through pipes") == (out == "small")
        saved = torch.load(tmp_path / out / "prompt_learner/model.pth.tar-1", weights_only=True)
        learned.append(saved["state_dict"]["ctx"])
        accuracies.append(json.loads((tmp_path / out / "result.json").read_text())["accuracy"])
    assert torch.equal(*learned) and accuracies[0] == accuracies[1]
