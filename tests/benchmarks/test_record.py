"""The recording of learning curves: a few small trainings, in threads of this process."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from benchmarks import record, refine, repeats
from benchmarks.record import EPOCHS, FIRST_REFINED, TABLE
from benchmarks.surrogate import optimum
from tune_mnist.mnist.spaces import WIDE


class Program:
    """Runs one of the programs, all on the same table."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, table: Path, mnist_dir: Path) -> None:
        monkeypatch.setattr(record, "ProcessPoolExecutor", ThreadPoolExecutor)
        monkeypatch.setattr(record, "VAL_SIZE", 200)
        monkeypatch.setattr(record, "_splits", None)  # and so restores it afterwards
        quick = partial(optimum, steps=2)
        monkeypatch.setattr(refine, "optimum", lambda model, draws, seed: quick(model, 200, seed=seed))
        self.monkeypatch = monkeypatch
        self.flags = ["--data-dir", str(mnist_dir), "--train-size", "64", "--processes", "1"]
        self.flags += ["--table", str(table)]

    def run(self, program: ModuleType, *flags: str) -> None:
        self.monkeypatch.setattr("sys.argv", [program.__name__, *self.flags, *flags])
        program.main()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "curves.parquet"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, table: Path, mnist_dir: Path) -> Program:
    return Program(monkeypatch, table, mnist_dir)


def test_what_is_recorded_is_kept_repeated_and_refined(
    program: Program, table: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program.run(record, "--configurations", "2")
    two = pd.read_parquet(table)
    assert two[["configuration", "epoch"]].to_numpy().tolist() == [
        [number, epoch] for number in (0, 1) for epoch in range(1, EPOCHS + 1)
    ]
    assert two["accuracy"].nunique() > EPOCHS
    for number, params in two.groupby("configuration")[list(WIDE)].first().iterrows():
        assert dict(params) == record.draw(int(str(number)))

    program.run(record, "--configurations", "3")
    three = pd.read_parquet(table)
    pd.testing.assert_frame_equal(three[: len(two)], two)
    assert "1/1 configuration 2: " in capfd.readouterr().out  # the others were not trained again

    program.run(repeats)
    again = pd.read_parquet(table.with_name("repeats.parquet"))
    curves = again.pivot(index="seed", columns="epoch", values="accuracy")
    assert list(curves.index) == [0, 1_000_000, 1_000_001] and set(again["configuration"]) == {0}
    assert list(curves.loc[0]) == list(two["accuracy"][:EPOCHS])
    assert curves.drop_duplicates().shape == (3, EPOCHS)

    program.run(refine, "--rounds", "1")
    refined = pd.read_parquet(table)
    pd.testing.assert_frame_equal(refined[: len(three)], three)
    assert set(refined["configuration"]) == {0, 1, 2, FIRST_REFINED, FIRST_REFINED + 1}
    for row in refined[len(three) :].to_dict("records"):
        assert all(space._contains(space.to_internal_repr(row[name])) for name, space in WIDE.items())


@pytest.mark.parametrize(
    ("module", "flags", "said"),
    [
        (record, ["--configurations", "0"], "--configurations is 0, but must be 1 to 1,000"),
        (record, ["--table", str(TABLE)], "--train-size is 64, but must be 10000 for curves.parquet"),
        (record, ["--processes", "0"], "--processes is 0, but must be 1 to 1,000"),
        (repeats, ["--train-size", "60000"], "--train-size is 60000, but must be 1 to 55,000"),
        (refine, ["--rounds", "-1"], "--rounds is -1, but must be 1 to 1,000"),
        (repeats, [], "which does not exist: python -m benchmarks.record makes one"),
        (refine, ["--table", __file__], "test_record.py, but must be recorded curves: "),
        (record, ["--data-dir", __file__], "test_record.py"),
    ],
)
def test_bad_input_is_one_line(
    module: ModuleType, flags: list[str], said: str, program: Program, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        program.run(module, *flags)
    assert ended.value.code == 2
    err = capfd.readouterr().err
    assert said in err and err.count("\n") == 1 and ": error: " in err
