"""Learning a table by gradient: spaces (parameters to tables), objectives, and the descent.

A method is a sentence: a space of `fewstep.search.gradient.space`, an objective of `.objectives`, a descent of `.fit`;
`.recipes` has the published ones.
"""
