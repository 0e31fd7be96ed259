"""Names that files of metrics import, under the path where Graphcore's runner has them.

custom_metrics has register_custom_metric; what is behind it is in examples_utils/benchmark, which runs such files. It
imports that and nothing else. Start with custom_metrics.py.
"""
