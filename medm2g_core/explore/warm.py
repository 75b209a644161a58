"""One warm process for many users: it loads the model once and becomes a kernel by forking.

A kernel that starts cold imports the libraries and loads the weights, for every user anew. A fork
of a process that has done so is there at once, and its memory is the parent's as long as nobody
writes to it, so that there is one model however many users there are.
Each user still has a process: nothing of one can reach another, and one that fails fails alone.

The parent runs one thread only and never opens Jupyter's sockets; what it loads before it forks is
loaded for all. Forking needs Unix; elsewhere `medm2g_core.explore.app` starts cold kernels.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import signal
import socket
import threading
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from medm2g_core.explore.app import LIMIT, LINE, MODEL, READY, TITLE
from medm2g_core.explore.drawing import Settings, draw
from medm2g_core.explore.folder_line import FolderLine
from medm2g_core.explore.given import typed
from medm2g_core.explore.panel import ExplorerPanel
from medm2g_core.explore.words import EXAMPLES
from medm2g_core.model import CheckpointError
from medm2g_core.pipeline import MedM2GPipeline

if TYPE_CHECKING:
    import ipywidgets

__all__ = ["pipeline", "serve", "user_panel"]

HEAD = f"""<h1 style="font:bold 20px sans-serif;margin:6px 0">{TITLE}</h1>
<p style="font:13px/1.45 sans-serif;margin:0;max-width:640px">Give words, a virtual patient or a
scan of yours; choose what is wanted; press Draw. What you upload is read on the machine that runs
this page, and deleted. Everything drawn is invented: never use it for diagnosis.</p>"""
"""Above the panel."""

BACKLOG = 32  # users who open the page in the same moment


@cache
def pipeline() -> MedM2GPipeline:
    """The one model of this process; of its parent, after a fork.

    Raises:
        FileNotFoundError: no weights in the folder.
    """
    torch.set_num_threads(1)  # faster for such small networks, and no threads to lose in a fork
    return MedM2GPipeline.from_pretrained(os.environ.get(MODEL) or None)


def user_panel() -> ipywidgets.Widget:
    """A new explorer for one user of the app: the whole page."""
    folder, limit = os.environ.get(LINE), int(os.environ.get(LIMIT, "12"))
    panel = ExplorerPanel(
        pipeline(),
        line=FolderLine(Path(folder), limit) if folder else None,
        words=EXAMPLES["large left effusion"],
        paths=False,  # those of the machine that serves are not the user's
    )
    return panel.c.w.VBox([panel.c.w.HTML(HEAD), panel.widget])


def _watch(user: socket.socket) -> None:
    """End this kernel when `medm2g_core.explore.knock` is gone, which never writes again."""
    with contextlib.suppress(OSError):
        user.recv(1)
    os._exit(0)


def _become_kernel(user: socket.socket, connection_file: str) -> None:
    from ipykernel.kernelapp import IPKernelApp

    os.setsid()  # Ctrl-C in the terminal is for the server, which ends its kernels itself
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    threading.Thread(target=_watch, args=(user,), daemon=True).start()
    IPKernelApp.launch_instance(
        ["-f", connection_file, "--HistoryManager.enabled=False", "--log-level=ERROR"]
    )


def _warm_up() -> None:
    """Load and use whatever a first drawing needs, so that forks have it."""
    import ipykernel.kernelapp  # noqa: F401

    asked = Settings(want=("xray", "ct"), steps=1)
    draw(pipeline(), [typed(EXAMPLES["normal chest"])], asked)


def serve(address: str) -> None:
    """Load the model, say `READY`, and fork a kernel for whoever asks, until ended.

    Args:
        address: of the Unix socket to listen at; only this user of the machine may knock.
    """
    _warm_up()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended kernels need no funeral
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(address)
        os.chmod(address, 0o600)
        door.listen(BACKLOG)
        gc.collect()
        gc.freeze()  # the collector would write to every page, and so copy it
        print(READY, flush=True)
        while True:
            user, _ = door.accept()
            connection_file = user.makefile("rb").readline().decode().strip()
            if not connection_file:
                user.close()
                continue
            if os.fork() == 0:
                door.close()
                user.sendall(f"{os.getpid()}\n".encode())
                try:
                    _become_kernel(user, connection_file)
                finally:
                    os._exit(0)  # never back into the loop above
            user.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address")
    try:
        serve(parser.parse_args().address)
    except (CheckpointError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None
