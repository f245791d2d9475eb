"""New folders: whole or absent, also behind a link and at a mount point."""

import os

import pytest

from lmx.config.registry import ConfigError
from lmx.core.files import create_dir


def fill(path):
    with create_dir(path, "is used") as new:
        (new / "a").write_text("1")
        (new / "sub").mkdir()
        (new / "sub" / "b").write_text("2")


def test_a_link_to_an_empty_folder_or_to_none_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    for name in ("real", "absent"):
        os.symlink(name, tmp_path / f"link-{name}")
        fill(tmp_path / f"link-{name}")
        assert (tmp_path / name / "sub" / "b").read_text() == "2"
        assert (tmp_path / f"link-{name}").is_symlink()
        with pytest.raises(ConfigError, match=f"{name} exists and is used"):
            fill(tmp_path / f"link-{name}")


def test_a_mount_point_is_filled_and_not_replaced(tmp_path, monkeypatch):
    """As an empty mount point it cannot be renamed, and its parent is another disk."""
    mount = tmp_path / "disk"
    (mount / "lost+found").mkdir(parents=True)
    monkeypatch.setattr(os.path, "ismount", lambda path: path == mount)
    inode = mount.stat().st_ino
    with pytest.raises(RuntimeError), create_dir(mount, "is used") as new:
        assert new.parent == mount
        raise RuntimeError
    assert os.listdir(mount) == ["lost+found"]
    fill(mount)
    assert mount.stat().st_ino == inode
    assert sorted(os.listdir(mount)) == ["a", "lost+found", "sub"]
    assert os.listdir(tmp_path) == ["disk"]
