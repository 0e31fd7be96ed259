"""The server: OpenAI's completions over HTTP, and texts that join and leave a running batch at each token.

No room imports it; it imports generation/ and the rooms below. Start with engine.py, then application.py.
"""
