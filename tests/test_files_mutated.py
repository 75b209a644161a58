"""Mutated files of every format load or are refused in a sentence; none ends in a foreign error."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from mutations import IMAGES, TEXTS, Case, attempt, mutated, whole_files

EACH = {"image": 100, "text": 60}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    return whole_files(tmp_path_factory.mktemp("whole"))


def test_control_the_whole_files_are_read(cases: dict[str, Case]) -> None:
    assert list(cases) == [*IMAGES, *TEXTS]
    assert {name: attempt(c, c.whole) for name, c in cases.items()} == dict.fromkeys(cases, "read")


@pytest.mark.parametrize("name", [*IMAGES, *TEXTS])
def test_mutated_files_load_or_are_refused(cases: dict[str, Case], name: str) -> None:
    case, count = cases[name], EACH["image" if name in IMAGES else "text"]
    rng = np.random.default_rng(0)
    outcomes = Counter(attempt(case, mutated(case.whole, rng)) for _ in range(count))
    case.path.write_bytes(case.whole)
    failures = set(outcomes) - {"read", "refused"}
    assert not failures, sorted(failures)[:5]
    if name in IMAGES:  # of a table a damaged row may be left out and counted
        assert outcomes["refused"] > count // 5, "the mutations do some harm"
