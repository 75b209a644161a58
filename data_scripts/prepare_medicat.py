"""Check and prepare MedICaT: figures of medical papers with their captions.

Ask for it at https://github.com/allenai/medicat; the archive holds a JSON Lines table and figures/.
Each figure has the licence of its article.

    python data_scripts/prepare_medicat.py medicat --dry-run
    python data_scripts/prepare_medicat.py medicat --out prepared/medicat
"""

import sys

from medm2g_core.data.sources.script import main

if __name__ == "__main__":
    sys.exit(main("medicat", __doc__))
