"""Sweeps on a real cluster of three nodes on this machine; skipped where Ray is not installed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from experiments.sweep import command
from runs.process import REPOSITORY
from tests.children import alive
from tests.children import wait_for as until
from tests.experiments.sweep.cluster import Cluster, cluster
from tests.experiments.sweep.conftest import Driver, Place

pytest.importorskip("ray")
pytestmark = pytest.mark.ray

NINE = ("--trainers", "PLOT", "--datasets", "symbols", "--shots", "1", "--seeds", "1,2,3,4,5,6,7,8,9")


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    with cluster(3) as made:
        yield made


def test_the_runs_that_fractions_of_a_gpu_have_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes of pretended GPUs; the one that is lost counts no more."""
    import ray

    from experiments.sweep.ray_engine import RayEngine

    has = [{"CPU": 16.0, "GPU": 1.0}, {"CPU": 3.0, "GPU": 2.0}, {"CPU": 8.0}]
    nodes = [{"Alive": True, "Resources": resources} for resources in has]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    engine = RayEngine.__new__(RayEngine)
    for gpus, cpus, room in ((0.25, 1, 4 + 3), (0.6, 1, 1 + 2), (0.3, 1, 3 + 3), (1, 1, 1 + 2), (0.5, 2, 2 + 1)):
        engine.needs = {"num_cpus": cpus, "num_gpus": gpus}
        assert engine.slots == room
    nodes[0]["Alive"] = False
    assert engine.slots == 1


def printed(place: Place) -> str:
    return (place.orders / "driver.txt").read_text()


def test_interrupted_killed_and_a_node_lost(three: Cluster, place: Place, drive: Driver) -> None:
    """One cluster, which takes seconds to start, for all of it: Ctrl-C; the driver killed; a node killed; a bad run."""
    argv = [*NINE, "--engine", "ray", "--address", three.address]
    place.slow(60)
    driver = drive(*argv)
    until(lambda: len(place.starts) == 3, 180)
    os.kill(driver.pid or 0, signal.SIGINT)
    driver.join(150)
    assert driver.exitcode == 130 and "interrupted; what was done is kept" in printed(place)
    assert len(list(place.orders.glob("left*"))) == 3 and not any(alive(start[3]) for start in place.starts)

    driver = drive(*argv)
    until(lambda: len(place.starts) == 6, 180)
    driver.kill()
    driver.join()
    until(lambda: not any(alive(start[3]) for start in place.starts), 60)
    assert not place.results

    place.slow(4)
    (place.orders / "seed1").write_text("exit 2")
    (place.orders / "seed2").write_text("kill")
    driver = drive(*argv)
    until(lambda: len(place.starts) == 6 + 5, 180)
    three.kill(2)
    driver.join(180)
    assert driver.exitcode == 1, printed(place)
    text = printed(place)
    assert sorted(path.parent.name for path in place.results) == [f"seed{seed}" for seed in range(2, 10)]
    tries = [start[2] for start in place.starts[6:]]
    lost = re.findall(r"seed (\d): lost \((.*?)\), try 2 of 3", text)
    (of_the_node,) = (why for seed, why in lost if seed != "2")
    assert "killed by signal 9" in dict(lost)["2"] and "died" in of_the_node, text
    assert {seed: tries.count(seed) for seed in "123456789"} == {s: 2 if s in dict(lost) else 1 for s in "123456789"}
    assert "1 of 9 runs failed:" in text and "seed 1 (exit 2): error: no dataset here" in text
    assert "raylet" not in text and {start[4] for start in place.starts} == {"1"}
    assert len(list(place.out.glob("sweeps/driver-*"))) == 1  # the killed driver's


@pytest.mark.slow
def test_where_there_is_no_cluster_one_is_made(place: Place) -> None:
    program = """
import ray
from experiments.sweep import command, task

init = ray.init

def none_is_running(address, **more):  # other tests may have a cluster meanwhile
    if address == "auto":
        raise ConnectionError
    return init(address, **more)

ray.init = none_is_running
task.PROGRAM = "tests.experiments.sweep.stub:main"
raise SystemExit(command.main())
"""
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(REPOSITORY)}
    words = ["--trainers", "CoOp", "--datasets", "symbols", "--shots", "1", "--seeds", "1", "--engine", "ray"]
    done = subprocess.run([sys.executable, "-c", program, *words], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "no Ray cluster is running: one is made on this machine" in done.stdout and len(place.results) == 1


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"])
def test_no_cluster_at_the_address(address: str, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Ray itself would try for minutes."""
    assert command.main([*NINE, "--engine", "ray", "--address", address]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: no Ray cluster at '{address}' (") and error.count("\n") == 1
    assert not place.out.exists()
