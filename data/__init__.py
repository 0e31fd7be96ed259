"""Corpora in, samples out: Wikipedia to token ids, token ids to training samples."""
