"""Files that try to run code, or to write elsewhere, are refused. Each test would see the effect."""

from __future__ import annotations

import pickle
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from dassl.extras.features.store import Arrays
from dassl.utils import UserError, load_checkpoint


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
