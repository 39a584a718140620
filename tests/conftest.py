"""What every test runs under: one thread, untouched torch defaults, warnings as errors (pyproject)."""

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test downloads anything, whatever it imports

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def torch_defaults() -> Iterator[None]:
    """A test may change torch's defaults on purpose; neither it nor the code it runs may leave them changed."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    deterministic, grad = torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled()
    yield
    left = (torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled())
    torch.set_default_dtype(dtype)
    torch.set_default_device(None)  # any device, the CPU too, would send every later torch call through Python
    torch.set_grad_enabled(grad)
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # to set it anew imports the compiler
        torch.use_deterministic_algorithms(deterministic)
    assert left == (dtype, device, grad), f"the test left torch's defaults changed: {left}"
