"""Embeds texts by all-MiniLM-L6-v2 (Wang et al., "MiniLM", NeurIPS 2020), and keeps the result."""

import hashlib
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dassl.utils import UserError, write_atomically

BATCH = 8
MAX_TOKENS = 64
SAID_EVERY = 4000  # texts


def embed(texts: list[str], model: Path, tokenizer: Path, cache: Path) -> Tensor:
    """Unit-length means of the token features: [text, 384].

    The result is kept in the folder ``cache``, under a hash of the texts. The int8 model scales its numbers by batch,
    so a text's embedding depends on the others to about 1e-2; the batches follow from the texts alone.

    Raises:
        UserError: onnxruntime or tokenizers is not installed.
    """
    key = hashlib.sha256("\n".join([*texts, model.name, str(BATCH)]).encode()).hexdigest()[:16]
    kept = cache / f"minilm-{key}.npy"
    if not kept.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        rows = _run(texts, model, tokenizer)
        write_atomically(kept, lambda file: np.save(file, rows))
    return functional.normalize(torch.from_numpy(np.load(kept)).float(), dim=1)


def _run(texts: list[str], model: Path, tokenizer: Path) -> np.ndarray:
    try:
        import onnxruntime
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install onnxruntime tokenizers") from error
    encoder = Tokenizer.from_file(str(tokenizer))
    encoder.no_padding()
    encoder.enable_truncation(MAX_TOKENS)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    tokens = [encoder.encode(text).ids for text in texts]
    order = sorted(range(len(texts)), key=lambda i: len(tokens[i]))
    rows = np.zeros((len(texts), 384), np.float32)
    begun = time.monotonic()
    for at in range(0, len(order), BATCH):
        batch = order[at : at + BATCH]
        ids = np.zeros((len(batch), max(len(tokens[i]) for i in batch)), np.int64)
        mask = np.zeros_like(ids)
        for row, i in enumerate(batch):
            ids[row, : len(tokens[i])], mask[row, : len(tokens[i])] = tokens[i], 1
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        (features,) = session.run(None, feed)
        mean = (features * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        rows[batch] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        if at and at % SAID_EVERY == 0:
            seconds = time.monotonic() - begun
            left = seconds * (len(order) / at - 1)
            print(f"MiniLM: {at:,} of {len(order):,} texts, {seconds:.0f} s, about {left:.0f} s to go", file=sys.stderr)
    return rows.astype(np.float16)
