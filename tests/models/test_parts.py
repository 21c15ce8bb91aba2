"""The materials: networks, likelihoods, prior and posterior, presets, and the VAE that is assembled from them."""

import itertools
import json
import math
import subprocess
import sys

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.errors import ConfigError, DataError, ShapeError
from pyro_vae.models.likelihoods import Bernoulli, ContinuousBernoulli, DiscretisedLogistic, Gaussian, bernoulli
from pyro_vae.models.nn import Tanh
from pyro_vae.models.posteriors import DiagonalNormal
from pyro_vae.models.presets import PRESETS, burda_vae, mlp_vae
from pyro_vae.models.priors import StandardNormal
from tests.statistics import assert_mean, assert_not_mean

LIKELIHOODS = {
    "bernoulli": Bernoulli,
    "gaussian, fixed": lambda shape: Gaussian(shape, scale=0.7),
    "gaussian, learned": lambda shape: Gaussian(shape, scale="learned"),
    "gaussian, from the decoder": lambda shape: Gaussian(shape, scale="decoder"),
    "continuous bernoulli": ContinuousBernoulli,
    "discretised logistic, fixed": lambda shape: DiscretisedLogistic(shape, num_levels=4, scale=0.2),
    "discretised logistic, learned": lambda shape: DiscretisedLogistic(shape, num_levels=4, scale="learned"),
    "discretised logistic, from the decoder": lambda shape: DiscretisedLogistic(shape, num_levels=4),
}
GAUSSIANS = [name for name in LIKELIHOODS if name.startswith("gaussian")]
LEADS = [(), (1,), (5,), (3, 5), (2, 1, 4)]


def gaussian_scale(likelihood, params):
    """The standard deviations that a Gaussian likelihood has at these decoder outputs, by its documentation."""
    if likelihood.from_decoder:
        return params.select(-1 - len(likelihood.data_shape), 1).exp()
    return likelihood.log_scale.detach().exp().expand(params.shape)


def random_params(likelihood, lead=()):
    with torch.no_grad():
        for parameter in likelihood.parameters():
            parameter.normal_(0, 0.3)
    return torch.randn(*lead, *likelihood.param_shape) * 0.5


# --- networks


@pytest.mark.parametrize("lead", LEADS)
def test_mlp_takes_any_leading_dimensions_as_one_flat_batch(lead):
    net = pv.nn.MLP((2, 3), (7, 5), (4, 2))
    x = torch.randn(*lead, 2, 3)
    torch.testing.assert_close(net(x), net(x.reshape(-1, 2, 3)).reshape(*lead, 4, 2))
    assert net(x).shape == (*lead, 4, 2)


def test_mlp_rows_do_not_see_each_other():
    net, x = pv.nn.MLP(3, (7,), 2), torch.randn(4, 3)
    torch.testing.assert_close(net(x)[1], net(x[1]))


def test_mlp_accepts_a_number_as_a_shape_and_no_hidden_layers():
    net = pv.nn.MLP(3, (), 2)
    assert [type(layer) for layer in net.layers] == [nn.Linear]
    assert net(torch.zeros(6, 3)).shape == (6, 2)


def test_mlp_uses_the_activation_between_layers_only():
    net = pv.nn.MLP(3, (7, 5), 2, activation=nn.Softplus)
    assert [type(layer) for layer in net.layers] == [nn.Linear, nn.Softplus, nn.Linear, nn.Softplus, nn.Linear]


def test_mlp_starts_glorot_uniform_with_zero_biases():
    linear = pv.nn.MLP(300, (), 500).layers[0]
    bound = math.sqrt(6 / (300 + 500))
    assert 0.99 * bound < linear.weight.abs().max() <= bound
    assert_mean(linear.weight.detach().flatten(), 0.0)
    assert_mean(linear.weight.detach().flatten().square(), bound**2 / 3)
    assert not linear.bias.any()


def test_output_bias_is_a_view_of_the_last_bias():
    net = pv.nn.MLP(3, (7,), (2, 2))
    before = net(torch.zeros(1, 3))
    shift = torch.arange(4.0).reshape(2, 2)
    with torch.no_grad():
        net.output_bias.add_(shift)
    torch.testing.assert_close(net(torch.zeros(1, 3)), before + shift)


# --- likelihoods


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("shape", [(3,), (2, 3)])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_param_shape_is_what_the_decoder_returns_under_any_leading_dimensions(name, shape, lead):
    likelihood = LIKELIHOODS[name](shape)
    params = random_params(likelihood, lead)
    p = likelihood(params)
    assert p.batch_shape == lead
    assert p.event_shape == shape == likelihood.data_shape
    x = p.sample()
    flat = [likelihood(row) for row in params.reshape(-1, *likelihood.param_shape)]
    by_row = [row.log_prob(value) for row, value in zip(flat, x.reshape(-1, *shape), strict=True)]
    torch.testing.assert_close(p.log_prob(x), torch.stack(by_row).reshape(lead))
    torch.testing.assert_close(p.mean, torch.stack([row.mean for row in flat]).reshape(*lead, *shape))


@pytest.mark.usefixtures("float64")
def test_bernoulli_sums_to_one():
    likelihood = Bernoulli((2, 2))
    support = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4))).reshape(16, 2, 2)
    total = likelihood(3 * torch.randn(5, 1, 2, 2)).log_prob(support).exp().sum(-1)
    torch.testing.assert_close(total, torch.ones(5))


@pytest.mark.parametrize("name", GAUSSIANS)
@pytest.mark.usefixtures("float64")
def test_gaussian_integrates_to_one(name):
    likelihood = LIKELIHOODS[name]((2,))
    params = random_params(likelihood)
    side = torch.linspace(-15, 15, 601)
    grid = torch.cartesian_prod(side, side)
    step = side[1] - side[0]
    total = likelihood(params).log_prob(grid).exp().sum() * step**2  # the tails beyond the grid are below 1e-12
    torch.testing.assert_close(total, torch.tensor(1.0))


@pytest.mark.usefixtures("float64")
def test_bernoulli_draws_from_the_density_that_it_scores_with():
    logits = torch.tensor([-2.0, 0.3, 1.5])
    p = Bernoulli((3,))(logits)
    x = p.sample(torch.Size([4000]))
    pi = logits.sigmoid()
    assert_mean(x, pi)
    entropy = -(pi * pi.log() + (1 - pi) * (1 - pi).log()).sum()
    assert_mean(p.log_prob(x), -entropy)
    assert_not_mean(p.log_prob(x), -entropy + 0.1)


@pytest.mark.parametrize("name", GAUSSIANS)
@pytest.mark.usefixtures("float64")
def test_gaussian_draws_from_the_density_that_it_scores_with(name):
    likelihood = LIKELIHOODS[name]((3,))
    params = random_params(likelihood)
    loc, scale = params.reshape(-1, 3)[0], gaussian_scale(likelihood, params)
    p = likelihood(params)
    with torch.no_grad():
        x = p.sample(torch.Size([4000]))
        assert_mean(x, loc)
        assert_mean((x - loc).square(), scale.square())
        entropy = (0.5 * math.log(2 * math.pi * math.e) + scale.log()).sum()
        assert_mean(p.log_prob(x), -entropy)
        assert_not_mean(p.log_prob(x), -entropy + 0.2)


@pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_gradients_are_finite_at_extreme_decoder_outputs(name, size):
    likelihood = LIKELIHOODS[name]((2,))
    signs = torch.tensor(list(itertools.product([-size, size], repeat=math.prod(likelihood.param_shape))))
    params = signs.reshape(-1, *likelihood.param_shape).requires_grad_()
    for x in torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]]):
        log_prob = likelihood(params).log_prob(x)
        (gradient,) = torch.autograd.grad(log_prob.sum(), params)
        assert torch.isfinite(log_prob).all()
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["gaussian, learned", "gaussian, from the decoder"])
def test_a_scale_that_is_learned_is_bounded(name):
    for log_scale, bound in ((-50.0, 0.01), (50.0, 100.0)):
        likelihood = LIKELIHOODS[name]((2,))
        params = torch.zeros(likelihood.param_shape)
        with torch.no_grad():
            (params[1] if likelihood.from_decoder else likelihood.log_scale).fill_(log_scale)
        assert math.isclose(likelihood(params).stddev[0].item(), bound, rel_tol=1e-5)
        assert likelihood.hits(params.expand(3, *params.shape)) == 6  # two pixels of three datapoints


def test_a_fixed_scale_is_taken_as_it_is():
    assert math.isclose(Gaussian((1,), scale=1e-3)(torch.zeros(1)).stddev.item(), 1e-3, rel_tol=1e-5)
    assert not list(Gaussian((1,), scale=1e-3).parameters())


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(ConfigError, match="positive"):
        Gaussian((3,), scale=scale)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_output_bias_is_where_the_mean_is_the_given_one(name):
    likelihood = LIKELIHOODS[name]((2, 2))
    mean = torch.tensor([[0.0, 0.2], [0.7, 1.0]])
    params = likelihood.output_bias(mean)
    assert params.shape == likelihood.param_shape
    assert torch.isfinite(params).all()
    torch.testing.assert_close(
        likelihood(params).mean, mean, atol=0.02 if name.startswith("continuous") else 1.1e-3, rtol=0
    )  # within bounds


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [*LIKELIHOODS, "relaxed"])
def test_check_refuses_what_is_not_finite(name, value):
    likelihood = Bernoulli((2,), relaxed=True) if name == "relaxed" else LIKELIHOODS[name]((2,))
    x = torch.ones(3, 2)
    likelihood.check(x)
    x[1, 0] = value
    with pytest.raises(DataError, match=r"1 non-finite .* \(1, 0\)"):
        likelihood.check(x)


@pytest.mark.parametrize("value", [0.5, 255.0, -1.0, 1.0001, 1e-30])
def test_bernoulli_check_refuses_what_is_not_binary(value):
    x = torch.tensor([[0.0, 1.0], [1.0, value]])
    with pytest.raises(DataError, match=r"\{0, 1\}.*binarise.*relaxed=True"):
        Bernoulli((2,)).check(x)


def test_relaxed_bernoulli_check_accepts_grey_and_nothing_beyond():
    likelihood = Bernoulli((2,), relaxed=True)
    likelihood.check(torch.tensor([[0.0, 0.25], [0.9, 1.0]]))
    for value in (-0.1, 1.1):
        with pytest.raises(DataError, match=r"\[0, 1\]"):
            likelihood.check(torch.tensor([[0.5, value]]))


def test_gaussian_check_accepts_any_finite_number():
    Gaussian((2,)).check(torch.tensor([[-1e30, 255.0]]))


# --- prior and posterior


@pytest.mark.usefixtures("float64")
def test_prior_is_a_standard_normal():
    p = StandardNormal(2)()
    z = torch.randn(5, 2)
    expected = -0.5 * z.square().sum(-1) - math.log(2 * math.pi)
    torch.testing.assert_close(p.log_prob(z), expected)
    assert (p.batch_shape, p.event_shape) == ((), (2,))
    draws = p.sample(torch.Size([4000]))
    assert_mean(draws, 0.0)
    assert_mean(draws.square(), 1.0)


def test_prior_follows_the_dtype_and_saves_nothing():
    prior = StandardNormal(3).double()
    assert prior().sample().dtype == torch.float64
    assert not prior.state_dict()
    assert not list(prior.parameters())


@pytest.mark.parametrize("lead", LEADS)
def test_posterior_reads_location_and_log_scale(lead):
    posterior = DiagonalNormal(3)
    params = torch.randn(*lead, *posterior.param_shape)
    q = posterior(params)
    assert (q.batch_shape, q.event_shape) == (lead, (3,))
    torch.testing.assert_close(q.mean, params[..., 0, :])
    torch.testing.assert_close(q.stddev, params[..., 1, :].exp())


def test_posterior_clamps_its_scale_and_counts_the_hits():
    posterior = DiagonalNormal(4, min_scale=0.1, max_scale=10.0)
    log_scale = torch.tensor([-1e4, -1.0, 1.0, 1e4])
    params = torch.stack([torch.full((4,), 1e4), log_scale]).expand(5, 2, 4)
    expected = torch.tensor([0.1, math.exp(-1), math.exp(1), 10.0])
    torch.testing.assert_close(posterior(params).stddev, expected.expand(5, 4))
    assert posterior.hits(params) == 10  # locations do not count
    assert posterior.hits(params[..., 1:3]) == 0
    assert posterior.hits(torch.zeros(5, 2, 4)) == 0


def test_a_scale_is_not_pushed_beyond_its_bound():
    # Were the gradient passed on, the density of the same value would be raised for ever without getting any higher.
    for log_scale, bound in ((-50.0, math.log(0.01)), (50.0, math.log(100.0))):
        params = torch.tensor([[0.0], [log_scale]], requires_grad=True)
        value = Gaussian((1,))(params).log_prob(torch.full((1,), 0.0 if log_scale < 0 else 1e4))
        (gradient,) = torch.autograd.grad(value, params)
        assert gradient[1] == 0
        inside = torch.tensor([[0.0], [bound - math.copysign(1e-3, bound)]], requires_grad=True)
        value = Gaussian((1,))(inside).log_prob(torch.full((1,), 0.0 if log_scale < 0 else 1e4))
        (gradient,) = torch.autograd.grad(value, inside)
        assert gradient[1].sign() == math.copysign(1, log_scale)


def test_an_infinite_log_scale_is_clamped_like_any_other():
    params = torch.tensor([[0.0, 0.0], [math.inf, -math.inf]])
    torch.testing.assert_close(DiagonalNormal(2)(params).stddev, torch.tensor([1e4, 1e-4]))


def test_clamped_scales_still_pass_the_gradient_of_the_location():
    params = torch.tensor([[0.5], [1e4]], requires_grad=True)
    DiagonalNormal(1)(params).log_prob(torch.zeros(1)).backward()
    assert torch.isfinite(params.grad).all()
    assert params.grad[0] != 0


# --- presets


@pytest.mark.parametrize(
    "vae",
    [
        mlp_vae(data_shape=(4, 4), latent_dim=3, hidden=(8, 6), relaxed=True, name="a"),
        mlp_vae(data_shape=(16,), likelihood="gaussian", likelihood_scale=0.3, hidden=()),
        mlp_vae(data_shape=[16], likelihood="gaussian", likelihood_scale="learned", hidden=[5]),
        mlp_vae(data_shape=torch.Size([16]), likelihood="gaussian", data_mean=torch.rand(16)),
        burda_vae(data_shape=(4, 4), latent_dim=2, data_mean=torch.rand(4, 4)),
    ],
    ids=["bernoulli", "fixed", "learned", "decoder", "burda"],
)
def test_a_recipe_builds_the_same_vae_again_after_a_trip_through_json(vae):
    recipe = json.loads(json.dumps(vae.recipe))
    again = PRESETS[recipe.pop("preset")](**recipe)
    again.load_state_dict(vae.state_dict())
    assert again.name == vae.name
    assert (again.data_shape, again.latent_dim) == (vae.data_shape, vae.latent_dim)
    z = torch.randn(3, vae.latent_dim)
    assert torch.equal(again.decode(z).mean, vae.decode(z).mean)
    torch.testing.assert_close(again.decode(z).variance, vae.decode(z).variance)
    x = torch.bernoulli(torch.full((3, *vae.data_shape), 0.5))
    assert torch.equal(again.encode(x).mean, vae.encode(x).mean)


def test_burda_vae_is_the_network_of_the_paper():
    vae = burda_vae()
    encoder = (784 * 200 + 200) + (200 * 200 + 200) + 2 * (200 * 50 + 50)
    decoder = (50 * 200 + 200) + (200 * 200 + 200) + (200 * 784 + 784)
    assert sum(p.numel() for p in vae.encoder.parameters()) == encoder
    assert sum(p.numel() for p in vae.decoder.parameters()) == decoder
    assert sum(p.numel() for p in vae.parameters()) == 425_284
    layers = [*vae.encoder.layers, *vae.decoder.layers]
    assert all(isinstance(layer, nn.Linear | nn.Tanh) for layer in layers)
    assert vae.data_shape == (28, 28)


@pytest.mark.parametrize("scale", ["decoder", "learned", 0.5])
def test_data_mean_is_where_a_gaussian_decoder_starts(scale):
    mean = torch.linspace(-3, 3, 12).reshape(3, 4)
    vae = mlp_vae(data_shape=(3, 4), likelihood="gaussian", likelihood_scale=scale, data_mean=mean)
    with torch.no_grad():
        # z and -z have opposite outputs around the bias: tanh is odd and the other biases are zero.
        assert_mean(vae.decode(torch.randn(2000, 8)).mean, mean)


@pytest.mark.parametrize("kind", [torch.Tensor, torch.Tensor.double, torch.Tensor.numpy, torch.Tensor.tolist])
def test_data_mean_is_near_where_a_bernoulli_decoder_starts(kind):
    mean = torch.tensor([[0.02, 0.3], [0.5, 0.98]])
    found = {}
    for name, start in (("with", kind(mean)), ("without", None)):
        vae = mlp_vae(data_shape=(2, 2), latent_dim=2, data_mean=start)
        with torch.no_grad():
            found[name] = vae.decode(torch.randn(2000, 2)).mean.mean(0)
    # Averaging a sigmoid around its logit pulls towards one half, by less than a tenth here.
    assert (found["with"] - mean).abs().max() < 0.1
    assert (found["without"] - mean).abs().max() > 0.3


def test_data_mean_of_a_flat_image_fits_an_image_of_the_same_size():
    mean = torch.linspace(0.1, 0.9, 6)
    vae = mlp_vae(data_shape=(2, 3), data_mean=mean)
    torch.testing.assert_close(vae.decoder.output_bias.sigmoid().detach(), mean.reshape(2, 3))


def test_names_that_do_not_exist_are_one_line_that_lists_the_choices():
    # In a process of its own: here, the run-time type checks of the tests would answer first.
    code = """
import torch, pyro_vae as pv
for call in (
    lambda: pv.presets.mlp_vae(data_shape=(4,), likelihood="poisson"),
    lambda: pv.likelihoods.Gaussian((4,), scale="fixed"),
    lambda: pv.data.Pixels(torch.zeros(2, 3), "grey"),
    lambda: pv.data.binarise(torch.zeros(2, 3), "dynamic"),
):
    try:
        call()
    except pv.errors.PyroVaeError as error:
        print(str(error))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    for line, (wrong, *choices) in zip(
        lines,
        [
            ("'poisson'", "'bernoulli'", "'gaussian'"),
            ("'fixed'", "'learned'", "'decoder'"),
            ("'grey'", "static", "dynamic", "threshold", "none"),
            ("'static'", "'threshold'"),
        ],
        strict=True,
    ):
        assert all(word in line for word in (wrong, *choices))


# --- the VAE


def small_vae(**options):
    return mlp_vae(**{"data_shape": (2, 3), "latent_dim": 4, "hidden": (8,), **options})


def binary(*shape):
    return torch.bernoulli(torch.full(shape, 0.5))


@pytest.mark.parametrize("lead", [(1,), (5,), (3, 5), (2, 1, 4)])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_encode_decode_and_reconstruct_take_leading_dimensions(likelihood, lead):
    vae = small_vae(likelihood=likelihood)
    x = binary(*lead, 2, 3)
    q = vae.encode(x)
    assert (q.batch_shape, q.event_shape) == (lead, (4,))
    flat = x.reshape(-1, 2, 3)
    torch.testing.assert_close(q.mean, vae.encode(flat).mean.reshape(*lead, 4))
    torch.testing.assert_close(q.stddev, vae.encode(flat).stddev.reshape(*lead, 4))
    z = torch.randn(*lead, 4)
    p = vae.decode(z)
    assert (p.batch_shape, p.event_shape) == (lead, (2, 3))
    torch.testing.assert_close(p.mean, vae.decode(z.reshape(-1, 4)).mean.reshape(*lead, 2, 3))
    found = vae.reconstruct(x)
    assert found.shape == x.shape
    torch.testing.assert_close(found, vae.decode(vae.encode(x).mean).mean.detach())
    assert not found.requires_grad


def test_one_latent_vector_decodes_to_one_image():
    assert small_vae().decode(torch.zeros(4)).sample().shape == (2, 3)


def test_samples_are_binary_images_with_the_mean_of_the_decoder():
    vae = small_vae(data_mean=torch.full((2, 3), 0.2))
    x = vae.sample(4000)
    assert x.shape == (4000, 2, 3)
    assert set(x.unique().tolist()) == {0.0, 1.0}
    with torch.no_grad():
        means = vae.decode(torch.randn(100_000, 4)).mean.mean(0)
    assert_mean(x, means, slack=0.005)  # the expected mean is itself an average of 100,000 draws


def test_sampling_follows_torchs_seed():
    vae = small_vae()
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(vae.sample(20))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("scale", ["decoder", "learned", 0.5])
def test_a_float64_module_computes_in_float64(scale):
    vae = small_vae(likelihood="gaussian", likelihood_scale=scale).double()
    x = binary(5, 2, 3)  # float32 data are cast
    assert vae.encode(x).mean.dtype == vae.sample(2).dtype == vae.reconstruct(x).dtype == torch.float64
    assert vae.model(x).dtype == vae.guide(x).dtype == vae.model(num=2).dtype == torch.float64
    assert pv.draw_particles(vae.model, vae.guide, x, num_particles=3).log_w.dtype == torch.float64
    assert torch.isfinite(pv.evidence.importance(vae.model, vae.guide, x, num_particles=5).value).all()


def test_state_dict_holds_the_weights_and_nothing_else():
    encoder = {f"encoder.layers.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")}
    decoder = {f"decoder.layers.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")}
    assert set(small_vae().state_dict()) == encoder | decoder
    learned = small_vae(likelihood="gaussian", likelihood_scale="learned")
    assert set(learned.state_dict()) == encoder | decoder | {"likelihood.log_scale"}


def assemble(encoder=None, decoder=None):
    return pv.VAE(
        encoder=encoder or pv.nn.MLP((2, 3), (8,), (2, 4)),
        decoder=decoder or pv.nn.MLP(4, (8,), (2, 3)),
        prior=StandardNormal(4),
        likelihood=Bernoulli((2, 3)),
    )


def test_a_hand_assembled_vae_has_a_diagonal_posterior_and_no_recipe():
    vae = assemble()
    assert isinstance(vae.posterior, DiagonalNormal)
    assert vae.recipe is None
    assert (vae.data_shape, vae.latent_dim, vae.name) == ((2, 3), 4, "vae")


def test_flat_networks_do_for_images():
    vae = assemble(encoder=nn.Sequential(nn.Flatten(), nn.Linear(6, 8)), decoder=nn.Linear(4, 6))
    x = binary(5, 2, 3)
    assert vae.reconstruct(x).shape == (5, 2, 3)
    assert pv.draw_particles(vae.model, vae.guide, x, num_particles=3).log_w.shape == (3, 5)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_network_of_the_wrong_width_is_named(part):
    net = nn.Sequential(nn.Flatten(), nn.Linear(6 if part == "encoder" else 4, 5))
    vae = assemble(**{part: net})
    expected = {"encoder": "('n', 2, 4)", "decoder": "('n', 2, 3)"}[part]
    with pytest.raises(ShapeError) as caught:
        vae.reconstruct(binary(7, 2, 3))
    assert all(word in str(caught.value) for word in (part, expected, "(7, 5)"))
    assert "\n" not in str(caught.value)


SHAPES = {
    "particles of datapoints": ((50, 3), (3,)),
    "data for every particle": ((50, 3), (50, 3)),
    "one datapoint": ((50, 1), (1,)),
    "datapoints alone": ((3,), (3,)),
    "nothing leading": ((), ()),
    "data that broadcast": ((50, 1), (3,)),
}


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("data_shape", [(1,), (7, 7), (2, 32), (1, 28, 29)])
def test_a_bernoulli_is_the_same_whether_or_not_a_gradient_is_asked_for(monkeypatch, shapes, data_shape):
    monkeypatch.setattr(bernoulli, "_SLAB", 5 * math.prod(data_shape))
    lead, data_lead = SHAPES[shapes]
    logits = 10 * torch.randn(*lead, *data_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.bernoulli(torch.full((*data_lead, *data_shape), 0.3, dtype=torch.float64))
    plain = dist.Bernoulli(logits=logits).to_event(len(data_shape)).log_prob(x)
    pixels = Bernoulli(data_shape)(logits)
    torch.testing.assert_close(pixels.log_prob(x), plain, rtol=1e-12, atol=1e-12)
    asked = Bernoulli(data_shape)(logits.requires_grad_()).log_prob(x)
    torch.testing.assert_close(asked.detach(), plain, rtol=1e-12, atol=1e-12)


def test_a_bernoulli_without_a_gradient_has_no_overflow():
    logits = torch.tensor([[200.0] * 40, [-200.0] * 40])
    torch.testing.assert_close(Bernoulli((40,))(logits).log_prob(torch.ones(40)), torch.tensor([0.0, -8000.0]))


def test_a_tanh_without_a_gradient_is_a_tanh():
    a = torch.cat([torch.linspace(-12, 12, 10_001), torch.tensor([-math.inf, -100.0, 100.0, math.inf])])
    exact = a.double().tanh()
    assert (Tanh()(a) - exact).abs().max() < 4e-7
    assert torch.equal(Tanh()(a.double()), exact)
    assert torch.equal(Tanh()(a.requires_grad_()), a.tanh())
    assert Tanh()(torch.tensor(math.nan)).isnan()
