"""Many runs: methods x datasets x shots x seeds, what is not finished of them, on this machine or on a Ray cluster.

    python sweep.py --trainers PLOT,CoOp --datasets caltech101,dtd --shots 1,2,4,8,16 --seeds 1,2,3 [KEY VALUE]...
    python sweep.py --file configs/sweeps/paper.yaml --engine ray --address auto --gpus 0.25

The plan comes first, the few-shot table of the sweep last. Finished runs are kept, unfinished ones resumed, failed ones
listed; the same command does what is missing. DATA, OUT, CFG, BACKBONE and N from the environment, as for the scripts.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from startup import before_imports

    before_imports()

from scripts.sweep.command import main

if __name__ == "__main__":
    sys.exit(main(description=__doc__))
