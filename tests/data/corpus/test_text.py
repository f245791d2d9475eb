"""Text corpora and the standard library: documents, splits and refusals."""

import json
from pathlib import Path

import pytest

from lmx.config.registry import ConfigError
from lmx.data.corpus.corpus import (
    SPLITS,
    Corpus,
    Document,
    HoldoutDocuments,
    HoldoutTail,
)
from lmx.data.corpus.text import TOPICS, Stdlib, Text


def read_splits(corpus: Corpus) -> tuple[list[Document], list[Document]]:
    return list(corpus.read_nonempty("train")), list(corpus.read_nonempty("validation"))


@pytest.fixture(scope="module")
def stdlib():
    return read_splits(Stdlib())


@pytest.fixture
def folder(tmp_path, write):
    for number in range(100):
        write(f"texts/{number % 7}/{number}.txt", f"text {number}\r\n")
    return str(tmp_path / "texts")


def test_a_module_is_in_one_split(stdlib):
    train, validation = ({document.name for document in part} for part in stdlib)
    assert train.isdisjoint(validation)
    assert {"ast.py", "os.py", "json/decoder.py"} <= train | validation
    assert 0.02 < len(validation) / len(train | validation) < 0.06


def test_the_library_includes_the_reference_and_excludes_tests(stdlib):
    train, validation = stdlib
    names = {name for name, _ in (*train, *validation)}
    assert TOPICS not in names
    assert f"{TOPICS}:while" in {name for name, _ in train}
    assert dict(train)[f"{TOPICS}:while"].startswith('The "while" statement\n****')
    parts = {part for name in names for part in name.split("/")}
    assert parts.isdisjoint({"test", "tests", "site-packages", "__pycache__"})


def test_the_library_excludes_machine_specific_modules(stdlib):
    names = {name for part in stdlib for name, _ in part}
    assert not any("_sysconfigdata_" in name for name in names)


def test_an_added_file_does_not_change_the_split_of_others(folder, write):
    before = read_splits(Text(path=folder))
    write("texts/new.txt", "new")
    after = read_splits(Text(path=folder))
    for old, new in zip(before, after, strict=True):
        assert [document for document in new if document.name != "new.txt"] == old
    assert 0 < len(before[1]) < 12


def test_text_is_read_unchanged(folder):
    train, validation = read_splits(Text(path=folder))
    assert sorted(text for _, text in (*train, *validation)) == sorted(
        f"text {number}\r\n" for number in range(100)
    )


def test_hidden_and_other_files_are_skipped(folder, write):
    digest = Text(path=folder).compute_digest()
    write("texts/.git/a.txt", "hidden")
    write("texts/picture.png", b"\xff")
    write("texts/empty.txt", "")
    assert Text(path=folder).compute_digest() == digest


def test_symbolic_links_are_followed(folder, write):
    """To a file and to a folder, which may be reached twice."""
    before = len(list(Text(path=folder).read_nonempty("train")))
    write("outside/sub/a.txt", "linked")
    linked = Path(folder, "linked")
    linked.symlink_to(Path(folder).parent / "outside")
    (linked / "b.txt").symlink_to(linked / "sub" / "a.txt")
    corpus = Text(path=folder, holdout=HoldoutDocuments(fraction=0.0))
    names = [name for name, _ in corpus.read("train")]
    assert before < 100 and names[-2:] == ["linked/b.txt", "linked/sub/a.txt"]
    assert len(names) == 102


def test_links_to_nothing_and_in_a_circle_are_refused(folder):
    link = Path(folder, "link.txt")
    link.symlink_to("missing")
    check_refused(Text(path=folder), r"link\.txt is a link to nothing")
    link.unlink()
    link.symlink_to("link.txt")
    check_refused(Text(path=folder), r"link\.txt is a link to nothing")
    link.unlink()
    Path(folder, "0", "up").symlink_to("..")
    check_refused(Text(path=folder), "0/up is a link to a folder that contains it")


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.ndjson", "a.NDJson"])
def test_every_name_of_json_lines_is_read_as_that(write, name):
    path = write(f"lines/{name}", '{"text": "1"}\n{"text": "3"}\n')
    everything = HoldoutDocuments(fraction=0.0)
    for suffixes, root in (((), path), ((".jsonl", ".ndjson"), Path(path).parent)):
        corpus = Text(path=str(root), suffixes=suffixes, holdout=everything)
        assert [text for _, text in corpus.read("train")] == ["1", "3"]


def test_a_json_file_is_not_read_as_text(write):
    check_refused(Text(path=write("a.json", "[]")), r"a\.json may hold one JSON value")
    for name in ("a.jsonl.gz", "a.TXT.bz2", "a.zip"):
        check_refused(Text(path=write(name, "x")), f"{name} is compressed in a format")


def test_the_tail_begins_where_nanogpt_splits(write):
    text = "".join(map(str, range(1000)))
    train, validation = read_splits(
        Text(path=write("a.txt", text), holdout=HoldoutTail())
    )
    cut = int(len(text) * 0.9)
    assert (train[0].text, validation[0].text) == (text[:cut], text[cut:])


def test_each_line_of_json_is_a_document(write):
    lines = [json.dumps({"body": f"ä {number}\n"}) for number in range(50)]
    path = write("a.jsonl", "\n".join([*lines, "", ""]))
    corpus = Text(path=path, text_field="body", holdout=HoldoutDocuments(fraction=0.2))
    train, validation = read_splits(corpus)
    assert {text for _, text in train + validation} == {f"ä {n}\n" for n in range(50)}
    assert 3 < len(validation) < 20


def test_lines_are_named_by_their_file_and_offset(write):
    for name in ("a", "b"):
        path = write(f"lines/{name}.jsonl", '{"text": "1"}\n\n{"text": "3"}\n')
    corpus = Text(path=str(Path(path).parent), suffixes=(".jsonl",))
    names = {name for split in SPLITS for name, _ in corpus.read(split)}
    assert names == {"a.jsonl@0", "a.jsonl@15", "b.jsonl@0", "b.jsonl@15"}


def test_the_digest_does_not_depend_on_the_path(write):
    lines = "".join(json.dumps({"text": f"{number}"}) + "\n" for number in range(50))
    one, other = (Text(path=write(p, lines)) for p in ("a.jsonl", "b/other.jsonl"))
    assert one.compute_digest() == other.compute_digest()


def test_the_digest_depends_on_names_texts_and_splits(write):
    one, other = (write(f"{name}.txt", "abc" * 9 + name) for name in "xy")
    corpora = [
        Text(path=one, holdout=HoldoutTail()),
        Text(path=other, holdout=HoldoutTail()),
        Text(path=one, holdout=HoldoutTail(fraction=0.5)),
    ]
    assert len({corpus.compute_digest() for corpus in corpora}) == 3


def check_refused(corpus: Corpus, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_splits(corpus)


def test_a_missing_path_is_refused_with_the_nearest_name(write):
    write("shakespeare.txt", "To be")
    path = write("other.txt", "").replace("other", "shakespear")
    check_refused(
        Text(path=path, holdout=HoldoutTail()), r"did you mean 'shakespeare\.txt'\?"
    )
    check_refused(
        Text(path="/no/such/a.txt", holdout=HoldoutTail()), "there is no /no/such/a.txt"
    )


def test_one_document_is_not_split_by_document(write):
    check_refused(
        Text(path=write("a.txt", "To be")), r"set Text\.holdout = @HoldoutTail\(\)"
    )


def test_text_in_another_encoding_is_refused_with_the_byte(write):
    path = write("a.txt", b"sch" + "ö".encode("latin-1") + b"n")
    check_refused(
        Text(path=path, holdout=HoldoutTail()), r"a\.txt: not UTF-8 \(0xf6\) at byte 3"
    )
    path = write("a.jsonl", b'{"text": "a"}\n{"text": "\xf6"}\n')
    check_refused(Text(path=path), r"a\.jsonl: not UTF-8 \(0xf6\) at byte 24")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', r"a\.jsonl: not JSON \(Expecting .* at byte 26"),
        ('{"text": "ä" 1}', r"a\.jsonl: not JSON \(Expecting .* at byte 28"),
        ("[1]", r"a\.jsonl: not a JSON object, {...} at byte 14"),
        ("[" * 10**6, r"a\.jsonl: not JSON \(RecursionError\) at byte 14"),
        ("9" * 10**4, r"a\.jsonl: not JSON \(ValueError\) at byte 14"),
        (
            '{"body": 1, "id": 1}',
            "no field 'text' at byte 14: the fields are 'body', 'id'",
        ),
        ('{"text": 3}', "int instead of text in 'text' at byte 14"),
        ('{"text": "\\ud800"}', "an unpaired surrogate in 'text' at byte 14"),
    ],
)
def test_an_invalid_line_is_refused_with_its_offset(write, line, message):
    check_refused(Text(path=write("a.jsonl", '{"text": "a"}\n' + line)), message)


def test_a_folder_without_text_is_refused_with_the_suffixes(tmp_path):
    check_refused(Text(path=str(tmp_path)), r"ends in \.txt or \.md or \.py")


def test_an_empty_split_is_refused_when_it_is_read(write):
    few = Text(path=write("a.jsonl", '\n{"text": "a"}\n'))
    assert len(list(few.read_nonempty("train"))) == 1
    check_refused(few, "validation split of Text.* is empty: .*larger fraction")
    check_refused(
        Text(path=write("b.txt", ""), holdout=HoldoutTail()),
        "train split of Text.* empty",
    )
