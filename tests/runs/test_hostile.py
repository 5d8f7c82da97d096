"""Files that try to run code, or to write elsewhere, are refused. Each test would see the effect."""

from __future__ import annotations

import pickle
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import train
from dassl.extras.features.store import Arrays
from dassl.utils import UserError, load_checkpoint

from .test_train import SMALL, command


class Bomb:
    """An ordinary unpickler makes a folder of it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, (f"import os; os.mkdir({self.path!r})",)


def test_a_checkpoint(run_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    learner, ran = tmp_path / "run/prompt_learner", tmp_path / "ran"
    learner.mkdir(parents=True)
    torch.save({"state_dict": {"ctx": Bomb(ran)}, "epoch": 1}, learner / "model.pth.tar-1")
    (learner / "checkpoint").write_text("model.pth.tar-1\n")
    assert train.main(["--output-dir", str(tmp_path / "run"), *command(run_args, "CoOp"), *SMALL]) == 2
    assert "model.pth.tar-1" in capsys.readouterr().err and not ran.exists()
    pickle.loads(pickle.dumps(Bomb(ran)))
    assert ran.is_dir(), "the same object does run code in an ordinary load"


def test_a_module_that_would_leave_a_patch(tmp_path: Path) -> None:
    """PyTorch's old format writes a module's changed source to <its name>.patch, if the module asks for it."""

    def text(value: str) -> bytes:
        return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()

    attributes = text("dump_patches") + b"\x88" + text("__name__") + text(str(tmp_path / "ran"))
    encode = b"c_codecs\nencode\nq\x00" + b"N}(" + attributes + b"u\x86b0"  # the function, its attributes set
    module = b"(" + text("module") + b"h\x00" + text("source.py") + text("another source") + b"tQ"
    content = b"\x80\x02" + encode + b"}(" + text("state_dict") + module + text("epoch") + b"K\x01u."
    path = tmp_path / "evil.tar"
    with path.open("wb") as file:
        for header in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(header, file, 2)
        file.write(content)
        pickle.dump([], file, 2)
    with pytest.raises(UserError, match="cannot read checkpoint"):
        load_checkpoint(str(path))
    assert [p.name for p in tmp_path.iterdir()] == ["evil.tar"]


def test_kept_features_that_are_no_numbers(tmp_path: Path) -> None:
    """Objects would be read as addresses of memory."""
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": (4, 2)})
    content = header.getvalue() + b"A" * 64
    path = tmp_path / f"x-{zlib.crc32(content):08x}.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="Python objects in dtype"):
        Arrays().add("x", path)


def test_a_yaml(run_args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, ran = tmp_path / "evil.yaml", tmp_path / "ran"
    path.write_text(f"OPTIM: !!python/object/apply:os.mkdir ['{ran}']\n")
    assert train.main([*command(run_args, "CoOp"), "--config-file", str(path)]) == 2
    assert "is no YAML" in capsys.readouterr().err and not ran.exists()
    yaml.unsafe_load(path.read_text())
    assert ran.is_dir(), "the same file does run code in an unsafe load"
