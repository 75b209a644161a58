"""``python -m medm2g_core``."""

from __future__ import annotations

import sys

from medm2g_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
