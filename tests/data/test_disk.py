import pytest

from autopeft.data.disk import check_exist, missing, relative_to
from autopeft.errors import UserError


def test_missing_finds_the_same_by_listing_and_by_asking(tmp_path):
    wide, narrow = tmp_path / "wide", tmp_path / "narrow" / "deep"
    wide.mkdir()
    narrow.mkdir(parents=True)
    paths = [f"wide/{i}.png" for i in range(40)] + ["narrow/deep/0.png", "narrow/deep/1.png"]
    paths += ["top.png", "nowhere/x.png"]
    for i, path in enumerate(paths[:-1]):
        if i % 3:
            (tmp_path / path).touch()
    expected = [i for i, path in enumerate(paths) if not (tmp_path / path).exists()]
    assert 10 < len(expected) < 20
    assert missing(tmp_path, paths) == expected
    assert missing(tmp_path / "absent", paths) == list(range(len(paths)))


def test_missing_images_are_counted_and_five_named(tmp_path):
    with pytest.raises(UserError, match=r"7 of 7 images are missing.*0.png, 1.png.*4.png\."):
        check_exist(tmp_path, [f"{i}.png" for i in range(7)], "t.csv")


def test_paths_below_the_root(tmp_path):
    given = ["a/b.png", "./a/c.png", "a//d.png", "a/../e.png", f"{tmp_path}/a/f.png", "x..y.png"]
    expected = ["a/b.png", "a/c.png", "a/d.png", "e.png", "a/f.png", "x..y.png"]
    assert relative_to(tmp_path, given, "t.csv") == expected


@pytest.mark.parametrize("path", ["../x.png", "a/../../x.png", "/etc/passwd", "", ".", "a/.."])
def test_paths_that_leave_the_root(tmp_path, path):
    with pytest.raises(UserError, match=r"1 path\(s\) are empty or leave"):
        relative_to(tmp_path, ["fine.png", path], "t.csv")
