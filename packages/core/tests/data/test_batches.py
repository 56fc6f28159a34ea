import dataclasses
import os
import signal
import subprocess
import sys

import pytest
import torch

from ssl_core.data import Batches, Labelled, LazyImages, MemoryImages
from ssl_core.philox import permutation
from ssl_core.testing import finished_process, started_process
from ssl_core.testing.process import TIMEOUT_S
from ssl_core.views import ViewConfig, choose_renderer, make_view_specs, pack_images, render_views, sample_parameters

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
SPECS = make_view_specs([ViewConfig("weak", size=8), ViewConfig("strong", size=6, count=2)])


@pytest.fixture
def source():
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, (3, 8 + index % 3, 9), dtype=torch.uint8, generator=generator) for index in range(26)
    ]
    return MemoryImages("noise", images, torch.full((26,), -1))


def batches(source, **changes):
    options = {"batch_size": 8, "seed": 3, "mean": MEAN, "std": STD, "workers": 0}
    return Batches(source, SPECS, **(options | changes))


def assert_same(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.index, other.index)
        assert all(torch.equal(a, b) for a, b in zip(one.views, other.views, strict=True))


def views_of(image, index, specs, view_indices, renderer, epoch):
    """Some views of one image, rendered alone."""
    size = torch.tensor([image.shape[1:]])
    options = {"seed": 3, "epoch": epoch, "image_index": torch.tensor([index]), "image_size": size}
    parameters = [sample_parameters(specs[each], view_index=each, **options) for each in view_indices]
    alone = [dataclasses.replace(specs[each], derived_from=None, shared_ops=0) for each in view_indices]
    renderer = choose_renderer(renderer, torch.device("cpu"), alone)
    return render_views(pack_images([image]), parameters, alone, mean=MEAN, std=STD, renderer=renderer)


def test_a_batch_holds_the_views_of_its_images(source, renderer):
    batch = next(batches(source, renderer=renderer).epoch(5))
    assert [tuple(view.shape) for view in batch.views] == [(8, 3, 8, 8), (8, 3, 6, 6), (8, 3, 6, 6)]
    row, view_index = 4, 2
    index = int(batch.index[row])
    (expected,) = views_of(source.image(index), index, SPECS, [view_index], renderer, 5)
    assert torch.equal(batch.views[view_index][row], expected[0])


def test_an_epoch_is_a_permutation_without_its_remainder(source):
    made = batches(source)
    assert made.batches_per_epoch == 3
    orders = [torch.cat([batch.index for batch in made.epoch(epoch)]).tolist() for epoch in (0, 1)]
    assert all(len(set(order)) == len(order) == 24 for order in orders)
    assert orders[0] != orders[1]
    assert orders[0] == permutation(3, (0x6F726472, 0), 26)[:24].tolist()


def test_seed_and_epoch_change_the_views_of_an_image(source):
    def view_of_image_0(seed, epoch):
        for batch in batches(source, seed=seed, batch_size=26).epoch(epoch):
            return batch.views[1][batch.index == 0]

    first = view_of_image_0(0, 0)
    assert not torch.equal(first, view_of_image_0(1, 0))
    assert not torch.equal(first, view_of_image_0(0, 1))
    assert torch.equal(first, view_of_image_0(0, 0))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.slow
def test_workers_change_nothing(source, workers, renderer):
    alone, helped = batches(source, renderer=renderer), batches(source, renderer=renderer, workers=workers)
    for epoch in (0, 1):
        assert_same(alone.epoch(epoch), helped.epoch(epoch))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_may_start_at_any_step(source, workers, renderer):
    made = batches(source, accumulate=2, workers=workers, renderer=renderer)
    whole = list(made.epoch(4))
    assert_same(made.epoch(4, start=2), whole[4:])
    assert list(made.epoch(4, start=3)) == []


def test_ranks_and_micro_batches_are_runs_of_the_global_batch(source, renderer):
    whole = list(batches(source, renderer=renderer).epoch(0))
    split = {"renderer": renderer, "accumulate": 2, "world_size": 2}
    parts = [list(batches(source, rank=rank, **split).epoch(0)) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        # Micro-batch by micro-batch, and in each the ranks in order.
        pieces = [parts[rank][2 * step + micro] for micro in (0, 1) for rank in (0, 1)]
        assert torch.equal(batch.index, torch.cat([piece.index for piece in pieces]))
        for view in range(3):
            assert torch.equal(batch.views[view], torch.cat([piece.views[view] for piece in pieces]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_remainder_may_be_kept_as_a_smaller_batch_in_equal_shares(source, workers):
    kept = batches(source, workers=workers, batch_size=10, remainder="keep")
    whole = [batch.index for batch in kept.epoch(0)]
    assert kept.batches_per_epoch == 3
    assert [len(index) for index in whole] == [10, 10, 6]
    assert sorted(torch.cat(whole).tolist()) == list(range(26))
    assert_same(list(kept.epoch(0, start=2)), list(kept.epoch(0))[2:])
    # Of four processes with two each, the last batch is filled up by the first images of the epoch.
    shares = [
        [batch.index for batch in batches(source, batch_size=20, remainder="keep", rank=rank, world_size=4).epoch(0)]
        for rank in range(4)
    ]
    assert torch.equal(torch.cat([share[0] for share in shares]), torch.cat(whole[:2]))
    assert torch.equal(torch.cat([share[1] for share in shares]), torch.cat([whole[2], whole[0][:2]]))


def test_one_image_for_each_process_is_no_batch_and_said(source, caplog):
    caplog.set_level("INFO")
    for options, left in (({"batch_size": 5}, 1), ({"batch_size": 8, "world_size": 2}, 2)):
        made = batches(source, remainder="keep", **options)
        assert made.batches_per_epoch == 26 // options["batch_size"]
        assert len(list(made.epoch(0))) == made.batches_per_epoch
        assert caplog.messages[-1] == f"noise: the last {left} of an epoch's images are left out, one a process"


def test_labels_stand_behind_the_views(source):
    labelled = dataclasses.replace(source, labels=torch.arange(26) % 5)
    made = Labelled(batches(labelled), labelled)
    for batch, plain in zip(made.epoch(1, start=1), batches(labelled).epoch(1, start=1), strict=True):
        *views, labels = batch.views
        assert torch.equal(labels, batch.index % 5)
        assert all(torch.equal(view, other) for view, other in zip(views, plain.views, strict=True))
    assert made.batches_per_epoch == 3
    assert made.identifier(4) == "noise:4"


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_may_be_left_in_the_middle_but_not_continued_then(source, workers):
    made = batches(source, workers=workers)
    left = made.epoch(0)
    first = next(left)
    again = list(made.epoch(0))
    assert_same([first], again[:1])
    with pytest.raises(RuntimeError, match="epoch 0 was left for another"):
        next(left)


def test_workers_are_kept_from_one_epoch_to_the_next(source):
    made = batches(source, workers=1)

    def worker():
        list(made.epoch(0))
        return [process.pid for process in made._pipeline._loader._loader._iterator._workers]

    assert worker() == worker()


@pytest.mark.parametrize("workers", [0, 1])
def test_channels_may_be_last_in_memory(source, workers, renderer):
    plain, last = (
        batches(source, renderer=renderer),
        batches(source, renderer=renderer, workers=workers, channels_last=True),
    )
    assert_same(plain.epoch(0), last.epoch(0))
    for batch in last.epoch(0):
        assert all(view.is_contiguous(memory_format=torch.channels_last) for view in batch.views)


def test_the_global_generator_is_left_alone(source, renderer):
    before = torch.random.get_rng_state()
    list(batches(source, renderer=renderer).epoch(0))
    list(batches(source, renderer=renderer, workers=1).epoch(0))
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_broken_image_in_a_worker_is_replaced(source):
    from ssl_core.data import BrokenImageError

    class Torn:
        name, classes = "torn", None
        label, identifier, __len__ = source.label, source.identifier, source.__len__

        def image(self, index):
            if index == 7:
                raise BrokenImageError("7")
            return source.image(index)

    lazy = LazyImages(Torn(), broken_limit=0.1)
    assert_same(batches(lazy).epoch(0), batches(LazyImages(Torn(), broken_limit=0.1), workers=2).epoch(0))
    assert lazy.broken == ("noise:7",)


def test_an_error_in_a_worker_reaches_the_caller():
    negative = MemoryImages("negative", torch.full((8, 3, 8, 8), -1.0), torch.full((8,), -1))
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        list(batches(negative, workers=1).epoch(0))


def test_forking_after_threads_have_run_works(source):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.rand(300, 300) @ torch.rand(300, 300)
        assert len(list(batches(source, workers=2).epoch(0))) == 3
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 27}, r"noise has 26 images, fewer than one batch of 27; lower train\.batch_size"),
        ({"batch_size": 0}, "batch_size 0 cannot be shared equally by 1 process: take 1"),
        ({"accumulate": 3}, r"train\.batch_size 8 cannot .* 1 process of 3 micro-batches each: take 6 or 9$"),
        ({"accumulate": 2, "world_size": 3}, "3 processes of 2 micro-batches each: take 6 or 12, or start 2 or 4 proc"),
        ({"accumulate": 2, "remainder": "keep"}, "a remainder cannot be kept with 2 micro-batches"),
        ({"mean": (0.5,)}, "one number for each of 3 channels"),
        ({"workers": -1}, r"data\.workers must be at least 0, got -1"),
        ({"renderer": "gpu"}, r"data\.renderer gpu: there is no renderer of that name; there is auto, .*reference"),
    ],
    ids=["too large", "zero", "accumulate", "world size", "remainder", "mean", "workers", "renderer"],
)
def test_what_cannot_be_is_refused(source, changes, message):
    with pytest.raises(ValueError, match=message):
        batches(source, **changes)


SETUP = """
import os, signal, time, torch
from ssl_core.data import Batches, MemoryImages
from ssl_core.views import ViewConfig, make_view_specs

specs = make_view_specs([ViewConfig("weak", size=8)])
source = MemoryImages("zeros", torch.zeros(800, 1, 8, 8), torch.zeros(800, dtype=torch.int64))
batches = Batches(source, specs, batch_size=8, seed=0, mean=(0.1,), std=(0.2,), workers=2)
epoch = batches.epoch(0)
next(epoch), next(epoch)  # one from each worker: both are up
"""


def run(script, signal_number):
    """Run a script in a process group of its own; send the group a signal once the script prints a line."""
    command = [sys.executable, "-c", SETUP + script]
    with started_process(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        os.killpg(process.pid, signal_number)
        output, errors = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, output, errors


@pytest.mark.slow
def test_workers_do_not_each_say_what_renders_the_views():
    script = "import logging; logging.basicConfig(level=logging.INFO)" + SETUP
    done = finished_process([sys.executable, "-c", script])
    assert done.returncode == 0, done.stderr
    assert "runs as" not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux do workers ignore a SIGTERM of others")
def test_workers_outlive_a_sigterm_to_the_whole_job_so_that_the_main_process_can_save():
    script = """
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
print("ready", flush=True)
while not stopped:
    time.sleep(0.01)
time.sleep(0.5)
print(len(list(epoch)))
left_unfinished = batches.epoch(1)
next(left_unfinished)
"""
    # 800 images in batches of 8, of which two were taken. An unfinished epoch does not keep the process from ending.
    assert run(script, signal.SIGTERM) == (0, "98\n", "")


@pytest.mark.slow
def test_ctrl_c_raises_in_the_main_process_alone_and_ends_everything():
    # A process that a shell starts in the background ignores SIGINT, and so would this one that it starts.
    script = """
signal.signal(signal.SIGINT, signal.default_int_handler)
print("ready", flush=True)
time.sleep(30)
"""
    code, _, errors = run(script, signal.SIGINT)
    assert code in (-signal.SIGINT, 128 + signal.SIGINT)
    assert errors.count("Traceback") == 1
    assert errors.rstrip().endswith("KeyboardInterrupt")


# -- partners

PAIRED = make_view_specs(
    [
        ViewConfig("weak", size=8),
        ViewConfig("weak", size=8, partner=True),
        ViewConfig("weak", size=[8, 6], share_crop_with=1, partner=True),
    ]
)
TABLE = torch.stack([(torch.arange(26) + shift) % 26 for shift in (1, 5, 11)], dim=1).int()


def paired(source, partners=TABLE, **changes):
    made = Batches(source, PAIRED, **({"batch_size": 8, "seed": 3, "mean": MEAN, "std": STD, "workers": 0} | changes))
    made.set_partners(partners)
    return made


def test_views_of_partners_are_left_out_while_there_are_none(source):
    assert [len(batch.views) for batch in paired(source, None).epoch(0)] == [1, 1, 1]
    assert_same(
        paired(source, None).epoch(0),
        Batches(source, PAIRED[:1], batch_size=8, seed=3, mean=MEAN, std=STD, workers=0).epoch(0),
    )


def test_a_partners_views_show_one_image_of_the_row_with_draws_of_the_images_own(source, renderer):
    batch = next(paired(source, renderer=renderer).epoch(2))
    assert [tuple(view.shape[2:]) for view in batch.views] == [(8, 8), (8, 8), (8, 8), (6, 6)]
    for row, index in enumerate(batch.index.tolist()):
        found = [
            partner
            for partner in TABLE[index].tolist()
            if all(
                torch.equal(view[row], wanted[0])
                for view, wanted in zip(
                    batch.views[1:], views_of(source.image(partner), index, PAIRED, [1, 2], renderer, 2), strict=True
                )
            )
        ]
        assert len(found) == 1


def drawn(made, epoch, source):
    """Image -> which column of its row was drawn, recognized by the pixels of an uncropped view."""
    looked_up = {source.image(index).sum().item(): index for index in range(len(source))}
    found = {}
    for batch in made.epoch(epoch):
        for row, index in enumerate(batch.index.tolist()):
            pixels = (batch.views[1][row] * 255).round().sum().item()
            found[index] = TABLE[index].tolist().index(looked_up[pixels])
    return found


@pytest.fixture
def plain_source():
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=generator) for _ in range(26)]
    return MemoryImages("noise", images, torch.full((26,), -1))


def plain(source, **changes):
    specs = make_view_specs([ViewConfig("plain", size=8), ViewConfig("plain", size=8, partner=True)])
    options = {"batch_size": 2, "seed": 3, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "workers": 0}
    made = Batches(source, specs, **(options | changes))
    made.set_partners(TABLE)
    return made


@pytest.mark.slow
def test_a_partner_is_drawn_evenly_and_anew_in_each_epoch_and_by_each_seed(plain_source):
    made = plain(plain_source)
    epochs = [drawn(made, epoch, plain_source) for epoch in range(40)]
    counts = torch.tensor([column for epoch in epochs for column in epoch.values()]).bincount(minlength=3)
    expected = counts.sum() / 3
    assert ((counts - expected) ** 2 / expected).sum() < 13.8  # chi-square, 2 degrees of freedom, 1 in 1000
    assert epochs[0] != epochs[1]
    assert drawn(plain(plain_source, seed=4), 0, plain_source) != epochs[0]


@pytest.mark.parametrize("changes", [{"workers": 2}, {"batch_size": 13}, {"accumulate": 2}])
def test_a_partner_depends_on_neither_workers_nor_batches(plain_source, changes):
    assert drawn(plain(plain_source, **changes), 1, plain_source) == drawn(plain(plain_source), 1, plain_source)


def test_the_state_of_batches_goes_into_others(plain_source):
    made, other = plain(plain_source), plain(plain_source)
    made.set_partners(TABLE.flip(1))
    other.load_state_dict(made.state_dict())
    assert_same(made.epoch(0), other.epoch(0))
    other.load_state_dict(plain(plain_source, workers=0).state_dict() | {"partners": None})
    assert [len(batch.views) for batch in other.epoch(0)] == [1] * 13


@pytest.mark.parametrize(
    ("partners", "words"),
    [
        (TABLE[:20], r"\(20, 3\) do not fit 26 images"),
        (TABLE[:, :0], r"\(26, 0\) do not fit"),
        (TABLE + 1, r"in \[0, 26\), got 1 to 26"),
        (TABLE - 1, "got -1 to 24"),
    ],
)
def test_partners_that_are_no_images_are_refused(source, partners, words):
    with pytest.raises(ValueError, match=words):
        paired(source, partners)
