"""Files are written whole or not at all."""

import os
import stat

import pytest

from fewstep.errors import ArgumentError
from fewstep.files import atomic_write_bytes, atomic_write_text


def test_writes_and_makes_folders(tmp_path):
    path = atomic_write_text(tmp_path / "a" / "b.txt", "zwölf\r\n")
    assert path.read_bytes() == "zwölf\r\n".encode()
    assert atomic_write_bytes(path, b"new").read_bytes() == b"new"


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, monkeypatch):
    path = atomic_write_bytes(tmp_path / "x.json", b"old")

    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArgumentError, match=r"x\.json: No space left.*another path"):
        atomic_write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_new_files_obey_the_umask_and_replaced_ones_keep_their_mode(tmp_path):
    old = os.umask(0o027)
    try:
        path = atomic_write_bytes(tmp_path / "new", b"1")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o600)
        assert stat.S_IMODE(atomic_write_bytes(path, b"2").stat().st_mode) == 0o600
    finally:
        os.umask(old)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match=r"cannot write .*give a path"):
        atomic_write_bytes(tmp_path / "file" / "x", b"")
