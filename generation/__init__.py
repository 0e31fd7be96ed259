"""Texts from a model: which token comes next, the decode loop on a key/value cache, prompts in and texts out.

text_generate_gpt2.py imports it; it imports model/, tokenizer/ and custom_ops/. Start with text_generator.py.
"""
