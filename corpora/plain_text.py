"""Text as other systems save it: a byte order mark in front, CRLF at the ends of lines."""

from __future__ import annotations

import codecs


def plain(raw: bytes, name: object = "") -> bytes:
    """UTF-8 text without a byte order mark at its beginning and with LF for CRLF: what every reader of text sees.

    With a `name`, text that begins with the mark of UTF-16 or UTF-32 is refused: ValueError naming it.
    """
    if name and raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        raise ValueError(f"{name}: UTF-16 or UTF-32 text, by its byte order mark; convert it: iconv -f utf-16 -t utf-8")
    if raw.startswith(codecs.BOM_UTF8):
        raw = raw[len(codecs.BOM_UTF8) :]
    return raw.replace(b"\r\n", b"\n")
