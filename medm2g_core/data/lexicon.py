"""The words that the labeller knows: mentions of findings, attributes, negation and doubt, as
patterns over lower-case text.

Only words are here; what is made of them is in `medm2g_core.data.labeller`. Sources of the method:
NegEx (Chapman et al. 2001) and CheXpert's labeller (Irvin et al. 2019); the words themselves are
chosen here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = [
    "AFTER",
    "AGE",
    "BRAIN_LOBE",
    "CLAUSE",
    "CUE",
    "DIAMETER",
    "FINITE",
    "FRESH",
    "HEDGE",
    "JOINTS",
    "LOBE",
    "MENTIONS",
    "NEEDS_ZONE",
    "NEUTRAL",
    "NORMALITY",
    "NUMBER",
    "OTHER",
    "SECTION",
    "SENTENCE",
    "SEX",
    "SIDE",
    "SIZE",
    "STOP",
]

# ---- mentions

_GAP = r"(?:[\w/-]+,? ){0,6}?"  # a few words
_LEXICON: Mapping[str, Mapping[str, str]] = {
    "chest": {
        "pleural_effusion": (
            r"(?<!pericardial )(?<!joint )\beffusions?\b|\bpleural fluid\b|\bhydrothorax\b"
            rf"|\bblunt(?:ing|ed) (?:of )?{_GAP}(?:costophrenic|cp|sulc\w+)"
            rf"|(?:costophrenic|\bcp\b|sulc\w+) {_GAP}blunt\w+"
        ),
        "pneumothorax": r"\b(?:hydro)?pneumothora(?:x|ces)\b|\bpneumothoraxes\b",
        "cardiomegaly": (
            r"\bcardiomegaly\b"
            r"|\b(?:heart|cardiac|cardiomediastinal|cardiopericardial)\b"
            rf" {_GAP}(?:enlarg\w+|(?:is|appears?|remains) large)"
            rf"|\benlarge(?:d|ment)\b {_GAP}(?:heart|cardiac|cardiomediastinal)(?: silhouette|"
            r" size| shadow)?"
        ),
        "pulmonary_edema": r"\bedema\b|\bfluid overload\b",
        "consolidation": (
            r"\bconsolidat\w+|\bpneumonias?\b|\binfiltrat\w+|\bair ?-?space"
            r" (?:disease|process|opacit\w+)"
            r"|(?<!nodular )(?<!rounded )(?<!calcified )\bopacit(?:y|ies)\b|\bopacification\b"
        ),
        "atelectasis": (
            r"\batelecta\w+|\bvolume loss\b|\b(?:lobe|lobar|lung) collapse\b"
            r"|\bcollapse of (?:\w+ ){0,5}(?:lobe|lung)\b"
        ),
        "nodule": (
            r"\bnodul(?:e|es)\b|\bnodular (?:opacit\w+|densit\w+)|\bgranulomas?\b"
            r"|\brounded opacit\w+"
        ),
        "mass": (
            r"(?<!thyroid )(?<!wall )(?<!mediastinal )(?<!breast )(?<!pericardial )"
            r"(?<!tissue )\bmass(?:es)?\b"
        ),
    },
    "brain": {
        "tumor": (
            r"\btumors?\b|\bmass(?:es)?\b|\bneoplasms?\b|\b(?:glio|menin?gio|astrocyto)\w*mas?\b|\bmetastas[ei]s\b"
            r"|\bspace-occupying lesion\b|\benhancing lesion\b"
        ),
        "vasogenic_edema": r"\b(?:white matter )?edema\b",
        "white_matter_lesions": (
            r"\bwhite matter (?:lesions?|hyperintensit\w+|disease|changes|abnormalit\w+)"
            r"|\bleu[ck]oara\w+|\bsmallvessel (?:disease|changes|ischemi\w+)"
        ),
        "ventriculomegaly": (
            r"\bventriculomegaly\b|\bhydrocephalus\b"
            rf"|\bventric(?:les?|ular)\b {_GAP}(?:enlarg\w+|dilat\w+)"
            rf"|\b(?:enlarge(?:d|ment)|dilat(?:ed|ation|ion))\b {_GAP}ventric(?:les?|ular)"
        ),
    },
}
MENTIONS = {
    region: [(name, re.compile(pattern)) for name, pattern in words.items()]
    for region, words in _LEXICON.items()
}

# ---- what else reports speak of

# Endings of names of diseases, and the words for which there is no ending: those of the MeSH
# headings in IU X-Ray, of CheXpert's and PadChest's labels, and what neuroradiology adds.
_ENDINGS = (
    r"(?!(?:dia|pro)gnos)\w{3,}(?:itis|oses|osis|omas?|omata|ectas(?:is|es)|ectasia"
    r"|opath(?:y|ies)|rrhages?|rrhagic|troph(?:y|ic)|celes?|lith(?:s|iasis)?|megaly|ectomy|ostomy|plegia|sten(?:osed|otic)"
    r"|aemias?|emias?)"
)
_OTHER_WORDS = (
    r"(?:ha?emo|pyo|chylo|fibro)thorax|pneumo(?:pericardium|peritoneum|mediastinum)"
    r"|tension|mediastinal shift|chf|ptx|ards|cabg|ett|ngt|et tube|ng tube|ij line"
    r"|fractur\w*|dislocat\w*|subluxat\w*|herniat\w*|hernias?|cysts?|cystic|abscess\w*|cavit\w+"
    r"|emphysema\w*|empyema|bulla[es]?|bullous|hyperinflat\w*|hyperexpan\w*|copd|asthma"
    r"|fibro\w+|interstitial lung disease|honeycomb\w*|scarr?(?:ing|s)?|reticulat\w+"
    r"|tubercul\w+|tb|covid(?:-19)?|sarcoid\w*|aspergill\w+|kerley|b[- ]lines|cuffing"
    r"|pleural (?:thickening|plaques?)|calcif\w+|plaques?|lymphadenopath\w+|adenopath\w+"
    r"|aneurysms?|dissection|aortic (?:unfolding|elongation)|tortuous|tortuosity|embol\w+"
    r"|infarct\w*|thromb\w+|ischa?emi\w+|strokes?|hypertension|congest\w+|pericardial effusions?"
    r"|bleed(?:s|ing)?|h(?:a)?ematomas?|contusions?|laceration\w*|midline shift|aneurysmal"
    r"|demyelinat\w+|multiple sclerosis|gliosis|encephalomalacia|microbleeds?|venous malformations?"
    r"|scoliosis|kyphosis|spondyl\w+|osteophyt\w+|degenerative|osteopen\w+|lytic|sclerotic"
    r"|free air|eventration|elevat\w+ (?:\w+ )?(?:hemi)?diaphragm|situs inversus|dextrocardia"
    r"|tubes?|catheters?|picc|pacemakers?|icd|(?:pacer|pacing) (?:leads?|wires?)|stents?"
    r"|clips?|sternotomy|wires?|prosthe\w+|implant\w*|drains?|foreign bod(?:y|ies)|bullets?"
    r"|central (?:venous )?line|port-a-cath|metastat\w+|cancers?|carcinoma\w*|lymphoma"
)
OTHER = re.compile(rf"\b(?:{_ENDINGS}|{_OTHER_WORDS})\b")
"""Findings and devices that are none of `MENTIONS`."""

# Statements of normality, and the findings that they deny.
_NORMAL_WORDS = r"(?:normal|unremarkable|within normal|not enlarged|stable and normal)"
NORMALITY: Mapping[str, tuple[tuple[re.Pattern[str], tuple[str, ...]], ...]] = {
    "chest": (
        (
            re.compile(
                rf"\b(?:heart|cardiac|cardiomediastinal|cardiopericardial)\b {_GAP}{_NORMAL_WORDS}"
                r"|\bnormal(?:-sized)? (?:heart|cardiac|cardiomediastinal)\b"
            ),
            ("cardiomegaly",),
        ),
        (
            re.compile(r"\blungs? (?!bases)(?:[\w-]+,? ){0,4}?clear\b|\bclear lungs?\b"),
            ("consolidation", "pulmonary_edema", "atelectasis"),
        ),
        (re.compile(r"\bpleural spaces? (?:is|are) clear\b"), ("pleural_effusion", "pneumothorax")),
    ),
    "brain": (
        (
            re.compile(rf"\bventric(?:les?|ular)\b {_GAP}{_NORMAL_WORDS}|\bnormal ventric"),
            ("ventriculomegaly",),
        ),
        (
            re.compile(
                r"\bwhite matter (?:signal )?(?:is |appears )?normal\b|\bnormal white matter\b"
            ),
            ("white_matter_lesions",),
        ),
    ),
}

_SIZES = {
    "small": (
        r"small|mild(?:ly)?|minimal(?:ly)?|slight(?:ly)?|tiny|trace|little|few|borderline|subtle|minor"
    ),
    "moderate": r"moderate(?:ly)?|moderate-sized|medium(?:-sized)?",
    "large": (
        r"large|severe(?:ly)?|marked(?:ly)?|massive(?:ly)?|extensive(?:ly)?|big|gross(?:ly)?|huge|confluent"
    ),
}
SIZE = re.compile("|".join(rf"(?P<{k}>\b(?:{v})\b)" for k, v in _SIZES.items()))
SIDE = re.compile(
    r"\b(?P<left>left|left-sided)\b|\b(?P<right>right|right-sided)\b|\b(?P<both>bilateral(?:ly)?|both"
    r"|bibasilar|bibasal|biapical)\b"
)
_ZONE = r"(?:[ -](?:lobes?|lobar|lungs?|zones?|fields?|portion)\b|lung\b|zone\b)"
LOBE = re.compile(
    r"\b(?P<upper>upper|apical|apex|apices|biapical|lul|rul)\b|\b(?P<middle>middle|mid|rml)\b"
    r"|\b(?P<lower>lower|bases?|basal|basilar|bibasilar|bibasal|retrocardiac|lll|rll)\b|(?P<lingula>\blingul(?:a|ar)\b)"
    r"|(?P<midlung>\bmid(?=lung|zone))"
)
NEEDS_ZONE = re.compile(rf"(?:(?:,| and|/| or|,and)? ?(?:upper|middle|mid|lower))*{_ZONE}")
BRAIN_LOBE = re.compile(
    r"\b(?P<frontal>frontal)\b|\b(?P<parietal>parietal)\b|\b(?P<temporal>temporal)\b"
    r"|\b(?P<occipital>occipital)\b"
)
DIAMETER = re.compile(
    r"(\d+(?:\.\d+)?)(?: ?(?:mm|cm)? ?(?:x|by) ?(\d+(?:\.\d+)?))*"
    r" ?-?(mm|cm|millimet\w+|centimet\w+)\b"
)
NUMBER = re.compile(r"\d+(?:\.\d+)?")
AGE = re.compile(
    r"\b(\d{1,3})[ -]?(?:years?|yrs?|y)[ -]?/?(?:old|o)\b|\baged?:? (\d{1,3})\b"
    r"|\b(\d{1,3}) years of age\b"
)
SEX = re.compile(r"\b(?P<female>woman|female|lady|girl)\b|\b(?P<male>man|male|gentleman|boy)\b")

# ---- text and scopes

# What looks like a finding, a negation or an attribute and is none, made harmless; order matters.
NEUTRAL = tuple(
    (re.compile(pattern), into)
    for pattern, into in (
        (r"\[removed\]|\bx{3,}\b", "xxxx"),
        (r"\babsent (?=\w+ markings)", "fewer "),
        (r"\boedema", "edema"),
        (r"\btumour", "tumor"),
        (r"\bleft[- ]sided\b", "left"),
        (r"\bright[- ]sided\b", "right"),
        (r"\bmass[- ]effect\b", "masseffect"),
        (r"\bsmall[- ]vessel\b", "smallvessel"),
        (r"\b(?:left|right) (?=heart|atri|ventric|hemidiaphragm|paratracheal)", ""),
        (r"\bthere (is|are) none\b", r"\1 absent"),
        (r"\b(?:no|without|not) (?:any )?(?:doubt|only)\b", ""),
        (
            r"\b(?:no|without|nor)(?: any| evidence of)? "
            r"(?:significant |interval |appreciable |substantial |definite |major |marked )*"
            r"(?:change|increase|decrease|improvement|worsening|resolution|difference|progression)"
            r"s?\b",
            "stable",
        ),
        (
            r"\b(?:not|never)"
            r"(?: been| yet| fully| completely| significantly| substantially| entirely)* "
            r"(?:changed|improved|resolved|decreased|increased|cleared|progressed|worsened)\b",
            "stable",
        ),
        (
            (
                r"\b(?:unresolved"
                r"|(?:partial|incomplete|near)(?:ly)?[- ](?:complete )?(?:resolved|resolution))\b"
            ),
            "residual",
        ),
        (
            (
                r"\b(?:cannot|can not|can't|could not)(?: be)?(?: completely| entirely)?"
                r" (?:exclude|rule out)d?\b"
            ),
            "possible",
        ),
        (r"\b(?:cannot|can not|can't|could not) be (?:excluded|ruled out)\b", "possible"),
        (r"\bnot (?:been |be )?(?:excluded|ruled out)\b", "possible"),
        (
            r"\bno longer (?:seen|present|visible|identified|visualized|evident|apparent)\b",
            "resolved",
        ),
    )
)
SECTION = re.compile(
    r"\b(?:findings|impression|indication|comparison|conclusion|history|technique)(?: and \w+)?\s*:"
)
SENTENCE = re.compile(r"\.(?=\s|$|[a-z])|[;!?\n]")

CUE = re.compile(
    r"\b(?:no|not|without|w/o|negative for|free (?:of|from)|clear of|absence of|absent(?! \w*$)"
    r"|lack of|nor|neither|never|denies|(?:to )?(?:exclude|rule out|evaluate for)|r/o"
    r"|nothing to suggest|isn't|aren't|resolution of|rather than"
    r"|(?<!has )(?<!have )(?<!had )(?<!is )(?<!are )(?<!been )(?<!now )(?<!ly )resolved(?= \w))\b"
)
HEDGE = re.compile(
    r"\b(?:(?:may|might|could|can)(?: also)?"
    r" (?:be|represent|reflect|indicate|include|have|relate|suggest)|possib\w+"
    r"|question(?:able|ably)?|questioned|suspicious for|suspicion (?:of|for)"
    r"|concern(?:ing)? (?:for|of)|differential|evaluation for"
    r"|favor(?:s|ed|ing)?|clinical(?:ly)? correlat\w+|consider)\b"
)
STOP = re.compile(
    r"\b(?:but|however|although|though|except|aside from|apart from|other than|besides|which|yet"
    r"|while|whereas|otherwise|because|(?<!to )suggest\w*|consistent with|there (?:is|are)"
    r"|(?:is|are) again)\b|:"
    r"|\b(?:and|with) (?:also )?"
    r"(?=(?:an?|there|the|unchanged|stable|persistent|residual|left|right|bilateral"
    r"|(?:small|mild|moderate|large|minimal) (?:left|right|bilateral))\b)"
)
FRESH = re.compile(
    r", (?:and |with )?(?:(?=(?:an?|there|stable|unchanged|again|persistent)\b)"
    r"|(?=(?:[\w-]+ ){0,2}"
    r"(?:left|right|bilateral|mildly|moderately|severely)\b(?!.*\b(?:or|nor)\b)))"
)
AFTER = re.compile(
    r"\b(?:(?:has|have|had|is|are|was|were|been|now|completely|fully|since) )+"
    r"(?:resolved|cleared|ruled out|excluded|absent|unlikely|negative"
    r"|not (?:seen|identified|present|evident|visuali[sz]ed|demonstrated|appreciated|detected|noted"
    r"|visible|apparent))\b"
    r"|\bruled out\b|\bnot (?:seen|identified)\b|: (?:no|none|absent)\b|\bresolved(?= *$)"
)
CLAUSE = re.compile(
    r"\b(?:but|however|although|though|which|while|whereas|and (?:an?|the|there)|with)\b"
)
FINITE = re.compile(r"\b(?:is|are|was|were|has|have|shows?|there)\b")
JOINTS = (
    re.compile(r"[:]"),
    re.compile(r"\b(?:with|plus|but|while|although|as well as|along)\b"),
    re.compile(r",? and\b|/"),
    re.compile(r","),
)
