"""Check and prepare MIMIC-CXR-JPG with the reports of MIMIC-CXR.

Both are on https://physionet.org (mimic-cxr-jpg, mimic-cxr) for credentialed users who signed the
data use agreement. Put the reports (mimic-cxr-reports.zip, unpacked:
files/p10/p10000032/s50414267.txt) into the same tree as the pictures and the tables
mimic-cxr-2.0.0-{split,metadata,chexpert}.csv.gz, or say where they are with --reports.

    python data_scripts/prepare_mimic_cxr.py mimic-cxr-jpg --dry-run
    python data_scripts/prepare_mimic_cxr.py mimic-cxr-jpg --out prepared/mimic_cxr
    python data_scripts/prepare_mimic_cxr.py mimic-cxr-jpg --scheduler tcp://10.0.0.1:8786
"""

import sys

from medm2g_core.data.sources.script import main

if __name__ == "__main__":
    sys.exit(main("mimic_cxr", __doc__))
