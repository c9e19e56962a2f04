"""What the study's server tells a reader, compared for every arm; and who may be told."""

import json
import sys
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest

from medqdm.errors import MedQDMError
from medqdm.review.rating import SCORES
from studies.command import run
from studies.reader_study import StudyServer, make_study, read_answers, read_key
from studies.reader_study.__main__ import app
from studies.reader_study.plan import ARMS

PAGE = ("", "study.css", "style.css", "study.js", "panel.js", "paint.js", "loader.js")


@pytest.fixture
def folder(exams, tmp_path):
    make_study(
        [exams / "enhanced"], tmp_path / "reading", sources=[exams / "sources"],
        references=[exams / "references"], cases=4, stack=3, seed=11, slice_axis=2,
    )  # fmt: skip
    return tmp_path / "reading"


@pytest.fixture
def server(folder):
    with StudyServer(folder) as server:
        yield server


def fetch(url, **options):
    request = urllib.request.Request(url, **options)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.read(), dict(answer.headers)


def refused(url, **options):
    with pytest.raises(urllib.error.HTTPError) as caught:
        fetch(url, **options)
    with caught.value as answer:
        return answer.code, answer.read().decode()


def rating(trial, **changes):
    scores = {f"{name}_{side}": 4 for name in SCORES for side in "ab"}
    sent = {"trial": trial, "preference": "a", "seconds": 7.5, "window": "lung", "comment": ""}
    return json.dumps({**sent, **scores, **changes}).encode()


class TestBlinding:
    def test_pictures_of_all_arms_are_sent_alike(self, server, folder):
        """Every slice of every image of every reader: only the pixels may differ."""
        key, study = read_key(folder), server.study
        alike, arms = set(), set()
        for reader in study.readers:
            for number, trial in enumerate(reader.trials, 1):
                for side, image in (("a", trial.a), ("b", trial.b)):
                    arms.add(key.images[image].arm)
                    for k in range(study.cases[trial.case].num_slices):
                        url = f"{server.links[reader.name]}layer/{side}/{number}/{k}"
                        body, headers = fetch(url)
                        headers.pop("Date")
                        alike.add((len(body), *headers.items()))
        assert arms == {*ARMS}
        assert len({entry[1:] for entry in alike if entry[0] == 2 * 120 * 176}) == 1
        assert {entry[0] for entry in alike} == {2 * 120 * 176}

    def test_no_text_tells_arms_images_cases_or_seed(self, server, folder):
        key = read_key(folder)
        for link in server.links.values():
            state, headers = fetch(link + "state.json")
            told = state.decode() + str(headers)
            secrets = (*ARMS, *key.images, *key.cases, key.study, f": {key.seed},", "Doe", "exam")
            assert [secret for secret in secrets if secret in told] == []
            for name in PAGE:
                text = fetch(link + name)[0].decode().lower()
                assert [arm for arm in ("bicubic", "enhanced", *key.images) if arm in text] == []
            page = fetch(link)[0].decode().lower()
            assert "reference" not in page.replace("preference", "")

    def test_what_a_page_is_told_does_not_depend_on_the_arms(self, server):
        """Two readers whose first pairs differ get the same words, but for their name."""
        arms = [r.trials[0] for r in server.study.readers]
        assert arms[0] != arms[1]
        states = [json.loads(fetch(link + "state.json")[0]) for link in server.links.values()]
        assert [state.pop("reader") for state in states] == ["r1", "r2"]
        assert states[0] == states[1]

    def test_reading_works_without_the_key(self, folder):
        (folder / "key.json").rename(folder.parent / "key.json")
        with StudyServer(folder) as server:
            fetch(server.links["r1"] + "rating", data=rating(1))
            assert server.progress()["r1"][0] == 1

    def test_the_notice_and_the_mark_are_there(self, server):
        state = json.loads(fetch(server.links["r1"] + "state.json")[0])
        assert "may be synthetic" in state["notice"]
        assert "not for diagnosis" in state["notice"]
        assert state["mark"] == "MAY BE SYNTHETIC"


class TestServer:
    def test_each_reader_has_a_link_and_none_reads_anothers(self, server):
        tokens = {urlsplit(link).path for link in server.links.values()}
        assert len(tokens) == 2
        fetch(server.links["r1"] + "rating", data=rating(1))
        assert json.loads(fetch(server.links["r1"] + "state.json")[0])["trial"] == 2
        assert json.loads(fetch(server.links["r2"] + "state.json")[0])["trial"] == 1

    @pytest.mark.parametrize("path", ["", "state.json", "layer/a/1/0"])
    def test_without_a_token_it_says_403(self, server, path):
        host = urlsplit(server.links["r1"]).netloc
        assert refused(f"http://{host}/{'x' * 32}/{path}")[0] == 403
        assert refused(server.links["r1"] + path, headers={"Host": "attacker.example"})[0] == 403

    @pytest.mark.parametrize(
        "path",
        ["key.json", "study.json", "ratings.csv", "images/x.npy", "../key.json", "..%2fkey.json",
         "main.js", "layer/c/1/0", "layer/a/0/0", "layer/a/99/0", "layer/a/1/3", "layer/a/-1/0",
         "layer/a/1/0/0", "layer/a/" + "9" * 5000 + "/0", "layer/a/²/0"],
    )  # fmt: skip
    def test_nothing_else_is_served(self, server, path):
        assert refused(server.links["r1"] + path.replace("²", "%C2%B2"))[0] == 404

    def test_an_answer_is_saved_once_and_in_order(self, server, folder):
        link = server.links["r2"] + "rating"
        state = json.loads(fetch(link, data=rating(1, comment="clear\nvessels"))[0])
        assert state["trial"] == 2
        for wrong in (1, 3, None, "2"):
            code, text = refused(link, data=rating(wrong))
            assert (code, "load the page again" in text) == (400, True)
        (saved,) = read_answers(folder / "ratings.csv")
        assert (saved.reader, saved.trial, saved.preference) == ("r2", 1, "a")
        assert (saved.comment, saved.seconds, saved.window) == ("clear vessels", 7.5, "lung")
        assert saved.seed == 11

    @pytest.mark.parametrize(
        "body",
        [b"", b"[]", b"{}", b"[" * 9999, rating(1, noise_a=None), rating(1, preference="both"),
         rating(1, seconds="x"), b"x" * (1 << 17)],
        ids=range(8),
    )  # fmt: skip
    def test_half_an_answer_is_refused(self, server, folder, body):
        code, text = refused(server.links["r1"] + "rating", data=body)
        assert code == 400
        assert len(text.splitlines()) == 1
        assert not (folder / "ratings.csv").exists()

    def test_it_ends_with_the_last_pair_and_goes_on_after_a_restart(self, folder):
        with StudyServer(folder) as server:
            total = server.progress()["r1"][1]
            for number in range(1, total - 1):
                fetch(server.links["r1"] + "rating", data=rating(number))
        with StudyServer(folder) as server:
            link = server.links["r1"]
            assert server.progress()["r1"] == (total - 2, total)
            for number in (total - 1, total):
                state = json.loads(fetch(link + "rating", data=rating(number))[0])
            assert state["trial"] is None
            assert refused(link + "rating", data=rating(total + 1))[0] == 400
        assert len(read_answers(folder / "ratings.csv")) == total

    def test_links_stay_the_same(self, folder):
        tokens = []
        for _ in range(2):
            with StudyServer(folder) as server:
                tokens.append([urlsplit(link).path for link in server.links.values()])
        assert tokens[0] == tokens[1]

    def test_one_server_at_a_time(self, folder):
        with StudyServer(folder), pytest.raises(MedQDMError, match="one server at a time"):
            StudyServer(folder)

    def test_images_that_are_gone_are_told_without_their_name(self, server, folder):
        for image in (folder / "images").glob("*.npy"):
            image.unlink()
        code, text = refused(server.links["r1"] + "layer/a/1/0")
        assert code == 404
        assert not any(name in text for name in read_key(folder).images)


def test_the_command_makes_a_study_and_goes_on_with_it(exams, tmp_path, monkeypatch, capsys):
    def interrupt(server):
        for number, link in enumerate(server.links.values()):
            fetch(link)
            if number == 0:
                fetch(link + "rating", data=rating(server.progress()["r1"][0] + 1))
        raise KeyboardInterrupt

    monkeypatch.setattr(StudyServer, "wait", interrupt)
    study = str(tmp_path / "s")
    first = [
        str(exams / "enhanced"), "--source", str(exams / "sources"), "--readers", "3", "--cases",
        "2", "--slice-axis", "2", "--seed", "7", "--out", study,
    ]  # fmt: skip
    for arguments, done in ((first, "0 of 2 pairs"), ([study], "1 of 2 pairs")):
        monkeypatch.setattr(sys, "argv", ["reader_study", *arguments, "--no-browser"])
        with pytest.raises(SystemExit) as ended:
            run(app)
        assert ended.value.code == 0
        printed = capsys.readouterr().out
        lines = [line for line in printed.splitlines() if "http://127.0.0.1:" in line]
        assert [line.split()[0] for line in lines] == ["r1", "r2", "r3"]
        assert lines[0].endswith(done)
        assert ("seed 7" in printed) == (arguments is first)
    assert len(read_answers(tmp_path / "s" / "ratings.csv")) == 2


@pytest.mark.parametrize("option", ["--readers", "--stack", "--repeat", "--seed", "--port"])
@pytest.mark.parametrize("number", ["1" + 19 * "0", 400 * "9", "-1", "inf", "nan"])
def test_huge_numbers_are_refused(refused, exams, option, number):
    source = exams / "sources"
    assert refused(app, exams / "enhanced", "--source", source, f"{option}={number}")
