"""Cached files: they serve one key, say when they are damaged, and are whole or not there."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from medm2g_core.storage import CacheFile, atomic_write, digest, tensor_digest

TENSORS = {"b": torch.arange(6.0).view(2, 3).T, "a": torch.tensor([True]), "e": torch.empty(0)}


@pytest.fixture(autouse=True)
def strict():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_a_digest_changes_with_every_value_and_name_and_not_with_their_order() -> None:
    one = digest(seed=1, settings={"a": 2, "b": [3, None]})
    assert one == digest(settings={"b": (3, None), "a": 2}, seed=1) and len(one) == 16
    others = (
        digest(seed=2, settings={"a": 2, "b": [3, None]}),
        digest(seed=1, settings={"a": 2, "b": [None, 3]}),
        digest(start=1, settings={"a": 2, "b": [3, None]}),
    )
    assert len({one, *others}) == 4
    with pytest.raises(TypeError):
        digest(where=Path("x"))


def test_a_digest_of_tensors_changes_with_a_value_or_a_name() -> None:
    one = tensor_digest({"w": torch.ones(3), "b": torch.zeros(2)})
    assert one == tensor_digest({"b": torch.zeros(2), "w": torch.ones(3).requires_grad_()})
    assert one != tensor_digest({"w": torch.ones(3), "b": torch.tensor([0.0, 1e-6])})
    assert one != tensor_digest({"v": torch.ones(3), "b": torch.zeros(2)})


def test_json_returns_for_its_key_and_for_no_other(tmp_path: Path) -> None:
    file = CacheFile(tmp_path / "new" / "scores.json", "k1")
    assert file.load_json() is None
    file.save_json({"rows": [1.5, "ü"], "none": None})
    assert file.load_json() == {"rows": [1.5, "ü"], "none": None}
    assert CacheFile(file.path, "k2").load_json() is None
    file.delete()
    file.delete()
    assert file.load_json() is None


def test_tensors_and_facts_return_for_their_key_and_for_no_other(tmp_path: Path) -> None:
    file = CacheFile(tmp_path / "w.safetensors", "k1")
    assert file.load_tensors() is None
    file.save_tensors(TENSORS, {"steps": 3, "who": ["a"]})
    tensors, facts = file.load_tensors()
    assert facts == {"steps": 3, "who": ["a"]} and tensors.keys() == TENSORS.keys()
    for name, x in TENSORS.items():
        assert torch.equal(tensors[name], x) and tensors[name].dtype == x.dtype
    assert CacheFile(file.path, "k2").load_tensors() is None


def test_equal_contents_give_equal_files(tmp_path: Path) -> None:
    def written(name: str, facts: dict) -> bytes:
        CacheFile(tmp_path / name, "k").save_tensors(TENSORS, facts)
        return (tmp_path / name).read_bytes()

    facts = {str(i): i for i in range(20)}
    assert written("a", facts) == written("b", dict(reversed(facts.items())))


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[1]", b"\xff\xfe\x00", b"nothing of the kind", b"half"]
)
def test_a_damaged_file_is_said_and_made_anew(tmp_path: Path, damage: bytes) -> None:
    scores, weights = (
        CacheFile(tmp_path / "s.json", "k"),
        CacheFile(tmp_path / "w.safetensors", "k"),
    )
    scores.save_json([1, 2])
    weights.save_tensors(TENSORS)
    for file, load in ((scores, scores.load_json), (weights, weights.load_tensors)):
        whole = file.path.read_bytes()
        file.path.write_bytes(whole[: len(whole) // 2] if damage == b"half" else damage)
        with pytest.warns(UserWarning, match=f"{file.path.name} is damaged .* made anew"):
            assert load() is None
    scores.save_json([3])
    weights.save_tensors(TENSORS)
    assert scores.load_json() == [3] and weights.load_tensors() is not None


def test_a_file_of_another_program_counts_as_damaged(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    with pytest.warns(UserWarning, match="damaged"):
        assert CacheFile(tmp_path / "w.safetensors", "k").load_tensors() is None


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    atomic_write(tmp_path / "f", lambda p: p.write_text("whole"))
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "f", fail)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["whole"]
