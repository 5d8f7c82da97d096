"""CLIP as the methods use it: weights, prompt layout, frozen towers, CUDA graphs."""
