"""Check and prepare SLIVER07: CT of the abdomen with the liver outlined.

Register at https://sliver07.grand-challenge.org and unpack the training and test parts (.mhd with
.raw) into one folder. Its rules allow the work on liver segmentation only: read them first.

    python data_scripts/prepare_sliver07.py sliver07 --dry-run
    python data_scripts/prepare_sliver07.py sliver07 --out prepared/sliver07
"""

import sys

from medm2g_core.data.sources.script import main

if __name__ == "__main__":
    sys.exit(main("sliver07", __doc__))
