"""Exports: identities between their parts, labels that are kept, and ArviZ of both majors at work on them."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from pyro import poutine

import pyro_vae as pv
from pyro_vae.errors import ConfigError, PairError
from pyro_vae.ops.pareto import pareto_k
from tests.statistics import SIGMAS

ROOT = Path(__file__).parents[2]
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
    log_w = torch.from_numpy(stats["log_w"].values[0])
    np.testing.assert_allclose(stats["ess"].values, pv.weights.ess(log_w).numpy(), rtol=1e-12)
    np.testing.assert_allclose(stats["pareto_k"].values, pareto_k(log_w).numpy(), rtol=1e-12)
    assert tree["posterior"].attrs["inference_library_version"] == pv.__version__


def test_a_refinement_with_weights_is_weighed_by_what_it_was_drawn_from(problem, x):
    guide = problem.guide(inflate=1.3)
    draws = pv.refine(problem.model, guide, x, method="svi", num_steps=2, num_draws=50, num_particles=100)
    tree = pv.to_datatree(problem.model, guide, x, draws=draws, num_draws=20)
    stats = tree["sample_stats"]
    parts = stats["log_prior"] + tree["log_likelihood"]["x"] - stats["log_q"]
    np.testing.assert_allclose(stats["log_w"].values[0], draws.log_w.numpy())
    np.testing.assert_allclose(parts.values[0], draws.log_w.numpy())
    error = (draws.log_w.var(0) / 50).sqrt()
    found = pv.weights.log_mean_exp(draws.log_w) - problem.log_evidence(x)
    assert (found.abs() < SIGMAS * error + error.square()).all()


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
    tree = pv.to_datatree(problem.model, problem.guide(shift=0.3, inflate=1.5), x, num_draws=2000, resampled=True)
    assert (tree["sample_stats"]["log_w"] == 0).all()
    assert (tree["sample_stats"]["ess"] < 2000).all(), "resampling makes no draws better"
    assert np.isfinite(tree["sample_stats"]["pareto_k"]).all()
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
    with pytest.raises(ConfigError, match=r"found latent sites {'w': \[2\]}, expected those of the pair, {'z': \[2\]}"):
        pv.to_datatree(problem.model, guide, x, draws=chains._replace(z={"w": chains.z["z"]}))
    with pytest.raises(ConfigError, match=r"draws: found Tensor, expected what pyro_vae\.refine returns"):
        pv.to_datatree(problem.model, guide, x, draws=chains.z["z"])
    np.testing.assert_array_equal(tree["sample_stats"]["ess"].values, chains.ess.numpy())


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
    kept = exported(problem, array.assign_coords(site=("day", [*"abcde"] * 4)))
    assert [*kept["posterior"]["site"].values[:2]] == ["a", "b"]
    for name, taken in {"day": "draw", "sensor": "z"}.items():
        with pytest.raises(ConfigError, match=f"x: found dimensions or coordinates called .'{taken}'"):
            exported(problem, array.rename({name: taken}))


AXES = {
    "levels": pd.MultiIndex.from_product([[*"abcde"], range(4)], names=["plot", "year"]),
    "days": pd.date_range("2020-01-01", periods=20, name="day"),
    "days somewhere": pd.date_range("2020-01-01", periods=20, name="day", tz="Europe/Berlin"),
    "months": pd.period_range("2020-01", periods=20, freq="M"),
    "mixed": pd.Index(["a", 1, ("b", 2), *range(17)], tupleize_cols=False),
}


@pytest.mark.parametrize("axis", AXES)
def test_any_index_goes_through_a_file(problem, x, tmp_path, axis):
    data = pd.DataFrame(x.numpy(), index=AXES[axis], columns=[*"abc"])
    frame, array = (
        pv.to_datatree(problem.model, problem.guide(), held, num_draws=3)["posterior"].coords
        for held in (data, xr.DataArray(data).rename({data.columns.name or "dim_1": "feature"}))
    )
    for name in {*frame} - {"observation"}:
        assert np.array_equal(frame[name].values, array[name].values)
    tree = pv.to_datatree(problem.model, problem.guide(), data, num_draws=3)
    tree.to_netcdf(tmp_path / "export.nc", engine="h5netcdf")
    with xr.open_datatree(tmp_path / "export.nc", engine="h5netcdf") as again:
        assert again.load().identical(tree)
    if axis == "levels":
        assert [*tree["observed_data"]["plot"].values[:5]] == [*"aaaab"]
        assert "year" in tree["posterior"].coords
    if axis == "months":
        assert "2020-03" in tree["posterior"]["observation"].values


def test_labels_are_given_by_dimension(problem, x):
    tree = exported(problem, x, coords={"z_dim_0": ["slant", "width"], "observation": range(100, 120)})
    assert tree["prior"]["z"].sel(z_dim_0="slant").shape == (1, 200)
    assert np.array_equal(tree["posterior"]["z"].sel(observation=104), tree["posterior"]["z"][:, :, 4])
    with pytest.raises(ConfigError, match="coords: found 1 labels of 'z_dim_0', expected a list of 2"):
        exported(problem, x, coords={"z_dim_0": ["slant"]})
    with pytest.raises(
        ConfigError, match=r"coords: found a dimension 'z', expected some of \['observation', 'z_dim_0'"
    ):
        exported(problem, x, coords={"z": ["slant", "width"]})


@pytest.mark.parametrize("labels", [3, "ab", {"slant", "width"}, [["slant", "width"]], iter("ab")])
def test_labels_that_are_no_list_are_refused(problem, x, labels):
    with pytest.raises(ConfigError, match="labels of 'z_dim_0', expected a list of 2"):
        exported(problem, x, coords={"z_dim_0": labels})


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


def written(*sites):
    """A pair whose model observes, of data ``[n, 2]``, sites of these names made by functions of x and mask."""

    def model(x=None, num=None, mask=None):
        x, num = (torch.zeros(num, 2), num) if x is None else (x, len(x))
        with pyro.plate("data", num):
            z = pyro.sample("z", dist.Normal(torch.zeros(num, 1), 1.0).to_event(1))[..., 0]
            for name, value, seen in sites:
                with poutine.mask(mask=True if mask is None else seen(mask)):
                    pyro.sample(name, dist.Normal(z, 1.0), obs=value(x))

    def guide(x, mask=None):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :1], 1.0).to_event(1))

    return model, guide


FIRST, SECOND = ((lambda part, place=place: part[:, place]) for place in range(2))


def test_observed_data_are_what_the_model_observes_and_not_what_it_is_given():
    x = torch.tensor([[1.0, 2.0], [10.0, 3.0]])
    tree = pv.to_datatree(*written(("y", lambda x: x[:, 0].log(), FIRST)), x, num_draws=5)
    assert tree["observed_data"]["y"].dims == ("observation",)
    np.testing.assert_allclose(tree["observed_data"]["y"].values, x[:, 0].log().numpy())


def test_missing_entries_of_several_sites_stay_missing():
    pair = pv.Incomplete(written(("a", FIRST, FIRST), ("b", SECOND, SECOND)))
    x = torch.tensor([[5.0, torch.nan], [torch.nan, 6.0]])
    observed = pv.to_datatree(pair, x, num_draws=5)["observed_data"]
    assert np.array_equal(observed["a"].values, [5.0, np.nan], equal_nan=True)
    assert np.array_equal(observed["b"].values, [np.nan, 6.0], equal_nan=True)


def test_a_refinement_of_other_data_is_refused(problem, x):
    pair = problem.model, problem.guide()
    draws = pv.refine(*pair, x, method="svi", num_steps=0, num_draws=10, num_particles=10)
    assert pv.to_datatree(*pair, x, draws=draws, num_draws=10)["posterior"]["z"].shape == (1, 10, 20, 2)
    with pytest.raises(ConfigError, match="draws: found a refinement of other data than x"):
        pv.to_datatree(*pair, x.flip(0), draws=draws, num_draws=10)


def test_a_slash_in_a_name_becomes_a_dot(problem, x):
    pair = [partial(pv.embed, program, name="table") for program in (problem.model, problem.guide())]
    frame = pd.DataFrame(x.numpy()).rename_axis(index="km/h")
    tree = pv.to_datatree(*pair, frame, num_draws=5)
    assert tree["posterior"]["table.z"].dims == ("chain", "draw", "km.h", "table.z_dim_0")
    assert {*tree["observed_data"].data_vars} == {"table.x"}
    with pytest.raises(PairError, match="of which two have one name with"):
        pv.to_datatree(*written(("a/b", FIRST, FIRST), ("a.b", SECOND, SECOND)), torch.ones(3, 2), num_draws=5)


@pytest.mark.parametrize("name", ["chain", "draw", "marginal"])
def test_sites_that_are_called_as_the_exports_own_are_refused(name):
    with pytest.raises(PairError, match=rf"found sites called \['{name}'\]"):
        pv.to_datatree(*written((name, FIRST, FIRST)), torch.ones(3, 2), num_draws=5)


@pytest.mark.parametrize("rows", [2, 3])
def test_a_dimension_of_the_data_that_is_called_as_one_of_a_site_is_refused(problem, x, rows):
    data = xr.DataArray(x[:rows].numpy(), dims=("z_dim_0", "feature"))
    with pytest.raises(ConfigError, match=r"x: found dimensions or coordinates called \['z_dim_0'\]"):
        exported(problem, data)


def test_what_is_no_pair_and_data_is_one_line(problem):
    with pytest.raises(ConfigError, match=r"expected \(vae, x\) or \(model, guide, x\), found nothing"):
        pv.to_datatree()
    with pytest.raises(PairError, match=r"pair: expected \(model, guide\), or an object with both, found int"):
        pv.to_datatree(1, 2)


def test_every_group_depends_on_the_seed_alone(problem, x):
    trees = [pv.to_datatree(problem.model, problem.guide(), x, num_draws=20, seed=seed) for seed in (0, 0, 1)]
    for group in ("posterior", "posterior_predictive", "prior", "prior_predictive"):
        first, again, other = (tree[group].to_dataset() for tree in trees)
        assert first.equals(again)
        assert not first.equals(other)
