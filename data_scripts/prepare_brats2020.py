"""Check and prepare BraTS 2020: MR of gliomas.

Ask for it at https://www.med.upenn.edu/cbica/brats2020/data.html and unpack
MICCAI_BraTS2020_TrainingData, with name_mapping.csv and survival_info.csv in it.

    python data_scripts/prepare_brats2020.py MICCAI_BraTS2020_TrainingData --dry-run
    python data_scripts/prepare_brats2020.py MICCAI_BraTS2020_TrainingData --out prepared/brats2020
"""

import sys

from medm2g_core.data.sources.script import main

if __name__ == "__main__":
    sys.exit(main("brats2020", __doc__))
