"""Names: what is refused, and which names count as one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comgrad.errors import ComgradError
from comgrad.registry.names import MAX_NAME, checked_name, name_key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Mood", "mood"),
        ("STRASSE", "straße"),
        ("mood", "mо\u043ed".replace("\u043e", "о")),  # Cyrillic о
        ("paypal", "раураӏ"),  # every letter Cyrillic
        ("Kate", "Κατε"),  # every letter Greek
        ("mood", "ｍｏｏｄ"),
        ("mood", "𝐦𝐨𝐨𝐝"),
        ("mood", "m00d"),
        ("label", "1abel"),
        ("modern", "modem"),
        ("wine", "vvine"),
        ("resume", "résumé"),
        ("resume", "re\u0301sume\u0301"),
        ("fine", "ﬁne"),
        ("a b", "a-b"),
        ("a b", "A__b"),
        ("a b", " a.b! "),
        ("BOT", "ВОТ"),  # Cyrillic capitals
        ("bot", "вот"),
    ],
)
def test_names_that_read_alike_have_one_key(one: str, other: str) -> None:
    assert name_key(one) == name_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("mood", "moods"),
        ("intent-home", "intent-hate"),
        ("v1", "v2"),
        ("大", "犬"),
        ("का", "की"),
        ("a", "b"),
        ("C+", "C"),
    ],
)
def test_names_that_differ_have_two_keys(one: str, other: str) -> None:
    assert name_key(one) != name_key(other)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "it is empty"),
        ("   ", "it is empty"),
        ("a\x00b", r"the character U\+0000"),
        ("a\nb", r"the character U\+000A"),
        ("a\x1b[31mb", r"the character U\+001B"),
        ("safe\u202egnp", r"the character U\+202E"),
        ("a\u2066b", r"the character U\+2066"),
        ("a\u200bb", r"the character U\+200B"),
        ("a\u00adb", r"the character U\+00AD"),
        ("a\ufeffb", r"the character U\+FEFF"),
        ("a\u3164b", r"the character U\+3164"),
        ("a\ud800b", r"the character U\+D800"),
        ("a\ue000b", r"the character U\+E000"),
        ("x" * (MAX_NAME + 1), "it has 201 characters and 200 are allowed"),
        ("pаypal", "mixes Cyrillic and Latin letters"),
        ("νision", "mixes Greek and Latin letters"),
        ("tv-0123456789abcdef", "it has the shape of an id"),
        ("TV_abc", "it has the shape of an id"),
        ("...", "it has no letter, digit or symbol"),
    ],
)
def test_refused_names(name: str, why: str) -> None:
    with pytest.raises(ComgradError, match=why) as caught:
        checked_name(name)
    assert caught.value.code == "name-refused"
    assert caught.value.given.isascii()  # the message itself is safe to print


@pytest.mark.parametrize(
    "name", ["Acceptability: verb arguments", "情感分析", "λ for RTE", "Überprüfung", "тест", "a" * 200]
)
def test_allowed_names_are_kept(name: str) -> None:
    assert checked_name(f"  {name} ") == name


@settings(deadline=None)
@given(st.text(max_size=30))
def test_the_key_is_stable_under_case_and_under_itself(name: str) -> None:
    key = name_key(name)
    assert name_key(key) == key
    assert name_key(name.upper().lower()) == name_key(name.upper())
    assert key == key.strip("-")


@settings(deadline=None)
@given(st.text(max_size=30))
def test_a_checked_name_is_checked_already(name: str) -> None:
    try:
        once = checked_name(name)
    except ComgradError:
        return
    assert checked_name(once) == once
    assert name_key(once) == name_key(name)
