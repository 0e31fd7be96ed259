"""poptorch.options, as published: Options, its groups and its values, checked and reported.

Execution, loading and popdist import it; it imports the foot of poptorch/ only. Start with executor_options.py.
"""

from .executor_options import ConfigFileError, Options, TensorLocationSettings

# The classes of the groups, under the names that PopTorch's reference documents and libraries use.
from .groups import DistributedOptions as _DistributedOptions
from .groups import JitOptions as _JitOptions
from .groups import PopartOptions as _PopartOptions
from .groups import PrecisionOptions as _PrecisionOptions
from .groups import TrainingOptions as _TrainingOptions
from .tensor_locations import TensorLocationOptions as _TensorLocationOptions

__all__ = [
    "ConfigFileError",
    "Options",
    "TensorLocationSettings",
    "_DistributedOptions",
    "_JitOptions",
    "_PopartOptions",
    "_PrecisionOptions",
    "_TensorLocationOptions",
    "_TrainingOptions",
]
