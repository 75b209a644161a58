"""The app says what is wrong before it starts; the rest is tested in a browser."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from medm2g_core.explore import app


def test_a_port_that_is_taken_is_not_exchanged_in_silence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit, match=rf"port {port}: .*choose another: --port"):
            app.main(["--no-browser", "--port", str(port)])


@pytest.mark.parametrize("given", [["--port", "99999"], ["--ip", "203.0.113.7"]])
def test_an_address_that_nobody_has_is_refused(given: list[str]) -> None:
    with pytest.raises(SystemExit, match="the app cannot listen at"):
        app.main(["--no-browser", *given])


def test_a_line_for_nobody_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        app.main(["--no-browser", "--limit", "0"])
    assert "needed 1 or more" in capsys.readouterr().err


def test_a_folder_without_weights_is_said_in_a_sentence(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "medm2g_core.explore.warm", str(tmp_path / "door")],
        env={app.MODEL: str(tmp_path)} | {"PYTHONPATH": str(Path(app.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1 and "holds no model" in ended.stderr
    assert "Traceback" not in ended.stderr
