"""Check and prepare Gold Atlas: CT and MR of the male pelvis.

Ask for it at https://zenodo.org/records/583096 and unpack each patient's archive into a folder of
its own. Without access, SynthRAD2023 is the public substitute (prepare_synthrad2023.py).

    python data_scripts/prepare_gold_atlas.py gold-atlas --dry-run
    python data_scripts/prepare_gold_atlas.py gold-atlas --out prepared/gold_atlas
"""

import sys

from medm2g_core.data.sources.script import main

if __name__ == "__main__":
    sys.exit(main("gold_atlas", __doc__))
