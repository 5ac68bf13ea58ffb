"""Messages and files between two processes, here between two ends of pipes."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from napari_jrss.io.channel import Channel, ChannelError, Message
from napari_jrss.io.transfer import (
    COMMIT,
    PIECE,
    Incoming,
    TransferError,
    checksums,
    files_below,
    is_safe,
    send_files,
)


@dataclass
class End:
    """One end: its channel, what it was told of the other end, and how to hang up."""

    channel: Channel
    outgoing: object
    lost: list[bool] = field(default_factory=list)


@pytest.fixture
def ends() -> Iterator[tuple[End, End]]:
    made, (a_in, b_out), (b_in, a_out) = [], os.pipe(), os.pipe()
    for incoming, outgoing in ((a_in, a_out), (b_in, b_out)):
        lost: list[bool] = []
        reads, writes = os.fdopen(incoming, "rb"), os.fdopen(outgoing, "wb")
        made.append(End(Channel(reads, writes, lost.append, silence=0.4), writes, lost))
    yield tuple(made)
    for end in made:
        end.channel.close()
        end.outgoing.close()
    for end in made:
        end.channel.join(2)


def test_messages_with_bytes_among_what_a_shell_prints(ends: tuple[End, End]) -> None:
    here, there = ends
    here.outgoing.write(b"Welcome to gpu7!\n[1, 2]\n" + b"\xff\xfe\n")
    payload = b'\n{"kind": "no message"}\n' * 20_000
    here.channel.send("one", payload, file="ä")
    assert there.channel.wait_for("one") == Message("one", {"file": "ä"}, payload)
    here.channel.ask_to_stop()
    here.channel.send("two")
    with pytest.raises(ChannelError, match="unexpected message: 'two'"):
        there.channel.wait_for("three")
    assert there.channel.stop.is_set()
    assert not here.channel.stop.is_set()


def test_who_hangs_up_is_noticed_after_the_last_message(ends: tuple[End, End]) -> None:
    here, there = ends
    here.channel.send("last")
    here.channel.close()
    here.outgoing.close()
    assert there.channel.wait_for("last").kind == "last"
    for _ in range(2):
        with pytest.raises(ChannelError, match="hung up"):
            there.channel.wait_for("more")
    assert there.lost == [False]


@pytest.mark.slow
def test_silence_counts_only_after_the_first_word(ends: tuple[End, End]) -> None:
    here, there = ends
    time.sleep(1)  # both beat
    assert here.lost == there.lost == []
    here.channel.close()  # beats no more, without hanging up
    until = time.monotonic() + 5
    while not there.lost and time.monotonic() < until:
        time.sleep(0.02)
    assert there.lost[0] is True


@pytest.mark.slow
def test_a_slow_listener_is_no_silence(ends: tuple[End, End]) -> None:
    here, there = ends

    def talk() -> None:
        for _ in range(200):
            here.channel.send("word", bytes(10_000))

    talker = threading.Thread(target=talk)
    talker.start()
    time.sleep(1)
    assert here.lost == there.lost == []
    for _ in range(200):
        there.channel.wait_for("word")
    talker.join()


def transfer(ends: tuple[End, End], incoming: Incoming) -> None:
    while (message := ends[1].channel.wait_for(PIECE, COMMIT)).kind == PIECE:
        incoming.add(message)
    incoming.commit()


def test_files_arrive_all_at_once_and_as_they_were(ends: tuple[End, End], tmp_path: Path) -> None:
    root, goal = tmp_path / "root", tmp_path / "goal"
    for name, content in {"a": b"", "b/c.zarr/0": bytes(700_000), "b/c.zarr/1": b"one"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    (root / ".hidden").write_text("")
    (root / "link").symlink_to(root / "a")
    goal.mkdir()
    (goal / "a").write_text("an earlier one")
    files = checksums(root, files_below(root))
    assert list(files) == ["a", "b/c.zarr/0", "b/c.zarr/1"]
    channel = ends[0].channel
    sent = Counter[str]()
    for name, size in send_files(channel, root, files):
        sent[name] += size
    assert sent == {name: (root / name).stat().st_size for name in files}
    time.sleep(0.1)
    assert [p.name for p in files_below(goal)] == ["a"]
    channel.send(COMMIT)
    transfer(ends, Incoming(goal))
    assert checksums(goal, files_below(goal)) == files
    assert not [p for p in goal.iterdir() if p.name.startswith(".")]


def test_a_damaged_file_is_refused_and_nothing_is_written(
    ends: tuple[End, End], tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"changed meanwhile")
    goal = tmp_path / "goal"
    goal.mkdir()
    incoming = Incoming(goal)
    list(send_files(ends[0].channel, tmp_path, {"a": "0" * 64}))
    ends[0].channel.send(COMMIT)
    with pytest.raises(TransferError, match="a: damaged on its way"):
        transfer(ends, incoming)
    incoming.discard()
    assert list(goal.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../a", "/etc/passwd", "a/../../b", ".ssh/config", "", "a//b", "a\\b", "C:a", "a\n"]
)
def test_a_name_that_leads_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    assert not is_safe(name)
    with pytest.raises(TransferError, match="isn't wanted"):
        Incoming(tmp_path).add(Message(PIECE, {"file": name, "sha256": ""}, b""))
    assert list(tmp_path.iterdir()) == []
