"""Text: every token once, in an order of the seed, whatever the files hold."""

import numpy as np
import pytest
from tiny_language import tiny_text

from llm_bridge.texts import Text, pad
from simulator import RequestError


def letters(text, **options):
    """A tokenizer of one token per character."""
    assert options == {"add_special_tokens": False, "verbose": False}
    return {"input_ids": [ord(letter) for letter in text]}


def words(parts) -> list[str]:
    return ["".join(map(chr, part)) for part in parts]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_text(tmp_path_factory.mktemp("text"))


@pytest.fixture
def document(tmp_path):
    """A function that writes one document and gives it as a text."""

    def write(content, context=4, **options):
        (tmp_path / "d.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
        return Text((str(tmp_path / "d.txt"),), context, **options)

    return write


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("abcdefgh", ["abcd", "efgh"]),
        ("abcdefghi", ["abcd", "efgh"]),  # a last context of one token says nothing
        ("abcdefghij", ["abcd", "efgh", "ij"]),
        ("ab", ["ab"]),
        ("a", []),
        ("", []),
        (b"\xff\xfe", ["��"]),
        ("a\r\nb", ["a\nb"]),
    ],
)
def test_cuts(content, expected, document):
    assert words(document(content).contexts(letters)) == expected


def test_every_document_once_in_the_order_of_the_seed(folder):
    text = Text((str(folder),), 50)
    assert len(text.paths) == 10
    expected = [p.read_text(errors="replace") for p in text.paths]
    joined = ["".join(words(Text((str(folder),), 10**6, seed).contexts(letters))) for seed in (0, 0, 1)]
    assert joined[0] == joined[1] != joined[2]
    long = [part for part in expected if len(part) > 1]
    assert len(joined[0]) == sum(map(len, long)) == len(joined[2])
    assert all(part in joined[0] and part in joined[2] for part in long)
    short = words(text.contexts(letters))
    assert {len(part) for part in short} - {50} == {len(part) % 50 for part in long if len(part) % 50 > 1}
    assert all(part.dtype == np.int32 for part in text.contexts(letters))


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_batches_hold_every_context_once(size, shuffled, folder):
    text = Text((str(folder),), 20, seed=3, shuffled=shuffled)
    batches = list(text.batches(letters, size))
    assert all(1 <= len(batch) <= size for batch in batches)
    parts = [part for batch in batches for part in batch]
    contexts = list(text.contexts(letters))
    assert sorted(map(len, parts)) == sorted(map(len, contexts))
    if shuffled:
        one, other = np.concatenate(parts), np.concatenate(contexts)
        np.testing.assert_array_equal(np.sort(one), np.sort(other))
        assert sorted(words(parts)) != sorted(words(contexts))
    else:
        assert sorted(words(parts)) == sorted(words(contexts))
    for one, other in zip(batches, text.batches(letters, size), strict=True):
        assert words(one) == words(other)
    first = next(Text(text.files, 20, 4, shuffled).batches(letters, size))
    assert words(first) != words(batches[0])


def test_batches_do_not_depend_on_how_far_they_are_read(folder):
    """Windows of 64 batches: within one, contexts come by falling length; padding only near its end."""
    text = Text((str(folder),), 6, seed=1)
    batches = list(text.batches(letters, 2))
    assert len(batches) > 2 * 64
    lengths = [[len(part) for batch in batches[at : at + 64] for part in batch] for at in range(0, len(batches), 64)]
    assert all(window == sorted(window, reverse=True) for window in lengths)
    full = [part for part in text.contexts(letters) if len(part) == 6]
    kept = [part for batch in batches for part in batch if len(part) == 6]
    assert words(kept) == words(full)
    padded = sum(len(set(map(len, batch))) > 1 for batch in batches)
    assert padded < len(batches) / 10


def test_shuffling_stays_within_a_window(document):
    text = document("a" * 256 + "b" * 256, 4, shuffled=True)
    windows = list(text.batches(letters, 1))
    assert [set(words(windows[at : at + 64][k])[0]) for at in (0, 64) for k in (0, 63)] == [{"a"}] * 2 + [{"b"}] * 2
    document("".join(map(chr, range(1024, 1024 + 512))))
    places = np.concatenate([part for batch in text.batches(letters, 1) for part in batch]) - 1024
    assert sorted(places) == list(range(512)) and set(places[:256]) == set(range(256))
    assert list(places[:256]) != list(range(256)) and list(places[256:] - 256) != list(places[:256])


def test_what_identifies_a_text(folder, tmp_path, document):
    text = Text((str(folder),), 50)
    assert text.config()["files"] == 10
    copied = Text((str(tiny_text(tmp_path / "elsewhere")),), 50)
    assert copied.config() == text.config()
    path = copied.paths[3]
    path.write_bytes(path.read_bytes() + b".")
    assert copied.config()["sha256"] != text.config()["sha256"]
    assert document("ab").config() != document("ba").config() != document("ba", seed=1).config()


def test_files_and_folders(folder, tmp_path):
    one = str(folder / "document-0.txt")
    assert [path.name for path in Text((one, one), 8).paths] == ["document-0.txt"]
    assert len(Text((one, str(folder)), 8).paths) == 10
    assert all(not path.name.startswith(".") for path in Text((str(folder),), 8).paths)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("hidden")
    (tmp_path / "shown.txt").write_text("shown")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert [path.name for path in Text((str(tmp_path),), 8).paths] == ["shown.txt"]


def test_the_standard_library():
    paths = Text(("stdlib",), 128).paths
    names = {path.name for path in paths}
    assert {"textwrap.py", "dataclasses.py", "os.py"} <= names
    assert all(path.suffix == ".py" for path in paths)
    assert not any({"site-packages", "test", "__pycache__"} & set(path.parts) for path in paths)


@pytest.mark.parametrize(
    ("files", "context", "message"),
    [
        ((), 8, "no text; name files or folders"),
        (("empty",), 8, "no text file in empty"),
        (("missing.txt",), 8, "missing.txt is no file and no folder"),
        (("stdlibs",), 8, "stdlibs is no file and no folder"),
        (("words.txt",), 1, "context = 1"),
        (("words.txt",), 2.5, "context = 2.5"),
        (("words.txt",), True, "context = True"),
    ],
)
def test_texts_that_are_none(files, context, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "words.txt").write_text("words")
    with pytest.raises(RequestError, match=message) as caught:
        Text(files, context)
    assert "\n" not in str(caught.value)


def test_a_file_that_went_away_and_a_bad_seed(document, tmp_path):
    text = document("abcd")
    with pytest.raises(RequestError, match="seed"):
        next(document("abcd", seed=-1).contexts(letters))
    (tmp_path / "d.txt").unlink()
    for use in (text.config, lambda: list(text.contexts(letters))):
        with pytest.raises(RequestError, match=r"cannot read .*d\.txt: No such file"):
            use()


def test_padding():
    tokens, mask = pad([np.array([5, 6, 7], np.int32), np.array([8, 9], np.int32)], 1)
    assert tokens.tolist() == [[5, 6, 7], [8, 9, 1]]
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert tokens.dtype == mask.dtype == np.int64
