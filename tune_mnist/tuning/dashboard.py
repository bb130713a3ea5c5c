"""Shows a run in a browser: commands for that, and optuna-dashboard as a child process of a search.

python -m tune_mnist.tuning.dashboard runs/NAME/study.journal      command of the child; it prints its port
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from tune_mnist.run.folder import RunFolder
from tune_mnist.run.journal import JOURNAL
from tune_mnist.run.words import short_path

HOST = "127.0.0.1"
"""Only this machine gets in, because whoever does can change the study."""
EXTRA = "pip install 'tune-mnist[dashboard]'"
"""Installs the programs that the commands call."""


def ways_to_watch(folder: RunFolder) -> list[str]:
    """Return up to three lines: where a run is, and commands to show its study and learning curves.

    For a run in a bucket, the study is shown from the driver's working copy, which exists while the search
    runs; TensorBoard has its own way to read buckets, so its command is left out.
    """
    run_dir = short_path(folder.local)
    lines = [
        f"Run folder: {folder.uri if folder.remote else run_dir}",
        command("optuna-dashboard", str(run_dir / JOURNAL)),
    ]
    return lines if folder.remote else [*lines, command("tensorboard", "--logdir", str(run_dir))]


def command(program: str, *arguments: str, install: str = EXTRA, known: bool = True) -> str:
    """Return a command with the program installed next to Python, otherwise with how to install it.

    How to install it is also shown for a program that exists but is not ``known`` to have what is needed.
    """
    path = Path(sys.executable).with_name(program)
    if known and path.exists():
        return f"  {shlex.join([str(short_path(path)), *arguments])}"
    return f"  {shlex.join([program, *arguments])}     ({install})"


def check_installed() -> None:
    """Check that optuna-dashboard is installed.

    Raises:
        ValueError: if it is not.
    """
    if importlib.util.find_spec("optuna_dashboard") is None:
        raise ValueError(
            f"open_dashboard is True, but must be left out: optuna-dashboard is not installed ({EXTRA})"
        )


@contextmanager
def served(journal: Path) -> Iterator[str | None]:
    """Serve a study for a block.

    The child reads from a pipe that only this process holds open: when this process ends, even by kill -9,
    the pipe closes and the child ends.

    Yields:
        Its address; None if it could not be started.
    """
    command = [sys.executable, "-m", "tune_mnist.tuning.dashboard", str(journal)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # Ctrl-C is for the search, which ends cleanly
    ) as child:
        try:
            assert child.stdout is not None
            port = child.stdout.readline().strip()
            yield f"http://{HOST}:{port}" if port else None
        finally:
            child.terminate()


def open_browser(url: str) -> None:
    """Open a page in the user's browser, if there is a graphical one."""
    windows = sys.platform in ("darwin", "win32")
    if windows or any(os.environ.get(name) for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")):
        threading.Thread(target=_open, args=(url,), daemon=True).start()  # some block


def _open(url: str) -> None:
    with suppress(OSError, webbrowser.Error):
        webbrowser.open(url)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def main() -> None:
    """Serve the study in the journal that the command line names, until standard input ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import optuna_dashboard
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    page = optuna_dashboard.wsgi(JournalStorage(JournalFileBackend(sys.argv[1])))
    with make_server(HOST, 0, page, server_class=_Server, handler_class=_Quiet) as server:
        print(server.server_port, flush=True)
        server.serve_forever()


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
