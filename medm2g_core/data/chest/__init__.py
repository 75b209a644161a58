"""Virtual chest studies drawn from three people's real CT.

`atlas` holds the real anatomy, `deform` makes patients of it, `pathology` draws findings, `render`
makes the images.
"""

from medm2g_core.data.chest.atlas import PERSONS, ChestAtlas, load_atlases
from medm2g_core.data.chest.pathology import sample_findings
from medm2g_core.data.chest.render import render_chest

__all__ = ["PERSONS", "ChestAtlas", "load_atlases", "render_chest", "sample_findings"]
