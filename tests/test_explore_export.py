"""What the explorer writes: files that other programs accept, and records and code that make the
drawing again."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import threading
import zipfile
from pathlib import Path
from typing import Any

import pydicom
import pytest
import torch
from explore_helpers import SENTENCE, SIZE, body_ct, patient, quiet

from medm2g_core.data.export import write_stream
from medm2g_core.data.files import read_stream
from medm2g_core.explore.drawing import Drawn, Settings, draw
from medm2g_core.explore.export import bundle, code, draw_again, record
from medm2g_core.explore.given import Given, from_file, from_patient, from_upload, typed
from medm2g_core.model import MedM2G
from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.streams import StreamError


def _same(a: Any, b: Any) -> bool:
    return all(
        torch.equal(a[n], b[n]) if isinstance(a[n], torch.Tensor) else a[n] == b[n] for n in a
    )


@pytest.fixture
def ct_file(tmp_path: Path) -> Path:
    return write_stream(body_ct(), "ct", tmp_path / "mine", formats=["nifti"])[0]


def _asked(**more: Any) -> Settings:
    return Settings(**{"want": ("xray", "text"), "seed": 5, "steps": 2, "draws": 2} | more)


@pytest.mark.parametrize("kind", ["typed", "file", "upload", "nothing"])
def test_a_record_makes_the_drawing_again_bit_by_bit(
    model: MedM2G, ct_file: Path, kind: str
) -> None:
    given: dict[str, list[Given]] = {
        "typed": [typed(SENTENCE + ' "quoted"\nand a second line')],
        "file": [from_file(ct_file, "ct", SIZE)],
        "upload": [from_upload([ct_file.read_bytes()], "ct", SIZE)],
        "nothing": [],
    }
    want = ("xray",) if kind == "typed" else ("xray", "text")
    drawn = draw(quiet(model), given[kind], _asked(want=want, guide_guidance=1.5))
    written = json.loads(json.dumps(record(drawn, quiet(model))))
    if kind == "upload":
        ct_file.unlink()
    assert _same(drawn.streams, draw_again(quiet(model), written).streams)


def test_a_file_that_changed_is_noticed(model: MedM2G, ct_file: Path) -> None:
    drawn = draw(quiet(model), [from_file(ct_file, "ct", SIZE)], _asked())
    written = record(drawn, quiet(model))
    write_stream(body_ct().flip(-1), "ct", ct_file.parent / "mine", formats=["nifti"])
    with pytest.raises(StreamError, match="changed"):
        draw_again(quiet(model), written)


def test_other_weights_are_refused(model: MedM2G) -> None:
    asked = _asked(want=("xray",))
    written = record(draw(quiet(model), [typed(SENTENCE)], asked), quiet(model))
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    with pytest.raises(StreamError, match="other weights"):
        draw_again(quiet(model), written)


@pytest.mark.parametrize("order", ["joint", "cascade"])
def test_the_code_makes_the_drawing_again_bit_by_bit(
    model: MedM2G, ct_file: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    monkeypatch.setattr(MedM2GPipeline, "from_pretrained", classmethod(lambda cls: quiet(model)))
    given = [typed(SENTENCE + ' It\'s "small".'), from_file(ct_file, "ct", SIZE)]
    drawn = draw(quiet(model), given, _asked(want=("xray", "mri_t1"), order=order))
    names: dict[str, Any] = {}
    exec(code(drawn, SIZE), names)
    assert _same(drawn.streams, names["out"].streams)


def test_the_code_of_a_patient_and_of_nothing_is_python(model: MedM2G) -> None:
    given = [from_patient(patient(), n, SIZE) for n in ("ct", "text")]
    drawn = draw(quiet(model), given, _asked(want=("xray",)))
    words = code(drawn, SIZE)
    compile(words, "again.py", "exec")
    assert words.count("VirtualCohort('test', 'chest', 1, 0, 32)[0]") == 1
    compile(code(draw(quiet(model), [], _asked(steps=1)), SIZE), "again.py", "exec")


@pytest.fixture(scope="module")
def uploaded(_model: MedM2G, tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    (path,) = write_stream(
        body_ct(), "ct", tmp_path_factory.mktemp("DOE") / "mine", formats="nifti"
    )
    given = [from_upload([path.read_bytes()], "ct", SIZE)]
    return draw(quiet(_model), given, _asked(want=("mri_t1", "xray", "text"), draws=1))


@pytest.fixture(scope="module")
def unpacked(_model: MedM2G, uploaded: Drawn, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    data = bundle(uploaded, quiet(_model), ("png", "nifti", "dicom", "film"))
    zipfile.ZipFile(io.BytesIO(data)).extractall(folder)
    return folder


def test_the_bundle_holds_every_format_and_reads_back(uploaded: Drawn, unpacked: Path) -> None:
    names = {p.name for p in unpacked.iterdir()}
    assert names >= {"xray.png", "xray.nii.gz", "xray.dcm", "film.gif", "text.txt", "again.py"}
    for ending in (".png", ".nii.gz", ".dcm"):
        back = read_stream(unpacked / f"mri_t1{ending}", "mri_t1", size=SIZE).image
        torch.testing.assert_close(back, uploaded.images()["mri_t1"][0], atol=5e-3, rtol=0)


def test_no_name_and_no_path_of_an_upload_is_written(unpacked: Path) -> None:
    for path in unpacked.iterdir():
        content = path.read_bytes()
        assert b"mine" not in content and b"DOE" not in content and b"/tmp" not in content
    assert "SYNTHETIC - NOT FOR DIAGNOSIS" in (unpacked / "again.py").read_text()


def test_dicom_objects_have_new_identifiers_and_say_what_they_are(unpacked: Path) -> None:
    found = [pydicom.dcmread(unpacked / f"{n}.dcm") for n in ("xray", "mri_t1")]
    assert len({d.SOPInstanceUID for d in found}) == 2
    for d in found:
        assert "SYNTHETIC" in d.SeriesDescription and "NOT FOR DIAGNOSIS" in str(d.PatientName)


@pytest.mark.parametrize("tool", ["dcmdump", "dciodvfy"])
def test_other_programs_accept_the_dicom_objects(unpacked: Path, tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed (Debian: dcmtk and dicom3tools)")
    for path in sorted(unpacked.glob("*.dcm")):
        done = subprocess.run([tool, str(path)], capture_output=True, text=True)
        said = done.stdout + done.stderr
        assert done.returncode == 0 and "Error" not in said and "E: " not in said, said


def test_a_cancelled_drawing_and_an_unknown_format_are_refused(
    model: MedM2G, uploaded: Drawn
) -> None:
    stop = threading.Event()
    stop.set()
    half = draw(quiet(model), [], _asked(), stop=stop)
    with pytest.raises(ValueError, match="cancelled"):
        bundle(half, quiet(model))
    with pytest.raises(ValueError, match="unknown format"):
        bundle(uploaded, quiet(model), ("jpeg",))
