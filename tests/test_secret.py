"""The key for hashes of ids: made once, for its owner only, outside of all runs."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat

import pytest

from autopeft import secret


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config"


def test_it_is_made_once_for_its_owner_only(home):
    key = secret.key()
    assert key == secret.key()
    assert key.note == ""
    assert len(key.value) == 32
    path = home / "autopeft" / "key"
    assert secret.file() == path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_without_the_variable_it_lies_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    for value in ("", "relative/is/not/allowed"):
        monkeypatch.setenv("XDG_CONFIG_HOME", value)
        assert secret.file() == tmp_path / "me" / ".config" / "autopeft" / "key"


def test_a_mark_is_an_hmac_cut_off():
    key = secret.Key(b"k" * 32)
    whole = hmac.new(b"k" * 32, b"a\0b", hashlib.sha256).digest()
    assert key.mark("a", "b") == whole[:6]
    assert key.mark("ab", "") != key.mark("a", "b")
    assert key.name not in whole.hex()
    assert secret.Key(b"l" * 32).name != key.name


def test_a_damaged_file_is_said_and_never_overwritten(home):
    secret.key()
    secret.file().write_text("no key\n")
    key = secret.key()
    assert "holds no key" in key.note
    assert len(key.value) == 32
    assert secret.file().read_text() == "no key\n"


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_fails_nothing(home):
    home.mkdir(mode=0o500)
    assert "no key can be kept" in secret.key().note


def test_a_file_in_the_folder_s_place_fails_nothing(home):
    home.write_text("")
    key = secret.key()
    assert "no key can be kept" in key.note
    assert secret.key() != key


def test_a_user_without_a_home_folder_fails_nothing(monkeypatch):
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # KeyError, as for an unknown user
    assert secret.key().note.startswith("no key can be kept (Could not determine home")
