"""Errors of this package. Each message names the place, what was expected, and the cure.

The command line prints the message alone and exits 2; a traceback needs `--debug`.
"""


class LtmiaError(Exception):
    """Base of every error this package raises on purpose."""


class DataError(LtmiaError):
    """Texts cannot be read: wrong format, missing column, undecodable bytes, no rows."""


class ModelError(LtmiaError):
    """A model cannot be used: missing base, other vocabulary, unsafe files, broken weights."""


class ConfigError(LtmiaError):
    """An option, recipe or policy is wrong."""


class StoreError(LtmiaError):
    """A store, classifier or result folder is missing, incomplete or damaged."""
