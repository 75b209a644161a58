"""Check and prepare IXI: T1, T2 and PD of healthy brains.

Get IXI-T1.tar, IXI-T2.tar, IXI-PD.tar and IXI.xls from https://brain-development.org/ixi-dataset
and unpack each archive into a folder of its name (IXI-T1/IXI002-Guys-0828-T1.nii.gz). Licence: CC
BY-SA 3.0.

    python data_scripts/prepare_ixi.py IXI --dry-run
    python data_scripts/prepare_ixi.py IXI --out prepared/ixi
"""

import sys

from medm2g_core.data.sources.script import main

if __name__ == "__main__":
    sys.exit(main("ixi", __doc__))
