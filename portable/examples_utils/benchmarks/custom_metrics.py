"""What a file given with --custom-metrics-files imports."""

from examples_utils.benchmark.custom_metrics import register_custom_metric

__all__ = ["register_custom_metric"]
