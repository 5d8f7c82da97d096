"""A run's directory: where it is, what config it holds, and the files in it.

OUT/<dataset>/<trainer>/<config>_<shots>shots/<settings>/seed<S>/ follows from the merged config alone. A weights file
is known by its SHA-256, not by its place.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import reprlib
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

import trainers
from dassl.config import flatten, get_cfg_default
from dassl.utils import UserError, write_atomically
from trainers.clip.weights import sha256_of
from trainers.method import methods

REPOSITORY = Path(__file__).resolve().parents[1]

LOCK = ".lock"  # in the directory of a run, while a process writes there

# Keys that say where a run happens, not what comes out of it.
ELSEWHERE = {
    *("OUTPUT_DIR", "RESUME", "VERBOSE", "USE_CUDA", "DATASET.ROOT", "DATALOADER.NUM_WORKERS"),
    *("TRAINER.SPLIT_CLASSES", "TRAINER.CUDA_GRAPHS", "TRAINER.WHOLE_STEP_GRAPH", "TRAINER.FUSED_HEAD"),
    "DATALOADER.DECODED_GB",
    *("MODEL.BACKBONE.CLIP_ROOT", "TRAIN.PRINT_FREQ", "TRAIN.LOGGERS"),
    "MODEL.BACKBONE.SHA256",  # compared where the weights are loaded
    "INPUT.MAX_PIXELS",  # a run that is finished had no larger picture
    # What is cached is what would be computed.
    *("TEST.FEATURE_CACHE", "TEST.FEATURE_CACHE_DIR", "TEST.FEATURE_CACHE_GB"),
}

# Keys with a place of their own in the path.
IN_PATH = {"SEED", "DATASET.NAME", "DATASET.NUM_SHOTS", "TRAINER.NAME"}

SPELLED = (("N", "n"), ("N_CTX", "nctx"), ("CSC", "csc"), ("CLASS_TOKEN_POSITION", "ctp"))


def defaults() -> Any:
    """A fresh config: the engine's defaults and those of every trainer."""
    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    return cfg


def brief(value: Any) -> str:
    """A value, shortened for an error of one line."""
    return f"{reprlib.repr(value):.80}"


def method_options(cfg: Any) -> tuple[str, Any]:
    """The name and node of the trainer's own options; empty for a trainer without any."""
    kind = methods().get(cfg.TRAINER.NAME)
    node = kind.node if kind else cfg.TRAINER.NAME.upper()
    return node, cfg.TRAINER.get(node, CfgNode())


def own_keys(leaves: Iterable[tuple[str, Any]], cfg: Any) -> dict[str, Any]:
    """The leaves of a config without the options of other methods than that of ``cfg``, registered or not."""
    own = method_options(cfg)[0]
    kept = {}
    for key, value in leaves:
        section, _, rest = key.partition(".")
        node, _, option = rest.partition(".")
        if section != "TRAINER" or node == own or not (option or isinstance(value, dict)):
            kept[key] = value
    return kept


def run_directory(cfg: Any, base: Any, config: str, out: str | Path) -> Path:
    """OUT/<dataset>/<trainer>/<config>_<shots>shots/<settings>/seed<S>.

    Args:
        cfg: the merged config.
        base: the same without the user's overrides; what differs from it is spelled in <settings>.
        config: the name of the trainer's config file, without its ending.
    """
    name, options = method_options(cfg)
    settings = [short + spell(options[key]) for key, short in SPELLED if key in options]
    spelled = {f"TRAINER.{name}.{key}" for key, _ in SPELLED}
    settings += [key + spell(value) for key, value in overrides(cfg, base).items() if key not in spelled]
    folder = shorten("_".join(settings) or "default")
    dataset = snake_case(cfg.DATASET.NAME)
    if cfg.DATASET.get("ROOT_IS_DATASET", False):  # another folder is another dataset
        root = Path(cfg.DATASET.ROOT).expanduser().resolve()
        dataset += f"-{spell(root.name)}-{_hash(str(root))}"

    def place(shots: int | str) -> Path:
        return Path(out) / dataset / cfg.TRAINER.NAME / f"{config}_{shots}shots" / folder / f"seed{cfg.SEED}"

    if cfg.DATASET.NUM_SHOTS >= 1 or not getattr(methods().get(cfg.TRAINER.NAME), "learns", True):
        return place(max(0, cfg.DATASET.NUM_SHOTS))
    # All images. Runs of before are in a folder that says 0 shots.
    return place(0) if (place(0) / "config.yaml").is_file() else place("all")


def overrides(cfg: Any, base: Any) -> dict[str, Any]:
    """What the user has set that may change a run's outcome: the keys in which the config differs from its base."""
    before = dict(flatten(base))
    return {key: v for key, v in flatten(cfg) if key not in ELSEWHERE | IN_PATH and before.get(key) != v}


def snake_case(name: str) -> str:
    """A registered dataset's name as its config file is called: OxfordPets -> oxford_pets."""
    for path in (REPOSITORY / "configs" / "datasets").glob("*.yaml"):
        if path.stem.replace("_", "") == name.lower():
            return path.stem
    return name.lower()


def spell(value: Any) -> str:
    """A value as part of a file's name."""
    text = str(value)
    safe = re.sub(r"[^A-Za-z0-9.+-]+", "-", text)[:60]
    return safe if safe == text else f"{safe}-{_hash(text)}"


def shorten(name: str) -> str:
    """A name that every file system takes."""
    return name if len(name) <= 200 else f"{name[:190]}_{_hash(name)}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def check_config(directory: Path, cfg: Any) -> None:
    """Compares the config of the run in a directory with another; a key that the stored one lacks has its default.

    Raises:
        UserError: the directory holds a run with another config, or its config is damaged.
    """
    path = directory / "config.yaml"
    if not path.is_file():
        return
    try:
        stored = flatten(yaml.safe_load(path.read_text(encoding="utf-8")), like=cfg)
        theirs = own_keys((*flatten(defaults()), *stored), cfg)
        ours = own_keys(flatten(cfg), cfg)
        for keys in (ours, theirs):  # -1 and 0: all images
            keys["DATASET.NUM_SHOTS"] = max(0, keys["DATASET.NUM_SHOTS"])
    except (yaml.YAMLError, AttributeError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"'{path}' is damaged; move its folder away or name another --output-dir") from error
    differing = [k for k in sorted({*ours, *theirs} - ELSEWHERE) if ours.get(k) != theirs.get(k)]
    if differing == ["MODEL.BACKBONE.NAME"] and _same_weights(directory, cfg.MODEL.BACKBONE.NAME):
        return
    if differing:
        shown = ", ".join(f"{k} {brief(theirs.get(k))} there, {ours.get(k)!r} asked for" for k in differing[:3])
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(
            f"'{directory}' holds a run with another config ({shown}{more}); name another --output-dir or OUT"
        )


def trained_with(directory: Path) -> str:
    """SHA-256 of the weights that the run in a directory was trained with; "" if nothing says it any more."""
    damaged = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError)
    with suppress(*damaged):
        if sha256 := json.loads((directory / "result.json").read_text(encoding="utf-8"))["backbone"]["sha256"]:
            return str(sha256)
    with suppress(*damaged):
        backbone = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))["MODEL"]["BACKBONE"]
        return str(backbone.get("SHA256") or sha256_of(backbone["NAME"]))  # a run of before stored the name alone
    return ""


def _same_weights(directory: Path, backbone: str) -> bool:
    if sha256 := trained_with(directory):
        return sha256 == sha256_of(backbone)
    say_not_compared(directory, backbone)
    return True


@functools.cache  # once a process
def say_not_compared(directory: Path, backbone: str) -> None:
    said = f"'{directory}' stores no SHA-256 of its weights: it was not compared with that of '{backbone}'"
    print(said, file=sys.stderr)


def write_config(directory: Path, cfg: Any, weights_sha256: str | None) -> None:
    """Writes config.yaml, with the SHA-256 of the weights in use."""
    stored = cfg.clone()
    stored.defrost()
    stored.MODEL.BACKBONE.SHA256 = weights_sha256 or ""
    write_atomically(directory / "config.yaml", stored.dump())


def remove_temporaries(directory: Path) -> None:
    """What a killed process was writing in the run's directory; its writer calls this, when there is no other."""
    for path in (*directory.glob("*.tmp-*"), *directory.glob("*/*.tmp-*")):
        path.unlink(missing_ok=True)
