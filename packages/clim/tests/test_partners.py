"""When partners are chosen, from which embeddings, and that all processes have the same."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssl_clim import CLIM, CLIMConfig, partners
from ssl_clim.neighbours import find_positives, load_faiss
from ssl_clim.partners import NeighbourConfig, choose_partners, prepare_partners
from ssl_core import distributed
from ssl_core.backbone import BackboneCard
from ssl_core.data import Batches, MemoryImages
from ssl_core.evaluate import evaluating
from ssl_core.nn import QueueConfig
from ssl_core.run import Run
from ssl_core.testing import finished_process
from ssl_core.train import TrainConfig
from ssl_core.views import ViewConfig, make_view_specs

NUM_IMAGES, SIZE = 300, 8
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
CPU = torch.device("cpu")


def make_run(folder, *, norm=True, **options):
    """A run on noise in four colors; its momentum branch is not the online one's copy any more."""
    torch.manual_seed(0)
    labels = torch.arange(NUM_IMAGES) % 4
    color = torch.randint(0, 160, (4, 3, 1, 1))[labels]
    images = list((color + torch.randint(0, 96, (NUM_IMAGES, 3, SIZE, SIZE))).byte())
    source = MemoryImages("noise", images, labels, classes=("a", "b", "c", "d"))
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6) if norm else nn.Identity(), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    specs = make_view_specs([ViewConfig("weak", SIZE, partner=partner) for partner in (False, True, False, True)])
    settings = CLIMConfig(queue=QueueConfig(16))
    method = CLIM(nn.Sequential(*layers, nn.Flatten()), nn.Linear(6, 4), settings, views=specs, dim=4)
    with torch.no_grad():
        for parameter in method.momentum_branch.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        for name, buffer in method.named_buffers():
            if name.endswith("running_mean"):
                buffer += 0.3 * torch.randn_like(buffer)
    batches = Batches(source, specs, batch_size=4, seed=3, mean=MEAN, std=STD, workers=0)
    config = SimpleNamespace(
        neighbours=NeighbourConfig(**({"start_epoch": 0, "clusters": 6, "k": 12, "positives": 5} | options)),
        seed=3,
        data=SimpleNamespace(workers=0),
        train=TrainConfig(epochs=10, batch_size=4),
    )
    card = BackboneCard("small", 3, SIZE, MEAN, STD, num_features=6)
    return Run(config, method, source, batches, card, CPU, Path(folder))


def table(run):
    return run.batches.state_dict()["partners"]


def embeddings(run, branch, *, projected=True):
    images = torch.stack([run.source.image(index) for index in range(NUM_IMAGES)]) / 255
    images = (images - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with evaluating(branch):
        features = branch.encoder(images)
        return F.normalize(branch.projector(features), dim=1) if projected else features


def expected_table(features, selection="center_wise", refresh=0):
    options = {"clusters": 6, "neighbours": 12, "positives": 5, "seed": 3}
    return find_positives(features, selection, load_faiss(CPU), refresh=refresh, **options)[0].table


def test_partners_are_chosen_at_the_start_epoch_and_then_every_so_many(tmp_path):
    run = make_run(tmp_path, start_epoch=2, update_every=3)
    chosen = []
    for epoch in range(9):
        before = table(run)
        numbers = choose_partners(run, epoch)
        if numbers:
            chosen.append(epoch)
        assert bool(numbers) == (table(run) is not before)
    assert chosen == [2, 5, 8]


def same(first, second):
    """Nearly all rows: embeddings of another batch size may differ in the last bit, and so may ties."""
    return (np.asarray(first) == np.asarray(second)).all(axis=1).mean() > 0.99


def test_neighbours_are_those_of_the_momentum_branchs_normalized_projections(tmp_path):
    run = make_run(tmp_path)
    choose_partners(run, 0)
    assert same(table(run), expected_table(embeddings(run, run.method.momentum_branch).numpy()))


@pytest.mark.parametrize(
    "options",
    [{"encoder": "online"}, {"features": "backbone"}, {"selection": "knn"}, {"selection": "kmeans"}],
    ids=lambda options: next(iter(options.values())),
)
@pytest.mark.slow
def test_encoder_layer_and_selection_can_be_changed(tmp_path, options):
    run = make_run(tmp_path, **options)
    choose_partners(run, 0)
    branch = run.method if "encoder" in options else run.method.momentum_branch
    features = embeddings(run, branch, projected="features" not in options).numpy()
    expected = expected_table(features, options.get("selection", "center_wise"))
    assert same(table(run), expected)
    default = expected_table(embeddings(run, run.method.momentum_branch).numpy())
    assert not same(expected, default)


def test_the_choice_is_drawn_anew_each_time(tmp_path):
    run = make_run(tmp_path, update_every=2)
    choose_partners(run, 0)
    first = table(run)
    choose_partners(run, 2)
    assert not torch.equal(table(run), first)
    assert same(table(run), expected_table(embeddings(run, run.method.momentum_branch).numpy(), refresh=1))


def test_embeddings_beyond_the_memory_are_kept_in_half_precision_and_leave_no_file(tmp_path, monkeypatch):
    searched = []

    def recorded(features, *arguments, **options):
        searched.append(type(features))
        return find_positives(features, *arguments, **options)

    monkeypatch.setattr(partners, "find_positives", recorded)
    run = make_run(tmp_path, memory_gib=0.0)
    choose_partners(run, 0)
    assert searched == [np.memmap]
    assert same(table(run), expected_table(embeddings(run, run.method.momentum_branch).half().numpy()))
    assert list(tmp_path.iterdir()) == []


def test_the_storage_is_a_file_beyond_the_memory_alone(tmp_path):
    with (tmp_path / "features").open("w+b") as file:
        gib = 4 * 100 * 8 / 2**30
        in_memory, on_disk = (partners._storage(100, 8, limit, file) for limit in (gib, gib * 0.99))
        assert not isinstance(in_memory, np.memmap)
        assert in_memory.dtype == np.float32
        assert isinstance(on_disk, np.memmap)
        assert on_disk.dtype == np.float16
        assert on_disk.shape == (100, 8)


def test_random_partners_need_no_embeddings(tmp_path, monkeypatch):
    monkeypatch.setattr(partners, "iterate_features", None)
    run = make_run(tmp_path, selection="random")
    numbers = choose_partners(run, 0)
    assert table(run).shape == (NUM_IMAGES, 5)
    assert 0.15 < numbers["positives_purity"] < 0.35  # four classes


def test_selection_none_leaves_images_alone(tmp_path):
    run = make_run(tmp_path, selection="none")
    assert choose_partners(run, 0) == {}
    assert table(run) is None


def test_the_log_gets_times_sizes_and_purity(tmp_path):
    numbers = choose_partners(make_run(tmp_path), 0)
    assert numbers["partners_s"] >= numbers["embedding_s"] > 0
    assert numbers["positives_purity"] > 0.5  # colors tell the classes apart
    assert 0 < numbers["positives_chosen"] <= 5
    assert numbers["cluster_size_min"] <= NUM_IMAGES / 6 <= numbers["cluster_size_max"]


def test_choosing_changes_nothing_about_the_method(tmp_path):
    run = make_run(tmp_path)
    run.method.train()
    before = {name: value.clone() for name, value in run.method.state_dict().items()}
    generator = torch.get_rng_state()
    choose_partners(run, 0)
    assert all(torch.equal(value, before[name]) for name, value in run.method.state_dict().items())
    assert all(module.training for module in run.method.modules())
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": NUM_IMAGES}, f"neighbours.k {NUM_IMAGES}: "),
        ({"positives": 13}, "neighbours.positives 13: "),
        ({"clusters": NUM_IMAGES + 1}, f"neighbours.clusters {NUM_IMAGES + 1}: "),
    ],
)
def test_what_the_data_is_too_small_for_is_refused_beforehand(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        prepare_partners(make_run(tmp_path, start_epoch=5, **options))
    prepare_partners(make_run(tmp_path, selection="none", **options))


def test_faiss_takes_every_usable_core_while_other_processes_wait(monkeypatch):
    library = load_faiss(CPU).library
    before = library.omp_get_max_threads()
    monkeypatch.setattr(partners, "usable_cores", lambda: 3)
    library.omp_set_num_threads(1)
    try:
        with partners._threads_of_all_processes(library):
            assert library.omp_get_max_threads() == 1
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        with partners._threads_of_all_processes(library):
            assert library.omp_get_max_threads() == 3
        assert library.omp_get_max_threads() == 1
    finally:
        library.omp_set_num_threads(before)


@pytest.mark.parametrize(("option", "value"), [("start_epoch", -1), ("update_every", 0)])
def test_times_that_cannot_be_are_refused(option, value):
    with pytest.raises(ValueError, match=f"neighbours.{option} must be at least .*, got {value}"):
        NeighbourConfig(**{option: value})


@pytest.mark.nightly
def test_two_processes_share_the_work_and_have_the_table_of_one(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    finished = finished_process([*command, str(tmp_path)])
    assert finished.returncode == 0, finished.stderr
    alone = make_run(tmp_path)
    choose_partners(alone, 0)
    for rank in range(2):
        # Running statistics differ between the processes; those of the first count.
        assert torch.equal(torch.load(tmp_path / f"table_of_{rank}.pt"), table(alone))


if __name__ == "__main__":
    distributed.setup(CPU)
    run = make_run(sys.argv[1])
    with torch.no_grad():
        for name, buffer in run.method.named_buffers():
            if name.endswith("running_mean"):
                buffer += distributed.rank()
    before = {name: buffer.clone() for name, buffer in run.method.named_buffers()}
    choose_partners(run, 0)
    assert all(torch.equal(buffer, before[name]) for name, buffer in run.method.named_buffers()), "statistics changed"
    torch.save(table(run), Path(sys.argv[1]) / f"table_of_{distributed.rank()}.pt")
    distributed.teardown()
