"""trainers/ and datasets/, the program datasets.prepare apart, run beside upstream Dassl by its public names alone.

A small package of these names, each with upstream's behaviour, stands in for upstream. Any other import from it fails.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.medium

DASSL = """
# --- __init__.py
# --- config.py
from yacs.config import CfgNode
def get_cfg_default():
    return CfgNode({
        "SEED": -1, "OUTPUT_DIR": "", "TRAINER": {"NAME": ""}, "MODEL": {"BACKBONE": {"NAME": ""}, "INIT_WEIGHTS": ""},
        "DATASET": {"NAME": "", "ROOT": "", "NUM_SHOTS": -1}, "INPUT": {"SIZE": (224, 224), "NO_TRANSFORM": False},
        "DATALOADER": {"K_TRANSFORMS": 1}, "OPTIM": {"LR": 0.0003, "MAX_EPOCH": 10, "STAGED_LR": False},
    })
# --- utils.py
import torch
from PIL import Image
class Registry:
    def __init__(self, name):
        self._obj_map = {}

    def register(self, obj=None, force=False):
        return lambda cls: self._obj_map.setdefault(cls.__name__, cls)

    def get(self, name):
        return self._obj_map[name]

    def registered_names(self):
        return list(self._obj_map)

def read_image(path):
    return Image.open(path).convert("RGB")

def load_checkpoint(fpath):
    return torch.load(fpath, map_location="cpu")

def load_pretrained_weights(model, weight_path):
    model.load_state_dict(load_checkpoint(weight_path)["state_dict"], strict=False)
# --- metrics.py
def compute_accuracy(output, target, topk=(1,)):
    return [100 * output.argmax(1).eq(target).float().mean(0, keepdim=True)]
# --- optim.py
from torch import optim
def build_optimizer(model, optim_cfg, param_groups=None):
    return optim.SGD(param_groups or model.parameters(), optim_cfg.LR, momentum=0.9)

def build_lr_scheduler(optimizer, optim_cfg):
    return optim.lr_scheduler.CosineAnnealingLR(optimizer, float(optim_cfg.MAX_EPOCH))
# --- data/datasets.py
from dassl.utils import Registry
DATASET_REGISTRY = Registry("DATASET")

class Datum:
    def __init__(self, impath="", label=0, domain=0, classname=""):
        self.impath, self.label, self.domain, self.classname = impath, label, domain, classname

class DatasetBase:
    def __init__(self, train_x=None, train_u=None, val=None, test=None):
        self.train_x, self.train_u, self.val, self.test = train_x, train_u, val, test
        self.classnames = [name for _, name in sorted({(item.label, item.classname) for item in train_x})]
# --- data/data_manager.py
def build_data_loader(cfg, sampler_type, data_source, batch_size, n_domain=0, n_ins=2, tfm=None, is_train=True): ...
# --- engine.py
from types import SimpleNamespace
import torch
from torchvision.transforms.functional import resize, to_tensor
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import Registry, read_image
TRAINER_REGISTRY = Registry("TRAINER")

class TrainerX:
    def __init__(self, cfg):
        self.check_cfg(cfg)
        self.cfg, self.device = cfg, torch.device("cpu")
        self.dm = SimpleNamespace(dataset=DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg))
        self.build_model()

    def register_model(self, name="model", model=None, optim=None, sched=None):
        self.name, self.registered, self.optimizer, self.scheduler = name, model, optim, sched

    def batch(self, items):
        images = torch.stack([to_tensor(resize(read_image(item.impath), self.cfg.INPUT.SIZE)) for item in items])
        return {"img": images, "label": torch.tensor([item.label for item in items])}

    def train(self):  # an epoch of one batch
        self.epoch, self.batch_idx, self.num_batches = 0, 0, 1
        self.registered.train()
        assert 0 < self.forward_backward(self.batch(self.dm.dataset.train_x))["loss"] < 100
        state = {"state_dict": self.registered.state_dict(), "epoch": 1, "val_result": None}
        torch.save(state, f"{self.cfg.OUTPUT_DIR}/{self.name}/model.pth.tar-1")

    @torch.no_grad()
    def test(self):
        self.registered.eval()
        input, label = self.parse_batch_test(self.batch(self.dm.dataset.test))
        return self.model_inference(input).argmax(1).eq(label).float().mean().item()

    def write_scalar(self, tag, scalar_value, global_step=None): ...

    def update_lr(self):
        self.scheduler.step()

    def model_backward_and_update(self, loss):
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
"""

RUN = """
import ast, pathlib, sys
import datasets, trainers
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY

pathlib.Path("datasets/prepare.py").unlink()  # a program, with the command-line toolkit of our engine
for path in [*pathlib.Path("trainers").rglob("*.py"), *pathlib.Path("datasets").rglob("*.py")]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)) and ast.unparse(node).split()[1].split(".")[0] == "dassl":
            exec(ast.unparse(node))  # also what a function imports, or a module that is not loaded above

cfg = get_cfg_default()
trainers.extend_cfg(cfg)
cfg.DATASET.ROOT, cfg.MODEL.BACKBONE.NAME, cfg.OUTPUT_DIR = sys.argv[1:]
cfg.DATASET.NAME, cfg.DATASET.NUM_SHOTS, cfg.INPUT.SIZE, cfg.SEED = "Caltech101", 2, (64, 64), 1
trained, loaded = (TRAINER_REGISTRY.get("PLOT")(cfg) for _ in range(2))
initial = trained.model.prompt_learner.ctx.detach().clone()
trained.train()
assert not initial.equal(trained.model.prompt_learner.ctx)
loaded.load_model(cfg.OUTPUT_DIR, epoch=1)
assert loaded.model.prompt_learner.ctx.equal(trained.model.prompt_learner.ctx)
print("accuracies", trained.test(), loaded.test())
"""


def test_plot_trains_and_is_tested_beside_upstream(tmp_path: Path, weights: Path, data_root: Path) -> None:
    for name in ("trainers", "datasets"):
        shutil.copytree(Path(__file__).parents[1] / name, tmp_path / name)
    for name, text in re.findall(r"# --- (\S+)\n(.*?)(?=# ---|\Z)", DASSL, re.DOTALL):
        (tmp_path / "dassl" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "dassl" / name).write_text(text)
    (tmp_path / "run.py").write_text(RUN)
    (tmp_path / "output" / "prompt_learner").mkdir(parents=True)
    command = [sys.executable, "run.py", str(data_root), str(weights), "output"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^accuracies (\d\S+) \1$", done.stdout, re.MULTILINE)
