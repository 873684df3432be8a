"""The experiments of docs/experiments.md; every module but the first three named here is a command.

`virtual` runs jobs without processes or a network, `trials` spreads runs over the cores, `report` writes what came out.
"""
