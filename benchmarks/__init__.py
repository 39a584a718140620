"""Benchmarks behind the figures of the documentation; each is one command, `python -m benchmarks.NAME`."""
