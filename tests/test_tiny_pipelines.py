"""The tiny pipelines are what other tests take them for: whole, repeatable, and sensitive to what they are told."""

import pytest
import torch

from tests import tiny_pipelines

# diffusers and transformers warn about their own old spellings.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", tiny_pipelines.NAMES)
def test_runs_repeat_and_depend_on_seed_steps_and_condition(name: str) -> None:
    tiny = tiny_pipelines.build(name)
    shapes: list[tuple[int, ...]] = []
    step = tiny.pipe.scheduler.step
    tiny.pipe.scheduler.step = lambda out, t, x, **kw: (shapes.append(tuple(x.shape)), step(out, t, x, **kw))[1]
    try:
        first = tiny.run(2)
    finally:
        del tiny.pipe.scheduler.step
    assert shapes[0] == tiny.shape
    assert first.isfinite().all() and first.std() > 0.1
    assert torch.equal(first, tiny.run(2))
    other = {"class_labels": [1]} if name == "dit" else {"prompt": "a photo of a dog"}
    for changed in (tiny.run(2, seed=1), tiny.run(3), tiny.run(2, **other)):
        assert (changed - first).abs().max() > 1e-4


def test_weights_depend_on_the_name_alone() -> None:
    torch.manual_seed(3)
    again = tiny_pipelines.fresh("sd")
    state = tiny_pipelines.build("sd").network.state_dict()
    assert all(torch.equal(state[k], v) for k, v in again.network.state_dict().items())


def test_experts_of_wan_2_2_share_the_run() -> None:
    tiny = tiny_pipelines.build("wan-2.2")
    calls = {"transformer": 0, "transformer_2": 0}
    hooks = [
        getattr(tiny.pipe, name).register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
        for name in calls
    ]
    tiny.run(4)
    for hook in hooks:
        hook.remove()
    assert min(calls.values()) > 0
