"""How many runs have room on this machine at once: by its free memory, its cores and what finished runs took."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from dassl.data.data_manager import available_cpus

from .task import Run
from .times import Times

BESIDE = 1e9  # bytes on a GPU beside a run's tensors: its context, libraries, and blocks that PyTorch keeps


def jobs_with_room(todo: Sequence[Run], times: Times, environment: Mapping[str, str]) -> tuple[int, str]:
    """At least 1, and the line that gives the reason. Every run is taken to need as much as the largest."""
    taken = [times.memory(run) for run in todo]
    if not taken or any(main is None for main, _ in taken):
        return 1, "--jobs auto: 1 at once, as not each method has a run on this backbone; start again when it has"
    main, gpu = (max(of[i] or 0.0 for of in taken) for i in (0, 1))
    limits = {f"{available_cpus()} cores": available_cpus(), f"{len(todo)} runs": len(todo)}
    if (free := free_memory()) is not None:
        limits[f"{free / 1e9:.1f} GB free at {main / 1e9:.1f} GB a run"] = int(free / main) if main else len(todo)
    if gpu and not (each := free_on_gpus(environment)):
        limits["GPUs whose free memory is unknown"] = 1
    elif gpu:
        about = f"{min(each) / 1e9:.1f} GB free on {'each GPU' if len(each) > 1 else 'the GPU'}"
        limits[f"{about} at {(gpu + BESIDE) / 1e9:.1f} GB a run"] = len(each) * int(min(each) / (gpu + BESIDE))
    reason, jobs = min(limits.items(), key=lambda item: item[1])
    return max(1, jobs), f"--jobs auto: {max(1, jobs)} at once, by {reason}"


def free_memory() -> float | None:
    """Bytes of memory that are available; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def free_on_gpus(environment: Mapping[str, str]) -> list[float]:
    """Free bytes of each GPU that runs may use. nvidia-smi says it without a context, which PyTorch would make."""
    if shutil.which("nvidia-smi", path=environment.get("PATH")) is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index,uuid,memory.free", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, env=dict(environment))
    rows = (
        [[word.strip() for word in line.split(",")] for line in done.stdout.splitlines()] if not done.returncode else []
    )
    free = [(index, uuid, 2.0**20 * float(mib)) for index, uuid, mib in rows if mib.isdigit()]
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return [space for _, _, space in free]
    words = [word.strip() for word in chosen.split(",") if word.strip()]
    return [space for word in words for index, uuid, space in free if word == index or uuid.startswith(word)]
