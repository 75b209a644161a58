"""Leave one person out: nobody's own model sees him, and every study is answered by both kinds of
model."""

from __future__ import annotations

import numpy as np
import torch

from medm2g_core.data.chest.atlas import PERSONS
from medm2g_core.experiments import unseen
from medm2g_core.experiments.unseen import SEEN, UNSEEN, UnseenBudget, person_table, unseen_person
from medm2g_core.judges.files import load_judges

TINY = UnseenBudget(alignment=1, round1=1, round2=1, round3=1, train=12, test=12)


def test_each_person_is_left_out_once_and_trainings_are_kept(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "weights")
    given: dict[str, set[str]] = {}
    train, corpus_of = unseen._train, unseen.corpus_of
    last: dict[str, set[str]] = {}

    def watch_corpus(cohort, index):
        last["persons"] = {cohort[i].person for i in index}
        return corpus_of(cohort, index)

    def watch_training(base, corpus, work, *rest):
        given[work.name] = last["persons"]
        return train(base, corpus, work, *rest)

    monkeypatch.setattr(unseen, "corpus_of", watch_corpus)
    monkeypatch.setattr(unseen, "_train", watch_training)
    judges = {("chest", "xray"): _Judge()}
    outcome = unseen_person(
        tmp_path / "weights",
        tmp_path / "out",
        judges,
        budget=TINY,
        precision="fp32",
        progress=False,
    )
    assert set(given) == set(PERSONS)
    for person, seen in given.items():
        assert person not in seen and seen == set(PERSONS) - {person}
    who = {r.who for r in outcome.rows if r.metric == "PSNR, dB"}
    assert who == {UNSEEN, SEEN}
    assert all(np.isfinite(r.value) for r in outcome.rows if "PSNR" in r.metric)
    table = person_table(outcome)
    assert (
        "| CT → MR T2-weighted (chest) | PSNR, dB | 12 |" in table
        and "another patient" not in table
    )
    assert set(outcome.facts["CPU seconds"]) == set(PERSONS)
    assert all(
        set(s) == {"alignment", "round1", "round2", "round3"}
        for s in outcome.facts["CPU seconds"].values()
    )
    given.clear()
    again = unseen_person(
        tmp_path / "weights",
        tmp_path / "out",
        judges,
        budget=TINY,
        precision="fp32",
        progress=False,
    )
    assert not given and again.rows == outcome.rows  # nothing was trained twice
    other = UnseenBudget(**{**TINY.__dict__, "round1": 2})
    unseen_person(
        tmp_path / "weights",
        tmp_path / "out",
        judges,
        budget=other,
        precision="fp32",
        progress=False,
    )
    assert set(given) == set(PERSONS), "another budget is another training"


class _Judge:
    """A judge of any picture size: the shipped ones read 128 pixels."""

    def __init__(self) -> None:
        self._judge = load_judges()["chest", "xray"]
        self.labels, self.region, self.net = self._judge.labels, self._judge.region, self._judge.net

    def read(self, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        return self._judge.read(torch.nn.functional.interpolate(images, size=(128, 128)))
