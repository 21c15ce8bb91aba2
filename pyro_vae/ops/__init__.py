"""Functions of plain tensors, without Pyro: weights, streaming sums, Pareto tails, resampling, HMC, verdicts, seeds."""
