"""Names: which are allowed, and the key under which two names count as the same."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from comgrad.errors import ComgradError

MAX_NAME = 200

# Letters of other scripts (and rarer Latin ones) that look like a basic Latin letter, in lower case. A letter whose
# capital is the look-alike (Cyrillic В, Н; Greek Β, Ζ) stands under that letter: the key is the same for both cases.
_LOOKALIKES = {
    "a": "аɑαаᴀ",
    "b": "вβƀьʙ",
    "c": "сϲᴄƈ",
    "d": "ԁđɗᴅ",
    "e": "еεєҽəɛᴇ",
    "f": "ƒϝ",
    "g": "ɡɢցġ",
    "h": "һнħʜհηң",
    "i": "іιıɩɪ",
    "j": "јϳʝ",
    "k": "кκқҝᴋ",
    "l": "ӏʟł|1",
    "m": "мᴍϻ",
    "n": "пոռɴŋ",
    "o": "оοσօօᴏøө0ဝ๐०০੦૦௦౦೦൦〇",
    "p": "рρƿᴘ",
    "q": "ԛգʠ",
    "r": "гʀᴦɼ",
    "s": "ѕʂꜱ",
    "t": "тτŧᴛ",
    "u": "υսμᴜʋ",
    "v": "ѵνᴠ",
    "w": "ԝωшɯᴡ",
    "x": "хχҳ×",
    "y": "уүγʏ",
    "z": "ζᴢʐ",
}
_TO_LATIN = {ord(look): letter for letter, looks in _LOOKALIKES.items() for look in looks}
_TWO_AS_ONE = (("rn", "m"), ("vv", "w"))  # two letters that read as one in most typefaces

# Characters that draw nothing although Unicode calls them letters, symbols or marks.
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
_REFUSED_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_LIKE_AN_ID = re.compile(r"tv-[0-9a-flo]+\Z")  # in a key, 0 reads as o and 1 as l
_FOLDED_SCRIPTS = ("LATIN", "CYRILLIC", "GREEK")


def refused(name: str, why: str) -> ComgradError:
    """The refusal of a name."""
    return ComgradError(f"the name {_shown(name)}", why, "choose another name", code="name-refused")


def checked_name(name: str) -> str:
    """The name as it is stored: NFC, outer spaces removed, inner runs of spaces made one.

    Raises:
        ComgradError: (`name-refused`) empty, longer than 200 characters, with control, direction or invisible
            characters, with Latin, Greek and Cyrillic letters mixed in one word, or shaped like an id.
    """
    for char in name:
        if unicodedata.category(char) in _REFUSED_CATEGORIES or char in _INVISIBLE:
            raise refused(name, f"it has the character U+{ord(char):04X}, which is invisible or changes how it reads")
    name = unicodedata.normalize("NFC", " ".join(name.split()))
    if not name:
        raise refused(name, "it is empty")
    if len(name) > MAX_NAME:
        raise refused(name, f"it has {len(name)} characters and {MAX_NAME} are allowed")
    for word in re.split(r"[\W_]+", name):
        scripts = sorted({script for char in word if (script := _script(char))})
        if len(scripts) > 1:
            raise refused(name, f"its word {_shown(word)} mixes {' and '.join(s.title() for s in scripts)} letters")
    key = name_key(name)
    if not key:
        raise refused(name, "it has no letter, digit or symbol")
    if _LIKE_AN_ID.match(key):
        raise refused(name, "it has the shape of an id")
    return name


@lru_cache(maxsize=65536)
def name_key(name: str) -> str:
    """The key under which names are unique: NFKC, case folded, look-alikes folded, separators folded.

    Two names that a reader would take for one another have one key ("Mood", "mood", "mооd" with Cyrillic о,
    "ｍｏｏｄ"); "a b", "a-b", "a_b" and "a.b" too. Accents on Latin, Greek and Cyrillic letters do not count.
    """
    text = unicodedata.normalize("NFKC", name).casefold()
    text = unicodedata.normalize("NFKD", text).casefold()
    kept: list[str] = []
    letter = ""
    for char in text:
        category = unicodedata.category(char)
        if category == "Mn" and (_script(letter) or char in _INVISIBLE or 0xFE00 <= ord(char) <= 0xFE0F):
            continue
        if not category.startswith("M"):
            letter = char
        folded = _TO_LATIN.get(ord(char), char)
        separator = folded is char and (category[0] in "PZC" or char.isspace())
        kept.append(" " if separator else folded)
    key = "".join(kept)
    for two, one in _TWO_AS_ONE:
        key = key.replace(two, one)
    return "-".join(unicodedata.normalize("NFC", key).split())


def _script(char: str) -> str:
    """`LATIN`, `CYRILLIC` or `GREEK` for a letter of these scripts, otherwise nothing."""
    if not char or not char.isalpha():
        return ""
    name = unicodedata.name(char, "")
    return next((script for script in _FOLDED_SCRIPTS if name.startswith(script)), "")


def _shown(text: str) -> str:
    """The text for a message: escaped where it is not plain, cut where it is long."""
    return ascii(text if len(text) <= 80 else text[:77] + "…")
