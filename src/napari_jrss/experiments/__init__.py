"""Protocols of experiments: comparators, figures of every run, and the paper's tables."""

from importlib.util import find_spec

from napari_jrss.errors import JRSSError

_MISSING = [name for name in ("matplotlib", "pandas", "statsmodels", "yaml") if not find_spec(name)]
if _MISSING:
    raise JRSSError(
        f"experiments need {', '.join(_MISSING)}: pip install 'napari-jrss[experiments]'"
    )
