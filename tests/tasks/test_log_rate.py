"""A step's lines in Prefect's log: all of a usual run, a bounded number of an endless one."""

from tasks.log_rate import BURST_LINES, LINES_PER_MINUTE, LineRate


def test_a_usual_run_is_there_whole() -> None:
    rate = LineRate(clock=lambda: 0.0)
    assert all(rate.passes() for _ in range(int(BURST_LINES)))
    assert rate.left_out() == ""


def test_a_week_of_lines_is_thinned_and_nothing_goes_unsaid() -> None:
    now, kept, told = 0.0, 0, 0
    rate = LineRate(clock=lambda: now)
    minutes, lines_a_minute = 7 * 24 * 60, 100
    for number in range(minutes * lines_a_minute):
        now = number * 60 / lines_a_minute
        if rate.passes():
            kept += 1
            words = rate.left_out()
            told += int(words[1:].split()[0].replace(",", "")) if words else 0
    last = rate.left_out()
    told += int(last[1:].split()[0].replace(",", "")) if last else 0
    assert kept + told == minutes * lines_a_minute
    assert abs(kept - BURST_LINES - minutes * LINES_PER_MINUTE) < 2 * LINES_PER_MINUTE
