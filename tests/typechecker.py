"""Run-time type checks of the whole package, for the tests alone: shapes, and an int where a float will do."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
