"""The study: a search that survives. Trials in one SQLite file, workers in a pool, and the loop between them.

It knows solver schedules as decisions and a table by its digest; what proposes and what evaluates are given to it. See
`fewstep.searching` for the two joined.
"""
