"""python -m tune_mnist: the command `tune-mnist`."""

import sys

from tune_mnist.cli.main import main

sys.exit(main())
