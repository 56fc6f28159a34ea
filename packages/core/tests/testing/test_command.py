"""The checks of a package's command, and what each of them has to find out."""

import pytest
import ssl_tiny.train

from ssl_core.testing import check_bad_input, check_exact_resume, check_run, error_of

SHORT_QUEUE = ["--method.queue.length=72"]


@pytest.mark.slow
def test_a_run_keeps_the_promises(tmp_path):
    check_run(ssl_tiny.train, tmp_path)


RUNS = {
    "weights that are not drawn from the seed": (
        "    head = config.projector\n",
        "    head = config.projector\n    torch.seed()\n",
        "the saved configuration gives other losses",
    ),
    "another encoder than the exported one": (
        "return Tiny(encoder, ",
        "return Tiny(copy.deepcopy(encoder), ",
        "of the backbone is not the trained encoder's",
    ),
    "an unlogged metric": ('"chance_loss"', '"chance"', r"the log has no \['chance_loss'\]"),
    "a setting in the command": (
        'main = Command("ssl-tiny-train", Config, make_method, "Train Tiny.")',
        'command = Command("ssl-tiny-train", Config, make_method, "Train Tiny.")\n\n\n'
        "def main(arguments):\n    command([*arguments, '--seed=1'])",
        "config.yaml is not the complete configuration",
    ),
}


@pytest.mark.nightly
@pytest.mark.parametrize("wrong", RUNS)
def test_what_is_wrong_in_a_run_is_named(changed, tmp_path, wrong):
    old, new, message = RUNS[wrong]
    with pytest.raises(AssertionError, match=message):
        check_run(changed(old, new), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("renderer", ["auto", pytest.param("reference", marks=pytest.mark.nightly)])
def test_a_killed_run_resumes_to_the_last_bit(tmp_path, renderer):
    check_exact_resume(ssl_tiny.train, tmp_path, [*SHORT_QUEUE, f"--data.renderer={renderer}"])


@pytest.mark.nightly
def test_state_that_no_checkpoint_holds_is_found(changed, tmp_path):
    forgets = 'self.queue.register_buffer("cursor", self.queue.cursor, persistent=False)'
    train = changed("self.queue = Queue(config.queue, dim)", f"self.queue = Queue(config.queue, dim); {forgets}")
    with pytest.raises(AssertionError, match="resumed after step"):
        check_exact_resume(train, tmp_path, SHORT_QUEUE)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [128, 48], ids=["not wrapped", "at its start at the third step"])
def test_a_queue_whose_cursor_is_where_a_new_one_has_it_proves_too_little(tmp_path, rows):
    with pytest.raises(AssertionError, match=f"a queue of {rows} rows has not wrapped at the kill, or its cursor is 0"):
        check_exact_resume(ssl_tiny.train, tmp_path, [f"--method.queue.length={rows}"])


def test_mistakes_are_refused_in_clear_words(tmp_path):
    mistakes = {"--method.momentum 2": "momentum must be at most 1, got 2", "--method.negatives none": "negatives"}
    check_bad_input(ssl_tiny.train, tmp_path, mistakes)


def test_a_mistake_that_is_refused_in_other_words_is_named(tmp_path):
    with pytest.raises(AssertionError, match=r"--method.momentum 2: the message is .*without 'momentum 2 is too much'"):
        check_bad_input(ssl_tiny.train, tmp_path, {"--method.momentum 2": "momentum 2 is too much"})


@pytest.mark.slow
def test_a_mistake_that_is_accepted_is_named(tmp_path):
    with pytest.raises(AssertionError, match=r"--method.momentum 0.5 is not refused"):
        check_bad_input(ssl_tiny.train, tmp_path, {"--method.momentum 0.5": "momentum"})


def test_the_message_of_a_refusal_is_what_stands_on_standard_error():
    assert "shipped: auto, batch, smoke (ssl-tiny-train --help" in error_of(ssl_tiny.train, "--config", "smok")
