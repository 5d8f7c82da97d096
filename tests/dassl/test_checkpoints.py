"""Checkpoints: whole or absent, readable without trust, and upstream's among them."""

from __future__ import annotations

import os
import pickle
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    UserError,
    load_checkpoint,
    load_pretrained_weights,
    resume_from_checkpoint,
    save_checkpoint,
)
from dassl.utils.checkpoints import Stub


def parts() -> tuple[nn.Linear, Any, Any]:
    torch.manual_seed(1)
    model = nn.Linear(3, 2)
    c = get_cfg_default().OPTIM
    c.LR_SCHEDULER, c.WARMUP_EPOCH = "cosine", 1
    optim = build_optimizer(model, c)
    return model, optim, build_lr_scheduler(optim, c)


def train_an_epoch(model: nn.Module, optim: Any, sched: Any) -> None:
    optim.zero_grad()
    model(torch.ones(4, 3)).square().sum().backward()
    optim.step()
    sched.step()


def state(epoch: int, model: nn.Module, optim: Any, sched: Any) -> dict[str, Any]:
    return {
        "state_dict": model.state_dict(),
        "epoch": epoch,
        "optimizer": optim.state_dict(),
        "scheduler": sched.state_dict(),
        "val_result": None,
    }


def test_round_trip(tmp_path: Path) -> None:
    model, optim, sched = parts()
    train_an_epoch(model, optim, sched)
    train_an_epoch(model, optim, sched)
    save_checkpoint(state(2, model, optim, sched), str(tmp_path), is_best=True)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "model-best.pth.tar", "model.pth.tar-2"]
    assert (tmp_path / "checkpoint").read_text() == "model.pth.tar-2\n"
    trusted = torch.load(tmp_path / "model.pth.tar-2", weights_only=True)
    assert trusted["scheduler"] == {"last_epoch": 2}

    again = parts()
    assert resume_from_checkpoint(str(tmp_path), *again) == 2
    for _ in range(2):
        assert again[1].param_groups[0]["lr"] == optim.param_groups[0]["lr"]
        train_an_epoch(model, optim, sched)
        train_an_epoch(*again)
        assert torch.equal(model.weight, again[0].weight)


def test_data_parallels_prefix_goes(tmp_path: Path) -> None:
    given = {"state_dict": {"module.weight": torch.ones(1)}, "epoch": 1}
    save_checkpoint(given, str(tmp_path))
    assert list(load_checkpoint(str(tmp_path / "model.pth.tar-1"))["state_dict"]) == ["weight"]
    assert list(given["state_dict"]) == ["module.weight"], "the caller's dictionary stays"  # type: ignore[call-overload]


def test_rolling_ones_go_and_the_others_stay(tmp_path: Path) -> None:
    kept = set()
    for epoch in range(1, 10):
        rolling = epoch % 4 != 0
        kept |= set() if rolling else {epoch}
        save_checkpoint({"state_dict": {}, "epoch": epoch}, str(tmp_path), rolling=rolling)
        there = {int(path.suffix[5:]) for path in tmp_path.glob("model.pth.tar-*")}
        newest_rolling = {e for e in range(1, epoch + 1) if e % 4}
        assert there == kept | set(sorted(newest_rolling)[-2:])
    assert (tmp_path / "checkpoint").read_text() == "model.pth.tar-9\n"


def test_a_kill_leaves_no_rolling_checkpoint_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves of epochs 1 to 9, each killed at another of its renames and removals, then made again."""
    replace, remove, steps = os.replace, os.remove, [0]

    def killed_at_zero(do: Any) -> Any:
        def step(*args: str) -> None:
            steps[0] -= 1
            if steps[0] == -1:
                raise KeyboardInterrupt
            do(*args)

        return step

    monkeypatch.setattr(os, "replace", killed_at_zero(replace))
    monkeypatch.setattr(os, "remove", killed_at_zero(remove))
    for epoch in range(1, 10):
        steps[0] = epoch % 4
        with suppress(KeyboardInterrupt):
            save_checkpoint({"state_dict": {}, "epoch": epoch}, str(tmp_path), rolling=True)
        steps[0] = 10**6
        newest = max((int(path.suffix[5:]) for path in tmp_path.glob("model.pth.tar-*")), default=0)
        save_checkpoint({"state_dict": {}, "epoch": newest + (newest < epoch)}, str(tmp_path), rolling=True)
        assert (tmp_path / f"model.pth.tar-{epoch}").exists()
        assert len(list(tmp_path.glob("model.pth.tar-*"))) <= 2
    assert {path.suffix for path in tmp_path.glob("model.pth.tar-*")} == {".tar-8", ".tar-9"}


def test_an_interrupted_save_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint({"state_dict": {}, "epoch": 1, "note": "old"}, str(tmp_path))

    def half(obj: object, file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint({"state_dict": {}, "epoch": 1, "note": "new"}, str(tmp_path))
    assert load_checkpoint(str(tmp_path / "model.pth.tar-1"))["note"] == "old"
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "model.pth.tar-1"]


class Bomb:
    """Unpickled by the usual means, it calls a function."""

    def __init__(self, function: Any, argument: str) -> None:
        self.call = function, (argument,)

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_in_a_checkpoint_runs(zipped: bool, tmp_path: Path) -> None:
    path, touched = tmp_path / "model.pth.tar-1", tmp_path / "touched"
    content = {"state_dict": {"w": torch.ones(2)}, "epoch": 1, "scheduler": Bomb(exec, f"open({str(touched)!r}, 'w')")}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    checkpoint = load_checkpoint(str(path))
    assert not touched.exists()
    assert torch.equal(checkpoint["state_dict"]["w"], torch.ones(2)) and checkpoint["epoch"] == 1
    assert isinstance(checkpoint["scheduler"], Stub)
    torch.load(path, weights_only=False)
    assert touched.exists(), "the same file does run code in an ordinary load"


@pytest.mark.parametrize("zipped", [True, False])
def test_upstreams_scheduler_objects(zipped: bool, tmp_path: Path) -> None:
    """Dassl's warm-up scheduler keeps its successor, a torch scheduler with its optimizer, in its state."""
    model, optim, sched = parts()
    for _ in range(3):
        train_an_epoch(model, optim, sched)
    content = state(3, model, optim, sched)
    theirs = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    successor = torch.optim.lr_scheduler.CosineAnnealingLR(theirs, 10)
    del theirs.step  # torch wraps it in a local function, which older versions could pickle
    milestones = torch.optim.lr_scheduler.MultiStepLR(theirs, [2, 2]).state_dict()["milestones"]
    content["scheduler"] = {"successor": successor, "warmup_epoch": 1, "last_epoch": 1, "_last_lr": [0.1]}
    content["scheduler"]["milestones"] = milestones
    del theirs.step
    torch.save(content, tmp_path / "model.pth.tar-3", _use_new_zipfile_serialization=zipped)
    (tmp_path / "checkpoint").write_text("model.pth.tar-3\n")

    loaded = load_checkpoint(str(tmp_path / "model.pth.tar-3"))
    assert isinstance(loaded["scheduler"]["successor"], Stub)
    assert loaded["scheduler"]["milestones"] == {2: 2}
    again = parts()
    assert resume_from_checkpoint(str(tmp_path), *again) == 3
    assert again[2].last_epoch == 3 and again[2].get_last_lr() == sched.get_last_lr()
    assert torch.equal(again[0].weight, model.weight)


def damaged(path: Path, damage: str) -> None:
    torch.save({"state_dict": {"w": torch.ones(1000)}, "epoch": 1}, path)
    if damage == "text":
        path.write_text("no checkpoint\n")
    elif damage == "pickle":
        path.write_bytes(pickle.dumps({"epoch": 1}))
    elif damage == "a tensor":
        torch.save(torch.ones(1), path)
    elif damage == "torchscript":
        torch.jit.save(torch.jit.script(nn.Linear(1, 1)), path)
    elif damage in ("a call", "an old call"):  # PyTorch refuses the module `os`
        bomb = {"state_dict": {}, "epoch": Bomb(os.system, f"touch {path}.touched")}
        torch.save(bomb, path, _use_new_zipfile_serialization=damage == "a call")
    elif damage == "missing":
        path.unlink()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize(
    "damage",
    ["text", "pickle", "a tensor", "torchscript", "a call", "an old call", "missing"],
)
def test_no_checkpoint(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pth.tar-1"
    damaged(path, damage)
    with pytest.raises(UserError) as error:
        load_checkpoint(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert "weights_only" not in str(error.value), "no advice to load it without"
    assert set(tmp_path.iterdir()) <= {path}


def test_what_does_not_fit(tmp_path: Path) -> None:
    other = nn.Linear(5, 2)
    save_checkpoint({"state_dict": other.state_dict(), "epoch": 1}, str(tmp_path))
    with pytest.raises(UserError, match=r"model.pth.tar-1 do not fit the model: .*size mismatch") as error:
        resume_from_checkpoint(str(tmp_path), parts()[0])
    assert "\n" not in str(error.value)
    torch.save({"weight": torch.ones(1)}, tmp_path / "model.pth.tar-1")
    with pytest.raises(UserError, match="it has no epoch and no state_dict"):
        resume_from_checkpoint(str(tmp_path), parts()[0])
    with pytest.raises(UserError, match=r"checkpoint not found: .*none"):
        resume_from_checkpoint(str(tmp_path / "none"), parts()[0])


def test_pretrained_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, path = nn.Linear(3, 2), tmp_path / "weights"
    torch.save({"module.bias": torch.tensor([5.0, 6.0]), "weight": torch.ones(9)}, path)
    before = model.weight.clone()
    load_pretrained_weights(model, str(path))
    assert model.bias.tolist() == [5, 6] and torch.equal(model.weight, before)
    assert "discarded due to unmatched keys or size: ['weight']" in capsys.readouterr().out
    torch.save({"unknown": torch.ones(1)}, path)
    with pytest.raises(UserError, match=r"nothing in .*weights fits"):
        load_pretrained_weights(model, str(path))


def test_a_prompt_learner_among_all_of_clip(tmp_path: Path) -> None:
    """A model that is the learner alone takes its part; one that has it as a part takes the names as they are."""
    alone = nn.Module()
    alone.ctx = nn.Parameter(torch.zeros(2))
    whole = nn.Module()
    whole.prompt_learner, whole.image_encoder = nn.Module(), nn.Linear(2, 1)
    whole.prompt_learner.ctx = nn.Parameter(torch.ones(2))
    names = {"prompt_learner.token_prefix": torch.zeros(5)}
    torch.save({"state_dict": {**whole.state_dict(), **names}, "epoch": 3}, tmp_path / "model.pth.tar-3")
    (tmp_path / "checkpoint").write_text("model.pth.tar-3\n")
    for model, learner in ((alone, alone), (whole, whole.prompt_learner)):
        torch.nn.init.zeros_(learner.ctx)
        load_pretrained_weights(model, str(tmp_path / "model.pth.tar-3"))
        assert learner.ctx.tolist() == [1, 1]
        torch.nn.init.zeros_(learner.ctx)
        assert resume_from_checkpoint(str(tmp_path), model) == 3
        assert learner.ctx.tolist() == [1, 1]


def test_truncated_or_altered_it_is_right_or_refused(tmp_path: Path) -> None:
    """Truncations, also at each byte of the checksum, and flipped bits: never another content or another error."""
    model, optim, sched = parts()
    train_an_epoch(model, optim, sched)
    save_checkpoint(state(1, model, optim, sched), str(tmp_path))
    path = tmp_path / "model.pth.tar-1"
    whole, right = path.read_bytes(), model.state_dict()
    rng = random.Random(0)
    damages = [whole[: len(whole) * i // 50] for i in range(50)]
    flipped = bytearray(whole)
    flipped[whole.index(right["weight"].numpy().tobytes())] ^= 64
    for content in (whole, bytes(flipped)):
        damages += [*(content[:-n] for n in range(1, 95)), content + b"x", content + bytes(71)]
    for _ in range(200):
        altered = bytearray(whole)
        altered[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        damages.append(bytes(altered))
    refused = 0
    for damage in damages:
        path.write_bytes(damage)
        try:
            loaded = load_checkpoint(str(path))
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
            continue
        assert loaded["epoch"] == 1 and all(torch.equal(loaded["state_dict"][k], right[k]) for k in right)
    assert refused >= 50 + 2 * 96 + 190  # a flip in the checksum's own mark leaves the content whole


@pytest.mark.parametrize("key", ["epoch", "state_dict", "optimizer", "scheduler"])
def test_a_checkpoint_of_odd_values_is_refused(key: str, tmp_path: Path) -> None:
    model, optim, sched = parts()
    odd: Any = {"state_dict": [1], "epoch": "one", "optimizer": {"state": 1}, "scheduler": [1]}
    save_checkpoint({**state(1, model, optim, sched), "epoch": 1}, str(tmp_path))
    content = load_checkpoint(str(tmp_path / "model.pth.tar-1"))
    torch.save({**content, key: odd[key]}, tmp_path / "model.pth.tar-1")
    with pytest.raises(UserError, match=r"model\.pth\.tar-1"):
        resume_from_checkpoint(str(tmp_path), *parts())
