"""Readers of CoNLL-U and OntoNotes files, and the instruction tasks, on small files written here."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comgrad.describe.linguistic.conll2012 import read_conll2012
from comgrad.describe.linguistic.conllu import read_conllu
from comgrad.describe.linguistic.documents import Document, Sentence, Span, passages, written
from comgrad.describe.linguistic.instructions import INSTRUCTIONS, chains, prompt
from comgrad.describe.linguistic.labels import LABELLINGS, depth
from comgrad.errors import ComgradError

# word, tag, lemma, frameset, entity bit, argument bits …, chain
ONTONOTES = """\
#begin document (zz/toy_0001); part 000
zz/toy_0001 0 0 The DT (TOP(S(NP* - - - - * (ARG0* (12
zz/toy_0001 0 1 baker NN *) - - - - * *) 12)
zz/toy_0001 0 2 sold VBD (VP* sell 01 1 - * (V*) -
zz/toy_0001 0 3 Mia NNP (NP*) - - - - (PERSON) (ARG2*) (3)
zz/toy_0001 0 4 two CD (NP* - - - - (CARDINAL) (ARG1* -
zz/toy_0001 0 5 loaves NNS *) - - - - * *) -
zz/toy_0001 0 6 on IN (PP* - - - - * (ARGM-TMP* -
zz/toy_0001 0 7 Monday NNP (NP*)))) - - - - (DATE) *) -
zz/toy_0001 0 8 . . *)) - - - - * * -

zz/toy_0001 0 0 His PRP$ (TOP(S(NP* - - - - * (ARG0* * (7|(12)
zz/toy_0001 0 1 oven NN *) - - - - * *) * 7)
zz/toy_0001 0 2 broke VBD (VP* break 01 1 - * (V*) * -
zz/toy_0001 0 3 , , * - - - - * * * -
zz/toy_0001 0 4 and CC * - - - - * * * -
zz/toy_0001 0 5 he PRP (NP*) - - - - * * (ARG0*) (12)
zz/toy_0001 0 6 wo MD * - - - - * * * -
zz/toy_0001 0 7 n't RB * - - - - * * * -
zz/toy_0001 0 8 bake VB (VP* bake 01 1 - * * (V*) -
zz/toy_0001 0 9 bread NN (NP*)))) - - - - * * (ARG1*) -
zz/toy_0001 0 10 /. . *)) - - - - * * * -

zz/toy_0001 0 0 Rain NN (TOP(S* - - - - * -
zz/toy_0001 0 1 fell VBD * - - - - * -
zz/toy_0001 0 2 . . *)) - - - - * -

#end document
"""

CONLLU = """\
# newdoc id = first
# sent_id = 1
# text = Don't the cats sleep?
1-2\tDon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tDo\tdo\tAUX\tVBP\tMood=Ind|Tense=Pres|VerbForm=Fin\t5\taux\t_\t_
2\tn't\tnot\tPART\tRB\tPolarity=Neg\t5\tadvmod\t_\t_
3\tthe\tthe\tDET\tDT\t_\t4\tdet\t_\t_
4\tcats\tcat\tNOUN\tNNS\tNumber=Plur\t5\tnsubj\t_\t_
5\tsleep\tsleep\tVERB\tVB\tVerbForm=Inf\t0\troot\t_\tSpaceAfter=No
5.1\tgone\tgo\tVERB\tVBN\t_\t_\t_\t5:conj\t_
6\t?\t?\tPUNCT\t.\t_\t5\tpunct\t_\t_

# newdoc id = second
1\tBread\tbread\tNOUN\tNN\tNumber=Sing\t3\tnsubj:pass\t_\t_
2\twas\tbe\tAUX\tVBD\tTense=Past|VerbForm=Fin\t3\taux:pass\t_\t_
3\tsold\tsell\tVERB\tVBN\tTense=Past|VerbForm=Part|Voice=Pass\t0\troot\t_\tSpaceAfter=No
4\t.\t.\tPUNCT\t.\t_\t3\tpunct\t_\t_
"""


def saved(folder: Path, text: str, name: str) -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


@pytest.fixture
def toy(tmp_path: Path) -> Document:
    (document,) = read_conll2012(saved(tmp_path, ONTONOTES, "toy.v4_gold_conll"))
    return document


# -- reading -----------------------------------------------------------------------------------------------------------
def test_ontonotes_words_entities_roles_and_chains(toy: Document) -> None:
    assert toy.name == "zz/toy_0001" and toy.annotated == {"entities", "roles", "coreference"}
    assert toy.text() == "The baker sold Mia two loaves on Monday. His oven broke, and he won't bake bread. Rain fell."
    first, second, third = toy.sentences
    assert first.entities == (Span(3, 4, "PERSON"), Span(4, 5, "CARDINAL"), Span(7, 8, "DATE"))
    assert [s.label for s in first.frames[0].spans] == ["ARG0", "V", "ARG2", "ARG1", "ARGM-TMP"]
    assert second.frames[1].first("ARG1") == Span(9, 10, "ARG1")
    assert second.mentions == (Span(0, 2, "7"), Span(0, 1, "12"), Span(5, 6, "12"))
    assert third.frames == () == third.entities
    assert {label: len(places) for label, places in chains(toy).items()} == {"12": 3}  # 3 and 7 have one mention each


def test_conllu_words_trees_and_documents(tmp_path: Path) -> None:
    first, second = read_conllu(saved(tmp_path, CONLLU, "toy.conllu"))
    assert (first.name, second.name) == ("first", "second") and first.annotated == {"trees"}
    assert first.text() == "Don't the cats sleep?" and second.text() == "Bread was sold."
    assert [d.head for d in first.sentences[0].tree] == [5, 5, 4, 5, 0, 5]
    assert depth(first.sentences[0]) == 3 and depth(second.sentences[0]) == 2


def test_a_file_without_newdoc_is_one_document_and_may_lack_the_last_empty_line(tmp_path: Path) -> None:
    plain = "\n".join(line for line in CONLLU.splitlines() if not line.startswith("#"))
    (document,) = read_conllu(saved(tmp_path, plain, "plain.conllu"))
    assert document.name == "plain.conllu" and len(document.sentences) == 2


@pytest.mark.parametrize(
    ("old", "new", "line", "why"),
    [
        ("3\tthe\tthe", "3\tthe", 7, "it has 9 columns, not 10 divided by tabs"),
        ("3\tthe", "4\tthe", 7, "the word's number is '4', not 3"),
        ("\t4\tdet", "\t9\tdet", 7, "its head is 9 in a sentence of 6 words"),
        ("\t4\tdet", "\t_\tdet", 7, "the head is '_'; write a word's number"),
        ("\t4\tdet", "\t0\troot", 9, "the sentence has 2 roots"),
        ("Number=Plur\t5", "Number=Plur\t3", 7, "its heads go round in a circle"),
        ("1-2\t", "2-3\t", 4, "the range '2-3' does not begin at the next word"),
        ("1-2\t", "1-9\t", 11, "the range 1-9 ends beyond the sentence"),
        ("5.1\t", "4.1\t", 10, "the empty node '4.1' does not follow its word"),
        ("Number=Plur", "Number", 8, "the features 'Number' are no list of Name=Value"),
        ("\tcats\t", "\t\t", 8, "a column is empty; write _"),
        ("\n\n# newdoc id = second", "\n# newdoc id = second", 12, "a document begins inside a sentence"),
    ],
)
def test_malformed_conllu_is_refused_with_its_line(tmp_path: Path, old: str, new: str, line: int, why: str) -> None:
    assert old in CONLLU
    path = saved(tmp_path, CONLLU.replace(old, new, 1), "bad.conllu")
    with pytest.raises(ComgradError, match=f"bad.conllu' line {line}; ") as found:
        read_conllu(path)
    assert why in str(found.value) and found.value.code == "bad-corpus"


@pytest.mark.parametrize(
    ("old", "new", "line", "why"),
    [
        (
            "0 1 baker NN *) - - - - * *) 12)",
            "0 1 baker NN *) - - - - *",
            3,
            "it has 11 columns, and the format at least 12",
        ),
        ("0 1 baker NN *) - - - - * *) 12)", "0 1 baker NN *) - - - - * 12)", 3, "and its sentence began with 13"),
        ("0 1 baker", "0 2 baker", 3, "the word's number is '2', not 1"),
        ("baker", "[WORD]", 3, "the words are not filled in; make the _conll file"),
        ("(ARG0* (12", "* (12", 3, "'*)' closes a span that was not opened"),
        ("(ARG1* -", "(ARG1 -", 6, "'(ARG1' is no bracket of a span"),
        ("(ARGM-TMP* -", "(ARGM-TMP*) -", 9, "'*)' closes a span that was not opened"),
        ("*) 12)", "*) -", 2, "a mention of chain 12 is not closed in its sentence"),
        ("*) 12)", "*) 13)", 3, "chain 13 is closed and was not opened"),
        ("*) 12)", "*) 12", 3, "'12' is no coreference"),
        ("(V*) -", "* -", 2, "column 12 of the sentence has no single predicate (V*)"),
        ("#end document\n", "", 1, "the document 'zz/toy_0001' has no end"),
        ("#begin document (zz/toy_0001); part 000\n", "", 1, "a word outside of a document"),
        ("#begin document (zz/toy_0001); part 000", "#begin document", 1, "it is no '#begin document (NAME); part N'"),
    ],
)
def test_malformed_ontonotes_is_refused_with_its_line(tmp_path: Path, old: str, new: str, line: int, why: str) -> None:
    assert old in ONTONOTES
    text = ONTONOTES.replace(old, new, 1)
    with pytest.raises(ComgradError) as found:
        read_conll2012(saved(tmp_path, text, "bad_conll"))
    assert f"bad_conll' line {line}; " in str(found.value) and why in str(found.value)


def test_text_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.conllu"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ComgradError, match=r"it cannot be read as text .*; write it as UTF-8"):
        read_conllu(path)


def test_treebank_tokens_are_written_as_one_writes_them() -> None:
    tokens = ["``", "I", "do", "n't", "-LRB-", "yet", "-RRB-", "owe", "$", "5", ",", "''", "she", "said", "/."]
    forms, glued = written(tokens)
    text = Sentence(forms, ("X",) * len(forms), glued).text()
    assert text == '"I don\'t (yet) owe $5," she said.'


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 20))
def test_passages_are_the_document_in_pieces(sizes: list[int], longest: int) -> None:
    sentences = tuple(Sentence(("w",) * n, ("X",) * n, (False,) * n) for n in sizes)
    parts = passages(Document("d", sentences, frozenset()), longest)
    assert tuple(s for p in parts for s in p.sentences) == sentences
    assert all(len(p.sentences) == 1 or sum(len(s.words) for s in p.sentences) <= longest for p in parts)


# -- instructions ------------------------------------------------------------------------------------------------------
def answer(name: str, document: Document) -> str | None:
    return INSTRUCTIONS[name].answer(document)


def test_the_slides_tasks(toy: Document) -> None:
    assert answer("coreference-longest-chains", toy) == (
        "The baker sold Mia two loaves on Monday. The baker's oven broke, and the baker won't bake bread."
    )
    assert answer("semantic-roles", toy) == "The baker sold two loaves on Monday. He bake bread."
    assert answer("named-entities", toy) == "Mia (PERSON); two (CARDINAL); Monday (DATE)"
    assert answer("first-sentences", toy) == "The baker sold Mia two loaves on Monday."


def test_counts(toy: Document, tmp_path: Path) -> None:
    found = {n: answer(n, toy) for n, row in INSTRUCTIONS.items() if row.counted}
    assert found == {
        "count-words": "19", "count-sentences": "3", "count-verbs": "4", "count-nouns": "7", "count-entities": "3"
    }  # fmt: skip
    first, _ = read_conllu(saved(tmp_path, CONLLU, "toy.conllu"))
    assert [answer(n, first) for n in ("count-words", "count-verbs", "count-nouns")] == ["5", "2", "1"]


def test_the_prompt_is_the_slides(toy: Document) -> None:
    text = prompt(INSTRUCTIONS["semantic-roles"].instruction, toy)
    assert text.startswith(
        "In the following document, build sentences with only ARG0 VERB ARG1 ARGM-TMP.\n### Document: The"
    )
    assert text.endswith("Rain fell.\n### Answer:")


def simple(words: str, tags: str, *mentions: Span) -> Sentence:
    forms, glued = written(words.split())
    return Sentence(forms, tuple(tags.split()), glued, mentions=mentions)


def test_anchors_are_names_and_mentions_inside_others_stay() -> None:
    document = Document(
        "d",
        (
            simple("She left .", "PRP VBD .", Span(0, 1, "1")),
            simple("Ana 's mother smiled .", "NNP POS NN VBD .", Span(0, 3, "2"), Span(0, 2, "1")),
            simple("We saw her .", "PRP VBD PRP .", Span(2, 3, "1")),
        ),
        frozenset(["coreference"]),
    )
    assert answer("coreference-longest-chains", document) == "Ana left. Ana's mother smiled. We saw Ana."


def test_shorter_chains_and_mentions_inside_kept_ones_stay() -> None:
    sentences = (
        simple("Tom met Bo .", "NNP VBD NNP .", Span(0, 1, "1"), Span(2, 3, "3")),
        simple("His father left .", "PRP$ NN VBD .", Span(0, 2, "2"), Span(0, 1, "1")),
        simple("He smiled .", "PRP VBD .", Span(0, 1, "2")),
        simple("Then they slept .", "RB PRP VBD ."),
    )
    document = Document("d", sentences, frozenset(["coreference"]))
    assert answer("coreference-longest-chains", document) == "Tom met Bo. His father left. His father smiled."
    again = simple("It rained on him .", "PRP VBD IN PRP .", Span(3, 4, "1"))
    longer = Document("d", (*sentences, again), frozenset(["coreference"]))
    assert answer("coreference-longest-chains", longer) == "Tom met Bo. Tom's father left. It rained on Tom."


def test_ties_keep_both_chains_and_nothing_has_no_answer() -> None:
    document = Document(
        "d",
        (
            simple("A dog met Tom .", "DT NN VBD NNP .", Span(0, 2, "1"), Span(3, 4, "2")),
            simple("It bit him .", "PRP VBD PRP .", Span(0, 1, "1"), Span(2, 3, "2")),
            simple("Rain fell .", "NN VBD ."),
        ),
        frozenset(["coreference"]),
    )
    assert answer("coreference-longest-chains", document) == "A dog met Tom. A dog bit Tom."
    bare = Document("d", document.sentences[2:], frozenset())
    for name in ("coreference-longest-chains", "semantic-roles", "named-entities", "first-sentences"):
        assert answer(name, bare) is None


# -- labels ------------------------------------------------------------------------------------------------------------
def test_labels_of_two_sentences(tmp_path: Path) -> None:
    (first,), (second,) = (d.sentences for d in read_conllu(saved(tmp_path, CONLLU, "toy.conllu")))

    def named(name: str, s: Sentence) -> str | None:
        k = LABELLINGS[name].label(s)
        return None if k is None else LABELLINGS[name].label_names[k]

    assert [named(n, first) for n in LABELLINGS] == ["one", "flat", "present", "plural", None, "active"]
    assert [named(n, second) for n in LABELLINGS] == ["one", "flat", "past", "singular", None, "passive"]


@pytest.mark.parametrize(
    ("rows", "name", "label"),
    [
        ("1 She she PRON PRP _ 3 nsubj|2 will will AUX MD VerbForm=Fin 3 aux|3 bake bake VERB VB VerbForm=Inf 0 root", "main-tense", 2),
        ("1 Stop stop VERB VB VerbForm=Fin 0 root", "main-tense", None),
        ("1 Cats cat NOUN NNS _ 2 nsubj|2 eat eat VERB VB _ 0 root|3 mice mouse NOUN NNS Number=Plur 2 obj", "object-number", 1),
        ("1 Cats cat NOUN NNS _ 2 nsubj|2 eat eat VERB VB _ 0 root|3 it it PRON PRP Number=Sing 2 obj", "object-number", None),
        ("1 Rain rain NOUN NN _ 0 root", "subject-count", 0),
        ("1 Rain rain NOUN NN _ 0 root", "voice", None),
    ],
)  # fmt: skip
def test_labels_of_single_trees(tmp_path: Path, rows: str, name: str, label: int | None) -> None:
    lines = ["\t".join([*row.split()[:8], "_", "_"]) for row in rows.split("|")]
    (document,) = read_conllu(saved(tmp_path, "\n".join(lines) + "\n\n", "one.conllu"))
    assert LABELLINGS[name].label(document.sentences[0]) == label


def test_depth_counts_levels_without_punctuation(tmp_path: Path) -> None:
    chain = "\n".join(f"{i}\tw\tw\tNOUN\tNN\t_\t{i - 1}\t{'root' if i == 1 else 'nmod'}\t_\t_" for i in range(1, 7))
    (document,) = read_conllu(saved(tmp_path, f"{chain}\n7\t.\t.\tPUNCT\t.\t_\t6\tpunct\t_\t_\n\n", "deep.conllu"))
    assert depth(document.sentences[0]) == 6 and LABELLINGS["tree-depth"].label(document.sentences[0]) == 2
