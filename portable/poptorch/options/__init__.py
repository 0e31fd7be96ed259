"""poptorch.options, as published: Options, its groups and its values, checked and reported.

Execution, loading and popdist import it; it imports the foot of poptorch/ only. Start with executor_options.py.
"""

from .executor_options import ConfigFileError, Options, TensorLocationSettings

__all__ = ["ConfigFileError", "Options", "TensorLocationSettings"]
