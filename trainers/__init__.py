"""Importing this package registers every trainer; ``extend_cfg`` adds their options to Dassl's defaults."""

import importlib
import pkgutil

from yacs.config import CfgNode

import dassl  # noqa: F401 -- before torch

from .method import add_options

for module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{module.name}")


def extend_cfg(cfg: CfgNode) -> None:
    """Adds every method's options and every key that Dassl does not have."""
    add_options(cfg)
    cfg.TRAINER.SPLIT_CLASSES = False  # under torchrun: each process encodes its share of the classes' prompts
    cfg.TRAINER.CUDA_GRAPHS = True  # on a GPU: training's passes through the towers from CUDA graphs
    cfg.TRAINER.WHOLE_STEP_GRAPH = False  # on a GPU: training's step as one CUDA graph, for methods that learn prompts
    cfg.TRAINER.FUSED_HEAD = False  # on a GPU with Triton: the training head of PLOT and PLOT++ in one kernel
    cfg.DATASET.FEW_SHOT_LIST = (
        ""  # a .jsonl of the training images, in place of CoOp's draw; {shots}, {seed} are filled in
    )
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"  # all, base or new
    cfg.DATASET.ROOT_IS_DATASET = False  # DATASET.ROOT is the dataset itself, not a folder that holds it
    cfg.DATASET.TEMPLATE = ""  # zero-shot CLIP's prompt, in place of the dataset's own
    cfg.MODEL.BACKBONE.CLIP_ROOT = ""  # where OpenAI's weights are kept; empty: ~/.cache/clip
    cfg.MODEL.BACKBONE.ALLOW_TORCHSCRIPT = False  # load a TorchScript archive that is not OpenAI's
    cfg.MODEL.BACKBONE.ACTIVATION = ""  # quickgelu or gelu, over what config, name or ARCH say
    cfg.MODEL.BACKBONE.ARCH = ""  # open_clip's name of the architecture, where neither config nor name tell it
    cfg.MODEL.BACKBONE.PLAIN_TEXT = False  # compute all tokens of each prompt: a text tower not causal, or not CLIP's
    cfg.MODEL.BACKBONE.SHA256 = ""  # of the weights file, which is refused if it differs; a run stores its own
