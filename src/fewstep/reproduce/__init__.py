"""Experiments of the papers, for any network: `fewstep reproduce` runs them."""
