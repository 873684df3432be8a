"""Measurements of this repository: `python -m benchmarks` (`make bench`) for docs/performance.md, and single ones.

plan       which cells there are
measuring  how each is measured, in a process of its own
results    what was found, one line of JSON a cell
figures    what is promised, beside what was found
page       tables of docs/performance.md
plots      its pictures
"""
