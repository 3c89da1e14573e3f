"""Frames of videos: which are read, from folders, tensors and real files, and what is said of those that are none."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lessen.data.subtitles import read_subtitles, said_between
from lessen.data.video import FrameVideo, open_video
from lessen.errors import ConfigError, DataError, InputError, MissingExtraError

Image = pytest.importorskip("PIL.Image")


def folder_of(path: Path, count: int, side: int = 6) -> Path:
    path.mkdir()
    for number in range(count):
        Image.fromarray(np.full((side, side, 3), number, dtype=np.uint8)).save(path / f"{number:04d}.png")
    return path


def shown(frames):
    return (frames[:, 0, 0, 0] * 255).round().int().tolist()


def test_every_so_many_th_frame_is_read(tmp_path):
    video = open_video(folder_of(tmp_path / "f", 20), rate=2.0)
    assert video.seconds == 10.0
    assert shown(video.read(0, 10, 20)) == list(range(20))
    assert shown(video.read(0, 10, 7)) == list(range(0, 14, 2))  # as published: the step is rounded down
    assert shown(video.read(4, 6, 45)) == [8, 9, 10, 11]
    assert shown(video.read(9, 100, 45)) == [18, 19]
    assert video.read(0, 1, 1).shape == (1, 3, 6, 6)
    frames = (torch.arange(20.0) / 255).view(20, 1, 1, 1)
    same = FrameVideo(frames, rate=2.0)
    for stretch in ((0, 10, 7), (4, 6, 45), (0.4, 3.3, 5)):
        assert shown(same.read(*stretch)) == shown(video.read(*stretch))


def test_a_digest_says_what_is_seen(tmp_path):
    one = open_video(folder_of(tmp_path / "a", 3))
    assert one.digest == open_video(folder_of(tmp_path / "b", 3)).digest
    assert one.digest != open_video(tmp_path / "b", rate=2.0).digest
    Image.fromarray(np.zeros((6, 6, 3), dtype=np.uint8)).save(tmp_path / "b" / "0002.png")
    assert one.digest != open_video(tmp_path / "b").digest
    assert FrameVideo(torch.zeros(2, 3, 2, 2)).digest != FrameVideo(torch.zeros(2, 3, 2, 2), rate=2.0).digest


def test_misuse_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    frames = open_video(folder_of(tmp_path / "f", 2))
    (tmp_path / "f" / "0001.png").write_bytes(b"no picture")
    cases = [
        (lambda: open_video(tmp_path / "none.mp4"), DataError, "no video at"),
        (lambda: open_video(tmp_path / "empty"), DataError, "holds no picture"),
        (lambda: open_video(tmp_path / "f", rate=0), DataError, "0 frames a second"),
        (lambda: frames.read(0, 2, 2), DataError, "0001.png is not a picture"),
        (lambda: frames.read(0, 1, 0), InputError, "at least 1"),
        (lambda: frames.read(5, 6, 1), DataError, "lasts 2"),
    ]
    for misuse, kind, message in cases:
        with pytest.raises(kind, match=message):
            misuse()
    (tmp_path / "film.mp4").write_bytes(b"no video")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"lessen\[video\]"):
        open_video(tmp_path / "film.mp4")


def written(path: Path, count: int = 30, rate: int = 10) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for number in range(count):
            pixels = np.full((32, 32, 3), 8 * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_file_is_read_from_any_second_on(tmp_path):
    video = open_video(written(tmp_path / "film.mp4"))
    assert video.rate == 10.0
    assert video.seconds == pytest.approx(3.0, abs=0.05)
    for start, end, most in ((0, 3, 30), (0, 3, 7), (1.2, 2.0, 4), (2.55, 9, 45)):
        frames = FrameVideo((8 * torch.arange(30.0) / 255).view(30, 1, 1, 1), rate=10.0)
        found, wanted = shown(video.read(start, end, most)), shown(frames.read(start, end, most))
        assert len(found) == len(wanted)
        assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= 4  # the codec loses some


def test_a_file_that_is_no_video_or_torn_is_one_line(tmp_path):
    pytest.importorskip("av")
    raw = written(tmp_path / "film.mp4").read_bytes()
    for name, content in (("text.mp4", b"no video"), ("empty.mp4", b""), ("torn.mp4", raw[: len(raw) // 2])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name} is not a video that can be decoded") as caught:
            open_video(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_subtitles_of_a_stretch(tmp_path):
    (tmp_path / "a.srt").write_text(
        "1\n00:00:01,000 --> 00:00:02,500\n<i>Hello</i>\nthere\n\n2\n01:00:03,250 --> 01:00:04,000\n{\\an8}Übrigens 3.50\n"
    )
    (tmp_path / "a.vtt").write_text("WEBVTT\n\n00:01.000 --> 00:02.500 align:start\nHello there\n")
    found = read_subtitles(tmp_path / "a.srt")
    assert [(one.start, one.end, one.text) for one in found] == [
        (1.0, 2.5, "Hello there"),
        (3603.25, 3604.0, "Übrigens 3.50"),
    ]
    assert read_subtitles(tmp_path / "a.vtt")[0] == found[0]
    assert said_between(found, 0, 1) == ""
    assert said_between(found, 2, 4000) == "Hello there Übrigens 3.50"
    (tmp_path / "b.srt").write_text("nothing")
    with pytest.raises(DataError, match="holds no subtitles"):
        read_subtitles(tmp_path / "b.srt")
    with pytest.raises(ConfigError, match="does not exist"):
        read_subtitles(tmp_path / "c.srt")
