"""The one failure rate of the suite.

A random test compares a mean over replicates with its exact value and accepts five standard errors: one false alarm in
about two million comparisons, so that a failure is a defect. The seeds are fixed; the rate says how little was picked.
"""

import math

import torch

SIGMAS = 5.0


def assert_mean(samples, exact, *, sd=None, slack=0.0):
    """The mean over dim 0 is ``exact`` within five standard errors; ``sd`` is the analytic one if it is known."""
    samples = torch.as_tensor(samples, dtype=torch.float64)
    gap, allowed = _gap(samples, exact, sd)
    assert bool((gap <= allowed + slack).all()), f"mean {samples.mean(0)}, expected {exact}, allowed {allowed}"


def assert_not_mean(samples, exact, *, sd=None):
    """A negative control: the same comparison must fail."""
    samples = torch.as_tensor(samples, dtype=torch.float64)
    gap, allowed = _gap(samples, exact, sd)
    assert bool((gap > allowed).any()), f"mean {samples.mean(0)} is not told from {exact}: the test has no power"


def _gap(samples, exact, sd):
    exact = torch.as_tensor(exact, dtype=torch.float64)
    spread = samples.std(0) if sd is None else torch.as_tensor(sd, dtype=torch.float64)
    return (samples.mean(0) - exact).abs(), SIGMAS * spread / math.sqrt(len(samples))
