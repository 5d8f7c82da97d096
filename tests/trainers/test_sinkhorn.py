"""Entropic optimal transport by its mathematics: marginals, POT's solver, limits and batches."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.oracle import sinkhorn as sinkhorn_by_the_book
from trainers.prompt_trainer import unit
from trainers.sinkhorn import counted_sinkhorn, sinkhorn

pytestmark = pytest.mark.medium

solve = functools.partial(sinkhorn, eps=0.1, max_iter=100, thresh=0.01)


def random_cost(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """[..., M, N] of 1 - cosine, for cosines from -0.2 to 0.5, wider than CLIP's."""
    generator = torch.Generator().manual_seed(seed)
    return (1.2 - 0.7 * torch.rand(shape, generator=generator, dtype=torch.float64)).to(dtype)


def assert_all(values: Tensor, expected: float, rtol: float) -> None:
    torch.testing.assert_close(values, torch.full_like(values, expected), rtol=rtol, atol=0)


@pytest.mark.parametrize("eps", [0.05, 0.1, 1.0])
def test_agrees_with_pot(eps: float) -> None:
    ot = pytest.importorskip("ot")
    for seed, (m, n) in enumerate([(4, 2), (9, 4), (49, 4), (16, 8)]):
        cost = random_cost(m, n, seed=seed)
        a, b = np.full(m, 1 / m), np.full(n, 1 / n)
        expected = ot.sinkhorn(a, b, cost.numpy(), eps, "sinkhorn_log", stopThr=1e-14, numItermax=20000)
        plan = sinkhorn(cost, eps=eps, max_iter=20000, thresh=1e-14)
        np.testing.assert_allclose(plan.numpy(), expected, rtol=1e-8)


@pytest.mark.parametrize("thresh, max_iter", [(0.01, 100), (1e-6, 100), (0.0, 7), (0.01, 1)])
def test_follows_the_published_iteration(thresh: float, max_iter: int) -> None:
    cost = random_cost(6, 5, 9, 4)
    plan = sinkhorn(cost, eps=0.1, max_iter=max_iter, thresh=thresh)
    expected = torch.stack([sinkhorn_by_the_book(c, 0.1, max_iter, thresh) for c in cost.flatten(0, 1)])
    torch.testing.assert_close(plan, expected.view_as(cost), rtol=1e-10, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("m", [1, 4, 49])
def test_one_prompt_gets_the_uniform_plan(m: int, dtype: torch.dtype) -> None:
    """The plan is 1 / M up to the last two bits."""
    plan = solve(random_cost(3, m, 1, dtype=dtype))
    assert_all(plan, 1 / m, rtol=4 * torch.finfo(dtype).eps)


def test_dtypes() -> None:
    cost = random_cost(3, 9, 4)
    assert solve(cost).dtype == torch.float64
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        plan = solve(cost.to(dtype))
        assert plan.dtype == torch.float32
        torch.testing.assert_close(plan, solve(cost.to(dtype).float()), rtol=1e-6, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        plan = solve(cost.float())
    assert plan.dtype == torch.float32
    torch.testing.assert_close(plan, solve(cost.float()), rtol=1e-6, atol=0)


def test_no_gradient_flows_through_the_plan() -> None:
    assert not solve(random_cost(3, 9, 4).requires_grad_()).requires_grad


sizes, seeds = st.integers(1, 12), st.integers(0, 2**31)


class OnDevice(Tensor):
    """A tensor that claims to be on a GPU, and counts the operations that would wait for it."""

    waits = 0
    is_cuda = property(lambda self: True)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("__bool__", "__float__", "__int__", "item", "tolist", "cpu", "numpy", "nonzero"):
            cls.waits += 1
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("eps", [0.1, 0.01])
@pytest.mark.parametrize("thresh", [1e-30, 0.01])
def test_on_a_gpu_the_host_waits_once_in_four_iterations(
    eps: float, thresh: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty iterations, or fewer. A stopped problem does not change until the host looks."""
    monkeypatch.setattr(OnDevice, "waits", 0)
    cost = random_cost(5, 16, 4)
    plan, iterations = counted_sinkhorn(cost.as_subclass(OnDevice), eps, 20, thresh)
    waits = OnDevice.waits
    assert waits == math.ceil(iterations.max().item() / 4)
    expected = counted_sinkhorn(cost, eps, 20, thresh)
    assert torch.equal(plan.as_subclass(Tensor), expected[0])
    assert torch.equal(iterations.as_subclass(Tensor), expected[1])


# Some properties, 400 cases each. A case costs a millisecond or two.
many = settings(max_examples=400, deadline=None, derandomize=True)
prompts = st.integers(1, 6)


@many
@given(m=sizes, n=prompts, eps=st.floats(1e-3, 10), seed=seeds)
def test_marginals_of_any_problem(m: int, n: int, eps: float, seed: int) -> None:
    plan = sinkhorn(random_cost(3, m, n, seed=seed), eps=eps, max_iter=100, thresh=0.01)
    assert (plan >= 0).all()
    assert_all(plan.sum(-2), 1 / n, rtol=1e-9)
    if eps >= 0.5:  # converged within 100 iterations
        torch.testing.assert_close(plan.sum(-1), torch.full((3, m), 1 / m, dtype=torch.float64), rtol=0.1, atol=0)


@many
@given(k=st.integers(2, 6), m=sizes, n=prompts, seed=seeds, data=st.data())
def test_batch_mates_and_their_order_do_not_matter(k: int, m: int, n: int, seed: int, data: Any) -> None:
    """Problems permuted or alone have the same plans, also if one takes many more iterations."""
    cost = random_cost(k, m, n, seed=seed)
    cost[-1] = (cost[-1] - 0.8) * data.draw(st.sampled_from([1, 3])) + 0.8
    order = data.draw(st.permutations(range(k)))
    together = solve(cost)
    torch.testing.assert_close(solve(cost[order]), together[order], rtol=1e-12, atol=0)
    torch.testing.assert_close(solve(cost[0]), together[0], rtol=1e-12, atol=0)


@many
@given(m=sizes, n=prompts, seed=seeds)
def test_a_large_eps_gives_the_uniform_plan(m: int, n: int, seed: int) -> None:
    plan = sinkhorn(random_cost(m, n, seed=seed), eps=1e4, max_iter=100, thresh=0.01)
    torch.testing.assert_close(plan, torch.full_like(plan, 1 / (m * n)), rtol=1e-3, atol=0)


kinds = st.sampled_from(["zero", "equal", "opposite", "huge", "tiny", "random"])


@many
@given(
    rows=st.lists(kinds, min_size=1, max_size=8),
    columns=st.lists(kinds, min_size=1, max_size=4),
    eps=st.sampled_from([1e-30, 1e-6, 1e-3, 0.049, 0.05, 0.1, 1.0, 1e6, 1e30]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    seed=seeds,
)
def test_finite_for_any_finite_features(
    rows: list[str], columns: list[str], eps: float, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(16, generator=generator, dtype=torch.float64)

    def feature(kind: str) -> Tensor:
        limit = torch.finfo(dtype)
        if kind in ("huge", "tiny"):
            return torch.full((16,), limit.max if kind == "huge" else limit.tiny, dtype=dtype)
        noise = torch.randn(16, generator=generator, dtype=torch.float64)
        return {"zero": 0 * base, "equal": base, "opposite": -base, "random": noise}[kind].to(dtype)

    local, text = (unit(torch.stack([feature(kind) for kind in side])) for side in (rows, columns))
    plan = sinkhorn(1 - local @ text.t(), eps=eps, max_iter=50, thresh=0.01)
    assert torch.isfinite(plan).all() and (plan >= 0).all()
    assert_all(plan.sum(-2), 1 / len(columns), rtol=1e-4)
