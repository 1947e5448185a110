"""A folder that is made appears whole or not at all, whoever else makes it and however the making ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from engine.backends.card import CARD
from engine.errors import CosmosError, InvalidInput
from engine.export import folders
from engine.export.folders import workshop


def fill(shop: Path, text: str) -> None:
    """What a compilation leaves: a part, and the card last."""
    (shop / 'step.onnx').write_text(text)
    (shop / CARD).write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_when_all_is_done_and_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    target = tmp_path / 'below' / 'made [1]'
    for text in ('first', 'second'):
        with workshop(target) as shop:
            fill(shop, text)
            assert not target.exists() or (target / CARD).read_text() == 'first'
        assert (target / CARD).read_text() == (target / 'step.onnx').read_text() == text
        assert names(target.parent) == ['made [1]']


def test_an_earlier_folder_is_whole_until_the_new_one_is_so_that_a_kill_finds_one_of_them(tmp_path: Path) -> None:
    target, stop, seen = tmp_path / 'made', threading.Event(), set()

    def watch() -> None:
        while not stop.is_set():
            try:
                seen.add((target / CARD).read_text())
            except FileNotFoundError:
                seen.add('missing')

    with workshop(target) as shop:
        fill(shop, '0')
    watching = threading.Thread(target=watch)
    watching.start()
    try:
        for number in range(1, 50):
            with workshop(target) as shop:
                fill(shop, str(number))
    finally:
        stop.set()
        watching.join()
    assert 'missing' not in seen
    assert names(tmp_path) == ['made']


def test_where_folders_cannot_be_exchanged_the_new_one_takes_the_place_by_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, '_exchange', lambda *_paths: False)
    for text in ('first', 'second'):
        with workshop(tmp_path / 'made') as shop:
            fill(shop, text)
    assert (tmp_path / 'made' / CARD).read_text() == 'second'
    assert names(tmp_path) == ['made']


@pytest.mark.parametrize('ending', [KeyboardInterrupt, MemoryError, ValueError])
def test_whatever_interrupts_leaves_the_earlier_folder_and_nothing_else(
    tmp_path: Path, ending: type[BaseException]
) -> None:
    with workshop(tmp_path / 'made') as shop:
        fill(shop, 'earlier')

    def interrupted() -> None:
        with workshop(tmp_path / 'made') as shop:
            (shop / 'step.onnx').write_text('half')
            raise ending

    with pytest.raises(ending):
        interrupted()
    assert names(tmp_path) == ['made']
    assert (tmp_path / 'made' / CARD).read_text() == 'earlier'


def test_two_that_make_the_same_folder_leave_the_later_one_whole(tmp_path: Path) -> None:
    with workshop(tmp_path / 'made') as slow:
        fill(slow, 'slow')
        with workshop(tmp_path / 'made') as quick:
            assert slow.is_dir()
            fill(quick, 'quick')
        assert (tmp_path / 'made' / 'step.onnx').read_text() == 'quick'
    assert (tmp_path / 'made' / CARD).read_text() == (tmp_path / 'made' / 'step.onnx').read_text() == 'slow'
    assert names(tmp_path) == ['made']


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    code = (
        'import sys, time\nfrom pathlib import Path\nfrom engine.export.folders import workshop\n'
        'with workshop(Path(sys.argv[1])) as shop:\n'
        '    (shop / "step.onnx").write_text("half")\n    print("ready", flush=True)\n    time.sleep(600)\n'
    )
    with subprocess.Popen([sys.executable, '-c', code, tmp_path / 'made'], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b'ready\n'
        (half,) = tmp_path.iterdir()
        with workshop(tmp_path / 'made'):
            assert half.is_dir(), 'its process is alive'
        process.send_signal(signal.SIGKILL)
    assert half.is_dir()
    with workshop(tmp_path / 'made') as shop:
        fill(shop, 'whole')
    assert names(tmp_path) == ['made']


def test_what_is_no_compilation_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / 'thesis').mkdir()
    (tmp_path / 'thesis' / 'chapter.tex').write_text('do not lose')
    with pytest.raises(InvalidInput, match='holds something else'), workshop(tmp_path / 'thesis'):
        pytest.fail('the work has begun')
    (tmp_path / 'file').write_text('do not lose')
    with pytest.raises(InvalidInput, match='holds something else'), workshop(tmp_path / 'file'):
        pytest.fail('the work has begun')

    def somebody_else_is_quicker() -> None:
        with workshop(tmp_path / 'made') as shop:
            fill(shop, 'ours')
            (tmp_path / 'made').mkdir()
            (tmp_path / 'made' / 'notes.txt').write_text('do not lose')

    with pytest.raises(InvalidInput, match='holds something else'):
        somebody_else_is_quicker()
    assert names(tmp_path) == ['file', 'made', 'thesis']
    assert (tmp_path / 'made' / 'notes.txt').read_text() == 'do not lose'


def test_a_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(InvalidInput, match='cannot be made'), workshop(tmp_path / 'file' / 'made'):
        pytest.fail('the work has begun')

    def disk_fails() -> None:
        with workshop(tmp_path / 'made') as shop:
            (shop / 'nowhere' / 'step.onnx').write_text('')

    with pytest.raises(CosmosError, match=r'made failed: .*step\.onnx'):
        disk_fails()
    assert names(tmp_path) == ['file']
