"""The hosts of hosts.sh in Python, and what they need on the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from filelock import FileLock

HOSTS_SH = Path(__file__).with_name("hosts.sh")
PACKAGES = {"ip": "iproute2", "sshd": "openssh-server", "ssh": "openssh-client", "rsync": "rsync"}
"""The Debian package of each program that the hosts need and that a small image may not have."""


class Lab:
    """Hosts h0, h1, ... and a client, cli, that share a folder; see hosts.sh."""

    def __init__(self, folder: Path, *, show: Iterable[Path], environment: dict[str, str]) -> None:
        """Set the folder of all state, the folders that hosts must see, and what a login there exports."""
        self.folder, self.shared = folder, folder / "shared"
        self.shared.mkdir(parents=True)
        self.environment = {
            **os.environ,
            "LAB_DIR": str(folder),
            "LAB_PREFIX": f"lab{os.getpid()}",
            "LAB_OWNER": str(os.getpid()),
            "LAB_SHOW": " ".join(str(path) for path in (self.shared, *show)),
            "LAB_ENV": " ".join(f"{name}={value}" for name, value in environment.items()),
        }

    def up(self, hosts: int) -> None:
        self._hosts_sh("up", str(hosts))

    def down(self) -> None:
        self._hosts_sh("down")

    def home(self, host: str) -> Path:
        """Return a host's /root as seen from here."""
        return self.folder / host / "root"

    def start(self, host: str, command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(HOSTS_SH), "exec", host, command],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, host: str, command: str, *, timeout: float = 120) -> str:
        """Run a command on a host and return its output; if it fails, raise AssertionError with that."""
        process = self.start(host, command)
        out, _ = process.communicate(timeout=timeout)
        assert process.returncode == 0, f"exit code {process.returncode} on {host}: {command}\n{out}"
        return out

    def cut_power(self, host: str) -> None:
        self._hosts_sh("kill", host)

    def power_on(self, host: str) -> None:
        self._hosts_sh("start", host)

    def cut_link(self, host: str) -> None:
        self._hosts_sh("cut", host)

    def mend_link(self, host: str) -> None:
        self._hosts_sh("mend", host)

    def _hosts_sh(self, *arguments: str) -> None:
        command = [str(HOSTS_SH), *arguments]
        subprocess.run(command, env=self.environment, stdin=subprocess.DEVNULL, timeout=30, check=True)


def what_is_missing() -> str | None:
    """Return why hosts cannot run here; if CI is set, first install what is missing."""
    if os.geteuid() != 0:
        return "hosts in namespaces need root"
    if os.environ.get("CI"):
        install_packages()
    if packages := _missing_packages():
        return f"not installed: {' '.join(packages)}"
    namespaces = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--uts", "--ipc", "true"]
    done = subprocess.run(namespaces, capture_output=True, text=True, check=False)
    return f"no namespaces here: {done.stderr.strip()}" if done.returncode else None


def install_packages(wanted: Mapping[str, str] = PACKAGES) -> None:
    """Install Debian's packages of the programs that are missing, waiting for another apt to end.

    Args:
        wanted: package by program.
    """
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with FileLock("/tmp/tune-mnist-packages.lock"):
        if packages := _missing_packages(wanted):
            apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120"]
            for step in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
                subprocess.run([*apt, *step], env=environment, timeout=200, check=True)


def _missing_packages(wanted: Mapping[str, str] = PACKAGES) -> list[str]:
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    return [package for program, package in wanted.items() if shutil.which(program, path=path) is None]
