"""Only shell scripts are here. For one release ``python -m scripts.X`` says where X is now."""

import sys

MOVED = {
    "few_shot": "experiments.jobs",
    "compare": "experiments.compare",
    "protocols.run": "experiments.protocols",
    "tables": "experiments.tables",
    "figures": "experiments.figures",
    "plot.visualize": "experiments.pictures.visualize",
    "plot.words": "experiments.pictures.words",
    "symbols.pretrain": "experiments.pretrain.symbols",
}
asked = next((word for word in sys.orig_argv if word.startswith("scripts.")), "scripts").removeprefix("scripts.")
print(f"error: python -m scripts.{asked} is now python -m {MOVED.get(asked, 'experiments.X')}", file=sys.stderr)
sys.exit(2)
