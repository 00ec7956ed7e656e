"""perdure data prepare: videos become frames and sound, and what cannot be read is named."""

import pytest

from perdure.cli import main

av = pytest.importorskip("av")


def test_a_folder_without_videos_and_a_broken_video_are_said(tmp_path, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["data", "prepare", str(tmp_path), str(tmp_path / "out")])
    assert leaving.value.code == 2
    assert "no video is here" in capsys.readouterr().err
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "torn.mp4").write_bytes(b"no video at all")
    with pytest.raises(SystemExit) as leaving:
        main(["data", "prepare", str(tmp_path / "videos"), str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert leaving.value.code == 1
    assert "broken 1" in out
    assert "torn: this is no video" in out and "Errno" not in out
