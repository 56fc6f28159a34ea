import doctest
from pathlib import Path

README = Path(__file__).parents[3] / "README.md"


def test_the_readmes_examples_do_what_they_show():
    result = doctest.testfile(str(README), module_relative=False)
    assert result.attempted > 10
    assert result.failed == 0
