"""Our named solvers against other people's samplers, row by row.

Every `sample_*` of k-diffusion and every scheduler class of diffusers stands in exactly one list below: equal to ours,
a peer's bug (its size asserted), no counterpart (with the reason), or not a table (its defect asserted). The tables are
committed (tests/golden, written by tools/make_golden.py) and read again live wherever the host can be imported.
"""

from __future__ import annotations

import math
from importlib.util import find_spec

import pytest
import torch

from fewstep import noise, solvers
from fewstep.errors import NotATable
from fewstep.probe import probe

from .golden import (
    Golden,
    cases_diffusers,
    from_record,
    hosts,
    load,
    names,
    ours_diffusers,
    ours_k_diffusion,
    ours_reference,
    store,
)
from .golden.compare import gap

EXACT, FLOAT32 = 1e-9, 1e-6
"""Relative to the row's largest entry: where the host runs in float64, and where it runs in float32."""

FLOAT32_LEVELS = {"kdpm2", "kdpm2_ancestral", "helios unipc", "lcm"}
"""Cases whose middle levels or times are float32 numbers made from float32 numbers; lcm mixes in 1e-7 of its state."""

GITS = [80.0, 10.9836, 3.8811, 1.584, 0.5666, 0.1698, 0.002]

# ------------------------------------------------------------------------------------------------- k-diffusion

K_EQUAL = {
    "sample_euler", "sample_euler_ancestral", "sample_heun", "sample_dpm_2", "sample_dpm_2_ancestral", "sample_lms",
    "sample_dpm_fast", "sample_dpmpp_2s_ancestral", "sample_dpmpp_sde", "sample_dpmpp_2m", "sample_dpmpp_2m_sde",
    "sample_dpmpp_3m_sde",
}  # fmt: skip
K_NOT_A_TABLE = {"sample_dpm_adaptive"}  # it chooses its steps by a norm of what the network answers

# --------------------------------------------------------------------------------------------------- diffusers

EQUAL = {cases_diffusers.CASES[case].scheduler for case in ours_diffusers.EQUAL} - {"IPNDMScheduler"}
BUGS = {
    "IPNDMScheduler": "from its default start, pure noise, the first step forgets the network's answer",
    "DDPMWuerstchenScheduler": "ends at sigma = 0.01 but leaves out the noise of its last step",
}
NO_COUNTERPART = {
    "AmusedScheduler": "discrete tokens",
    "BlockRefinementScheduler": "discrete tokens",
    "DiscreteDDIMScheduler": "discrete tokens",
    "EntropyBoundScheduler": "discrete tokens",
    "VQDiffusionScheduler": "discrete tokens",
    "CMStochasticIterativeScheduler": "a consistency function; its noise stops short of sigma by sigma_min",
    "ConsistencyDecoderScheduler": "a consistency function with its own skip and output weights, two fixed steps",
    "DDIMInverseScheduler": "runs from clean to noisy",
    "DPMSolverMultistepInverseScheduler": "runs from clean to noisy",
    "HeliosDMDScheduler": "renoises with the pipeline's own stage tensors",
    "PiflowScheduler": "the network answers with a policy over a grid, not with one x0",
    "RFD4ProteinaScheduler": "low-temperature flow: it rescales the score, so that neither identity is meant to hold",
    "RePaintScheduler": "needs an image and a mask to edit the state with",
    "ScoreSdeVpScheduler": "Euler-Maruyama with equal steps of a schedule it steps beyond; nobody should use it",
}
NOT_A_TABLE = {"ScoreSdeVeScheduler": "its corrector's step is a ratio of norms"}

QUIRKS = {
    "dpm_sde", "dpm_sde v", "dpm_multistep sde-dpmsolver++ 3", "ddim trailing 7", "euler churn", "edm_euler churn",
    "ipndm", "ddpm_wuerstchen", "pndm", "ddpm large", "cm", "score_sde_vp",
}  # fmt: skip
"""Cases with a test of their own below."""
OTHER_RULE = {
    "helios unipc pure": "from alpha = 0 our corrector is lowered by a written rule; theirs takes the limit 1/2 of bh2",
    **{
        f"sa {basis} {order} 1": "a corrector of the new output alone"
        for basis in ("data", "noise")
        for order in (1, 2)
    },
}


def tolerance(golden: Golden) -> float:
    case = golden.name.split("/", 1)[1]
    exact = golden.rounding < 1e-9 and not case.endswith("float32") and case not in FLOAT32_LEVELS
    return EXACT if exact else FLOAT32


def test_every_k_diffusion_sampler_is_in_one_list() -> None:
    sampling = hosts.k_diffusion_sampling() if find_spec("k_diffusion") else None
    roster = hosts.k_diffusion_roster(sampling) if sampling else store.roster("k_diffusion")
    assert sorted([*K_EQUAL, *K_NOT_A_TABLE]) == sorted(roster)
    assert {load(name).sampler for name in names("k_diffusion")} == K_EQUAL


def test_every_diffusers_scheduler_is_in_one_list() -> None:
    roster = hosts.diffusers_roster() if find_spec("diffusers") else store.roster("diffusers")
    assert sorted([*EQUAL, *BUGS, *NO_COUNTERPART, *NOT_A_TABLE]) == sorted(roster)
    assert sorted(store.roster("diffusers")) == sorted(roster)
    cases = {name.split("/", 1)[1] for name in names("diffusers")}
    assert cases == set(cases_diffusers.CASES)
    assert cases == set(ours_diffusers.EQUAL) | QUIRKS | set(OTHER_RULE)


@pytest.mark.parametrize("name", names("k_diffusion"))
def test_equal_to_k_diffusion(name: str) -> None:
    golden = load(name)
    case = name.split("/", 1)[1]
    found = gap(golden, ours_k_diffusion.ours(case, golden))
    assert found.weights.max() < EXACT and found.times < EXACT
    if case.rsplit(" ", 1)[0] in ours_k_diffusion.BROWNIAN:
        # Their two draws of a step are correlated; ours are independent, and every state has the same noise level.
        assert found.variance < EXACT < 0.1 < found.covariance
    else:
        assert found.noise < EXACT


@pytest.mark.parametrize("case", sorted(set(ours_diffusers.EQUAL) - QUIRKS))
def test_equal_to_diffusers(case: str) -> None:
    golden, tableau = ours_diffusers.EQUAL[case](load(f"diffusers/{case}"))
    found = gap(golden, tableau)
    assert found.worst < tolerance(golden), found
    assert found.times < tolerance(golden)


@pytest.mark.parametrize("case", ["dpm_sde", "dpm_sde v"])
def test_dpm_sde_is_equal_but_for_the_correlation_of_its_draws(case: str) -> None:
    golden, tableau = ours_diffusers.EQUAL[case](load(f"diffusers/{case}"))
    found = gap(golden, tableau)
    assert found.weights.max() < EXACT and found.variance < EXACT
    assert found.covariance == pytest.approx(0.71, abs=0.01)


# -------------------------------------------------------------------------------- the authors' own implementations

R_UNEQUAL = {
    *(f"diff_sampler ipndm_v {order} gits" for order in (3, 4)), "diff_sampler ipndm_v 4 equal",
    *(f"diff_sampler deis tab {order} gits" for order in (2, 3)),
    *(f"er_sde {kind} {order}" for kind in ("ve", "vp") for order in (2, 3)),
}  # fmt: skip
"""Their bugs and crude sums: each has a test below."""
R_NO_COUNTERPART = {f"uni_pc vary_coeff {kind} {order}" for kind in ("data", "noise") for order in (2, 3)}
"""UniPC's third variant, whose coefficient matrix is not one of Taylor's: only bh1 and bh2 are in use."""


@pytest.mark.parametrize("case", [n.split("/", 1)[1] for n in names("reference")])
def test_equal_to_the_authors_code(case: str) -> None:
    if case in R_UNEQUAL | R_NO_COUNTERPART:
        assert f"reference/{case}" in names("reference")
        return
    golden = load(f"reference/{case}").exploding()
    found = gap(golden, ours_reference.ours(case, golden))
    assert found.worst < EXACT and found.times < EXACT


def step_weights(outputs: torch.Tensor, levels: torch.Tensor, row: int) -> torch.Tensor:
    """Weights w of a step's noises, newest first: `dx = dsigma sum_j w_j (x_j - D_j) / sigma_j`."""
    noises = (outputs[:row, :row] - torch.eye(row, dtype=torch.float64)) / levels[:row, None]
    moved = (outputs[row, :row] - outputs[row - 1, :row]) / (levels[row] - levels[row - 1])
    return torch.linalg.solve(noises.T, moved).flip(0)


def test_ipndm_v_of_diff_sampler_is_wrong_from_order_3() -> None:
    """Precedence and sign slips (their lines 460 to 476): with equal steps order 4 has [57, -65, 43, -11] / 24."""
    golden = load("reference/diff_sampler ipndm_v 3 gits")
    third = step_weights(golden.outputs, golden.ratio, 3)
    assert third.tolist() == pytest.approx([1.660, -0.711, 0.051], abs=1e-3)
    ours = solvers.adams_bashforth(torch.tensor(GITS, dtype=torch.float64), order=3).tabulate(noise.EDM())
    exact = step_weights(ours.unrolled().B, golden.ratio, 3)
    assert exact.tolist() == pytest.approx([1.18005294, -0.18194055, 0.00188761], abs=1e-7)
    for name, weights in (("ipndm_v 4 equal", [57, -65, 43, -11]), ("ipndm 4 equal", [55, -59, 37, -9])):
        golden = load(f"reference/diff_sampler {name}")
        assert (24 * step_weights(golden.outputs, golden.ratio, 4)).tolist() == pytest.approx(weights, abs=1e-9)


@pytest.mark.parametrize("order", [2, 3])
def test_deis_tab_of_diff_sampler_is_a_riemann_sum(order: int) -> None:
    """10,000 points, both ends counted: weights off by 1e-5 and more. Its fitted beta is negative near time 0, too."""
    golden = load(f"reference/diff_sampler deis tab {order} gits")
    low, high = math.log1p(0.002**2), math.log1p(80.0**2)
    slope = 2 * (low / 1e-3 - high) / (1e-3 - 1)
    least = high - slope / 2
    assert least == pytest.approx(-0.0046, abs=1e-3)
    row = order  # the first step of full order
    lengths = golden.ratio.square().log1p()
    time = ((least**2 + 2 * slope * lengths).sqrt() - least) / slope
    # int L_j(time(rho)) drho by the midpoint rule in time, finely.
    n = 200_000
    ts = time[row - 1] + (time[row] - time[row - 1]) * (torch.arange(n, dtype=torch.float64) + 0.5) / n
    rho = (0.5 * slope * ts**2 + least * ts).expm1().sqrt()
    measure = (slope * ts + least) * (rho**2 + 1) / (2 * rho) * (time[row] - time[row - 1]) / n
    support = [row - 1 - k for k in range(order)]
    exact = torch.stack([
        (measure * math.prod([(ts - time[k]) / (time[j] - time[k]) for k in support if k != j])).sum() for j in support
    ]) / (golden.ratio[row] - golden.ratio[row - 1])  # fmt: skip
    error = (step_weights(golden.outputs, golden.ratio, row)[:order] - exact).abs().max().item()
    assert exact.sum() == pytest.approx(1.0, abs=1e-9)
    assert 5e-6 < error < 1e-4


@pytest.mark.parametrize("kind", ["ve", "vp"])
@pytest.mark.parametrize(("order", "size"), [(2, 4.5e-3), (3, 7.3e-3)])
def test_er_sde_sums_its_integrals_over_a_hundred_points(kind: str, order: int, size: float) -> None:
    golden = load(f"reference/er_sde {kind} {order}").exploding()
    found = gap(golden, ours_reference.ours(f"er_sde {kind} {order}", golden))
    assert found.noise < EXACT and found.weights.max() == pytest.approx(size, rel=0.05)


def test_diff_sampler_thresholds_whether_asked_or_not() -> None:
    """Its DPM-Solver++ in the data basis clips by a quantile always, so that it is not a table."""
    refused = store.roster("refused")
    assert len(refused) == 4 and all(line.startswith("diff_sampler dpm_pp data") for line in refused)
    assert all(float(line.rsplit(" ", 1)[1]) > 0.5 for line in refused)


# -------------------------------------------------------------------------------- what is wrong, and by how much


def identities(golden: Golden) -> tuple[torch.Tensor, torch.Tensor]:
    """Defects of the mean and the variance of every row."""
    alpha, sigma = golden.levels.unbind(1)
    mean = golden.start * alpha[0] + golden.outputs.sum(1) - alpha
    return mean, (golden.start * sigma[0]) ** 2 + (golden.noise**2).sum(1) - sigma**2


@pytest.mark.parametrize(("case", "left"), [("euler churn", 0.0542), ("edm_euler churn", 0.0279)])
def test_churn_of_diffusers_comes_after_the_network_call(case: str, left: float) -> None:
    """So the network sees a state without the noise that it is then asked to remove; the sample keeps some of it."""
    golden = load(f"diffusers/{case}")
    assert golden.start[0] == 1 and (golden.noise[0] == 0).all()
    _, variance = identities(golden)
    assert golden.levels[-1, 1] == 0 and variance[-1].sqrt() == pytest.approx(left, abs=1e-3)
    right = solvers.euler(golden.ratio, churn=2.5).tabulate(noise.EDM(1e-4, 100.0))
    assert max(d.abs().max().item() for d in right.defects()) < 1e-9


def test_sde_dpmpp_3_of_diffusers_has_a_sign_wrong() -> None:
    """Its second-derivative term has -1/2 where k-diffusion and the expansion have +1/2: off by a whole difference."""
    golden, ours = ours_diffusers.EQUAL["dpm_multistep sde-dpmsolver++ 3"](
        load("diffusers/dpm_multistep sde-dpmsolver++ 3")
    )
    found = gap(golden, ours)
    assert found.weights[:3].max() < FLOAT32  # rows of order 1 and 2
    assert found.weights.max() == pytest.approx(1.155, abs=0.01)
    lam = -golden.ratio.log()
    h, h0, h1 = (lam[i + 1] - lam[i] for i in (2, 1, 0))
    r0, r1 = h0 / h, h1 / h
    second = torch.stack([1 / r1, -1 / r0 - 1 / r1, 1 / r0]) / (r0 + r1)  # D2 on outputs 0, 1, 2
    theirs = golden.outputs[3, :3] - golden.outputs[3, :3].new_tensor(ours.unrolled().B[3, :3].tolist())
    assert (theirs + second).abs().max() < 1e-5


def test_ipndm_of_diffusers_forgets_its_first_output() -> None:
    golden = load("diffusers/ipndm")
    assert (golden.outputs[:, 0][1:2] == 0).all()  # it divides 0 by max(alpha, 1e-8)
    mean, _ = identities(golden)
    assert mean[1] == pytest.approx(-golden.levels[1, 0].item(), abs=1e-6)  # all of x0 is missing: 0.31
    assert golden.levels[1, 0] == pytest.approx(0.3108, abs=1e-3)


def test_wuerstchen_leaves_out_its_last_noise() -> None:
    golden = load("diffusers/ddpm_wuerstchen").exploding()
    found = gap(golden, solvers.ddpm(golden.ratio).tabulate(noise.EDM(1e-4, 1e3)))
    assert found.weights.max() < EXACT
    _, variance = identities(golden)
    assert variance[:-1].abs().max() < 1e-10 and variance[-1] == pytest.approx(-1e-4, rel=0.01)


def test_pndm_of_diffusers_takes_its_stages_one_index_beside_the_network() -> None:
    """Its Runge-Kutta stages step to timestep - 41 of 83 and tell the network - 42; without these it is equal."""
    mean, variance = identities(load("diffusers/pndm"))
    assert mean.abs().max() == pytest.approx(8.4e-4, rel=0.05) and variance.abs().max() == pytest.approx(
        5.2e-4, rel=0.05
    )
    assert max(d.abs().max().item() for d in identities(load("diffusers/pndm plms"))) < 1e-9


def test_ddim_of_diffusers_steps_beside_its_own_timesteps() -> None:
    """It goes to t - 1000 // 7; with trailing spacing the network is then told the next timestep, one index away."""
    golden, tableau = ours_diffusers.ve(solvers.ddim)(load("diffusers/ddim trailing 7"))
    assert gap(golden, tableau).weights.max() == pytest.approx(9.0e-3, rel=0.05)
    assert identities(golden)[0].abs().max() > 1e-3


def test_large_ddpm_variance_is_a_choice_that_adds_noise() -> None:
    _, variance = identities(load("diffusers/ddpm large"))
    assert variance[1:-1].min() > 0.03 and variance.max() == pytest.approx(0.178, abs=0.001)


def test_consistency_and_score_schedulers_are_off_by_this_much() -> None:
    mean, variance = identities(load("diffusers/cm"))
    assert mean.abs().max() < EXACT and variance[1:-1].tolist() == pytest.approx([-(0.002**2)] * 6, rel=1e-4)
    mean, variance = identities(load("diffusers/score_sde_vp"))
    assert mean.abs().max() > 10 and variance[1] > 2


def test_unipc_correctors_from_pure_noise_differ_by_a_rule() -> None:
    golden, tableau = ours_diffusers.flow(solvers.unipc, order=2)(load("diffusers/helios unipc pure"))
    found = gap(golden, tableau)
    assert found.weights[:2].max() < FLOAT32 < 0.05 < found.weights.max() < 0.1
    assert max(d.abs().max().item() for d in tableau.defects()) < 1e-9


# --------------------------------------------------------------------------------------------------------- live

live_diffusers = pytest.mark.skipif(
    find_spec("diffusers") is None, reason="diffusers is not installed: pip install 'fewstep[dev]'"
)


def agree(golden: Golden, again: Golden) -> None:
    scale = golden.outputs.abs().amax(1).maximum(golden.start.abs()).clamp_min(1e-30)[:, None]
    assert golden.noise.shape == again.noise.shape and golden.told.tolist() == pytest.approx(again.told.tolist())
    for a, b in (
        (golden.start[:, None], again.start[:, None]),
        (golden.outputs, again.outputs),
        (golden.noise, again.noise),
    ):
        assert a.numel() == 0 or ((a - b).abs() / scale).max() < tolerance(golden)


@live_diffusers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", cases_diffusers.CASES)
def test_diffusers_is_as_recorded(case: str) -> None:
    scheduler = cases_diffusers.CASES[case].scheduler
    if scheduler in ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler") and not find_spec("torchsde"):
        pytest.skip(f"diffusers has no {scheduler} without torchsde; its golden tables stand in")
    agree(load(f"diffusers/{case}"), from_record(f"diffusers/{case}", hosts.read_diffusers(case)))


@pytest.mark.skipif(
    find_spec("k_diffusion") is None,
    reason="k-diffusion is not installed (it cannot be beside this torch); its golden tables stand in",
)
@pytest.mark.parametrize("case", hosts.k_diffusion_cases())
def test_k_diffusion_is_as_recorded(case: str) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        again = hosts.read_k_diffusion(hosts.k_diffusion_sampling(), case)
    finally:
        torch.set_default_dtype(torch.float32)
    agree(load(f"k_diffusion/{case}"), from_record(case, again))


@live_diffusers
@pytest.mark.filterwarnings("ignore")
def test_the_norms_of_score_sde_ve_are_not_a_table() -> None:
    import diffusers

    def host(script):  # type: ignore[no-untyped-def]
        own = diffusers.ScoreSdeVeScheduler()
        own.set_timesteps(3)
        own.set_sigmas(3)
        state = script.start()
        for i, t in enumerate(own.timesteps):
            sigma = float(own.sigmas[i])
            score = (script.output(state, float(t), 1.0, sigma) - state) / sigma**2
            state = own.step_correct(score, state, return_dict=False)[0]
        return state

    with pytest.raises(NotATable) as caught:
        probe(host)
    assert caught.value.defect > 0.05 and caught.value.row == 1


@live_diffusers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "config", "defect"),
    [
        ("DDIMScheduler", {"clip_sample": True}, 0.01),
        ("DDIMScheduler", {"thresholding": True, "clip_sample": False}, 0.01),
        ("DPMSolverMultistepScheduler", {"thresholding": True}, 0.01),
    ],
)
def test_thresholding_is_found(name: str, config: dict[str, object], defect: float) -> None:
    import diffusers

    from fewstep.adapters.diffusers import host

    with pytest.raises(NotATable, match="wrap them into the denoiser") as caught:
        probe(host(getattr(diffusers, name)(**config), 5))
    assert caught.value.defect > defect


@live_diffusers
@pytest.mark.filterwarnings("ignore")
def test_unipc_of_diffusers_is_0_by_0_in_two_settings() -> None:
    """bh1 onto sigma = 0 multiplies infinity by 0; Karras levels to sigma_min repeat the last one."""
    import diffusers

    from fewstep.adapters.diffusers import host

    karras = {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}
    for config in ({"solver_type": "bh1"}, {**karras, "solver_order": 3, "lower_order_final": False}):
        with pytest.raises(NotATable) as caught:
            probe(host(diffusers.UniPCMultistepScheduler(**config), 5))
        assert math.isinf(caught.value.defect)
    repeated = diffusers.UniPCMultistepScheduler(**karras)
    repeated.set_timesteps(5)
    assert repeated.sigmas[-1] == repeated.sigmas[-2]
