"""TFRecord files, without TensorFlow: records, their index, the data set, the writer.

data/loading and the programs in data/ import it; it knows the foot of data/ only. Start with records.py.
"""
