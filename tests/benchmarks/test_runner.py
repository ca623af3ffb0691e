"""The benchmark program itself, on levels that take no time: turns, failures, ratios, reports."""

from __future__ import annotations

import json
import re

import pytest

from tests.benchmarks import __main__ as program
from tests.benchmarks import report, surroundings
from tests.benchmarks.findings import Findings, verdict
from tests.benchmarks.levels import Measure, Ratio, Subject, Unavailable
from tests.benchmarks.runner import Stopped, run

ROUNDS = {
    "sqlqueue": [{"rate": 30, "wait": 1}, {"rate": 20, "wait": 2}, {"rate": 90, "wait": 3}],
    "other": [{"rate": 10, "wait": 2}, {"rate": 10, "wait": 2}, {"rate": 10, "wait": 2}],
}


class Fake:
    """Be a level whose figures are known, and that notes who was measured when."""

    title = "Two queues"
    measures = (
        Measure("rate", "/s"),
        Measure("wait", "ms", "{:.1f}", more_is_better=False),
    )
    ratios = (
        Ratio("rate", "sqlqueue", "other", at_least=2.5, then=4),
        Ratio("wait", "sqlqueue", "other", at_least=0.5),
        Ratio("rate", "sqlqueue", "absent", at_least=1),
    )
    notes = ("Counted by hand.",)

    def __init__(self, name="fake", troubles=()):
        self.name = name
        self.subjects = (
            Subject("sqlqueue", synced="all of it"),
            Subject("other", survives="a kill"),
            Subject("absent"),
        )
        self.troubles = dict(troubles)
        self.turns = []

    def measure(self, subject, directory, scale):
        assert directory.is_dir()
        assert not list(directory.iterdir())
        (directory / "left behind").touch()
        number = sum(name == subject.name for name in self.turns)
        self.turns.append(subject.name)
        for trouble in self.troubles.get(subject.name, ()):
            if callable(trouble):
                trouble(number)
            else:
                raise trouble
        if subject.name == "absent":
            message = "not installed"
            raise Unavailable(message)
        return ROUNDS[subject.name][number % 3]


def run_fake(level, tmp_path, *, rounds=3, told=None, **options):
    tell = [].append if told is None else told.append
    return run(level, rounds=rounds, scale=1, directory=tmp_path, tell=tell, **options)


def test_every_round_measures_each_subject_once_and_the_next_one_backwards(tmp_path):
    level = Fake()
    run_fake(level, tmp_path)
    assert level.turns == [
        *("sqlqueue", "other", "absent"),
        *("other", "sqlqueue"),  # who is not here is asked once
        *("sqlqueue", "other"),
    ]


def test_ratios_are_taken_within_a_round_and_their_median_is_the_answer(tmp_path):
    found = run_fake(Fake(), tmp_path)
    by_rate, by_wait, by_absent = (found.ratio(ratio) for ratio in found.ratios)
    assert (by_rate.median, by_rate.least, by_rate.most) == (3, 2, 9)
    assert (by_wait.median, by_wait.least, by_wait.most) == (1, 0.5, 1.5)
    assert by_absent is None


def test_what_an_aim_means_depends_on_whether_more_is_better():
    rate, wait = Fake.measures
    aim = Ratio("", "", "", at_least=2.5, then=4)
    assert [verdict(aim, rate, found) for found in (2, 3, 4)] == [
        *("MISSED", "reached", "reached, and then")
    ]
    aim = Ratio("", "", "", at_least=0.5, then=0.1)
    assert [verdict(aim, wait, found) for found in (0.6, 0.5, 0.1)] == [
        *("MISSED", "reached", "reached, and then")
    ]
    assert verdict(Ratio("", "", "", then=0.6), rate, 0.5) == "not yet"
    assert not verdict(Ratio("", "", ""), rate, 0.5)


def test_a_subject_that_fails_once_is_tried_again_and_the_failure_stays_in_the_report(tmp_path):
    def fail_first(number):
        if not number:
            message = "no answer"
            raise OSError(message)

    found = run_fake(Fake(troubles={"other": [fail_first]}), tmp_path)
    assert [sorted(one) for one in found.rounds] == [
        *(["sqlqueue"], ["other", "sqlqueue"], ["other", "sqlqueue"])
    ]
    assert "other: FAILED: OSError: no answer" in report.lines_of(found)
    assert found.ratio(found.ratios[0]).rounds == 2


def test_a_subject_that_fails_twice_is_left_out_and_the_others_go_on(tmp_path):
    told = []
    level = Fake(troubles={"sqlqueue": [RuntimeError("broken")]})
    found = run_fake(level, tmp_path, rounds=4, told=told)
    assert level.turns.count("sqlqueue") == 2
    assert level.turns.count("other") == 4
    assert found.failed == {"sqlqueue": "RuntimeError: broken"}
    assert any("sqlqueue: FAILED: RuntimeError: broken" in line for line in told)


def test_ctrl_c_leaves_what_there_is_until_then(tmp_path):
    def stop_second(number):
        if number:
            raise KeyboardInterrupt

    with pytest.raises(Stopped) as stopped:
        run_fake(Fake(troubles={"sqlqueue": [stop_second]}), tmp_path)
    found = stopped.value.findings
    assert found.spread("sqlqueue", "rate").rounds == 1
    assert found.spread("other", "rate").rounds == 2
    assert not list(tmp_path.iterdir())


def test_progress_tells_round_subject_figures_and_the_time_that_is_left(tmp_path):
    told = []
    run_fake(Fake(), tmp_path, rounds=2, told=told)
    assert re.fullmatch(
        r"fake, round 1 of 2, sqlqueue: rate 30 /s, wait 1\.0 ms; \d+ s left", told[0]
    )
    assert told[2].startswith("fake, round 1 of 2, absent: not here: not installed; ")
    assert told[-1].endswith("; 0 s left")


def test_findings_are_the_same_after_a_round_trip_through_json(tmp_path):
    found = run_fake(Fake(troubles={"other": [RuntimeError("broken")]}), tmp_path)
    found.surroundings = surroundings.look(tmp_path)
    again = Findings.from_json(json.loads(json.dumps(found.as_json())))
    assert again == found
    assert report.lines_of(again) == report.lines_of(found)


def test_the_report_shows_medians_extremes_promises_aims_and_who_is_missing(tmp_path):
    lines = report.lines_of(run_fake(Fake(), tmp_path))
    assert [line.rstrip() for line in lines] == [
        "Two queues",
        "==========",
        "",
        "medians of 3 interleaved rounds (least–most)",
        "",
        "             rate /s        wait ms",
        "sqlqueue  30 (20–90)  2.0 (1.0–3.0)",
        "other     10 (10–10)  2.0 (2.0–2.0)",
        "absent             –              –",
        "",
        "          on the disk after a publish  survives",
        "sqlqueue  all of it",
        "other                                  a kill",
        "absent",
        "",
        "ratio                    found             aim    and then",
        "rate   sqlqueue / other  3.00 (2.00–9.00)  ≥ 2.5  ≥ 4       reached",
        "wait   sqlqueue / other  1.00 (0.50–1.50)  ≤ 0.5  –         MISSED",
        "",
        "absent: not measured: not installed",
        "Counted by hand.",
    ]


def test_many_measures_are_divided_into_blocks_that_fit(tmp_path):
    found = run_fake(Fake(), tmp_path)
    names = [f"measure number {number}" for number in range(12)]
    found.measures = [Measure(name, "/s") for name in names]
    found.ratios = []
    for figures in found.rounds:
        for subject in figures:
            figures[subject] = dict.fromkeys(names, 12345)
    lines = report.lines_of(found)
    assert max(map(len, lines)) <= 118
    assert all(any(name in line for line in lines) for name in names)


@pytest.fixture
def fakes(monkeypatch):
    """Put two fake levels in the place of the real ones."""
    levels = {name: Fake(name) for name in ("broker", "floor")}
    monkeypatch.setattr(program, "_level", levels.__getitem__)
    monkeypatch.setattr(program, "LEVELS", tuple(levels))
    monkeypatch.setattr(surroundings, "sync_ms", lambda _: 0.5)
    return levels


def run_program(tmp_path, *arguments):
    options = ("--directory", tmp_path, "--results", tmp_path / "results")
    return program.main([str(one) for one in (*arguments, *options)])


def test_the_program_prints_each_level_and_ends_with_zero(fakes, tmp_path, capsys):
    assert run_program(tmp_path, "--rounds", 2) == 0
    printed = capsys.readouterr()
    assert printed.out.count("Two queues\n==========") == 2
    assert "fdatasync of a 4 KiB append 0.50 ms" in printed.out
    assert "broker, round 2 of 2, sqlqueue" in printed.err


def test_the_program_ends_with_one_when_a_subject_failed(fakes, tmp_path, capsys):
    fakes["floor"].troubles = {"other": [RuntimeError("broken")]}
    assert run_program(tmp_path) == 1
    assert "other: FAILED: RuntimeError: broken" in capsys.readouterr().out


def test_the_program_measures_chosen_subjects_only(fakes, tmp_path):
    assert run_program(tmp_path, "floor", "--rounds", 1, "--subjects", "SQL*", "oth?r") == 0
    assert fakes["floor"].turns == ["sqlqueue", "other"]
    assert not fakes["broker"].turns


def test_after_ctrl_c_the_program_prints_what_there_is_and_keeps_finished_levels(
    fakes, tmp_path, capsys
):
    def stop(_):
        raise KeyboardInterrupt

    fakes["floor"].troubles = {"other": [stop]}
    assert run_program(tmp_path, "--write", "--rounds", 1) == 130
    assert capsys.readouterr().out.count("Two queues\n==========") == 2
    (kept,) = (tmp_path / "results").glob("*.json")
    assert [one["name"] for one in json.loads(kept.read_text())["levels"]] == ["broker"]


def test_kept_results_of_a_day_are_one_file_and_can_be_shown_and_drawn_again(
    fakes, tmp_path, capsys
):
    pytest.importorskip("matplotlib")
    run_program(tmp_path, "floor", "--write")
    run_program(tmp_path, "broker", "--write", "--rounds", 1)
    (kept,) = (tmp_path / "results").glob("*.json")
    assert [one["name"] for one in json.loads(kept.read_text())["levels"]] == ["broker", "floor"]
    tables = {one.name for one in (tmp_path / "results").glob(f"{kept.stem}-*.txt")}
    assert tables == {f"{kept.stem}-broker.txt", f"{kept.stem}-floor.txt"}
    drawn = tmp_path / "results" / "latest-floor.svg"
    before = drawn.read_bytes()
    assert b">sqlqueue<" in before
    drawn.unlink()
    capsys.readouterr()
    assert run_program(tmp_path, "--show", kept, "--write") == 0
    assert capsys.readouterr().out.count("Two queues\n==========") == 2
    assert drawn.read_bytes() == before


def test_every_level_can_be_loaded_and_its_ratios_name_what_it_has():
    for name in program.LEVELS:
        level = program._level(name)
        assert level.name == name
        subjects = {one.name for one in level.subjects}
        assert len(subjects) == len(level.subjects)
        measures = {one.name for one in level.measures}
        for ratio in level.ratios:
            assert {ratio.ours, ratio.theirs} <= subjects
            assert ratio.measure in measures
        assert measures >= set(program.HEADLINES.get(name, ()))
