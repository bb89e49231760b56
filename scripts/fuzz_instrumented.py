"""The readers, loaded so that atheris sees which branches a case takes; `fuzz.py` has its processes begin with it."""

import atheris

with atheris.instrument_imports(include=["ltmia", "json", "csv", "tomllib"]):
    import fuzz_readers  # noqa: F401  loaded for the processes to come
