"""Check and prepare the Kaggle set of brain MR and CT slices (chenghanpu).

Get it from https://www.kaggle.com (chenghanpu, brain tumor MRI and CT) and unpack it:
data(processed)/ with {train,val,test}_{input,output}.npy. It is not the set with Healthy/ and
Tumor/ folders, whose pictures are no pairs.

    python data_scripts/prepare_brain_mri_ct.py brain-mri-ct --dry-run
    python data_scripts/prepare_brain_mri_ct.py brain-mri-ct --out prepared/brain_mri_ct
"""

import sys

from medm2g_core.data.sources.script import main

if __name__ == "__main__":
    sys.exit(main("brain_mri_ct", __doc__))
