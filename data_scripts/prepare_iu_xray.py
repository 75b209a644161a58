"""Check and prepare the IU X-ray collection (OpenI): chest films with reports.

Get NLMCXR_png.tgz and NLMCXR_reports.tgz from https://openi.nlm.nih.gov/faq and unpack both into
one folder; the form of R2Gen (annotation.json and images/) and that of Kaggle (raddar, "Chest
X-rays (Indiana University)") are read as well. Licence: CC BY-NC-ND 4.0.

    python data_scripts/prepare_iu_xray.py NLMCXR --dry-run
    python data_scripts/prepare_iu_xray.py NLMCXR --out prepared/iu_xray
"""

import sys

from medm2g_core.data.sources.script import main

if __name__ == "__main__":
    sys.exit(main("iu_xray", __doc__))
