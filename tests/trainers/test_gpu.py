"""What would run on a GPU, on PyTorch's fake CUDA tensors: devices and types fit, and the host waits for nothing.

They hold no numbers, so that asking for one, which on a GPU waits for it, is an error. Forward passes only: a backward
pass, even a fake one, needs a driver.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from clip.model import convert_weights
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

import trainers.sinkhorn
from tests.oracle import make_cfg, tiny_clip
from tests.trainers.custom_clip import MODULES, NAMES

pytestmark = [
    pytest.mark.medium,
    pytest.mark.skipif(torch.version.cuda is None, reason="this PyTorch knows no CUDA"),
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),
]
CASES: list[tuple[str, dict[str, Any]]] = [
    ("PLOT", {"MAX_ITER": trainers.sinkhorn.CHECK_EVERY - 1}),
    ("PLOT", {"MAX_ITER": trainers.sinkhorn.CHECK_EVERY - 1, "EPS": 0.01}),
    ("PLOT", {"MATCH": "max", "GLOBAL_LOGITS": True, "CSC": True}),
    ("PLOT", {"MATCH": "mean", "CLASS_TOKEN_POSITION": "middle"}),
    ("COOP", {"CTX_INIT": "a photo of a"}),
    ("COCOOP", {}),
]


def to_fake_gpu(model: nn.Module) -> None:
    """Every parameter and buffer as a fake one of a GPU's; to be called in a FakeTensorMode."""
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                new = torch.empty(p.shape, dtype=p.dtype, device="cuda")
                module._parameters[name] = nn.Parameter(new, requires_grad=p.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")


def logits(trainer: str, options: dict[str, Any], kind: str = "RN", half: bool = False, train: bool = True) -> Any:
    clip_model = tiny_clip(kind, torch.float32, 0, 64)
    if half:
        convert_weights(clip_model)
    model = MODULES[trainer].CustomCLIP(make_cfg(trainer, 64, **options), NAMES, clip_model).train(train)
    with FakeTensorMode(), torch.set_grad_enabled(train):
        to_fake_gpu(model)
        return model(torch.empty(3, 3, 64, 64, device="cuda"))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", ["RN", "ViT"])
@pytest.mark.parametrize(("trainer", "options"), CASES)
def test_devices_and_types_fit_and_the_host_waits_for_nothing(
    trainer: str, options: dict[str, Any], kind: str, half: bool, train: bool
) -> None:
    out = logits(trainer, options, kind, half, train)
    assert out.shape == (3, len(NAMES)) and out.device.type == "cuda"
    assert out.dtype in ((torch.float16, torch.float32) if half else (torch.float32,))
    assert out.requires_grad == train


def test_a_wait_would_be_noticed() -> None:
    """Sinkhorn asks at every fourth iteration whether it may stop."""
    with pytest.raises(DataDependentOutputException):
        logits("PLOT", {"MAX_ITER": trainers.sinkhorn.CHECK_EVERY})
