"""Check and prepare ACDC: cine MR of the heart.

Register at https://www.creatis.insa-lyon.fr/Challenge/acdc and unpack the download:
database/training and database/testing with patient001 ... patient150.

    python data_scripts/prepare_acdc.py ACDC --dry-run
    python data_scripts/prepare_acdc.py ACDC --out prepared/acdc
"""

import sys

from medm2g_core.data.sources.script import main

if __name__ == "__main__":
    sys.exit(main("acdc", __doc__))
