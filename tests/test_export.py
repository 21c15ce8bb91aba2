"""Exports: identities between their parts, labels that are kept, and ArviZ of both majors at work on them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import pyro_vae as pv
from pyro_vae.errors import ConfigError, PairError
from tests.statistics import SIGMAS

ROOT = Path(__file__).parents[1]
ONE = ["arviz", "arviz-base", "arviz-stats", "arviz-plots", "lazy_loader"]


@pytest.fixture
def problem(float64):
    return pv.problems.linear_gaussian(W=[[1.0, 0.3], [0.5, -1.0], [0.0, 2.0]], scale=0.7)


@pytest.fixture
def x(problem):
    return problem.sample(20, seed=0)


def exported(problem, x, **options):
    return pv.to_datatree(problem.model, problem.guide(inflate=1.3), x, num_draws=200, **options)


def checked(path, folder):
    paths = os.pathsep.join([*map(str, path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "tests.arviz_checks", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_the_installed_arviz_works_on_an_export(tmp_path):
    assert checked([], tmp_path)


def test_arviz_1_works_on_an_export(tmp_path):
    place = tmp_path / "arviz"
    options = ["--quiet", "--no-deps", "--ignore-requires-python", "--disable-pip-version-check"]
    made = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", place, *ONE], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"ArviZ 1 cannot be installed here: {made.stderr[-200:]}")
    assert checked([place], tmp_path).startswith("1.")


def test_weights_are_the_difference_of_their_parts(problem, x):
    tree = exported(problem, x)
    stats = tree["sample_stats"]
    parts = stats["log_prior"] + tree["log_likelihood"]["x"] - stats["log_q"]
    np.testing.assert_allclose(stats["log_w"].values, parts.values, rtol=1e-12)
    assert stats["log_w"].dims == ("chain", "draw", "observation")
    assert (stats["ess"] <= 200).all()


def test_marginal_replicates_are_those_of_importance_sampling(problem, x):
    tree = exported(problem, x)
    log_w = torch.from_numpy(tree["sample_stats"]["log_w"].values[0])
    value, error = pv.weights.log_mean_exp(log_w), pv.weights.log_mean_exp_stderr(log_w)
    replicates = torch.from_numpy(tree["log_likelihood"]["marginal"].values[0])
    assert ((replicates.mean(0) - value).abs() < SIGMAS * error / 200**0.5 + error.square()).all()
    assert ((replicates.std(0) / error - 1).abs() < 0.3).all()


def test_draws_at_the_exact_posterior_weigh_log_p(problem, x):
    tree = pv.to_datatree(problem.model, problem.guide(), x, num_draws=7)
    np.testing.assert_allclose(tree["sample_stats"]["log_w"].values[0], problem.log_evidence(x).expand(7, 20).numpy())


def test_resampled_draws_count_the_same_and_are_of_the_posterior(problem, x):
    tree = pv.to_datatree(problem.model, problem.guide(shift=0.3, inflate=1.5), x, num_draws=4000, resampled=True)
    assert (tree["sample_stats"]["log_w"] == 0).all()
    z, q = torch.from_numpy(tree["posterior"]["z"].values[0]), problem.posterior(x)
    assert ((z.mean(0) - q.mean).abs() < 0.15 * q.stddev).all()
    rep = tree["posterior_predictive"]["x"].values[0]
    assert not (rep == x.numpy()).any()


def test_chains_of_a_refinement_stay_chains(problem, x):
    guide = problem.guide(inflate=1.3)
    chains = pv.refine(problem.model, guide, x, method="hmc", num_draws=80, num_chains=4, num_warmup=10)
    tree = pv.to_datatree(problem.model, guide, x, draws=chains, num_draws=50)
    assert dict(tree["posterior"]["z"].sizes)["chain"] == 4
    assert np.array_equal(tree["posterior"]["z"].values[1], chains.z["z"][20:40].numpy())
    assert tree["posterior"].attrs["draws"] == "hmc"
    with pytest.raises(ConfigError, match="a refinement of 20 datapoints, expected one of the 3"):
        pv.to_datatree(problem.model, guide, x[:3], draws=chains)


def test_labels_of_a_data_frame_are_kept(problem, x):
    frame = pd.DataFrame(x.numpy(), index=pd.Index([f"row {k}" for k in range(20)], name="wine"), columns=[*"abc"])
    tree = exported(problem, frame)
    assert tree["posterior"]["z"].dims == ("chain", "draw", "wine", "z_dim_0")
    assert tree["observed_data"]["x"].sel(wine="row 3", feature="b").item() == x[3, 1].item()
    assert [*tree["posterior_predictive"]["feature"].values] == [*"abc"]


def test_labels_of_a_data_array_are_kept(problem, x):
    array = xr.DataArray(x.numpy(), dims=("day", "sensor"), coords={"sensor": [10, 20, 30]})
    tree = exported(problem, array)
    assert tree["log_likelihood"]["x"].dims == ("chain", "draw", "day")
    assert [*tree["prior_predictive"]["sensor"].values] == [10, 20, 30]
    with pytest.raises(ConfigError, match="which are the draws' own"):
        exported(problem, array.rename(day="draw"))


def test_a_vae_an_image_and_several_latent_sites():
    vae = pv.presets.burda_two_layer_vae(data_shape=(2, 3))
    x = torch.bernoulli(torch.full((4, 2, 3), 0.5))
    tree = pv.to_datatree(vae, x, num_draws=5)
    assert {name: tree["posterior"][name].shape for name in ("z1", "z2")} == {"z1": (1, 5, 4, 100), "z2": (1, 5, 4, 50)}
    assert tree["observed_data"]["x"].dims == ("observation", "x_dim_0", "x_dim_1")
    assert tree["prior"]["z2"].shape == (1, 5, 50)
    pair = pv.to_datatree(vae.model, vae.guide, x, num_draws=5)
    assert np.array_equal(tree["posterior"]["z1"].values, pair["posterior"]["z1"].values)


def test_missing_entries_stay_missing(problem, x):
    pair = pv.Incomplete((problem.model, problem.guide()))
    holes = x.masked_fill(torch.rand(x.shape) < 0.3, torch.nan)
    tree = pv.to_datatree(pair, holes, num_draws=5)
    assert np.array_equal(tree["observed_data"]["x"].values, holes.numpy(), equal_nan=True)
    assert np.isfinite(tree["posterior_predictive"]["x"].values).all()
    exact = problem.log_evidence(holes, ~holes.isnan()).numpy()
    np.testing.assert_allclose(tree["sample_stats"]["log_w"].values[0, 0], exact)


def test_what_is_no_pair_and_data_is_one_line(problem):
    with pytest.raises(ConfigError, match=r"expected \(vae, x\) or \(model, guide, x\), found nothing"):
        pv.to_datatree()
    with pytest.raises(PairError, match=r"pair: expected \(model, guide\), or an object with both, found int"):
        pv.to_datatree(1, 2)
