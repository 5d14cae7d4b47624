"""A text as the gates read it: without case and punctuation, without quotations, or word by word."""

# ruff: noqa: RUF001 - the signs are meant

import re
import unicodedata
from functools import cache

_SIGNED = re.compile(r"(?<![^\s(])[-–](?=\d)")
_IN_NUMBER = re.compile(r"(?<=\d)[.,:/](?=\d)")
# Mathematical signs stand in for punctuation that means something, as they are kept.
_MEANT = {".": "\N{BULLET OPERATOR}", ",": "\N{RING OPERATOR}", ":": "\N{RATIO}", "/": "\N{DIVISION SLASH}"}
_SHARP = re.compile(r"(?<=\w)#")
_QUOTATION = re.compile(
    r"\"[^\"\n]*\"|“[^”\n]*”|„[^“”\n]*[“”]|«[^»\n]*»|‘[^’\n]*’(?!\w)|「[^」\n]*」|『[^』\n]*』|《[^》\n]*》"
    r"|(?<!\w)'[^'\n]*'(?!\w)"
)
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff]")


def plain(text: str) -> str:
    """Case, punctuation and spacing apart.

    Signs that mean something stay (+ < € %, the minus and the point of a number, C#), as do vowels above a letter.
    """
    folded = unicodedata.normalize("NFC", text.casefold())
    folded = _SHARP.sub("\N{MUSIC SHARP SIGN}", _SIGNED.sub("\N{MINUS SIGN}", folded))
    folded = _IN_NUMBER.sub(lambda match: _MEANT[match[0]], folded)
    return " ".join("".join(map(_kept, folded)).split())


@cache
def _kept(sign: str) -> str:
    """A space for punctuation, controls and detached accents (` ^), nothing for what is invisible, or the sign."""
    category = unicodedata.category(sign)
    if category == "Cf":
        return ""
    if sign == "%":
        return sign
    return " " if category[0] in "PZC" or category == "Sk" else sign


def words(text: str) -> list[str]:
    """Split a text into plain words; scripts that set no spaces (Chinese, Japanese, Thai) count letter by letter."""
    return _UNSPACED.sub(r" \g<0> ", plain(text)).split()


def unquoted(text: str) -> str:
    """Leave out what stands in quotation marks, or nothing if there is no other letter."""
    rest = _QUOTATION.sub(" ", text)
    return rest if any(map(str.isalpha, rest)) else text
