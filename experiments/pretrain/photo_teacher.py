"""The targets of the photo CLIP's names: from WordNet, MiniLM and an ImageNet classifier, without a picture.

The classifier has a weight for each of ImageNet's 1,000 synsets. The space of the model is spanned by the first
singular vectors of these weights. A name of one of the synsets has the synset's weight for a target. Any other name
attends to the synsets: by the cosine of MiniLM's embeddings of "a photo of a {name}, {gloss}.", and by the hypernyms
that they share. A name that is only a hypernym of synsets attends as well: the mean of its synsets' weights is close
to too many pictures.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .wordnet import WordNet

# Chosen by zero-shot accuracy on Caltech-101's validation pictures, see docs/photographs.md.
TEMPERATURE = 0.09  # of the attention
SHARED_HYPERNYMS = 0.2  # their share in a similarity; MiniLM has the rest
NO_GLOSS_TEMPERATURE = 0.07  # for names that WordNet lacks, compared as "a photo of a {name}."

Embed = Callable[[list[str]], Tensor]


@dataclass(frozen=True)
class ImageSide:
    """The linear map from the feature map of EfficientNet-Lite0 to the model's space.

    Attributes:
        projection: [1280, d].
        mean: [1280], the features' mean over ImageNet.
        synsets: [1000, d], the classifier's weights in that space, of unit length.
    """

    projection: Tensor
    mean: Tensor
    synsets: Tensor


def image_side(classifier: Mapping[str, Tensor], d: int) -> ImageSide:
    """Takes the weights of EfficientNet-Lite0. The mean is that of relu6(x), x ~ N(beta, gamma^2) as the norm says."""
    weight = classifier["_fc.weight"].double()
    centred = weight - weight.mean(dim=0)
    _, _, right = torch.linalg.svd(centred, full_matrices=False)
    projection = right[:d].T
    x = torch.linspace(-6, 6, 2001, dtype=torch.double)
    density = torch.exp(-(x**2) / 2)
    beta, gamma = classifier["_bn1.bias"].double(), classifier["_bn1.weight"].double().abs()
    mean = (beta[:, None] + gamma[:, None] * x).clamp(0, 6) @ (density / density.sum())
    synsets = functional.normalize(centred @ projection, dim=1)
    return ImageSide(projection.float(), mean.float(), synsets.float())


class Teacher:
    """Gives names their targets.

    Args:
        offsets: ImageNet's synsets in the classifier's order.
        embed: unit-length embeddings [text, k] of texts.
    """

    def __init__(self, wordnet: WordNet, offsets: Sequence[str], image: ImageSide, embed: Embed) -> None:
        self.wordnet, self.image, self.embed = wordnet, image, embed
        self.place = {offset: i for i, offset in enumerate(offsets)}
        lemmas = [wordnet.synsets[offset].lemmas[0].replace("_", " ") for offset in offsets]
        count = Counter(above for offset in offsets for above in wordnet.above(offset))
        self.hypernyms = {offset: i for i, offset in enumerate(sorted(count))}
        self.surprise = torch.tensor([math.log(len(offsets) / count[offset]) for offset in self.hypernyms])
        self.glosses = embed([self.described(n, o) for n, o in zip(lemmas, offsets, strict=True)])
        self.plain = embed([f"a photo of a {lemma}." for lemma in lemmas])
        self.trees = self.tree(offsets)
        self.names = list(wordnet.nouns)
        self.offsets = [self.sense(name) for name in self.names]
        targets = self.raw_targets()
        self.mean = targets.mean(dim=0)
        self.targets = functional.normalize(targets - self.mean, dim=1)

    def described(self, name: str, offset: str) -> str:
        return f"a photo of a {name}, {self.wordnet.synsets[offset].gloss}."

    def sense(self, name: str) -> str:
        """The most frequent sense that ImageNet has, else the most frequent one."""
        senses = self.wordnet.nouns[name]
        return next((offset for offset in senses if offset in self.place), senses[0])

    def tree(self, offsets: Sequence[str]) -> Tensor:
        """Unit-length vectors [offset, hypernym] of the hypernyms that ImageNet has, the rarer the longer."""
        rows = torch.zeros(len(offsets), len(self.hypernyms))
        for row, offset in zip(rows, offsets, strict=True):
            row[[self.hypernyms[above] for above in self.wordnet.above(offset) if above in self.hypernyms]] = 1
        return functional.normalize(rows * self.surprise.sqrt(), dim=1)

    def raw_targets(self) -> Tensor:
        """Targets of all names, before their mean is subtracted."""
        senses = [(name, offset) for name, offsets in self.wordnet.nouns.items() for offset in offsets]
        embedded = self.embed([self.described(*sense) for sense in senses])
        row = {sense: i for i, sense in enumerate(senses)}
        embedded = embedded[[row[sense] for sense in zip(self.names, self.offsets, strict=True)]]
        alike = SHARED_HYPERNYMS * self.tree(self.offsets) @ self.trees.T
        alike += (1 - SHARED_HYPERNYMS) * embedded @ self.glosses.T
        targets = functional.normalize((alike / TEMPERATURE).softmax(dim=1) @ self.image.synsets, dim=1)
        for row_of_name, offset in enumerate(self.offsets):
            if offset in self.place:
                targets[row_of_name] = self.image.synsets[self.place[offset]]
        return targets

    def of(self, names: Sequence[str]) -> Tensor:
        """Targets [name, d] of any names, such as a dataset's; WordNet's by its plural or joined spelling too."""
        row = {name: i for i, name in enumerate(self.names)}
        spelled = [name.lower().replace("_", " ") for name in names]
        similar = self.embed([f"a photo of a {name}." for name in spelled]) @ self.plain.T
        plain = functional.normalize((similar / NO_GLOSS_TEMPERATURE).softmax(dim=1) @ self.image.synsets, dim=1)
        targets = functional.normalize(plain - self.mean, dim=1)
        for i, name in enumerate(spelled):
            for form in (name, f"{name}s", name.replace(" ", ""), name.replace("inline", "in-line")):
                if form in row:
                    targets[i] = self.targets[row[form]]
                    break
        return targets
