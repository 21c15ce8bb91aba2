"""Models: the VAE and its parts, hierarchies, presets, and problems with exact answers."""
