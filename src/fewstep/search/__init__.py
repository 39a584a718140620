"""Finding a better table: DMN's network-free bound, AYS on a Gram matrix, and the scoring that chooses between them.

Everything here receives the network as a `Denoiser` and the judge as a callable; it imports neither the metrics nor the
report. `fewstep.optimize` joins them.
"""
