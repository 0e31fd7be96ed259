"""Names that files of metrics import; what is behind them is in examples_utils/benchmark."""
