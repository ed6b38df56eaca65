#!/usr/bin/env python3
"""Writes unicode_tables.inc: python3 unicode_tables.py > unicode_tables.inc (needs `pip install tokenizers`).

The tables are what the Hugging Face library itself answers when asked about every code point, because being equal
to it is what matters: its regular expressions follow Unicode 16 (0.23), its NFC an older version.
"""
import sys
import unicodedata

from tokenizers import Regex, normalizers, pre_tokenizers

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
nfc = normalizers.NFC().normalize_str


def matching(regex):
    split = pre_tokenizers.Split(Regex(regex), "removed")
    return [c for c in CODE_POINTS if not split.pre_tokenize_str(chr(c))]


def composes_backward():
    """Second characters of canonical compositions, and Hangul vowels and final consonants."""
    seconds = set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3))
    for c in CODE_POINTS:
        parts = unicodedata.decomposition(chr(c)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            first, second = (chr(int(p, 16)) for p in parts)
            if nfc(first + second) == chr(c):
                seconds.add(ord(second))
    return seconds


def reorders(c):
    """True for combining characters: they move over U+0334 (class 1) or U+0345 (class 240)."""
    if c in (0x334, 0x345):
        return True
    after, before = "a" + chr(c) + "\u0334", "a\u0345" + chr(c)
    return nfc(after) != after or nfc(before) != before


def ranges(code_points):
    result = []
    for c in code_points:
        if result and result[-1][1] == c - 1:
            result[-1][1] = c
        else:
            result.append([c, c])
    return result


def emit(name, comment, code_points):
    pairs = ranges(code_points)
    print(f"// {comment}: {len(code_points)} code points in {len(pairs)} ranges.")
    print(f"constexpr CodeRange {name}[] = {{")
    line = "   "
    for first, last in pairs:
        item = f" {{0x{first:X},0x{last:X}}},"
        if len(line) + len(item) > 108:
            print(line)
            line = "   "
        line += item
    print(line)
    print("};")


print("// Written by unicode_tables.py; not to be edited.")
emit("letter_ranges", "\\p{L}", matching(r"\p{L}"))
emit("number_ranges", "\\p{N}", matching(r"\p{N}"))
emit("space_ranges", "\\s", matching(r"\s"))
seconds = composes_backward()
active = [c for c in CODE_POINTS if nfc(chr(c)) != chr(c) or c in seconds or reorders(c)]
emit("nfc_active_ranges", "What NFC may change together with what stands before it", active)
print(f"unicodedata {unicodedata.unidata_version}", file=sys.stderr)
