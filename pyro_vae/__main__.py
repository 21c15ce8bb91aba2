"""``python -m pyro_vae``."""

from .cli.commands import main

main()
