"""One run at a time in a folder, whichever process it is, and nothing left behind."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from llavamed.corpus import alone as module
from llavamed.corpus.alone import alone
from llavamed.errors import InputError

HOLD = "import sys, pathlib; from llavamed.corpus.alone import alone\n"
HOLD += "with alone(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_a_second_run_is_told_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    other = subprocess.Popen([sys.executable, "-c", HOLD, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(InputError, match="another run is writing here"), alone(out):
        pass
    other.kill()
    other.communicate()
    with alone(out), alone(tmp_path / "another"):
        pass
    assert list(out.iterdir()) == []


def test_a_file_system_without_such_locks_is_named_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(module.fcntl, "flock", refuse)
    with alone(tmp_path):
        pass
    assert "cannot be locked here" in capsys.readouterr().err


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="a file"), alone(tmp_path / "file"):
        pass
