"""Runs the core of the tests on each supported pair of Ray and Optuna, and reports each result.

make compat ARGS="-k resume"        (ARGS goes to pytest)

Each pair has its own environment in .venv/compat: its Ray and Optuna come first, then the packages of .venv,
so that torch is installed only once.
"""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from tune_mnist.tuning.versions import PAIRS

ROOT = Path(__file__).resolve().parents[2]
TESTS = {
    "tuning/test_versions": (),
    "tuning/test_search": (),
    "tuning/test_attempts": (),
    "tuning/test_run": (
        "the_console_is_quiet",
        "the_study_agrees_with_rays_own_files",
        "the_tables_agree_with_the_study",
        "a_run_can_be_loaded_again",
    ),
    "tuning/test_ends": (
        "a_diverged_trial_fails_at_once_and_the_search_continues",
        "sigterm_ends_the_search_in_order",
    ),
    "tuning/test_resume": (
        "a_killed_search_is_resumed_in_another_place_and_then_gets_more_trials",
        "a_lost_process_costs_at_most_what_was_not_saved",
    ),
    "tuning/test_watchdog": ("a_worker_that_is_killed_for_lack_of_memory_costs_one_attempt",),
    "report/test_analyse": (),
    "report/test_report": (),
    "cluster/test_cluster": (
        "a_ray_of_our_own_listens_on_loopback_and_is_joined_by_nobody[False]",
        "the_cluster_that_this_machine_belongs_to_is_used_while_it_lives",
    ),
}
"""The core: names of tests by file; none means all."""


def make_environment(ray: str, optuna: str) -> str:
    """Make the environment of a pair, or complete it; return its Python."""
    folder = Path(sys.prefix) / "compat" / f"ray-{ray}-optuna-{optuna}"
    python = str(folder / "bin" / "python")
    if not Path(python).exists():
        venv.create(folder, symlinks=True)
    (own,) = folder.glob("lib/python*/site-packages")
    (own / "venv.pth").write_text(sysconfig.get_path("purelib"))
    # This is .venv's pip, which treats .venv's packages as another environment's and leaves them alone.
    pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-compile"]
    subprocess.run([*pip, f"ray[default,tune]=={ray}", f"optuna=={optuna}"], check=True)
    return python


def run_tests(ray: str, optuna: str, flags: list[str]) -> tuple[str, int]:
    """Run the tests on a pair; return pytest's last line and the exit code."""
    python, last = make_environment(ray, optuna), ""
    imported = "import ray, optuna; print(ray.__version__, optuna.__version__)"
    found = subprocess.run([python, "-c", imported], capture_output=True, text=True, check=True).stdout
    assert found.split() == [ray, optuna], f"{found.strip()} are imported"
    tests = [f"tests/{file}.py{name and f'::test_{name}'}" for file in TESTS for name in TESTS[file] or ("",)]
    command = [python, "-m", "pytest", "-v", *flags, *tests]  # dots would appear only line by line
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for last in process.stdout or ():
            print(last, end="", flush=True)
    return last.strip("= \n"), process.returncode


def main() -> int:
    """Test every pair, even after a failed one."""
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
