"""MedICaT (Allen Institute for AI): figures of open-access medical articles with their captions."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from medm2g_core.data.sources.base import (
    DataCard,
    Entry,
    Expectation,
    Found,
    Skip,
    Source,
    SourceError,
    SourceStudy,
)
from medm2g_core.data.sources.paper import without_print
from medm2g_core.data.sources.radiographs import read_film
from medm2g_core.data.sources.tables import open_table

__all__ = ["MedICaT", "caption_stream", "caption_text"]

PUBLISHED = {"figures": 217_060, "articles": 131_410}

_MODALITIES: Mapping[str, re.Pattern[str]] = MappingProxyType(
    {
        "xray": re.compile(
            r"\b(?:x[- ]?rays?|radiographs?|radiographic|roentgenogra\w+|plain"
            r" films?|(?:chest|plain) films?|cxr)\b",
            re.I,
        ),
        # "CT" in capitals alone; ct in lower case is also a court and a count
        "ct": re.compile(
            r"\b(?:CECT|NCCT|HRCT|[MC]DCT|CTA?)\b|(?i:\b(?:computed|computeri[sz]ed) (?:axial"
            r" )?tomogra\w+)"
        ),
        "mri": re.compile(
            r"\b(?:MRI|MRA|MR|NMR|FLAIR)\b|(?i:\bmagnetic resonance\b)|\bT[12](?:-?[Ww]|\b)"
        ),
        "another": re.compile(
            # what shares its words with radiology and is none
            r"(?i:\b(?:diffract\w+|crystallogra\w+|xrd|xps|photoelectron|spectr(?:um|a|al|omet\w+)|"
            r"fluorescence|scattering|micro-?\s?(?:ct|computed)|threshold cycle|ct values?|pcr|"
            r"mendelian randomi[sz]\w*|mitral regurgitation|synchrotron|flow ?charts?|"
            r"flow diagrams?|bar charts?|box ?plots?|histograms?|forest plots?|roc curves?|"
            r"kaplan|survival curves?)\b)|[µμ]-?CT\b|"
            r"\b(?:PET|SPECT|FDG)\b|(?i:\b(?:ultraso\w+|sonogra\w+|echocardiogra\w+|doppler|angiogra[mp]\w*|arteriogra\w+|"
            r"fluorosc\w+|barium|mammogra\w+|scintigra\w+|positron|endoscop\w+|colonoscop\w+|histolog\w*|patholog(?:ic|y)\w*"
            r"|photograph\w*|microscop\w+|micrograph\w*|cholangiogra\w+|urogra\w+|myelogra\w+|diagram|schematic)\b)"
        ),
    }
)
_CONTRASTS: Mapping[str, re.Pattern[str]] = MappingProxyType(
    {
        "mri_t1": re.compile(r"\bT1(?:-?[Ww]\w*|\b)", re.I),
        "mri_t2": re.compile(
            r"\bT2(?!\s*[-/]?\s*(?:weighted\s*)?(?:FLAIR|fluid|\*))(?:-?[Ww]\w*|\b)", re.I
        ),
        "mri_pd": re.compile(r"(?i:\bproton[- ]density\b)|\bPD(?:-?[Ww]\w*)?\b"),
        "mri_flair": re.compile(r"\bFLAIR\b|(?i:fluid[- ]attenuated)"),
        # contrasts that are none of the streams
        "": re.compile(
            r"\b(?:DWI|ADC|SWI|MRCP|STIR|MRA|MRS|fMRI|DTI)\b|(?i:diffusion|gradient[-"
            r" ]echo|T2\*|spectroscop\w+)"
        ),
    }
)
# Several panels: "(A) ... (B)", "a, b", "left panel", "A:" and "B:".
_PANELS = re.compile(
    r"\bB[,:.)]\s|(?i:\(\s*b\s*[,)\-–]|\ba\s*[,&–-]\s*b\b|\ba and b\b|\bpanels\b|"
    r"\b(?:left|right|upper|lower|top|bottom|middle) (?:panel|row|image)s?\b)"
)
_CT_ANGIOGRAM = re.compile(
    r"(\bCT\)?|(?i:tomogra\w+))[- ](?i:angiogra\w+)"
)  # a CT, where an angiogram alone is not
_FIGURE_NUMBER = re.compile(r"^\s*(?:fig(?:ure)?s?\b\.?|abb\.?)\s*\d*\s*[.:|–-]?\s*", re.IGNORECASE)
_SEVERAL = re.compile(
    r"\b(?:images|scans|radiographs|views|x[- ]?rays|films|sections|slices)\b", re.IGNORECASE
)


def caption_text(caption: str) -> str:
    """A caption in one line, without the figure's number."""
    return _FIGURE_NUMBER.sub("", re.sub(r"\s+", " ", caption).strip(), count=1)


def caption_stream(caption: str) -> tuple[str, str]:
    """The stream that a figure is, from the words of its caption: (stream, ``""``), or (``""``, why
    not).

    The reasons are kinds of `Skip`: ``"several panels"``, ``"several modalities"``, ``"another
    modality"``, ``"modality unknown"`` and ``"MR contrast unknown"``. Nothing in the data set says
    it better; a caption may name an examination that is not shown.
    """
    if _PANELS.search(caption) or _SEVERAL.search(caption):
        return "", "several panels"
    caption = _CT_ANGIOGRAM.sub(r"\1", caption)
    named = [name for name, words in _MODALITIES.items() if words.search(caption)]
    if not named or named == ["another"]:
        return "", "modality unknown" if not named else "another modality"
    if len(named) > 1:
        return "", "several modalities"
    if named != ["mri"]:
        return named[0], ""
    contrasts = [name for name, words in _CONTRASTS.items() if words.search(caption)]
    if len(contrasts) == 1 and contrasts[0]:
        return contrasts[0], ""
    return "", "MR contrast unknown"


class MedICaT(Source):
    """Single radiology figures of articles (``xray``, ``ct`` or one MR contrast) with their
    captions (``text``).

    Which stream a figure is comes from its caption (`caption_stream`); figures of which that is
    unclear are left out and counted by reason. All figures of an article are one subject.
    """

    name = "medicat"
    region = "any"
    streams = ("text", "xray", "ct", "mri_t1", "mri_t2", "mri_pd", "mri_flair")
    card = DataCard(
        title="MedICaT",
        homepage="https://github.com/allenai/medicat",
        licence=(
            "per article (oa_info.oa.license: cc-by, cc-by-nc, ..., or not stated); kept with every"
            " study"
        ),
        access="request form of the Allen Institute; non-commercial research use",
        paper_use="named for it by secondary sources; for which task is not known [S]",
        lost=(
            "compound figures, and figures whose modality or MR contrast the caption leaves open",
            (
                "grey values: figures are display pictures, so a CT has no Hounsfield units and its"
                " window is unknown"
            ),
            "side and scale: figures may be cropped, mirrored, annotated or of an animal",
            "inline references, subcaptions and subfigure boxes",
        ),
        faults=(
            "colour figures and screenshots are refused and counted",
            "a caption that was printed below the figure is cut off with the white around it",
            "X-ray diffraction, CT values of a PCR and the like are no radiology",
            "tables of subcaptions beside the table of figures are passed over and counted",
            "a missing caption falls back to the other of the two",
            "a licence of null is kept as 'not stated', never as free",
            "a broken line of the JSONL is counted (51); content decides the format (52)",
            "an article is never in two splits",
        ),
        layout="""<any name>.jsonl[.gz]: pdf_hash, fig_uri, s2_caption, s2orc_caption,
radiology, oa_info, ...
figures/<pdf_hash>_<fig_uri>""",
        recalled=("name of the full JSONL file",),
    )

    def scan(self, root: Path) -> Found:
        tables = [
            p
            for above in ("", "*/", "*/*/")
            for g in (f"{above}*.jsonl", f"{above}*.jsonl.gz")
            for p in sorted(root.glob(g))
            if p.name[0] != "."
        ]
        if not tables:
            raise self.not_here(root, "no .jsonl file")
        entries: dict[str, Entry] = {}
        others: dict[str, int] = {}
        skips: list[Skip] = []
        articles: set[str] = set()
        seen: set[str] = set()
        licences: Counter[str] = Counter()
        for table in tables:
            near = [p for p in (table.parent, *table.parent.parents) if p.is_relative_to(root)]
            figures = next(
                (p / "figures" for p in near if (p / "figures").is_dir()), root / "figures"
            )
            with open_table(table) as text:
                for number, line in enumerate(text, 1):
                    if not line.strip():
                        continue
                    where = f"{table.name}:{number}"
                    row = _row(line)
                    if row is None:
                        skips.append(
                            Skip(
                                "broken line", where, "not a JSON object with pdf_hash and fig_uri"
                            )
                        )
                        continue
                    if "radiology" not in row:  # a table of subcaptions or references of figures
                        others.setdefault(table.name, number)
                        continue
                    article, name = row["pdf_hash"], f"{row['pdf_hash']}_{row['fig_uri']}"
                    if Path(name).name != name:
                        raise SourceError(f"{where}: the figure {name!r} lies outside its folder")
                    if name in seen:
                        skips.append(Skip("repeated figure", where, f"{name} was listed before"))
                        continue
                    seen.add(name)
                    articles.add(article)
                    entry = _entry(row, figures / name)
                    if isinstance(entry, Skip):
                        skips.append(entry)
                        continue
                    entries[name] = entry
                    licences[entry.extra["licence"]] += 1
        skips += [
            Skip("another table", f"{name}:{number}", "rows without 'radiology' are no figures")
            for name, number in others.items()
        ]
        if not seen:
            raise self.not_here(root, f"no line of {tables[0].name} is a figure")
        states = ", ".join(f"{n} {c:,}" for n, c in licences.most_common())
        expected = (
            Expectation.count("figures listed", PUBLISHED["figures"], len(seen)),
            Expectation.count("articles", PUBLISHED["articles"], len(articles)),
            Expectation("licences of usable figures", "", states or "none"),
        )
        return Found(tuple(entries.values()), tuple(skips), expected)

    def read(self, entry: Entry, size: int) -> SourceStudy:
        ((stream, path),) = entry.files.items()
        film = read_film(path, size, without_print)
        unit = "display intensity, window unknown" if stream == "ct" else "display intensity"
        return self.study(
            entry,
            {stream: film.image},
            units={stream: unit},
            orientation="as displayed",
            notes=(
                f"licence of the article: {entry.extra['licence']}",
                "the text is a figure's caption; the stream was told from its words",
                *film.notes,
            ),
        )


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    good = isinstance(row, dict) and all(
        isinstance(row.get(k), str) and row[k] for k in ("pdf_hash", "fig_uri")
    )
    return row if good else None


def _entry(row: Mapping[str, Any], path: Path) -> Entry | Skip:
    """The entry of a figure, or why there is none."""
    name = path.name
    if row.get("radiology") is not True:
        return Skip(
            "not radiology", name, f"predicted type {row.get('predicted_type') or 'unknown'}"
        )
    caption = caption_text(str(row.get("s2_caption") or row.get("s2orc_caption") or ""))
    if not caption:
        return Skip("empty caption", name, "neither s2_caption nor s2orc_caption")
    stream, why = caption_stream(caption)
    if not stream:
        return Skip(why, name, caption[:80])
    if not path.is_file():
        return Skip("image missing", name, f"not in {path.parent}")
    return Entry(
        id=name.rsplit(".", 1)[0],
        subject=row["pdf_hash"],
        split="",
        files={stream: path},
        text=caption,
        extra={"licence": _licence(row), "doi": _nested(row, "oa_info", "doi") or ""},
    )


def _nested(row: Any, *keys: str) -> Any:
    for key in keys:
        row = row.get(key) if isinstance(row, dict) else None
    return row


def _licence(row: Mapping[str, Any]) -> str:
    licence = _nested(row, "oa_info", "oa", "license")
    return licence if isinstance(licence, str) and licence else "not stated"
