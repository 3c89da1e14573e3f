"""Clips of long videos: exact cuts, distinct clips, the order of time, restarts, changes, and one line for each misuse."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lessen.data.video import FrameVideo
from lessen.errors import ArtifactError, ConfigError, DataError
from lessen.retrieval.goldfish import Goldfish, Settings
from lessen.retrieval.goldfish_clips import Clip, context, cut
from word_encoder import WordEncoder

PLAIN = Settings(describer="told", clip=4.0, frames=3)
WORDS = ["apple", "bridge", "candle", "dragon", "engine", "forest", "guitar", "harbour", "island", "jacket"]


def film(clips=10, seed=0):
    return FrameVideo(torch.rand(4 * clips, 3, 4, 4, generator=torch.Generator().manual_seed(seed)), rate=1.0)


def told(_frames, start, _end):
    word = WORDS[int(start / 4) % 10]
    return {"summary": f"someone shows the {word}", "subtitles": f"look at this {word} it is a {word}"}


def filled(path, clips=10):
    made = Goldfish.create(path, PLAIN, WordEncoder())
    assert made.add("film", film(clips), told) == clips
    return made


@settings(max_examples=60, deadline=None)
@given(st.floats(0.1, 1e4), st.floats(0.5, 200), st.floats(0, 0.9))
def test_clips_cover_the_video_exactly(seconds, clip, share):
    if seconds / clip > 3000:
        return
    found = cut(seconds, clip, share * clip)
    assert found[0][0] == 0
    assert found[-1][1] == seconds
    for (_, end), (start, _) in itertools.pairwise(found):
        assert end - start == pytest.approx(share * clip, abs=1e-6)
    if share == 0:
        assert len(found) in (math.ceil(seconds / clip), math.ceil(seconds / clip - 1e-9))


def test_the_nearest_distinct_clips_come_in_the_order_of_time(tmp_path):
    made = filled(tmp_path / "a")
    assert len(made) == 20
    for number, word in enumerate(WORDS):
        assert [clip.number for clip in made.find(f"where is the {word}?", 1)] == [number]
    three = made.find("look at this harbour and someone shows the candle", 3)
    assert [clip.number for clip in three] == sorted(clip.number for clip in three)
    assert {2, 7} < {clip.number for clip in three}
    encoder = WordEncoder()
    names = [document for clip in made.find("all", -1) for document in clip.documents]
    texts = [text for clip in made.find("all", -1) for text in clip.texts.values()]
    vectors = encoder.vectors(texts, names)
    for question in ("an engine in the forest", "guitar island"):  # brute force, clip by clip
        scores = (vectors @ encoder.vectors([question], ["q"])[0]).view(10, 2).amax(1)
        for k in (1, 2, 5):
            assert {clip.number for clip in made.find(question, k)} == set(scores.topk(k).indices.tolist())


def test_all_clips_and_more_than_there_are(tmp_path):
    made = filled(tmp_path / "a", 3)
    assert [clip.number for clip in made.find("apple", -1)] == [0, 1, 2]
    assert [clip.number for clip in made.find("apple", 50)] == [0, 1, 2]


def test_a_question_about_one_video_of_many(tmp_path):
    made = filled(tmp_path / "a", 4)
    made.add("other", film(3, seed=1), told)
    assert {clip.video for clip in made.find("apple", 2)} == {"film", "other"}
    assert next(clip.name for clip in made.find("dragon", 2, video="other")).startswith("other#")
    assert len(made.find("dragon", 9, video="other")) == 3


def test_answers_survive_restarts_and_nothing_is_described_twice(tmp_path):
    made = filled(tmp_path / "a")
    asked = [made.find(f"the {word}", 3) for word in WORDS]
    again = Goldfish.open(tmp_path / "a", WordEncoder(), PLAIN)
    assert [again.find(f"the {word}", 3) for word in WORDS] == asked

    def never(*_):
        raise AssertionError("described twice")

    assert again.add("film", film(), never) == 0
    assert again.encoder.calls == 10  # the questions alone


@pytest.mark.parametrize("after", [0, 3, 9])
def test_a_killed_run_goes_on_where_it_stopped(tmp_path, after):
    made, seen = Goldfish.create(tmp_path / "a", PLAIN, WordEncoder()), []

    def dies(frames, start, end):
        if len(seen) == after:
            raise KeyboardInterrupt
        seen.append(start)
        return told(frames, start, end)

    with pytest.raises(KeyboardInterrupt):
        made.add("film", film(), dies)
    again = Goldfish.open(tmp_path / "a", WordEncoder(), PLAIN)
    assert again.add("film", film(), told) == 10 - after
    whole = filled(tmp_path / "b")
    assert [again.find(word, 2) for word in WORDS] == [whole.find(word, 2) for word in WORDS]


def test_a_changed_video_is_described_again(tmp_path):
    made = filled(tmp_path / "a")
    changed = film(8, seed=5)
    assert made.add("film", changed, lambda *_: {"summary": "only rain"}) == 8
    assert len(made) == 8
    assert all(clip.source == changed.digest for clip in made.find("dragon", -1))
    made.remove("film")
    assert len(made) == 0
    with pytest.raises(DataError, match="no described clip"):
        made.find("dragon")


def test_vectors_of_frames_share_the_index(tmp_path):
    made = Goldfish.create(tmp_path / "a", PLAIN, WordEncoder(8))
    directions = torch.eye(8)
    made.add("film", film(5), lambda frames, start, end: {"frames": directions[int(start / 4)]})
    again = Goldfish.open(tmp_path / "a", WordEncoder(8))
    assert [clip.number for clip in again.find(directions[3] + 0.1, 1)] == [3]
    assert again.find(directions[3] + 0.1, 1)[0].texts == {}


def test_the_context_is_bounded_and_keeps_what_is_no_latin_letter():
    clips = [
        Clip(
            video="f", number=n, start=4 * n, end=4 * n + 4, source="s", texts={"summary": f"costs 3.50 € in 東京 {n}"}
        )
        for n in range(3)
    ]
    text = context(clips)
    assert text.splitlines()[1] == "[4 to 8 s] Clip Summary: costs 3.50 € in 東京 1"
    for words in (0, 1, 7, 13):
        assert len(context(clips, words).split()) == min(words, len(text.split()))


def test_frames_of_a_clip_are_those_the_paper_takes(tmp_path):
    made, shapes = Goldfish.create(tmp_path / "a", Settings(describer="d", clip=80, frames=45), WordEncoder()), []

    def describe(frames, _start, _end):
        shapes.append(frames)
        return {"summary": "x"}

    frames = (torch.arange(250.0)[:, None, None, None] / 250).expand(-1, 3, 2, 2)
    made.add("film", FrameVideo(frames, rate=1.25), describe)  # 100 frames a clip: every second one, 45 at most
    assert [len(one) for one in shapes] == [45, 45, 45]
    assert torch.allclose(shapes[1][:, 0, 0, 0] * 250, torch.arange(100.0, 190.0, 2))


def test_misuse_is_one_line(tmp_path):
    made = filled(tmp_path / "a", 2)
    cases = [
        (lambda: made.find("apple", 0), ConfigError, "k = 0 clips"),
        (lambda: made.find("apple", -2), ConfigError, "-1 for all"),
        (lambda: made.find("apple", 1, video="none"), DataError, "no video 'none'"),
        (lambda: made.add("a#b", film(), told), DataError, "without #"),
        (lambda: made.add("", film(), told), DataError, "1 to 200 characters"),
        (lambda: made.add("new", film(1), lambda *_: {}), DataError, "no text and no vector"),
        (lambda: made.add("new", film(1), lambda *_: {"summary": " "}), DataError, "no text and no vector"),
        (lambda: made.add("new", film(1), lambda *_: {"a#b": "x"}), DataError, "cannot be named"),
        (
            lambda: made.add("new", film(1), lambda *_: {"summary": "x", "f": torch.ones(3)}),
            DataError,
            "several widths",
        ),
        (lambda: Goldfish.open(tmp_path / "no", WordEncoder()), ArtifactError, "no goldfish.json"),
        (lambda: Goldfish.open(tmp_path / "a", WordEncoder(name="new")), ConfigError, "do not mix"),
        (
            lambda: Goldfish.open(tmp_path / "a", WordEncoder(), Settings(describer="told", clip=60.0, frames=3)),
            ConfigError,
            "clip = 4.0, not 60.0",
        ),
        (
            lambda: Goldfish.create(tmp_path / "x", Settings(describer="d", overlap=80), WordEncoder()),
            ConfigError,
            "overlap",
        ),
        (lambda: FrameVideo(torch.zeros(0, 3, 4, 4)), DataError, "no frames"),
        (lambda: FrameVideo(torch.zeros(4, 4)), DataError, r"shape \[4, 4\]"),
        (lambda: FrameVideo(torch.zeros(1, 3, 4, 4), rate=0), DataError, "frames a second"),
    ]
    for misuse, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            misuse()
        assert "\n" not in str(caught.value)
    (tmp_path / "a" / "goldfish.json").write_text("{}")
    with pytest.raises(ArtifactError, match="not the record"):
        Goldfish.open(tmp_path / "a", WordEncoder())


def test_an_empty_folder_says_so(tmp_path):
    with pytest.raises(DataError, match="add a video first"):
        Goldfish.create(tmp_path / "a", PLAIN, WordEncoder()).find("apple")


def test_a_torn_record_of_a_clip_is_named(tmp_path):
    made = filled(tmp_path / "a", 2)
    path = next((tmp_path / "a" / "clips").rglob("000001.json"))
    path.write_text(path.read_text()[:40])
    with pytest.raises(ArtifactError, match="000001.json is not valid JSON"):
        made.find("bridge", 1)


def test_one_frame_is_a_video(tmp_path):
    made = Goldfish.create(tmp_path / "a", PLAIN, WordEncoder())
    assert made.add("still", FrameVideo(torch.rand(1, 1, 4, 4)), told) == 1
    assert made.find("apple", 3)[0].end == 1.0
