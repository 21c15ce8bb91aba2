"""Checks of an export by ArviZ, in a process of its own and for whichever ArviZ is on its path."""

import sys
import warnings

import matplotlib as mpl
import numpy as np
import torch

import pyro_vae as pv


def approximate(az, scale, inflate):
    """How far ArviZ's leave-one-out by p(z) / q(z | x) is from exact log p(x), its standard error, and its k-hat."""
    problem = pv.problems.linear_gaussian(W=[[1.0, 0.3], [0.5, -1.0], [0.0, 2.0]], scale=scale)
    x = problem.sample(30, seed=0)
    data = pv.to_arviz(problem.model, problem.guide(inflate=inflate), x, num_draws=1000)
    stats, log_likelihood = data["sample_stats"], data["log_likelihood"]["x"]
    found = az.loo_approximate_posterior(
        data, var_name="x", log_p=stats["log_prior"] + log_likelihood, log_q=stats["log_q"], pointwise=True
    )
    weights = np.exp((stats["log_prior"] - stats["log_q"]).values[0])
    weights, likelihood = weights / weights.sum(0), np.exp(log_likelihood.values[0])
    exact = problem.log_evidence(x).numpy()
    errors = ((weights * (likelihood - np.exp(exact))) ** 2).sum(0) / np.exp(2 * exact)  # of a weighted mean
    return abs(found.elpd_i.values.sum() - exact.sum()), errors.sum() ** 0.5, float(found.pareto_k.max())


def main(folder):
    mpl.use("Agg")
    torch.set_default_dtype(torch.float64)
    problem = pv.problems.linear_gaussian(W=[[1.0, 0.3], [0.5, -1.0], [0.0, 2.0]], scale=0.7)
    x, pair = problem.sample(30, seed=0), (problem.model, problem.guide(inflate=1.3))
    exact = problem.log_evidence(x).sum().item()
    tree = pv.to_datatree(*pair, x, num_draws=1000)
    assert "arviz" not in sys.modules, "the tree needs xarray alone"

    warnings.simplefilter("ignore")  # what ArviZ says of itself at import, and of k-hat below
    import arviz as az

    data = pv.to_arviz(*pair, x, num_draws=1000)
    equal = pv.to_arviz(*pair, x, num_draws=1000, resampled=True)
    for group in ("posterior", "sample_stats", "log_likelihood", "posterior_predictive", "prior", "observed_data"):
        for name, values in tree[group].data_vars.items():
            assert np.array_equal(values.values, data[group][name].values, equal_nan=True), (group, name)

    def elpd(found):
        return float(found.elpd_loo if hasattr(found, "elpd_loo") else found.elpd)

    error = pv.evidence.importance(*pair, x, num_particles=1000).stderr.square().sum().sqrt().item()
    assert abs(elpd(az.loo(data, var_name="marginal")) - exact) < 5 * error
    assert abs(elpd(az.loo(equal, var_name="x")) - exact) > 20 * error, "the known-wrong way has to fail"
    assert "a" in str(az.compare({"a": data, "b": equal}, var_name="marginal"))
    if hasattr(az, "loo_approximate_posterior"):
        wide, narrow = approximate(az, scale=2.0, inflate=2.0), approximate(az, scale=0.7, inflate=1.3)
        assert wide[0] < 5 * wide[1]
        assert wide[2] < 0.7
        assert narrow[0] > 5 * narrow[1], "a guide that is narrower than the prior has to fail"
        assert narrow[2] > 0.7, "and ArviZ to say so"

    chains = pv.refine(*pair, x[:3], method="hmc", num_draws=400, num_chains=4, num_warmup=50)
    drawn = pv.to_arviz(*pair, x[:3], draws=chains, num_draws=100)
    assert dict(drawn["posterior"]["z"].sizes) == {"chain": 4, "draw": 100, "observation": 3, "z_dim_0": 2}
    table = az.summary(drawn, var_names=["z"])
    assert len(table) == 6
    assert (table["r_hat"].astype(float) < 1.1).all()

    if hasattr(az, "plot_ppc"):
        az.plot_ppc(equal, num_pp_samples=10)
    else:
        az.plot_ppc_dist(equal, num_samples=10)
    far = pv.to_arviz(problem.model, problem.guide(shift=1.0), x, num_draws=1000)
    found = az.loo(far, var_name="marginal", pointwise=True)
    assert elpd(found) < exact - 5
    assert np.max(found.pareto_k) < 0.5, "of the replicates, which are no worse for it"
    found.pareto_k = far["sample_stats"]["pareto_k"]
    assert np.min(found.pareto_k) > 0.7, "the weights' own says so, of every observation"
    az.plot_khat(found)
    az.plot_pair(drawn, var_names=["z"], coords={"observation": [0]})

    data.to_netcdf(f"{folder}/export.nc")
    again = az.from_netcdf(f"{folder}/export.nc")
    for group in ("posterior", "sample_stats", "log_likelihood", "observed_data"):
        for name, values in data[group].data_vars.items():
            assert np.array_equal(again[group][name].values, values.values, equal_nan=True)
            assert all(np.array_equal(again[group][dim].values, data[group][dim].values) for dim in values.dims)
    sys.stdout.write(az.__version__)


if __name__ == "__main__":
    main(sys.argv[1])
