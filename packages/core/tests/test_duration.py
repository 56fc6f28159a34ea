import pytest

from ssl_core.duration import seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"), [("600s", 600), ("45m", 2700), ("2h", 7200), ("1.5h", 5400), ("1h30m", 5400), ("1d", 86_400)]
)
def test_a_time_is_a_number_with_its_unit(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["600", "", "h", "2 hours", "0s", "-5m", "5m!", "m5", "1:30"])
def test_other_texts_are_no_time(text):
    with pytest.raises(ValueError, match="is no time; write it as 2h, 45m"):
        seconds_of(text)
