"""Loads the readers so that atheris sees which branches a case takes. The processes of `fuzz.py` load this first."""

import atheris

with atheris.instrument_imports(include=["ltmia", "json", "csv", "tomllib"]):
    import fuzz_readers  # noqa: F401  loaded for later processes
