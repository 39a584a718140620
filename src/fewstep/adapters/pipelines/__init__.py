"""diffusers' pipelines as networks: a table of families, one short adapter each; see `build.from_diffusers`."""
