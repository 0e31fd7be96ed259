"""Text while tokens come in: whole characters only, and stop strings that are never shown in part."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generation.text_stream import TextStream
from tokenizer import Tokenizer


def by_bytes(ids):
    """A tokenizer with one token a byte: the worst case of characters that span tokens."""
    return bytes(ids).decode("utf-8", "replace")


def pieces(text, stop_strings=()):
    stream = TextStream(by_bytes, stop_strings)
    shown = [stream.push(byte) for byte in text.encode()]
    return stream, [*shown, stream.finish()]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_pieces_are_whole_characters_and_add_up(text):
    stream, shown = pieces(text)
    assert "".join(shown) == text == stream.text
    for before, piece in enumerate(shown[:-1]):
        assert piece == "" or piece in text and before >= len(piece.encode()) - 1


def test_each_character_shows_with_its_last_byte():
    assert pieces("aé€😀")[1] == ["a", "", "é", "", "", "€", "", "", "", "😀", ""]


def test_bytes_that_are_no_character_show_as_one_replacement():
    stream = TextStream(by_bytes)
    assert [stream.push(byte) for byte in (0xE2, 0x82, 0x41)] == ["", "", "\ufffdA"]
    stream.push(0xE2)
    assert stream.finish() == "\ufffd"


@settings(max_examples=200, deadline=None)
@given(st.text("abc", max_size=12), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_first_stop_string(text, stop_strings):
    stream = TextStream(by_bytes, stop_strings)
    shown, read = "", 0
    for byte in text.encode():
        shown += stream.push(byte)
        read += 1
        if stream.stopped:
            break
        assert not any(stop in shown for stop in stop_strings)
    shown += stream.finish()
    # The first moment at which some stop string is complete, and there the one that begins first.
    ends = [end for end in range(len(text) + 1) if any(stop in text[:end] for stop in stop_strings)]
    if not ends:
        assert shown == text and not stream.stopped
    else:
        seen = text[: ends[0]]
        assert shown == seen[: min(seen.find(stop) for stop in stop_strings if stop in seen)] and read == ends[0]


def test_what_cannot_become_a_stop_string_shows_at_once():
    stream = TextStream(by_bytes, ["\n\nQ:"])
    assert [stream.push(byte) for byte in b"a\nb\n\nQ"] == ["a", "", "\nb", "", "", ""]
    assert stream.finish() == "\n\nQ"


@pytest.mark.parametrize("text", ["naïve café 🤖 日本語 text", "\u200d🏳️‍🌈"])
def test_with_gpt2s_own_tokenizer(text):
    tokenizer = Tokenizer.gpt2()
    stream = TextStream(tokenizer.decode)
    shown = [stream.push(int(token)) for token in tokenizer.encode(text)]
    assert "".join([*shown, stream.finish()]) == text
    assert not any("\ufffd" in piece for piece in shown)
