from pathlib import Path

import pytest

from medqdm.errors import MedQDMError
from medqdm.io.whole import whole_file, whole_folder


def test_a_file_appears_at_the_end(tmp_path):
    target = tmp_path / "new" / "folder" / "file.txt"
    with whole_file(target) as partial:
        partial.write_text("done")
        assert not target.exists()
    assert target.read_text() == "done"
    assert [p.name for p in target.parent.iterdir()] == ["file.txt"]


def test_nothing_is_left_of_a_failed_file(tmp_path):
    def interrupted():
        with whole_file(tmp_path / "new" / "file") as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_where_a_file_should_be_and_the_reverse(tmp_path):
    with pytest.raises(MedQDMError, match="must be a file, got a folder"), whole_file(tmp_path):
        pass
    (tmp_path / "file").touch()
    match = "must be a folder, got a file"
    with pytest.raises(MedQDMError, match=match), whole_folder(tmp_path / "file"):
        pass


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    with whole_folder(tmp_path / "out") as partial:
        (partial / "a").touch()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with (
        pytest.raises(FileNotFoundError),
        whole_folder(tmp_path / "out", overwrite=True) as partial,
    ):
        partial.rmdir()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["old"]


def test_an_unwritable_place_is_told(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(MedQDMError, match="folder must be writable"),
        whole_file(tmp_path / "file" / "below" / "out"),
    ):
        pass


def test_links_and_the_working_folder_are_filled_where_they_lead(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with whole_folder(tmp_path / "link") as partial:
        (partial / "a").touch()
    assert (tmp_path / "link").is_symlink()
    assert [p.name for p in (tmp_path / "real").iterdir()] == ["a"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with whole_folder(Path()) as partial:
        (partial / "b").touch()
    assert [p.name for p in (tmp_path / "here").iterdir()] == ["b"]
    assert {p.name for p in tmp_path.iterdir()} == {"real", "link", "here"}
