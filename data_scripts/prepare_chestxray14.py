"""Check and prepare ChestX-ray14 of the NIH Clinical Center: chest films with 14 labels.

Get all of https://nihcc.app.box.com/v/ChestXray-NIHCC: images_001.tar.gz ... images_012.tar.gz,
unpacked, the table Data_Entry_2017_v2020.csv, and the official lists train_val_list.txt and
test_list.txt. Kaggle's copy has the same files in images_0NN/images and is read as well.

    python data_scripts/prepare_chestxray14.py ChestXray-NIHCC --dry-run
    python data_scripts/prepare_chestxray14.py ChestXray-NIHCC --out prepared/chestxray14
"""

import sys

from medm2g_core.data.sources.script import main

if __name__ == "__main__":
    sys.exit(main("chestxray14", __doc__))
