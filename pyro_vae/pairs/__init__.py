"""The waist: any Pyro model and guide with their data on one side, log-densities per datapoint on the other."""
