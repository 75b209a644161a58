"""Check and prepare SynthRAD2023 Task 1: CT and MR of the pelvis (and brain).

Get Task1.zip from https://doi.org/10.5281/zenodo.7260705 and unpack it:
Task1/pelvis/1PA001/{mr,ct,mask}.nii.gz.

    python data_scripts/prepare_synthrad2023.py synthrad2023 --dry-run
    python data_scripts/prepare_synthrad2023.py synthrad2023 --out prepared/synthrad2023
"""

import sys

from medm2g_core.data.sources.script import main

if __name__ == "__main__":
    sys.exit(main("synthrad2023", __doc__))
