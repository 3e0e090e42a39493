"""The user's files: what is read, and every way they can be wrong."""

import gzip
import json
import os
from pathlib import Path

import pytest
import zstandard

from dsv3.data import jsonl as jsonl_module
from dsv3.data.documents import Document, quiet
from dsv3.data.facts import FileFacts
from dsv3.data.jsonl import collect_jsonl, find_files
from dsv3.data.lines import lines
from dsv3.data.prepare import prepare
from dsv3.errors import DataError

GOOD = b'{"text": "one", "domain": "web"}\n{"text": "two"}\n'


def collect(path, tmp_path, max_bytes=10**9):
    return collect_jsonl(str(path), max_bytes, FileFacts(tmp_path / "facts.json"), quiet)


def expected(records):
    return [Document(record["domain"], record["text"]) for record in records]


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstandard.compress])
def test_plain_and_compressed_files_read_alike_whatever_they_are_called(
    compress, records, tmp_path
):
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    path = tmp_path / "anything.txt"
    path.write_bytes(compress(content))
    assert list(collect(path, tmp_path).documents()) == expected(records)


def test_several_members_and_frames_are_all_read(records, tmp_path):
    halves = [
        "".join(json.dumps(record) + "\n" for record in part).encode()
        for part in (records[:100], records[100:])
    ]
    for name, compress in (("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.compress)):
        path = tmp_path / name
        path.write_bytes(b"".join(map(compress, halves)))
        assert list(collect(path, tmp_path).documents()) == expected(records)


def test_default_domain_blank_lines_bom_crlf_and_a_missing_last_line_feed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\n  \n{"text": "two", "domain": "web"}')
    found = list(collect(path, tmp_path).documents())
    assert found == [Document("text", "one"), Document("web", "two")]


def test_directories_and_globs_are_read_in_sorted_order(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", "ignored.json"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(GOOD)
    names = [str(path.relative_to(tmp_path)) for path in find_files(str(tmp_path / "data"))]
    assert names == ["data/a.jsonl", "data/b.jsonl", "data/sub/c.jsonl"]
    assert len(find_files(str(tmp_path / "data" / "*.jsonl"))) == 2
    assert len(find_files(str(tmp_path / "data" / "**" / "*.jsonl"))) == 3


def test_a_name_with_glob_characters_is_that_file(tmp_path):
    path = tmp_path / "a[1].jsonl"
    path.write_bytes(GOOD)
    assert find_files(str(path)) == [path]


BAD_LINES = {
    "malformed": (b'{"text": "one"\n', "not JSON"),
    "deep": (b"[" * 200_000 + b"\n", "not JSON"),
    "huge number": (b'{"text": "a", "n": ' + b"9" * 5_000 + b"}\n", "not JSON"),
    "array": (b"[1, 2]\n", "a JSON list"),
    "no text": (b'{"content": "one", "id": 3}\n', "no \"text\", only 'content', 'id'"),
    "empty text": (b'{"text": " "}\n', '"text" is empty'),
    "number": (b'{"text": 3}\n', '"text" is a int, not a string'),
    "null domain": (b'{"text": "a", "domain": null}\n', '"domain" is a NoneType'),
    "latin-1": (b'{"text": "caf\xe9"}\n', "byte 0xe9 at position 13 is not UTF-8"),
    "binary": (b"\x89PNG\x00\x00\xff\n", "is this a binary file, or UTF-16?"),
    "half a pair": (b'{"text": "\\ud83d"}\n', "half of a surrogate pair"),
}


@pytest.mark.parametrize(("content", "message"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_is_named_and_nothing_is_left(content, message, tmp_path, data_config):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(GOOD + content + GOOD)
    with pytest.raises(DataError) as caught:
        prepare(data_config(path), vocab_size=300)
    assert caught.value.exit_code == 6
    assert [problem.setting for problem in caught.value.problems] == [f"{path}:3"]
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]  # no cache either


def test_all_bad_lines_of_all_files_up_to_ten_are_told_at_once(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"x\n" + GOOD + b"y\n")
    (tmp_path / "b.jsonl").write_bytes(b"{}\n" * 20)
    with pytest.raises(DataError) as caught:
        collect(tmp_path, tmp_path)
    where = [problem.setting.removeprefix(f"{tmp_path}/") for problem in caught.value.problems]
    assert where == ["a.jsonl:3", "a.jsonl:6", *(f"b.jsonl:{n}" for n in range(1, 9))]


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
@pytest.mark.parametrize("keep", [0.05, 0.5, 0.95])
def test_truncated_compression_is_found(compress, keep, records, tmp_path):
    # Already compressed content would fit into one block; unlike lines make many.
    content = b"".join(
        json.dumps({"text": os.urandom(60).hex()}).encode() + b"\n" for _ in range(5_000)
    )
    compressed = compress(content)
    path = tmp_path / "a.jsonl"
    path.write_bytes(compressed[: int(len(compressed) * keep)])
    with pytest.raises(DataError, match="the compressed file is truncated"):
        collect(path, tmp_path)


@pytest.mark.parametrize(
    "compress", [gzip.compress, zstandard.ZstdCompressor(write_checksum=True).compress]
)
def test_damaged_compression_is_found(compress, tmp_path):
    compressed = bytearray(compress(GOOD * 2_000))
    compressed[len(compressed) // 2] ^= 0x10
    path = tmp_path / "a.jsonl"
    path.write_bytes(compressed)
    with pytest.raises(DataError) as caught:
        collect(path, tmp_path)
    assert str(path) in str(caught.value)


def test_a_line_without_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("dsv3.data.lines.LONGEST_LINE_BYTES", 1_000)
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b" " * (3 << 20))
    with pytest.raises(DataError, match="longer than 1000 bytes"):
        collect(path, tmp_path)


@pytest.mark.parametrize(
    "given",
    [
        "missing.jsonl",
        "missing*.jsonl",
        "empty.jsonl",
        "blank.jsonl",
        "empty_dir",
        "pipe",
        "/dev/null",
        "a\0b",
    ],
)
def test_nothing_to_read_is_an_error_that_names_it(given, tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "blank.jsonl").write_bytes(b"\n \n")
    (tmp_path / "empty_dir").mkdir()
    os.mkfifo(tmp_path / "pipe")
    path = given if given.startswith("/") else f"{tmp_path}/{given}"
    with pytest.raises(DataError) as caught:
        collect(path, tmp_path)
    assert path in str(caught.value)


def test_a_cap_takes_the_same_fraction_of_each_domain_from_the_beginning(
    records, write_jsonl, tmp_path
):
    sizes = dict.fromkeys(("web", "code"), 0)
    for record in records:
        sizes[record["domain"]] += len(record["text"].encode())
    total = sum(sizes.values())
    source = collect(write_jsonl(records), tmp_path, max_bytes=total // 3)
    assert source.total_bytes <= total // 3
    for name, size in sizes.items():
        mine = [record["text"] for record in records if record["domain"] == name]
        taken = [document.text for document in source.documents() if document.domain == name]
        assert taken == mine[: len(taken)]
        quota = size * (total // 3) // total
        used = len("".join(taken).encode())
        assert used <= quota < used + len(mine[len(taken)].encode())


def test_too_many_domains_are_refused(tmp_path, write_jsonl):
    path = write_jsonl([{"text": "a", "domain": f"https://{n}"} for n in range(300)])
    with pytest.raises(DataError, match="300 different domains, at most 256"):
        collect(path, tmp_path)


def test_a_file_that_changes_after_it_was_checked_is_refused(records, write_jsonl, tmp_path):
    path = write_jsonl(records)
    source = collect(path, tmp_path)
    write_jsonl([*records[:-1], {"text": "another", "domain": "web"}])
    with pytest.raises(DataError, match="changed while it was read"):
        list(source.documents())
    path.unlink()
    with pytest.raises(DataError, match="cannot be read any more"):
        list(source.documents())


def test_a_known_file_is_not_read_again_but_an_edited_one_is(tmp_path, monkeypatch):
    monkeypatch.setattr("dsv3.data.facts.RACY_NS", 0)
    path, facts_path = tmp_path / "a.jsonl", tmp_path / "facts.json"
    path.write_bytes(GOOD)
    facts = FileFacts(facts_path)
    before = collect_jsonl(str(path), 10**9, facts, quiet)
    facts.save()
    with monkeypatch.context() as unreadable:
        unreadable.setattr(jsonl_module, "JsonlFile", None)
        assert collect_jsonl(str(path), 10**9, FileFacts(facts_path), quiet) == before
    stat = path.stat()
    path.write_bytes(GOOD.replace(b"one", b"1ne"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same time
    after = collect_jsonl(str(path), 10**9, FileFacts(facts_path), quiet)
    assert after.signature != before.signature


def test_a_file_read_right_after_it_was_written_is_not_trusted(tmp_path, monkeypatch):
    path, facts_path = tmp_path / "a.jsonl", tmp_path / "facts.json"
    path.write_bytes(GOOD)
    facts = FileFacts(facts_path)
    collect_jsonl(str(path), 10**9, facts, quiet)
    facts.save()
    assert FileFacts(facts_path).get(str(path), "jsonl", path.stat()) is None


def test_damaged_facts_only_cost_time(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    (tmp_path / "facts.json").write_bytes(b'{"jsonl:')
    assert collect(tmp_path / "a.jsonl", tmp_path).total_bytes == 6


def test_lines_are_those_of_the_file_at_every_chunk_size(monkeypatch, tmp_path):
    content = b"".join(b"x" * n + b"\n" for n in range(40)) + b"end"
    (tmp_path / "a").write_bytes(content)
    for size in (1, 7, 64, 10_000):
        monkeypatch.setattr("dsv3.data.lines.CHUNK_BYTES", size)
        with (tmp_path / "a").open("rb") as file:
            assert list(lines(file, b"xxxx")) == content.split(b"\n")


def test_paths_are_relative_to_where_the_command_is_asked(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    monkeypatch.chdir(tmp_path)
    assert find_files("a.jsonl") == [Path("a.jsonl")]
