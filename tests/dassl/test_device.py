"""Batches on the model's device: the same crops as the plain transform's, and the order of copies and steps."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision import transforms as T

from dassl.config import find_faults
from dassl.data import DataManager, data_manager, workers
from dassl.data.device import OnDevice, collate, on_device
from dassl.utils import UserError

from .conftest import MakeCfg
from .test_data import an_epoch

CPU = torch.device("cpu")


@pytest.mark.medium
@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("names", [["random_resized_crop", "random_flip", "normalize"], ["random_flip"], ["normalize"]])
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_pixels_are_the_plain_ones_but_for_rounding(
    number: int, names: list[str], mode: str, make_cfg: MakeCfg
) -> None:
    """Of 255 levels at most 2 apart, by worker processes too, in every epoch, and the rest of a batch is the same."""
    options: dict[str, Any] = {"INPUT__TRANSFORMS": names, "INPUT__INTERPOLATION": mode, "INPUT__PIXEL_STD": [0.5] * 3}
    found, expected = (
        DataManager(make_cfg(DATALOADER__NUM_WORKERS=number, DATALOADER__ON_DEVICE=on, **options))
        for on in (True, False)
    )
    scale = 2 / 255 / (0.5 if "normalize" in names else 1)
    for epoch in range(2):
        for ours, theirs in zip(an_epoch(found, epoch), an_epoch(expected, epoch), strict=True):
            assert ours.keys() == theirs.keys() and ours["impath"] == theirs["impath"]
            assert torch.equal(ours["label"], theirs["label"]) and torch.equal(ours["index"], theirs["index"])
            assert ours["img"].dtype == torch.float32
            torch.testing.assert_close(ours["img"], theirs["img"], rtol=0, atol=scale + 1e-6)
    for ours, theirs in zip(found.test_loader, expected.test_loader, strict=True):
        assert torch.equal(ours["img"], theirs["img"]), "tests stay as they are"
    found.train_loader_x.close(), expected.train_loader_x.close()


@pytest.mark.medium
def test_through_pipes_where_shared_memory_is_small(make_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch) -> None:
    plenty = DataManager(make_cfg(DATALOADER__NUM_WORKERS=1, DATALOADER__ON_DEVICE=True))
    monkeypatch.setattr(workers, "free_bytes", lambda: 1e4)
    monkeypatch.setattr(data_manager, "free_bytes", lambda: 1e4)
    little = DataManager(make_cfg(DATALOADER__NUM_WORKERS=1, DATALOADER__ON_DEVICE=True))
    assert little.train_loader_x.collate_fn is workers.by_pipe
    for ours, theirs in zip(an_epoch(little, 0), an_epoch(plenty, 0), strict=True):
        assert torch.equal(ours["img"], theirs["img"]) and ours["impath"] == theirs["impath"]
    little.train_loader_x.close(), plenty.train_loader_x.close()


def test_mistakes(make_cfg: MakeCfg, tmp_path: Path) -> None:
    (fault,) = find_faults(make_cfg(DATALOADER__ON_DEVICE=True, DATALOADER__CACHED_VIEWS=2))
    assert fault.startswith("DATALOADER.ON_DEVICE is True; that needs DATALOADER.CACHED_VIEWS 0")
    own = T.Compose([T.Resize((16, 16)), T.ColorJitter(), T.ToTensor()])
    with pytest.raises(UserError, match=r"ON_DEVICE is True; it needs the transforms of INPUT.TRANSFORMS"):
        DataManager(make_cfg(DATALOADER__ON_DEVICE=True), custom_tfm_train=own)
    with pytest.raises(UserError, match="ON_DEVICE is True; it needs the engine's own reading"):
        DataManager(make_cfg(DATALOADER__ON_DEVICE=True), dataset_wrapper=lambda cfg, data, **_: data)  # type: ignore[arg-type, return-value]


class FakeGPU:
    """A device whose tensors are the CPU's: it says what happens on which stream."""

    type = "cuda"

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.on = "step"
        gpu = self

        class Stream:
            def record_event(self) -> str:
                return f"copied {gpu.copied}"

            def wait_event(self, event: str) -> None:
                gpu.log.append(f"wait {event}")

        @contextmanager
        def stream(of: Any) -> Any:
            self.on, before = "copy", self.on
            yield
            self.on = before

        monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
        monkeypatch.setattr(torch.cuda, "stream", stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
        monkeypatch.setattr(torch.Tensor, "to", lambda x, *args, **kwargs: self.to(x, *args, **kwargs))
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, stream: self.log.append(f"keep {self.number(x)}"))

    @staticmethod
    def number(x: torch.Tensor) -> str:
        return "".join(map(str, x.tolist()))

    def to(self, x: torch.Tensor, device: Any, non_blocking: bool) -> torch.Tensor:
        assert device is self and non_blocking and self.on == "copy"
        self.copied = self.number(x)
        self.log.append(f"copy {self.copied}")
        return x.clone()


def test_a_batch_is_copied_during_the_step_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its step waits for its own copy, not for that of the next batch, and keeps its memory."""
    gpu: Any = FakeGPU(monkeypatch)
    batches = [{"label": torch.tensor([i])} for i in range(3)]
    gpu_batches = on_device(({**batch, "img": batch["label"]} for batch in batches), gpu)
    for batch in gpu_batches:
        gpu.log.append(f"step {gpu.number(batch['label'])}")
    one = [[f"copy {i}"] * 2 for i in range(3)]
    used = [[f"wait copied {i}", f"keep {i}", f"keep {i}", f"step {i}"] for i in range(3)]
    assert gpu.log == [*one[0], *one[1], *used[0], *one[2], *used[1], *used[2]]


def test_no_batch_and_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(on_device([], CPU)) == []
    batch = {"img": torch.ones(1), "label": torch.zeros(1), "impath": ["a"]}
    assert list(on_device([batch], CPU)) == [batch]
    gpu: Any = FakeGPU(monkeypatch)
    assert list(on_device([], gpu)) == [] and len(list(on_device([batch], gpu))) == 1


def test_an_image_of_one_pixel() -> None:
    transform = T.Compose([T.Resize((4, 6)), T.ToTensor()])
    given = OnDevice(transform, CPU).crop(Image.new("RGB", (1, 1), (255, 0, 51)))
    batch = OnDevice(transform, CPU)(collate([{**given, "label": 0}] * 2))
    assert batch["img"].shape == (2, 3, 4, 6)
    torch.testing.assert_close(batch["img"][1], torch.tensor([1.0, 0.0, 0.2])[:, None, None].expand(3, 4, 6))
