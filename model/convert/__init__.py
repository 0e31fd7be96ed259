"""Checkpoints of other programs in and out: `python -m model.convert IN OUT --to FORMAT`.

Tasks import it to read what is no Hugging Face folder. Start with source.py, then a format: huggingface.py is the
shortest.
"""
