"""Stages: their time adds up, and whoever watches hears of them and of what they tell."""

from cae.utils.progress import listen_to_progress, report_progress, stage, stopwatch


@stage("outer")
def outer():
    report_progress(0.5, "half")
    with stage("inner"):
        report_progress(0.9, "nearly")


def test_a_watcher_hears_of_stages_and_of_what_they_tell():
    heard = []
    with listen_to_progress(lambda *news: heard.append(news)):
        outer()
    # What an inner stage tells belongs to the outer one, as its time does.
    assert heard == [("outer", 0, ""), ("outer", 0.5, "half"), ("outer", 0.9, "nearly"), ("outer", 1, "")]


def test_time_is_counted_once_whether_watched_or_not():
    with stopwatch() as seconds:
        outer()
        with listen_to_progress(lambda *_: None):
            outer()
    assert set(seconds) == {"outer"}


def test_nobody_has_to_watch():
    outer()
    report_progress(1, "to nobody")
