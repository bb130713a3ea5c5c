"""Runs the core of the tests on each pair of Ray and Optuna that is supported, and says how each one did.

make compat ARGS="-k resume"        (ARGS goes to pytest)

Each pair has an environment of its own in .venv/compat: its Ray and its Optuna come first, then the packages
of .venv, so that torch is installed once.
"""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from tune_mnist.versions import PAIRS

ROOT = Path(__file__).resolve().parents[2]
# The search with its states, kill and resume, the report, and a running cluster that is joined.
TESTS = ("versions", "search", "attempts", "run", "resume", "analyse", "report", "cluster")


def make_environment(ray: str, optuna: str) -> str:
    """Make the environment of a pair, or complete it; give its Python."""
    folder = Path(sys.prefix) / "compat" / f"ray-{ray}-optuna-{optuna}"
    python = str(folder / "bin" / "python")
    if not Path(python).exists():
        venv.create(folder, symlinks=True)
    (own,) = folder.glob("lib/python*/site-packages")
    (own / "venv.pth").write_text(sysconfig.get_path("purelib"))
    # The pip is that of .venv, whose packages it sees as another environment's, and leaves alone.
    pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-compile"]
    subprocess.run([*pip, f"ray[default,tune]=={ray}", f"optuna=={optuna}"], check=True)
    return python


def run_tests(ray: str, optuna: str, flags: list[str]) -> tuple[str, int]:
    """Run the tests on a pair; give the last line of pytest's and the exit code."""
    python, last = make_environment(ray, optuna), ""
    imported = "import ray, optuna; print(ray.__version__, optuna.__version__)"
    found = subprocess.run([python, "-c", imported], capture_output=True, text=True, check=True).stdout
    assert found.split() == [ray, optuna], f"{found.strip()} are imported"
    tests = [f"tests/test_{name}.py" for name in TESTS]
    command = [python, "-m", "pytest", *flags, *tests]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for last in process.stdout or ():
            print(last, end="", flush=True)
    return last.strip("= \n"), process.returncode


def main() -> int:
    """Test every pair, also after one that failed."""
    rows, failed = [], False
    for ray, optuna in PAIRS:
        print(f"Ray {ray}, Optuna {optuna}", flush=True)
        try:
            said, code = run_tests(ray, optuna, sys.argv[1:])
        except (subprocess.CalledProcessError, AssertionError) as error:
            said, code = str(error), 1
        failed |= code != 0
        rows.append(f"Ray {ray:8} Optuna {optuna:7} {'FAILED' if code else 'passed'}  {said}")
    print("", *rows, sep="\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
