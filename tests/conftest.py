"""Where the tests find each other and what `make test-native` built."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

for folder in (ROOT / "build" / "native", ROOT):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
