"""The grammar of the writable control files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusecache.api.errors import BadCommand
from fusecache.control.commands import (
    MAX_COMMAND,
    Command,
    CommandFile,
    Discard,
    Flush,
    SetRate,
    Snapshot,
    parse,
)

GOOD = [
    (CommandFile.FLUSH_ALL, b"all", Flush(None)),
    (CommandFile.FLUSH, b"all", Flush(None)),
    (CommandFile.FLUSH, b"0", Flush(0)),
    (CommandFile.FLUSH, b"12", Flush(12)),
    (CommandFile.DISCARD, b"0", Discard(0)),
    (CommandFile.DISCARD, b"1 dirty", Discard(1, dirty=True)),
    (CommandFile.DISCARD, b"1 dirty torn", Discard(1, dirty=True, torn=True)),
    (CommandFile.SNAPSHOT, b"before-upgrade", Snapshot("before-upgrade")),
    (CommandFile.SNAPSHOT, "größe".encode(), Snapshot("größe")),
    (CommandFile.WRITEBACK_RATE, b"0", SetRate(5, 0)),
    (CommandFile.WRITEBACK_RATE, b"max", SetRate(5, None)),
    (CommandFile.WRITEBACK_RATE, b"50MiB", SetRate(5, 50 << 20)),
]

BAD_ANYWHERE = [
    b"",
    b"\n",
    b" ",
    b"\t",
    b" \n",
    b"all\nall",
    b"all\n\n",
    b"0\n0\n",
    b" all",
    b"all ",
    b" 0",
    b"0 ",
    b"0\r\n",
    b"0\0",
    b"\xff\xfe",
    b"0 " + b"x" * MAX_COMMAND,
]

NOT_LAYERS = [b"-1", b"+0", b"00", b"01", b"0x0", b"1.0", b"1e0", "٣".encode(), b"9" * 40, b"ALL", b"All", b"all all"]

BAD = [
    *((file, content) for file in CommandFile for content in BAD_ANYWHERE),
    *((file, content) for file in (CommandFile.FLUSH, CommandFile.DISCARD) for content in NOT_LAYERS),
    (CommandFile.FLUSH_ALL, b"0"),
    (CommandFile.FLUSH_ALL, b"ALL"),
    (CommandFile.FLUSH, b"0 dirty"),
    (CommandFile.FLUSH, b"everything"),
    (CommandFile.DISCARD, b"all"),
    (CommandFile.DISCARD, b"dirty"),
    (CommandFile.DISCARD, b"dirty 0"),
    (CommandFile.DISCARD, b"0 clean"),
    (CommandFile.DISCARD, b"0 DIRTY"),
    (CommandFile.DISCARD, b"0 torn"),
    (CommandFile.DISCARD, b"0 torn dirty"),
    (CommandFile.DISCARD, b"0 dirty dirty"),
    (CommandFile.DISCARD, b"0  dirty"),
    (CommandFile.DISCARD, b"0\tdirty"),
    (CommandFile.SNAPSHOT, b"a b"),
    (CommandFile.SNAPSHOT, b"a/b"),
    (CommandFile.SNAPSHOT, b"a@b"),
    (CommandFile.SNAPSHOT, b".."),
    (CommandFile.SNAPSHOT, "a\u2028b".encode()),
    (CommandFile.WRITEBACK_RATE, b"-1"),
    (CommandFile.WRITEBACK_RATE, b"fast"),
    (CommandFile.WRITEBACK_RATE, b"MAX"),
    (CommandFile.WRITEBACK_RATE, b"5 parsecs"),
    (CommandFile.WRITEBACK_RATE, b"9" * 400 + b".5MiB"),
]


@pytest.mark.parametrize("end", [b"", b"\n"])
@pytest.mark.parametrize(("file", "content", "command"), GOOD)
def test_a_command_is_understood_with_and_without_a_newline(
    file: CommandFile, content: bytes, command: Command, end: bytes
) -> None:
    assert parse(file, content + end, layer=5) == command


@pytest.mark.parametrize(("file", "content"), BAD)
def test_a_mistake_is_refused(file: CommandFile, content: bytes) -> None:
    with pytest.raises(BadCommand):
        parse(file, content, layer=5)


def test_the_longest_command_is_four_kibibytes() -> None:
    assert parse(CommandFile.SNAPSHOT, b"x" * 4095 + b"\n") == Snapshot("x" * 4095)
    with pytest.raises(BadCommand, match="found 4097 bytes"):
        parse(CommandFile.SNAPSHOT, b"x" * 4096 + b"\n")


def test_the_refusal_says_what_was_found_and_what_is_allowed() -> None:
    with pytest.raises(BadCommand, match=r"""discard: found '0 clean', allowed: a layer index .* "dirty torn"$"""):
        parse(CommandFile.DISCARD, b"0 clean\n")


def test_the_refusal_is_short_and_printable_whatever_was_found() -> None:
    for content in (b"\x1b[31m" * 100, b"\xff" * 1000):
        with pytest.raises(BadCommand) as refused:
            parse(CommandFile.FLUSH, content)
        assert len(str(refused.value)) < 200
        assert str(refused.value).isprintable()


@pytest.mark.parametrize(("file", "content", "command"), GOOD)
def test_a_command_reads_as_its_file_and_what_was_written(file: CommandFile, content: bytes, command: Command) -> None:
    assert str(command) == f"{file.value.removeprefix('.control/')} {content.decode()}"


words = st.sampled_from([b"all", b"0", b"1", b"dirty", b"torn", b"max", b" ", b"\n", b"-", b"MiB", b".", b"9" * 400])


@given(
    st.sampled_from(CommandFile),
    st.one_of(st.binary(max_size=64), st.lists(words, max_size=8).map(b"".join), st.text(max_size=16).map(str.encode)),
)
def test_any_bytes_are_a_command_or_refused(file: CommandFile, content: bytes) -> None:
    try:
        command = parse(file, content, layer=0)
    except BadCommand:
        return
    assert parse(file, str(command).split(" ", 1)[1].encode(), layer=0) == command
