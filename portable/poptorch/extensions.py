"""What this runtime has beyond PopTorch's API: programs that use it train here and not on an IPU.

PopTorch has a fixed set of optimizers, and refuses others. So does this runtime, unless the optimizer's class brings
its update rule along: `register_update_rule(Class, rule)`, or the class's own attribute `portable_update_rule`, which
says the same without an import of this module.
"""

from __future__ import annotations

from .engine.updating.registered_rules import UpdateRule, register_update_rule

__all__ = ["UpdateRule", "register_update_rule"]
