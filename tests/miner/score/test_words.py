"""Which words the networks ignored: counted, shown for each task, and harmless to a terminal."""

from typing import Any

from miner.score.report import ScoreReport
from miner.score.words import MOST_SHOWN, MOST_WORDS, words_in_short
from tests.miner.score.test_scoring import answered, page, report_of, shown


def told(understood: Any = ("red", "car"), ignored: Any = ()) -> dict[str, Any]:
    return answered(understood=understood, ignored=ignored)


def some() -> ScoreReport:
    return report_of(
        told(),
        told(ignored=["shiny"]),
        told(ignored=["shiny", "dragon", "shiny"]),
        answered(outcome="rejected", reason_code="unknown_words", ignored=["dragon", "shiny"]),
        answered(),
    )


def test_an_answer_counts_a_word_once_and_the_most_frequent_come_first() -> None:
    assert some().as_dict()["words"] == {
        "texts": 4,
        "with_ignored": 3,
        "most_ignored": {"shiny": 3, "dragon": 2},
    }


def test_the_terminal_has_one_line_of_ignored_words() -> None:
    lines = [line for line in shown(some()).splitlines() if "ignored" in line]
    assert lines == ["ignored words: in 3 of 4 texts: shiny 3, dragon 2"]
    for report in (report_of(answered()), report_of(told())):
        assert "ignored" not in shown(report)


def test_the_page_has_the_words_of_each_task_and_a_summary() -> None:
    html = page(some())
    assert "3 of 4 texts had words that the networks do not know: 3 shiny, 2 dragon" in html
    assert html.count("red, car; ignored: shiny, dragon") >= 2  # An asset, and an answer.
    assert '<td class="wrap dim">ignored: dragon, shiny</td>' in html
    assert "words" not in page(report_of(answered())).split("<body")[1]


def test_words_of_strangers_are_never_obeyed() -> None:
    odd = ["\x1b[2J\r\nx", "<b>bold</b>", "[red]", "\u202egnal", "w" * 5000]
    report = report_of(told(ignored=odd))
    text, html = shown(report), page(report)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "<b>bold" not in html
    assert "w" * 41 not in html
    assert report.odd == 0


def test_what_is_no_list_of_words_is_odd_and_counts_nothing() -> None:
    report = report_of(told("red", {"a": 1}), told(ignored=[1]))
    assert (report.odd, report.words.with_ignored) == (2, 0)
    assert words_in_short(told("red", [None])) == ""


def test_what_a_line_leaves_out_is_no_word() -> None:
    report = report_of(told(ignored=[*(f"w{n}" for n in range(16)), "..."]))
    assert "..." not in report.words.ignored
    assert len(report.words.ignored) == 16


def test_strangers_who_invent_words_neither_fill_the_memory_nor_hide_the_frequent_ones() -> None:
    report = ScoreReport()
    for number in range(MOST_WORDS):
        report.add(told(ignored=["dragon", *(f"{number}-{n}" for n in range(9))]))
        assert len(report.words.ignored) <= 2 * MOST_WORDS
    assert report.words.most_ignored[0] == ("dragon", MOST_WORDS)
    assert len(report.words.most_ignored) == MOST_SHOWN
