"""Tests the whole GPU path in one command of under eight minutes: `python -m benchmarks.gpu`.

__main__.py   flags, and the files that remain at the end
plan.py       the steps, each with its purpose and limit
runner.py     runs steps in separate process groups, under one deadline; a row each
output.py     the folder of rows, logs and profile
table.py      the rows as a table
results.py    the rows as parquet
step.py       the process of a step: prints its figures as JSON lines
pack.sh       packs what a machine without a network needs

The other modules are the steps.
"""

from benchmarks.gpu.table import show as show
