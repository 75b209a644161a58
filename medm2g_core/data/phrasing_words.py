"""The words of the grammar of input text (`medm2g_core.data.phrasing`): nouns, sizes, frames of
affirmed and denied sentences, and what says nothing."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = [
    "ABBREVIATED",
    "AFFIRMED",
    "AFFIRMED_PLURAL",
    "ALL_CLEAR",
    "ASIDES",
    "BRITISH",
    "COUNTABLE",
    "DENIED",
    "DENIED_TOGETHER",
    "LEADS",
    "NOUNS",
    "PICTURES",
    "PLURAL",
    "REQUESTS",
    "SIZE_KIND",
    "SIZE_WORDS",
]

# Nouns of a finding: each may stand in every frame below.
NOUNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "pleural_effusion": ("pleural effusion", "effusion", "pleural fluid collection"),
        "pneumothorax": ("pneumothorax",),
        "cardiomegaly": ("cardiomegaly", "cardiac enlargement", "enlargement of the heart"),
        "pulmonary_edema": ("pulmonary edema", "interstitial edema", "edema of the lungs"),
        "consolidation": ("consolidation", "airspace opacity", "pneumonia", "airspace disease"),
        "atelectasis": ("atelectasis", "volume loss"),
        "nodule": ("nodule", "round nodule", "pulmonary nodule"),
        "mass": ("mass", "lung mass", "pulmonary mass"),
        "tumor": ("tumor", "mass", "neoplasm", "space-occupying lesion"),
        "vasogenic_edema": ("edema", "vasogenic edema", "white matter edema"),
        "white_matter_lesions": ("white matter lesions", "white matter hyperintensities"),
        "ventriculomegaly": ("ventriculomegaly", "dilatation of the ventricles"),
    }
)
PLURAL = frozenset({"white_matter_lesions"})
COUNTABLE = frozenset({"pleural_effusion", "pneumothorax", "nodule", "mass", "tumor"})

SIZE_WORDS: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "extent": {
            "small": ("small", "minimal", "tiny", "trace"),
            "moderate": ("moderate", "medium-sized", "moderate-sized"),
            "large": ("large", "massive", "big"),
        },
        "degree": {
            "small": ("mild", "slight", "minimal"),
            "moderate": ("moderate",),
            "large": ("severe", "marked", "gross"),
        },
        "bulk": {
            "small": ("small", "tiny"),
            "moderate": ("moderate", "medium-sized"),
            "large": ("large", "big"),
        },
        "spread": {
            "small": ("mild", "minimal", "slight"),
            "moderate": ("moderate",),
            "large": ("extensive", "marked", "severe"),
        },
    }
)
SIZE_KIND: Mapping[str, str] = MappingProxyType(
    {
        "pleural_effusion": "extent",
        "pneumothorax": "extent",
        "cardiomegaly": "degree",
        "pulmonary_edema": "degree",
        "nodule": "bulk",
        "mass": "bulk",
        "tumor": "bulk",
        "vasogenic_edema": "spread",
        "white_matter_lesions": "spread",
        "ventriculomegaly": "degree",
    }
)

# {what}: article, size, side and noun as a phrase. {where}: "in the left upper lobe", "on the
# left".
AFFIRMED = (
    "{what}{where}.",
    "there is {what}{where}.",
    "we see {what}{where}.",
    "{what}{where} is seen.",
    "{what}{where} is noted.",
    "{what}{where} is demonstrated.",
    "{what}{where} is again seen.",
    "{what}{where} is confirmed.",
    "{what}{where} is visible.",
    "{what}{where} was found.",
    "{what} is present{where}.",
    "{what} can be seen{where}.",
    "the study shows {what}{where}.",
    "imaging demonstrates {what}{where}.",
    "the patient has {what}{where}.",
    "findings are those of {what}{where}.",
    "known {what}{where}, unchanged.",
    "new {what}{where}.",
)
AFFIRMED_PLURAL = (
    "{what}{where}.",
    "there are {what}{where}.",
    "we see {what}{where}.",
    "{what}{where} are seen.",
    "{what}{where} are noted.",
    "{what}{where} are confirmed.",
    "the study shows {what}{where}.",
    "the patient has {what}{where}.",
    "new {what}{where}.",
)
DENIED = (
    "no {what}{where}.",
    "there is no {what}{where}.",
    "there is no evidence of {what}{where}.",
    "no evidence of {what}{where}.",
    "no sign of {what}{where}.",
    "no {what} is seen{where}.",
    "no {what} is identified{where}.",
    "no {what} identified{where}.",
    "without {what}{where}.",
    "negative for {what}{where}.",
    "absence of {what}{where}.",
    "free of {what}{where}.",
    "we do not see {what}{where}.",
    "{what} is not seen{where}.",
    "{what} is not identified{where}.",
    "{what}{where} has been ruled out.",
    "{what}{where} has resolved.",
    "{what}{where} is no longer seen.",
    "the study is negative for {what}{where}.",
    "no definite {what}{where}.",
    "no convincing {what}{where}.",
    "lack of {what}{where}.",
    "nothing to suggest {what}{where}.",
    "there isn't evidence of {what}{where}.",
    "there is not any {what}{where}.",
    "{what}{where} is absent.",
    "{what}{where} is not present.",
    "{what}{where} is not visible.",
    "{what}{where} has been excluded.",
    "of {what}{where} there is none.",
)
DENIED_TOGETHER = (
    "no {0} or {1}.",
    "neither {0} nor {1}.",
    "there is no {0} or {1}.",
    "no evidence of {0} or {1}.",
    "negative for {0} or {1}.",
    "free of {0} and {1}.",
    "without {0} or {1}.",
)

# Sentences that say nothing about a finding that pictures here can show.
ASIDES = (
    "comparison: none available.",
    "no prior study for comparison.",
    "technically adequate study.",
    "image quality is good.",
    "clinical details: shortness of breath.",
    "clinical information: follow-up.",
    "history of smoking.",
    "referred by the general practitioner.",
    "the patient was cooperative.",
    "please correlate with laboratory results.",
    "follow-up in three months is advised.",
    "results were discussed with the referring team.",
    "dictated but not read.",
    "routine examination before surgery.",
    "the remainder of the study is unremarkable.",
)
LEADS = (
    "{who}.",
    "patient: {who}.",
    "images of {who}.",
    "study of {who}.",
    "{who}, for review.",
)
REQUESTS = (
    "draw a {picture} with the following: ",
    "please show a {picture}. ",
    "a {picture}. ",
    "{picture}: ",
    "",
    "",
    "",
)
PICTURES = {
    "chest": ("chest", "chest study", "thorax", "chest image"),
    "brain": ("brain", "head", "brain study", "scan of the head"),
}
ALL_CLEAR = {
    "chest": (
        "normal chest.",
        "nothing abnormal in the chest.",
        "healthy lungs and heart.",
        "normal study.",
        "no abnormality.",
        "the lungs are clear and the heart is of normal size.",
        "unremarkable.",
    ),
    "brain": (
        "normal brain.",
        "nothing abnormal in the head.",
        "normal study.",
        "no abnormality.",
        "the ventricles are of normal size and the white matter is normal.",
        "unremarkable.",
    ),
}

BRITISH = (
    (r"\bedema", "oedema"),
    (r"\btumor", "tumour"),
    (r"\bgray\b", "grey"),
    (r"\bcenter", "centre"),
)
ABBREVIATED = (
    (r"\bright upper lobe\b", "RUL"),
    (r"\bright middle lobe\b", "RML"),
    (r"\bright lower lobe\b", "RLL"),
    (r"\bleft upper lobe\b", "LUL"),
    (r"\bleft lower lobe\b", "LLL"),
    (r"\bwithout\b", "w/o"),
)
