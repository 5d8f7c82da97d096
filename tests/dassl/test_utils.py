"""Registries, files, seeds, the log file and the config tree."""

from __future__ import annotations

import ast
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from yacs.config import CfgNode

import dassl
import dassl.utils as u
from dassl.config import clean_cfg, get_cfg_default


def test_registry() -> None:
    registry = u.Registry("trainer")
    with pytest.raises(u.UserError, match="none is registered"):
        registry.get("CoOp")

    @registry.register()
    class CoOp:
        pass

    class PLOT:
        pass

    registry.register(PLOT)
    assert registry.get("CoOp") is CoOp and registry.registered_names() == ["CoOp", "PLOT"]
    with pytest.raises(u.UserError, match="unknown trainer 'plott'; did you mean 'PLOT'") as error:
        registry.get("plott")
    assert "\n" not in str(error.value) and isinstance(error.value, ValueError)
    with pytest.raises(KeyError, match="already registered"):
        registry.register(PLOT)
    registry.register(PLOT, force=True)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    u.write_json({"x": [1, 2]}, str(path))
    assert u.read_json(str(path)) == {"x": [1, 2]}
    (path.parent / ".hidden").touch()
    (path.parent / "a.txt").touch()
    assert u.listdir_nohidden(str(path.parent), sort=True) == ["a.txt", "b.json"]

    def interrupted(file: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        u.write_atomically(str(path), interrupted)
    assert u.read_json(str(path)) == {"x": [1, 2]}
    u.write_atomically(path, "first", replace=False)
    u.write_atomically(path.with_name("c"), b"first", replace=False)
    assert u.read_json(str(path)) == {"x": [1, 2]} and path.with_name("c").read_text() == "first"
    assert u.listdir_nohidden(str(path.parent), sort=True) == ["a.txt", "b.json", "c"]


def draws() -> list[float]:
    return [random.random(), float(np.random.rand()), torch.rand(()).item()]


def test_seeds() -> None:
    u.set_random_seed(5)
    first = draws()
    u.set_random_seed(5)
    assert draws() == first
    u.set_random_seed(2**62 + 1)  # wider than NumPy takes

    u.set_random_seed(5)
    with u.seeded(1, 2, 3):
        inside = draws()
    assert draws() == first, "the scope must leave the global generators as they were"
    with u.seeded(1, 2, 3):
        assert draws() == inside
    with u.seeded(1, 3, 2):
        assert draws() != inside
    assert u.derive_seed(1, 23) != u.derive_seed(12, 3)


def test_logger_tees_and_appends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = sys.stdout
    for text in ("first", "second"):
        logger = u.setup_logger(str(tmp_path / "run"))
        assert logger is not None
        print(text)
        assert (tmp_path / "run" / "log.txt").read_text().endswith(f"{text}\n"), "written at once"
        logger.close()
        assert sys.stdout is console
    with u.Logger(str(tmp_path / "other.log")) as logger:
        assert logger.isatty() is False
    u.setup_logger(str(tmp_path / "a.txt"))
    logger = u.setup_logger(str(tmp_path / "b.txt"))
    print("third")
    assert logger is not None
    logger.close()
    assert sys.stdout is console, "a second logger takes the first one's place"
    assert (tmp_path / "a.txt").read_text() == "" and (tmp_path / "b.txt").read_text() == "third\n"
    assert (tmp_path / "run" / "log.txt").read_text() == "first\nsecond\n"
    assert capsys.readouterr().out == "first\nsecond\nthird\n"
    assert u.setup_logger(None) is None


def test_meters() -> None:
    meter = u.MetricMeter()
    meter.update({"loss": torch.tensor(1.0), "acc": 50})
    meter.update({"loss": 3.0, "acc": 100})
    assert str(meter) == "loss 3.0000 (2.0000) acc 100.0000 (75.0000)"


def test_environment() -> None:
    assert f"PyTorch: {torch.__version__}" in u.collect_env_info()


def test_config() -> None:
    cfg = get_cfg_default()
    cfg.OPTIM.LR = 1.0
    assert get_cfg_default().OPTIM.LR == 0.0003, "a fresh tree each time"
    cfg.TRAINER.COOP = CfgNode({"N_CTX": 16})
    cfg.TRAINER.PLOT = CfgNode({"N": 4})
    clean_cfg(cfg, "PLOT")
    assert sorted(cfg.TRAINER) == ["NAME", "PLOT"]


def test_slow_imports_wait() -> None:
    """scikit-learn, TensorBoard and tqdm are imported where they are used, not when dassl is."""
    for path in Path(dassl.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                source = ast.unparse(node)
                assert not any(slow in source for slow in ("sklearn", "tensorboard", "tqdm")), (path, source)


def test_pillows_limit_of_pixels_is_raised_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow refuses twice as many
    Image.new("RGB", (50, 50)).save(tmp_path / "large.png")
    with pytest.raises(u.ImageError, match=r"is too large .*INPUT.MAX_PIXELS"):
        u.read_image(str(tmp_path / "large.png"), max_pixels=2000)
    assert u.read_image(str(tmp_path / "large.png"), max_pixels=2500).size == (50, 50)
