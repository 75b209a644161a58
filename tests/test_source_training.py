"""Training on real data sets: each trains what its streams allow, nothing is cut in silence,
nothing is read twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import pictures, untrained
from replicas.acdc import write_acdc
from replicas.brain_mri_ct import build as write_brain_mri_ct
from replicas.brats2020 import write_brats2020
from replicas.chestxray14 import chestxray14
from replicas.gold_atlas import build as write_gold_atlas
from replicas.iu_xray import raw as write_iu_xray
from replicas.ixi import write_ixi
from replicas.medicat import medicat
from replicas.mimic_cxr import mimic_cxr
from replicas.sliver07 import write_sliver07
from replicas.synthrad2023 import build as write_synthrad2023

from medm2g_core.cli import main
from medm2g_core.data.sources import SOURCES, SourceError
from medm2g_core.data.sources.prepare import prepare_source
from medm2g_core.data.sources.shards import read_shards
from medm2g_core.model import PARTS, CheckpointError, MedM2G
from medm2g_core.profiles import STAGES, Profile, StageConfig, profile
from medm2g_core.streams import STREAMS
from medm2g_core.training.corpus import Corpus
from medm2g_core.training.data import SourceData, round_for
from medm2g_core.training.reader import shortened
from medm2g_core.training.run import train

ALL = set(STAGES)
NO_TEXT = {"text_codec", "alignment", "reports"}
REPLICAS: dict[str, tuple[Callable[[Path], Path], set[str]]] = {
    "acdc": (write_acdc, ALL - NO_TEXT - {"round1", "round2"}),
    "brain_mri_ct": (write_brain_mri_ct, ALL - NO_TEXT - {"round1"}),
    "brats2020": (write_brats2020, ALL - NO_TEXT - {"round1", "round2"}),
    "chestxray14": (chestxray14, ALL - {"round2", "round3"}),
    "gold_atlas": (write_gold_atlas, ALL - NO_TEXT - {"round1"}),
    "iu_xray": (write_iu_xray, ALL - {"round2", "round3"}),
    "ixi": (write_ixi, ALL - NO_TEXT - {"round1", "round2"}),
    "medicat": (medicat, ALL - {"alignment", "round2"}),
    "mimic_cxr": (mimic_cxr, ALL - {"round2", "round3"}),
    "sliver07": (write_sliver07, ALL - NO_TEXT - {"round1", "round3"}),
    "synthrad2023": (write_synthrad2023, ALL - NO_TEXT - {"round1"}),
}
"""What each replica's streams allow. MedICaT's has one captioned training figure, an MR: alignment
needs two."""


@pytest.fixture
def short() -> Profile:
    """Two steps a stage."""
    base = profile("smoke")
    return base.replace(
        stages={n: StageConfig(steps=2, batch=4, warmup=1, ema=0.5) for n in base.stages}
    )


def data_of(name: str, root: Path, work: Path, **options) -> SourceData:
    return SourceData(name, root, work, 32, workers=0, allow_missing=True, **options)


def test_there_is_a_replica_of_every_data_set():
    assert set(REPLICAS) == set(SOURCES) - {
        "brain_mri_ct_inputs"
    }  # the inputs of the look-alike have no replica


@pytest.mark.parametrize("name", sorted(REPLICAS))
def test_a_data_set_trains_every_stage_that_its_streams_allow(name, tmp_path, short, capsys):
    build, expected = REPLICAS[name]
    (tmp_path / "root").mkdir()
    data = data_of(name, build(tmp_path / "root"), tmp_path / "out" / "work")
    model = train(short, tmp_path / "out", data=data, precision="fp32", progress=False)
    record = json.loads((tmp_path / "out" / "training.json").read_text(encoding="utf-8"))
    assert set(record["stages"]) == expected
    assert (
        set(record["left out"]) - {"all_pairs"} == ALL - expected
        and record["source"]["name"] == name
    )
    said = capsys.readouterr().out
    assert all(f"{stage} is left out: no " in said for stage in ALL - expected)
    again = MedM2G.from_pretrained(tmp_path / "out")
    for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)
    have = {n for c in data.corpora("train") for n in c.streams} - {"text"}
    fitted = {
        n for n, row in zip(STREAMS, again.latent_scale, strict=True) if not torch.all(row == 1)
    }
    assert fitted == have, (
        "the latents of every stream that occurs are standardised, and of no other"
    )


def test_a_second_call_trains_nothing_and_reads_no_shard_again(tmp_path, short, monkeypatch):
    root = write_ixi(tmp_path / "root")
    train(
        short,
        tmp_path / "out",
        data=data_of("ixi", root, tmp_path / "out" / "work"),
        progress=False,
    )
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.f16")}
    assert before
    monkeypatch.setattr("medm2g_core.training.data.ShardDataset", None)
    monkeypatch.setattr("medm2g_core.training.run.run_stage", None)
    train(
        short,
        tmp_path / "out",
        data=data_of("ixi", root, tmp_path / "out" / "work"),
        progress=False,
    )
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.f16")} == before


def test_pictures_are_mapped_from_files_and_are_those_of_the_shards(tmp_path):
    data = data_of("brats2020", write_brats2020(tmp_path / "root"), tmp_path / "work")
    studies = list(read_shards(data.shards, "train"))
    corpora = data.corpora("train")
    assert {c.streams for c in corpora} == {s.streams for s in studies} and len(corpora) == 2
    for corpus in corpora:
        own = [s for s in studies if s.streams == corpus.streams]
        assert len(corpus) == len(own) == corpus.weight and not corpus.has_text
        for name, images in corpus.images.items():
            assert torch.equal(images.float(), torch.stack([s.images[name] for s in own]))
    files = sorted((tmp_path / "work" / "studies_train").glob("*.f16"))
    assert sum(f.stat().st_size for f in files) == 2 * sum(
        x.numel() for c in corpora for x in c.images.values()
    )
    maps = Path("/proc/self/maps")
    if maps.is_file():  # Linux: torch holds the files themselves, not a copy of them
        assert all(str(f) in maps.read_text(encoding="utf-8") for f in files)


def test_shards_that_were_prepared_before_are_used_as_they_are(tmp_path):
    prepare_source(
        "ixi",
        write_ixi(tmp_path / "root"),
        tmp_path / "shards",
        size=32,
        workers=0,
        allow_missing=True,
    )
    data = SourceData("ixi", tmp_path / "shards", tmp_path / "work", 32)
    assert data.shards == tmp_path / "shards" and not (tmp_path / "work" / "shards").exists()
    assert sum(map(len, data.corpora("train"))) == data.manifest["studies"]["train"]
    with pytest.raises(SourceError, match="prepared with 32 pixels and the profile has 128"):
        SourceData("ixi", tmp_path / "shards", tmp_path / "work", 128)
    with pytest.raises(SourceError, match="holds shards of 'ixi', asked for was 'acdc'"):
        SourceData("acdc", tmp_path / "shards", tmp_path / "work", 32)
    with pytest.raises(SourceError, match="no such folder"):
        SourceData("ixi", tmp_path / "nothing", tmp_path / "work", 32)
    manifest = tmp_path / "shards" / "manifest.json"
    manifest.write_text(
        manifest.read_text(encoding="utf-8").replace('"complete": true', '"complete": false')
    )
    with pytest.raises(SourceError, match="interrupted; start it again"):
        SourceData("ixi", tmp_path / "shards", tmp_path / "work", 32)


def test_new_shards_replace_the_mapped_pictures(tmp_path):
    root = write_ixi(tmp_path / "root")
    few = data_of("ixi", root, tmp_path / "work", limit=3)
    n = sum(map(len, few.corpora("train")))
    index = tmp_path / "work" / "studies_train" / "index.json"
    plain = json.loads(index.read_text(encoding="utf-8"))
    index.write_text(json.dumps(plain | {"key": "of other shards", "groups": []}), encoding="utf-8")
    assert sum(map(len, data_of("ixi", root, tmp_path / "work", limit=3).corpora("train"))) == n


# ---- reports


def by_words(texts):
    return [len(t.split()) for t in texts]


def test_a_long_report_ends_after_the_last_whole_sentence_that_fits_else_word_else_letter():
    text = "One two. Three four five! Six 3.5 mm seven? Eight"
    assert shortened(text, by_words, 5) == "One two. Three four five!"
    assert shortened(text, by_words, 9) == "One two. Three four five! Six 3.5 mm seven?"
    assert shortened(text, by_words, 1) == "One"

    def by_letters(texts):
        return [len(t) for t in texts]

    assert shortened("abcdef", by_letters, 4) == "abcd"


def test_reports_that_are_too_long_end_earlier_and_are_counted(tmp_path, short, capsys):
    data = data_of("mimic_cxr", mimic_cxr(tmp_path / "root"), tmp_path / "work")
    (whole,) = [c for c in data.corpora("train") if c.has_text]
    long, endless = "Clear lungs. " + "No effusion was seen today. " * 60, "word " * 300
    whole.reports[0], whole.reports[1] = [long], [endless]
    data.fit(untrained(short))
    (fitted,) = [c for c in data.corpora("train") if c.has_text]
    first, second = fitted.reports[0][0], fitted.reports[1][0]
    assert (
        first.startswith("Clear lungs. No effusion")
        and first.endswith("today.")
        and len(first) < len(long)
    )
    assert second.endswith("word") and len(second) < len(endless)
    assert (
        data.original(first) == long and data.original(fitted.reports[2][0]) == fitted.reports[2][0]
    )
    assert all(fitted.images[n] is whole.images[n] for n in whole.images), (
        "the pictures were copied"
    )
    said = capsys.readouterr().out
    assert f"2 of {len(whole)} reports have more than 128 tokens" in said


def test_held_out_reports_are_each_used_once(tmp_path):
    data = data_of("iu_xray", write_iu_xray(tmp_path / "root"), tmp_path / "work")
    held_out = [r[0] for c in data.corpora("val") for r in c.reports if r]
    assert sorted(data.reports(100, 0, "val")) == sorted(held_out)
    assert len(data.reports(100, 0)) == 100 and data.reports(100, 0) == data.reports(
        100, 0
    ) != data.reports(100, 1)


# ---- rounds


def corpus(name: str, *streams: str, n: int = 3) -> Corpus:
    texts = [["Clear lungs."] for _ in range(n)] if "text" in streams else [[] for _ in range(n)]
    return Corpus("chest", {s: pictures(n).half() for s in streams if s != "text"}, texts, name)


def test_a_round_takes_what_trains_it_and_freezes_only_what_takes_part():
    corpora = [corpus("a", "text", "xray"), corpus("b", "ct", "mri_t2", n=5), corpus("c", "mri_t1")]
    first, second, third = (round_for(corpora, f"round{i}") for i in (1, 2, 3))
    assert first.trained == ("text", "xray") and [m.corpus for m in first.mixes] == ["a"]
    assert (
        second.trained == ("ct",)
        and second.frozen == ()
        and second.initialised_from == (("ct", "xray"),)
    )
    assert third.trained == ("mri",) and third.frozen == ("ct",)
    assert [(m.corpus, m.streams, m.weight) for m in third.mixes] == [
        ("b", ("ct", "mri_t2"), 5),
        ("c", ("mri_t1",), 3),
    ]
    assert round_for(corpora[2:], "round3").initialised_from == (), (
        "there is no trained CT flow to start from"
    )


# ---- starting from a
# trained model


def test_a_stage_can_start_from_a_trained_model_and_leaves_its_other_parts_alone(tmp_path, short):
    base = untrained(short, seed=3)
    base.save_pretrained(tmp_path / "base")
    data = data_of("ixi", write_ixi(tmp_path / "root"), tmp_path / "out" / "work")
    model = train(
        short,
        tmp_path / "out",
        stages=["round3"],
        data=data,
        start=tmp_path / "base",
        progress=False,
    )
    before, after = base.state_dict(), model.state_dict()
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved and all(k.startswith(("flows.mri.", "environments.mri.")) for k in moved)
    pairs = [(k, k.replace(".mri.", ".ct.", 1)) for k in moved]
    near = [(after[k] - before[k]).abs().sum() for k in moved]
    far = [
        (after[k] - before[of_ct]).abs().sum()
        for k, of_ct in pairs
        if of_ct in before and before[of_ct].shape == after[k].shape
    ]
    assert sum(near) < 0.5 * sum(far), "the trained flow was overwritten by that of CT"
    assert model.tokenizer.get_vocab() == base.tokenizer.get_vocab()
    assert (
        "smoke"
        in json.loads((tmp_path / "out" / "training.json").read_text(encoding="utf-8"))["start"]
    )
    other = short.replace(flow={"env_width": 16})
    with pytest.raises(CheckpointError, match="another configuration"):
        train(other, tmp_path / "other", data=data, start=tmp_path / "base", progress=False)
    assert set(PARTS) == {p.stem for p in (tmp_path / "out").glob("*.safetensors")}


def test_asking_only_for_what_the_data_lacks_is_an_error(tmp_path, short):
    data = data_of("ixi", write_ixi(tmp_path / "root"), tmp_path / "work")
    with pytest.raises(ValueError, match="nothing to train: round2: no stream of ct"):
        train(short, tmp_path / "out", stages=["round2"], data=data, progress=False)
    options = {"size": 32, "workers": 0, "allow_missing": True, "shares": (0, 0, 1)}
    prepare_source("ixi", tmp_path / "root", tmp_path / "test", **options)
    only_test = SourceData("ixi", tmp_path / "test", tmp_path / "test_work", 32)
    assert only_test.corpora("test") and not only_test.corpora("train")
    with pytest.raises(
        ValueError, match="nothing to train: image_codec: no study in the train split"
    ):
        train(short, tmp_path / "out", stages=["image_codec"], data=only_test, progress=False)


# ---- the
# command line


def test_the_command_trains_a_data_set_and_its_card_says_so(tmp_path, capsys):
    root = write_iu_xray(tmp_path / "root")
    words = (
        f"train --profile smoke --source iu_xray --root {root} --allow-missing --workers 0"
        " --device cpu"
    )
    words += f" --out {tmp_path / 'out'} --export {tmp_path / 'card'} --precision fp32"
    steps = [f"stages.{s}.steps=2" for s in STAGES]
    assert main([*words.split(), "--set", *steps]) == 0
    card = (tmp_path / "card" / "README.md").read_text(encoding="utf-8")
    assert (
        "trained on the data set" in card
        and "license: other" in card
        and "round2: no stream of ct" in card
    )
    assert "virtual" not in card and "MNI152" not in card and str(tmp_path) not in card
    assert "--source iu_xray --root DIR" in card and "round3 is left out" in capsys.readouterr().out


def test_a_folder_keeps_to_the_data_that_it_was_trained_on(tmp_path, short, monkeypatch, capsys):
    data = data_of("ixi", write_ixi(tmp_path / "root"), tmp_path / "out" / "work")
    train(short, tmp_path / "out", stages=["image_codec"], data=data, progress=False)
    with pytest.raises(
        CheckpointError,
        match=r"was trained on ixi, and now it would be virtual patients: .* --start",
    ):
        train(short, tmp_path / "out", stages=["text_codec"], progress=False)
    monkeypatch.chdir(tmp_path)
    words = (
        "train --profile smoke --stage image_codec --allow-missing --workers 0 --set"
        " stages.image_codec.steps=2"
    )
    assert main([*words.split(), "--source", "ixi", "--root", str(tmp_path / "root")]) == 0
    assert (tmp_path / "outputs" / "train-smoke-ixi" / "training.json").is_file(), (
        "not where virtual patients train"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--source ixi", "--source NAME and --root DIR belong together"),
        ("--root x", "--source NAME and --root DIR belong together"),
        ("--source ixi --root x --persons lung1", "use one of them"),
        ("--limit 3", "for real data sets"),
        ("--source nothing --root .", "unknown data set 'nothing'"),
    ],
)
def test_words_that_do_not_fit_together_are_explained(words, message, tmp_path, capsys):
    assert main([*f"train --profile smoke --out {tmp_path / 'out'}".split(), *words.split()]) == 2
    assert message in capsys.readouterr().err
