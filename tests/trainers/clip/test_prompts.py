"""Packing, contexts and what does not fit; the numbers are tested in test_exactness.py."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from yacs.config import CfgNode

from dassl.utils import UserError
from tests.oracle import tiny_clip
from trainers.clip.prompts import CONTEXT_LENGTH, ROW_TOKENS, Layout, PromptBuilder, initial_contexts


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 75), min_size=1, max_size=60), st.integers(1, 20))
def test_every_suffix_stands_whole_in_one_row(lengths: list[int], P: int) -> None:
    layout = Layout(lengths, P)
    W = layout.position.shape[1]
    assert ROW_TOKENS + 2 * max(lengths) >= W
    places = layout.token.split(lengths)
    assert len(set(layout.token.tolist())) == sum(lengths)
    E = layout.eot.shape[1]
    for k, (length, place) in enumerate(zip(lengths, places, strict=True)):
        r, at = divmod(int(place[0]), W)
        assert place.tolist() == list(range(r * W + at, r * W + at + length))
        assert layout.position[r, at : at + length].tolist() == list(range(P, P + length))
        row, e = divmod(int(layout.slot[k]), E)
        assert (row, int(layout.eot[row, e])) == (r, at + length - 1)
        seen = layout.mask[r, at : at + length]
        assert seen[:, :P].all()
        own = torch.zeros(length, W, dtype=torch.bool)
        own[:, at : at + length] = torch.ones(length, length, dtype=torch.bool).tril()
        assert torch.equal(seen[:, P:], own)


def test_packing_wastes_little() -> None:
    lengths = [3] * 60 + [4] * 25 + [5] * 12 + [7] * 3
    R, W = Layout(lengths, 17).position.shape
    assert 1.05 * sum(lengths) >= R * W


def options(**values: object) -> CfgNode:
    return CfgNode({"N_CTX": 4, "CTX_INIT": "", "CSC": False, **values})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"CTX_INIT": "a photo|a picture|a sketch"}, "3 texts for 4 prompts"),
        ({"CTX_INIT": "a|a photo|a b|c"}, "'a photo' 2"),
        ({"CTX_INIT": "|".join(["", "", "", ""])}, "at least 1"),
        ({"CTX_INIT": " ".join(["word"] * 75)}, "CTX_INIT has 75 tokens"),
    ],
)
def test_texts_that_do_not_fit(values: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        initial_contexts(options(**values), 5, tiny_clip("RN", torch.float32, 0), 4)


def test_a_prompt_longer_than_clip_holds_names_its_class() -> None:
    model = tiny_clip("RN", torch.float32, 0)
    name = " ".join(["cat"] * 58)  # SOS + 16 + 58 + "." + EOT = 77
    PromptBuilder(["dog", name], model, 16)
    with pytest.raises(UserError, match=f"class 'cat .* has {CONTEXT_LENGTH + 1} tokens"):
        PromptBuilder(["dog", name + " cat"], model, 16)
