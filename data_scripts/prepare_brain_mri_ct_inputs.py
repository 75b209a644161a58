"""Check and prepare the MR half of the Kaggle set of brain MR and CT slices, for copies whose CT
arrays are empty.

Get it as prepare_brain_mri_ct.py says (https://www.kaggle.com, chenghanpu); only
{train,val,test}_input.npy are read.

    python data_scripts/prepare_brain_mri_ct_inputs.py brain-mri-ct --dry-run
    python data_scripts/prepare_brain_mri_ct_inputs.py brain-mri-ct --out
    prepared/brain_mri_ct_inputs
"""

import sys

from medm2g_core.data.sources.script import main

if __name__ == "__main__":
    sys.exit(main("brain_mri_ct_inputs", __doc__))
