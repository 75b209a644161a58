"""Virtual brain studies: the MNI152 brain, deformed and given findings, as one axial slice in four
MR contrasts."""

from __future__ import annotations

from medm2g_core.data.brain.pathology import sample_findings
from medm2g_core.data.brain.render import render_brain

__all__ = ["render_brain", "sample_findings"]
