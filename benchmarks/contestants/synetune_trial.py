"""One trial of Syne Tune: the script that its local backend starts in a separate process."""

from __future__ import annotations

from pathlib import Path

from syne_tune import Reporter

from benchmarks.contestants import common


def main() -> None:
    """Train one configuration."""
    parser = common.flags(__doc__)
    for name, kind in {"--lr": float, "--momentum": float, "--optimizer": str, "--epochs": int}.items():
        parser.add_argument(name, type=kind, required=True)
    parser.add_argument("--st_checkpoint_dir", type=Path)  # the backend's, TRIAL/checkpoints
    args = parser.parse_args()
    report = Reporter()
    for epoch, reached in common.train(args, vars(args), int(args.st_checkpoint_dir.parent.name)):
        report(epoch=epoch, accuracy=reached)


if __name__ == "__main__":
    main()
