"""The search strategies: determinism, the surrogate's rank correlation, and what happens when it knows nothing."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fewstep import noise as ns
from fewstep import solvers, times
from fewstep.errors import ArgumentError
from fewstep.proposals import Proposal, Trial
from fewstep.search.s3 import Guidance, proposer
from fewstep.search.s3.crossover import draw
from fewstep.search.s3.features import features
from fewstep.search.s3.guided import _wins
from fewstep.search.s3.initial import initial
from fewstep.search.s3.mixture import ENDS, Mixture
from fewstep.search.s3.process import ProcessModel
from fewstep.search.s3.rates import Rates
from fewstep.search.s3.surrogate import Ensemble, Training, kendall, normalised, rank_correlation

QUICK = Guidance(generations=4, children=40, kept=20)


def strategy(name, nfes=(5,), limit=10, **options):
    problem = Mixture(nfes)
    return problem, proposer(name, noise=problem.noise, nfes=nfes, seed=7, ends=ENDS, limit=limit, **options)


def finish(problem, proposals, first=0):
    out = []
    for k, p in enumerate(proposals):
        nfe = p.schedule.tabulate(problem.noise).nfe
        out.append(Trial(first + k, p, nfe, "", {256: problem(p.schedule)}))
    return out


def drive(problem, search, sizes):
    trials, reports = [], []
    for k, count in enumerate(sizes):
        reports.append(search.learn(trials))
        trials += finish(problem, search.propose(trials, count, k), len(trials))
    return trials, reports


@pytest.fixture(scope="module")
def scored():
    """120 random schedules of three numbers of calls with their scores."""
    problem = Mixture((4, 5, 6))
    rng = np.random.default_rng(3)
    g = draw(problem.space, Rates(), rng.choice((4, 5, 6), 120), rng)
    return problem, features(problem.space, g), problem.scores(g)


def test_mixture_is_exact_and_both_ways_to_a_score_agree():
    problem = Mixture((5,))
    fine = solvers.adams_bashforth(times.logsnr(problem.noise, 400, end=1e-4), order=4)
    assert problem.score(fine) < 2e-4  # what is left is the last time, not 0
    rng = np.random.default_rng(0)
    g = draw(problem.space, Rates(), np.full(5, 5), rng)
    for row, quick in enumerate(problem.scores(g)):
        assert math.isclose(problem.score(problem.space.decode(g, row)), quick, rel_tol=1e-9)
        assert problem(problem.space.decode(g, row)) == pytest.approx(quick, rel=1e-9)
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)[:, None]
    alpha, sigma = (np.array([[float(f(0.4))]]) for f in (problem.noise.alpha, problem.noise.sigma))
    gap = problem.problem.denoise(x, 0.4)[:, 0].numpy() - problem.denoise(x[:, 0].numpy()[None], alpha, sigma)[0]
    assert np.abs(gap).max() < 1e-12
    fresh = Mixture((5,), fresh=True)
    assert len(fresh.start) == 4000 and problem.score(fine) != fresh.score(fine)


def test_initial_population_is_published_solvers_with_the_right_calls():
    problem = Mixture((4, 6))
    found = initial(problem.space, 72)
    assert len(found) == 144
    assert all(p.stage == 0 for p in found)
    for p in found[::7]:
        assert p.schedule.tabulate(problem.noise).nfe in (4, 6)
    names = {p.origin.split(" on ")[0] for p in found}
    assert {"dpmpp_2m", "unipc_2_bh1_noise", "ddim", "deis_tab_3", "ipndm_4", "dpm_solver_2"} <= names
    assert any("first step zero" in p.origin for p in found)


@pytest.mark.parametrize(
    ("name", "options"),
    [("evolution", {}), ("random", {}), ("random", {"mode": "uniform"}), ("s3", {"guidance": QUICK})],
)  # fmt: skip
def test_strategies_are_functions_of_what_they_are_told(name, options):
    problem, search = strategy(name, **options)
    trials, _ = drive(problem, search, (4, 6, 8, 8))
    assert [t.proposal.stage for t in trials[:10]] == [0] * 10
    assert min(t.proposal.stage for t in trials[10:]) >= 1
    assert all(t.nfe == 5 for t in trials)
    schedules = [t.proposal.schedule for t in trials]
    assert len({str(s.to_dict()) for s in schedules}) == len(trials)
    _, other = strategy(name, **options)
    other.learn(trials)
    search.learn(trials)
    running = [Trial(len(trials) + k, p, 5, "") for k, p in enumerate(search.propose(trials, 3, 11))]
    one, two = (s.propose([*trials, *running], 5, 12) for s in (search, other))
    assert [p.schedule for p in one] == [p.schedule for p in two] and len(one) == 5
    assert not {str(p.schedule.to_dict()) for p in one} & {str(t.proposal.schedule.to_dict()) for t in running}


def test_one_search_serves_a_range_of_calls():
    problem, search = strategy("s3", nfes=(4, 6), guidance=QUICK)
    trials, reports = drive(problem, search, (20, 12, 12))
    assert {t.nfe for t in trials} == {4, 6}
    assert reports[-1]["tau"] > 0.3 and reports[-1]["trials"] >= 24
    guided = [t for t in trials if t.proposal.predicted is not None]
    assert guided and {t.nfe for t in guided} == {4, 6}


def test_surrogates_rank_held_out_trials_and_nothing_where_labels_are_shuffled(scored):
    _, known, scores = scored
    quick = Training(members=3, hidden=16, head=24, epochs=60)
    rng = np.random.default_rng(0)
    shuffled = scores.copy()
    for n in (4, 5, 6):
        rows = np.flatnonzero(known.nfe == n)
        shuffled[rows] = scores[rng.permutation(rows)]
    process, blind = ProcessModel(known, scores), ProcessModel(known, shuffled)
    assert process.tau > 0.55 and abs(blind.tau) < 0.2
    sequence, lost = Ensemble(known, scores, quick), Ensemble(known, shuffled, quick)
    assert sequence.tau > 0.4 and abs(lost.tau) < 0.2
    mean, spread = sequence.predict(known)
    assert mean.shape == spread.shape == (120,) and (spread > 0).any()


def test_held_out_predictions_are_those_of_a_process_without_the_fold(scored):
    _, known, scores = scored
    whole = ProcessModel(known, scores)
    points = whole.process.points
    values = normalised(scores, known.nfe)
    from fewstep.search.surrogate import _matern

    kernel = _matern(points, points)
    noise = whole.process.root @ whole.process.root.T - kernel
    for k in range(5):
        left, rest = np.flatnonzero(whole.fold == k), np.flatnonzero(whole.fold != k)
        target = (values[rest] - whole.process.mean) / whole.process.scale
        weights = np.linalg.solve((kernel + noise)[np.ix_(rest, rest)], target)
        wanted = whole.process.mean + whole.process.scale * kernel[np.ix_(left, rest)] @ weights
        assert np.abs(wanted - whole.unseen[left]).max() < 1e-6


def test_rank_correlation_and_normalisation():
    from scipy.stats import kendalltau

    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 9, 40).astype(float), rng.integers(0, 9, 40).astype(float)
    assert abs(kendall(one, two) - kendalltau(one, two).statistic) < 1e-12
    assert kendall(np.ones(5), np.arange(5.0)) == 0
    nfe = np.repeat([4, 9], 20)
    scores = np.concatenate([rng.lognormal(0, 1, 20), 1e-4 * rng.lognormal(0, 1, 20)])
    values = normalised(scores, nfe)
    assert abs(np.median(values[:20])) < 1e-9 and abs(np.median(values[20:])) < 1e-9
    scores[3] = math.inf
    assert normalised(scores, nfe)[3] == normalised(scores, nfe)[:20].max()
    assert rank_correlation(-values, values, nfe) == -1
    assert np.isfinite(normalised(np.array([-1.0, 0.0, math.inf]), np.full(3, 4))).all()


def test_a_surrogate_that_knows_nothing_is_not_followed():
    problem, search = strategy("s3", guidance=QUICK, limit=36)
    trials = finish(problem, search.propose([], 36, 0))
    scores = np.random.default_rng(1).permutation([t.scores[256] for t in trials])
    blind = [replace(t, scores={256: s}) for t, s in zip(trials, scores, strict=True)]
    report = search.learn(blind)
    assert report["tau"] < 0.35
    assert report["share"] < 0.8
    losing = trials + [
        Trial(36 + k, Proposal(t.proposal.schedule, origin, 1), 5, "", {256: score})
        for k, (t, origin, score) in enumerate(
            [(t, "guided", 9.0) for t in trials[:8]] + [(t, "bred of 1", 1e-3) for t in trials[8:20]]
        )
    ]
    archive = search.reader.read(losing)
    assert _wins(archive) == 0.0
    assert search.learn(losing)["share"] == 0.0
    following = search.propose(losing, 6, 3)
    assert len(following) == 6 and not any(p.origin.startswith("guided") for p in following)


def test_options_may_be_plain_data():
    record = {"generations": 4, "children": 40, "kept": 20, "training": {"epochs": 3}}
    plain = {"rates": {"cross": 0.1}, "guidance": record}
    _, search = strategy("s3", **plain)
    assert search.rates.cross == 0.1 and search.rates.time == 0.3
    assert search.guidance == replace(QUICK, training=Training(epochs=3))


def test_infinite_and_failed_trials_are_survived():
    problem, search = strategy("s3", guidance=QUICK, limit=14)
    trials = finish(problem, search.propose([], 14, 0))
    trials[2] = replace(trials[2], scores={256: math.inf})
    trials[3] = replace(trials[3], scores={})
    assert search.learn(trials)["trials"] < 14
    assert len(search.propose(trials, 6, 1)) == 6
    assert search.learn(trials[:5]) == {}
    with pytest.raises(ArgumentError, match="proposer"):
        strategy("annealing")
    with pytest.raises(ArgumentError, match="unknown options"):
        strategy("evolution", guidance=QUICK)
    with pytest.raises(ArgumentError, match="surrogate"):
        Guidance(surrogate="oracle")
    with pytest.raises(ArgumentError, match="mode"):
        strategy("random", mode="walk")


def test_parzen_estimator_proposes_valid_schedules():
    pytest.importorskip("optuna")
    problem, search = strategy("tpe", limit=12)
    trials, _ = drive(problem, search, (12, 4))
    assert len(trials) == 16 and {t.nfe for t in trials} == {5}
    assert any(t.proposal.origin == "Parzen estimator" for t in trials)
    assert all(math.isfinite(t.scores[256]) for t in trials)


def test_networks_noise_and_a_clean_end():
    search = proposer("s3", noise=ns.EDM(), nfes=(5, 8), seed=0, clean=True, limit=8)
    first = search.propose([], 16, 0)
    assert len(first) == 16 and all(float(p.schedule.times[-1]) == 0.0 for p in first)
    assert {p.schedule.tabulate(ns.EDM()).nfe for p in first} == {5, 8}
