"""Checks for the tests of every method package: promises that hold for any method, recipe and command.

A failed check is an AssertionError that names the broken promise. Nothing here needs pytest, so ``ssl-core`` does not
depend on it; folders to work in are arguments, as pytest's ``tmp_path`` gives them.
"""

from typing import TYPE_CHECKING

from ssl_core.lazy import on_first_use

if TYPE_CHECKING:
    from ssl_core.testing.accuracy import (
        APART,
        DOUBLE,
        ROUNDING,
        SINGLE,
        SIX_DIGITS,
        assert_as_accurate,
        assert_attention_is_accurate,
        loss_rounding,
    )
    from ssl_core.testing.command import check_bad_input, check_exact_resume, check_run, error_of, make_images
    from ssl_core.testing.imports import check_imports
    from ssl_core.testing.method import check_method, random_views
    from ssl_core.testing.process import finished_process, started_process
    from ssl_core.testing.ranks import check_ranks
    from ssl_core.testing.recipes import Recipes

__all__ = [
    "APART",
    "DOUBLE",
    "ROUNDING",
    "SINGLE",
    "SIX_DIGITS",
    "Recipes",
    "assert_as_accurate",
    "assert_attention_is_accurate",
    "check_bad_input",
    "check_exact_resume",
    "check_imports",
    "check_method",
    "check_ranks",
    "check_run",
    "error_of",
    "finished_process",
    "loss_rounding",
    "make_images",
    "random_views",
    "started_process",
]

__getattr__ = on_first_use(
    __name__,
    accuracy="APART DOUBLE ROUNDING SINGLE SIX_DIGITS assert_as_accurate assert_attention_is_accurate loss_rounding",
    command="check_bad_input check_exact_resume check_run error_of make_images",
    imports="check_imports",
    method="check_method random_views",
    process="finished_process started_process",
    ranks="check_ranks",
    recipes="Recipes",
)
