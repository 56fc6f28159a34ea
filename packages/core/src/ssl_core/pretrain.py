"""From a configuration to a run directory: the work of every method's command around the loop.

First everything is read, compared and decided (checkpoint, data, views, encoder, method), so that a run that is refused
changes no file. Then the run directory is claimed and training starts. In the end the backbone is exported and, where
the data has labels, evaluated by a kNN.
"""

import json
import logging
import platform
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ssl_core import distributed
from ssl_core.allocator import keep_freed_memory
from ssl_core.auto import (
    Decision,
    decided,
    decisions_text,
    faster_precision,
    feeding_workers,
    fitting_batch,
    forecast,
    look_at,
    this_machine,
)
from ssl_core.backbone import BackboneCard, head_layers, save_backbone, save_card
from ssl_core.budget import measured_costs, within_budget
from ssl_core.build import build
from ssl_core.config import changed_values, give_way, save_config, to_dict
from ssl_core.data import (
    Batches,
    Images,
    decoded,
    identity,
    normalization,
    open_encoded,
    reading_order,
    without_foreign_classes,
)
from ssl_core.data.files import holds_images
from ssl_core.duration import seconds_of
from ssl_core.evaluate import collapse, health
from ssl_core.evaluate.encoder import Layer
from ssl_core.evaluate.knn import knn_of_subject
from ssl_core.evaluate.online import decoded_side, fitting_knn, knn_of_method
from ssl_core.evaluate.subject import Subject, load_subject
from ssl_core.files import copy_atomically, write_json
from ssl_core.folder import LAST, check_writable, claimed, find_run, last_saved_ns
from ssl_core.given import is_given
from ssl_core.machine import processor_name
from ssl_core.nn import depends_on_processes, encoder_options, stem_for
from ssl_core.report import check_report, has_report, write_report
from ssl_core.run import Config, MakeMethod, Prepare, PretrainConfig, Run, TrainedMethod, choose_device
from ssl_core.summary import summary
from ssl_core.train import Method, learning_rate, method_name, train
from ssl_core.train.checkpoint import load_run, restore_, same_data, same_in_all_processes, same_processes
from ssl_core.train.log import load_tensorboard
from ssl_core.views import ViewSpec, choose_renderer, save_view_gallery

logger = logging.getLogger(__name__)

HISTORY = "run.json"
_REPORT_IMAGES = 1000  # of a split
_REPORT_S = 10.0  # of one core, beside the features of these images by two encoders


def pretrain(
    config: Config,
    make_method: MakeMethod[Config, TrainedMethod],
    *,
    name: str,
    prepare: Prepare[Config, TrainedMethod] | None = None,
    given: Collection[str] | None = None,
    started: float | None = None,
) -> Path:
    """Train a method as a configuration says, from the checkpoint of ``resume`` on, or else from that in ``out``.

    Args:
        config: configuration of the run.
        make_method: function (config, encoder, number of its features, views) -> method, on the CPU.
        name: beginning of a new run directory's name.
        prepare: function of the run that is called once in every process, before anything is written, to refuse a run
            that it cannot serve. It returns a function that is called before the first step of each epoch with the
            number of epochs done, and returns numbers for the log.
        given: options that the user has set and that are refused where they do not fit the data; others are a
            recipe's and give way, which the log says. None is all options, except those that ``config.auto`` decides.
        started: time by ``time.monotonic()`` from which ``config.budget`` counts; None is now.

    Returns:
        The run directory: ``config.yaml``, ``views.png``, ``metrics.jsonl``, ``checkpoints/``, ``backbone.safetensors``
        and card.

    Raises:
        ValueError: for settings that do not fit each other or the data, or that are not those of the run to continue.
        OSError: if the run directory cannot be written, or another process trains there.
    """
    started = time.monotonic() if started is None else started
    device = distributed.setup(choose_device(config.train.device), timeout_s=seconds_of(config.train.timeout))
    lengths = [name for name in ("train.epochs", "train.steps") if is_given(given or (), name)]
    if config.budget is not None and lengths:
        raise ValueError(
            f"budget {config.budget} and {lengths[0]} both say how long a run is; give one (--budget null)"
        )
    if lengths == ["train.epochs"]:
        config = give_way(config, {"train.steps": None}, given, "for train.epochs is given")
    specs = config.view_specs()
    if not specs:
        raise ValueError(
            "`views` is empty: name a recipe, such as --config smoke (--config list shows all), your images alone, "
            "--data.source FOLDER, or a view"
        )
    renderer = choose_renderer(config.data.renderer, device, specs)  # refuses before anything is read
    if device.type == "cpu":
        keep_freed_memory()
    out, checkpoint = find_run(config.out, config.resume)
    check_writable(out or Path("runs"))
    if config.train.tensorboard:
        load_tensorboard()
    if config.report:
        check_report()
    saved_ns = last_saved_ns(out)
    if out is not None and saved_ns is None and holds_images(out):
        raise ValueError(
            f"{out} holds images, and in a run directory none are read any more: choose another --out, such as "
            f"{out / 'run'}"
        )
    asked, content = config, None
    if checkpoint is None:
        config = replace(config, data=without_foreign_classes(config.data, given))
    else:
        content, config = load_run(checkpoint, config, given)
        specs = config.view_specs()
    same_in_all_processes(content, checkpoint or out)
    data = config.data
    if content is not None:  # normalized as before, whatever is measured or published now
        mean, std = content["data"]["mean"], content["data"]["std"]
        data = replace(data, channels=len(mean), mean=mean, std=std)
    images = open_encoded(data)
    order = reading_order(data, images)
    found = distributed.broadcast_object(identity(images) if distributed.is_main() else {})
    is_same = content is None or same_data(content, found, accept=data.changed == "accept")
    decisions: list[Decision] = []
    if content is None:
        config, decisions = _settled(config, make_method, images, device, given)
        specs = config.view_specs()
        data = replace(data, workers=config.data.workers)
    at_least = decoded_side(specs)
    source = decoded(images, data, at_least=at_least)
    mean, std = normalization(data, source)
    if content is None:
        config = give_way(config, config.fitting(len(source)), given, f"for there are {len(source)} images")
    evaluate, knn = fitting_knn(data, config.evaluate, source, at_least, given)
    writes_report = has_report() if config.report is None else config.report
    config = replace(config, evaluate=evaluate)

    make_parts = partial(build, make_method=make_method, channels=len(mean), device=device)
    make_batches = partial(
        Batches,
        source,
        specs,
        batch_size=config.train.batch_size,
        seed=config.seed,
        mean=mean,
        std=std,
        workers=config.data.workers,
        renderer=renderer,
        device=device,
        channels_last=config.train.channels_last,
        accumulate=config.train.accumulate,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        order=order,
    )
    if (
        content is None
        and config.budget is not None
        and (config.train.steps is None or is_given(given or (), "budget"))
    ):
        batches = make_batches()
        costs = measured_costs(config, make_parts(config), batches, source, mean=mean, std=std, device=device)
        config = within_budget(
            config,
            costs,
            elapsed_s=time.monotonic() - started,
            steps_per_epoch=batches.batches_per_epoch,
            num_images=len(source),
            num_evaluated=0 if knn is None else sum(map(len, knn)),
            end_s=writes_report * (_REPORT_S + 4 * min(_REPORT_IMAGES, len(source)) * costs.image_s),
            given=given or (),
        )
        del batches
    parts, batches = make_parts(config), make_batches()
    encoder, method, optimizer = parts.encoder, parts.method, parts.optimizer
    image_size = max(size for spec in specs for size in spec.sizes)
    card = BackboneCard(
        architecture=config.encoder.name,
        channels=len(mean),
        image_size=image_size,
        mean=mean,
        std=std,
        num_features=parts.num_features,
        stem=stem_for(config.encoder, image_size),
        options=encoder_options(config.encoder, image_size),
        init=config.encoder.init,
        order="random" if order is None else f"{data.read}, {data.window} shards at a time",
        recipe=name,
        method=method_name(method),
        projector=head_layers(method.projector),
    )
    gave_way, done = changed_values(asked, config), 0
    in_part = [key for key in gave_way if is_given(given or (), key)]  # as a base, whose queue the user has not set
    if content is not None:
        gave_way, in_part = content["data"]["asked"] | gave_way, [*content["data"].get("in_part", ()), *in_part]
        if is_same:  # else what they hold of each image is of others
            batches.load_state_dict(content["batches"])
        if content["step"] < config.train.total_steps(batches.batches_per_epoch):
            same_processes(
                content,
                batch_size=config.train.batch_size // config.train.accumulate,
                depends=depends_on_processes(cast(nn.Module, method)),
                accept=config.train.processes_changed == "accept",
            )
        done = restore_(content, method=cast(nn.Module, method), optimizer=optimizer)
        del content  # as large as all that is trained

    def on_epoch(epoch: int) -> dict[str, float]:
        every = config.evaluate.knn_every
        if every is None or knn is None or epoch % every:
            return {}
        return knn_of_method(config.evaluate, method, card, config.data, *knn, device)

    with claimed(out, name, saved_ns=saved_ns) as folder:
        run = Run(config, method, source, batches, card, device, folder)
        before_epoch = prepare and prepare(run)
        if distributed.is_main():
            _begin(run, checkpoint, specs, decisions)
            print(summary(run), flush=True)

        started = time.perf_counter()
        speed = train(
            method,
            batches,
            optimizer,
            config.train,
            folder=folder,
            learning_rate=lambda step: learning_rate(
                config.optim, step.index, step.steps_per_epoch, step.total, config.train.batch_size
            ),
            start=done,
            settings=to_dict(config),
            data={**found, "mean": mean, "std": std, "asked": gave_way, "in_part": in_part},
            health=health,
            collapse=collapse,
            before_epoch=before_epoch,
            on_epoch=on_epoch,
        )
        trained_s = time.perf_counter() - started

        if distributed.is_main():
            save_backbone(folder / "backbone.safetensors", encoder, card)
            reached = speed and f", {speed.images_per_s:,.0f} images/s, {100 * speed.data_wait:.1f} % waiting for data"
            print(f"trained in {trained_s:.0f} s{reached or ''}; the backbone is {folder / 'backbone.safetensors'}")
        if knn is not None:
            settings = config.evaluate
            result = knn_of_subject(
                _exported(folder, settings.features, device),
                *knn,
                features=settings.features,
                k=settings.k,
                temperature=settings.temperature,
            )
            if distributed.is_main():
                save_card(folder / "backbone.json", replace(card, metrics={"knn_top1": result["top1"]}))
        distributed.barrier()
        if writes_report and distributed.is_main():  # for which the others need not wait
            _report(folder, device)
    return folder


def _settled(
    config: Config,
    make_method: MakeMethod[Config, TrainedMethod],
    images: Images,
    device: torch.device,
    given: Collection[str] | None,
) -> tuple[Config, list[Decision]]:
    """The configuration with everything decided that can be before anything is decoded, and said; and what was."""
    machine, seen = this_machine(device), look_at(images)
    decisions: list[Decision] = []
    tried = [key for key in ("train.batch_size", "data.workers") if not is_given(given or (), key)]
    if not config.auto or device.type != "cuda":
        tried = []
    if config.auto:
        # Of one process: others may see other cores, and less shared memory.
        config, decisions = distributed.broadcast_object(decided(config, seen, machine, given or ()))

    make_parts = partial(build, make_method=make_method, channels=seen.channels, device=device)
    if "train.batch_size" in tried:
        wanted = config.train.batch_size
        config = fitting_batch(config, make_parts, channels=seen.channels)
        if (batch := config.train.batch_size) < wanted:
            decisions.append(
                Decision("train.batch_size", f"{batch}", f"one step of {2 * batch} is too large for {machine}")
            )
    if (warning := forecast(config, seen, machine)) and distributed.is_main():
        logger.warning(warning)
    if config.train.precision == "auto":
        config, decision = faster_precision(config, make_parts, channels=seen.channels, device=device)
        decisions.append(decision)
    if "data.workers" in tried:
        config, fewer = feeding_workers(config, make_parts, images, channels=seen.channels)
        decisions += [fewer] if fewer else []
    if decisions and distributed.is_main():
        print(f"decided for {seen.number:,} images on {machine}:\n{decisions_text(decisions)}", flush=True)
    return distributed.broadcast_object((config, decisions))


def _begin(
    run: Run[PretrainConfig, Method],
    checkpoint: Path | None,
    specs: Sequence[ViewSpec],
    decisions: Sequence[Decision],
) -> None:
    """Write what a run directory holds from the first step on, over what an earlier try has left there."""
    folder, config = run.folder, run.config
    is_new = checkpoint is None or checkpoint.resolve() != (folder / LAST).resolve()
    if checkpoint is not None and is_new:
        (folder / LAST).parent.mkdir(exist_ok=True)
        copy_atomically(checkpoint, folder / LAST)
        for name in ("metrics.jsonl", HISTORY):
            file = checkpoint.parents[1] / name
            if file.exists() and file.resolve() != (folder / name).resolve():
                copy_atomically(file, folder / name)
    # What says where a run lies, and what it was allowed once, would make a repetition or continuation another one.
    data, training = replace(config.data, changed="refuse"), replace(config.train, processes_changed="refuse")
    saved = replace(config, out=None, resume=None, data=data, train=training)
    save_card(folder / "backbone.json", run.card)  # first, since a config.yaml alone would be somebody's own
    save_config(saved, folder / "config.yaml")
    _write_history(run, decisions, is_continued=checkpoint is not None)
    if is_new or not (folder / "views.png").exists():
        save_view_gallery(run.source, specs, folder / "views.png", seed=config.seed)


def _write_history(run: Run[PretrainConfig, Method], decisions: Sequence[Decision], *, is_continued: bool) -> None:
    """Write what nothing else in a run directory says: the machines, one after the other, and what was decided."""
    path = run.folder / HISTORY
    history: dict[str, Any] = {"machines": [], "decisions": [list(decision) for decision in decisions]}
    if is_continued and path.exists():
        history = json.loads(path.read_text())
    processes = distributed.world_size()
    machine = ", ".join(
        [
            f"{this_machine(run.device)}{f' x {processes}' * (processes > 1)}",
            processor_name(),
            f"{platform.system()} {platform.machine()}",
        ]
    )
    if machine not in history["machines"][-1:]:
        history["machines"].append(machine)
    write_json(path, history)


def _exported(folder: Path, features: Layer, device: torch.device) -> Subject:
    """The exported encoder in every process, of which only the first needs to see the run directory."""
    subject = load_subject(str(folder), features=features) if distributed.is_main() else None
    subject = distributed.broadcast_object(subject)
    assert subject is not None, "the first process has one"
    return subject._replace(encoder=subject.encoder.to(device), device=device)


def _report(folder: Path, device: torch.device) -> None:
    """Write the report of a finished run; where it cannot be, what was trained is none the worse for it."""
    try:
        path = write_report([str(folder)], images=_REPORT_IMAGES, device=device, progress=False).path
        print(f"the report is {path}: open it in a browser")
    except (OSError, ValueError) as error:
        logger.warning("no report: %s", error)
