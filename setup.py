"""Declares what the project needs. The code runs from the checkout; installing it installs only these packages."""

from setuptools import setup

setup(
    name="plot-prompt-learning",
    version="0.1.0",
    description="PLOT (ICLR 2023) beside CoOp, CoCoOp and zero-shot CLIP: exact, fast, Dassl-style",
    license="MIT",
    python_requires=">=3.10",
    # `datasets` and `trainers` are names of other libraries too, which an installed copy would shadow.
    packages=[],
    py_modules=[],
    install_requires=[
        "torch>=2.4",
        "torchvision",
        "openai-clip==1.0.1",
        # openai-clip does `from pkg_resources import packaging`. Setuptools 82 has no pkg_resources any more, from
        # 80.9 on it warns on the screen, before 71 it hides `packaging`; PyTorch itself asks for 77.0.3 or later.
        "setuptools>=77.0.3,<80.9",
        "yacs",
        "pyyaml",
        "numpy",
        "pillow",
        "filelock>=3.30",  # closes a lock's descriptor in forked children
        "tabulate",
        "tqdm",
        "tensorboard",
        "scikit-learn",
        "scipy>=1.9",  # whose submodules are imported as they are used
        "matplotlib",
        "gdown",  # datasets.prepare: CoOp's split files are on Google Drive
    ],
    extras_require={
        "ray": ["ray"],  # sweep.py --engine ray
        "dev": [
            "pytest",
            "pytest-xdist",
            "hypothesis",
            "pot",
            "ruff",
            "mypy",
            "types-PyYAML",
            "types-tabulate",
            "types-tqdm",
        ],
    },
)
