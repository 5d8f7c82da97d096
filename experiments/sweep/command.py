"""The command line of ``sweep.py``: the plan, the runs, the table, what failed."""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import sys

from dassl.extras.cli import RUNNING, Parser, guarded, resuming, typed
from dassl.utils import UserError
from runs.process import REPOSITORY

from .execute import Engine, execute
from .local import LocalEngine
from .plan import Plan, plan_of
from .progress import Progress
from .room import jobs_with_room
from .spec import spec_of
from .times import Times

LEAST = 0.001  # of a core; Ray counts in 0.0001


def build_parser(description: str | None) -> Parser:
    parser = Parser("sweep.py", description, imports=True, variables=RUNNING)
    add = parser.add_argument
    add("--file", default="", help="a sweep in YAML, such as configs/sweeps/paper.yaml; flags win over it")
    add("--trainers", default="", help="PLOT,CoOp (default: all)")
    add("--datasets", default="", help="caltech101,dtd")
    add("--shots", default="", help="default: 1,2,4,8,16")
    add("--seeds", default="", help="default: $SEEDS, else 1,2,3")
    add("--dry-run", action="store_true", help="print the plan only")
    add("--print", action="store_true", help="print only the command of each run to do, a line each")
    add("--engine", choices=("local", "ray"), default="local", help="this machine (default), or a Ray cluster")
    add("--jobs", type=jobs, default=1, help="local: so many runs at once (default: 1); auto: by the free memory")
    add("--address", default="", help="ray: the cluster's (default: $RAY_ADDRESS, else the one here, else a new one)")
    add("--cpus", type=float, default=1, help="ray: cores of a run (default: 1)")
    add("--memory", type=float, default=0, help="ray: GB of memory of a run (default: not counted)")
    add("--gpus", type=float, help="ray: GPUs of a run, or a fraction of one (default: 1 if the cluster has any)")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of every run's config")
    return parser


def jobs(word: str) -> int | str:
    return word if word == "auto" else int(word)


def check(args: argparse.Namespace) -> None:
    """Raises UserError: an impossible number, or Ray is asked for and not installed."""
    if args.jobs != "auto" and args.jobs < 1:
        raise UserError(f"--jobs is {args.jobs}; it must be 1 or more")
    for name, least in (("cpus", LEAST), ("memory", 0), ("gpus", 0)):
        if (value := getattr(args, name)) is not None and not least <= value < math.inf:
            raise UserError(f"--{name} is {value}; it must be a number from {least:g} on")
    if args.gpus is not None and args.gpus > 1 and args.gpus % 1:
        raise UserError(f"--gpus is {args.gpus}; it must be a fraction of one or a whole number")
    if args.engine == "local" and (args.address or args.memory or args.gpus is not None or args.cpus != 1):
        raise UserError("--address, --cpus, --memory and --gpus are for --engine ray")
    if args.engine == "ray" and args.jobs != 1:
        raise UserError("--jobs is for --engine local; on Ray, --cpus and --gpus say how many runs have room")
    if args.engine == "ray" and importlib.util.find_spec("ray") is None:
        raise UserError("--engine ray needs Ray, which is not installed: pip install -e '.[ray]'")


def engine_of(args: argparse.Namespace, plan: Plan) -> Engine:
    if args.engine == "local":
        return LocalEngine(args.jobs, os.environ)
    from .ray_engine import RayEngine

    address = args.address or os.environ.get("RAY_ADDRESS", "")
    return RayEngine(address, {"num_cpus": args.cpus, "memory": args.memory * 2**30}, args.gpus, plan.spec.out)


def run(args: argparse.Namespace, command: str) -> int:
    check(args)
    plan = plan_of(spec_of(args))
    if args.print:
        print("".join(f"{run.task.command}\n" for run in plan.todo), end="")
        return 0
    times = Times(plan.spec.out)
    print(f"{plan.spec.name}: {len(plan.runs)} runs under {plan.spec.out}\n\n{plan.describe(times)}\n", flush=True)
    if args.jobs == "auto":
        args.jobs, reason = jobs_with_room(plan.todo, times, os.environ)
        print(reason, flush=True)
    if args.dry_run:
        return 0
    progress, code = Progress(len(plan.runs), times), 0
    if plan.todo:
        engine = engine_of(args, plan)
        if slots := engine.slots:
            print(f"{slots} at once: {times.of(plan.todo, slots)}", flush=True)
        else:
            print("no node has room for a run (--cpus, --memory, --gpus): it waits for one that has", flush=True)
        code = execute(engine, plan.todo, progress)
    if code:
        print(f"interrupted; what was done is kept, and goes on with:\n{resuming(command)}", file=sys.stderr)
        return 128 + code
    finish(plan, progress)
    return 1 if progress.failed else 0


def finish(plan: Plan, progress: Progress) -> None:
    """The table and, last, what failed."""
    if len(progress.failed) < len(plan.runs):
        print()
        plan.table().show(plan.spec.out)
    if progress.failed:
        print(f"\n{len(progress.failed)} of {len(plan.runs)} runs failed:", file=sys.stderr)
    for failed, outcome in progress.failed:
        print(f"\n{failed.name} (exit {outcome.code}): {outcome.last}", file=sys.stderr)
        print(f"    {failed.task.command}", file=sys.stderr)
        if failed.task.log.is_file():
            print(f"    its standard error: {failed.task.log}", file=sys.stderr)


def main(argv: list[str] | None = None, description: str | None = None) -> int:
    command = typed(argv, str(REPOSITORY / "sweep.py"))
    goes_on = command if {"--dry-run", "--print"}.isdisjoint(sys.argv if argv is None else argv) else ""
    return guarded(lambda: run(build_parser(description).parse_args(argv), command), goes_on)
