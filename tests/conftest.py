"""Where the tests find each other and what `make test-native` built."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]

for folder in (ROOT / "build" / "native", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

    # Without a GPU Triton's kernels are tested in its interpreter, which is chosen when Triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
