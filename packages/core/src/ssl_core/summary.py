"""The lines that a run prints before it trains."""

from ssl_core import distributed, ops
from ssl_core.data import Batches
from ssl_core.run import PretrainConfig, Run
from ssl_core.train import Method, scaled_learning_rate


def summary(run: Run[PretrainConfig, Method]) -> str:
    """A summary of the run that is about to begin, with everything that was chosen automatically."""
    config, card, batches = run.config, run.card, run.batches
    optim, training = config.optim, config.train
    rate = scaled_learning_rate(optim, training.batch_size)
    scaling = f" = {optim.lr:g} x {training.batch_size} / 256" if optim.scale_lr else ""
    of_1d = "" if optim.lr_1d is None else f", of one-dimensional parameters {rate * optim.lr_1d / optim.lr:g}"
    constant = f", constant in {', '.join(optim.constant_lr)}" if optim.constant_lr else ""
    parameters = sum(parameter.numel() for parameter in run.method.encoder.parameters()) / 1e6
    stems = {"imagenet": "its own stem", "small": "3x3 stem, no max-pool", "small_pool": "3x3 stem, max-pool"}
    numbers = [", ".join(f"{value:.3f}" for value in values) for values in (card.mean, card.std)]
    views = ", ".join(
        f"{spec.name} {'/'.join(map(str, spec.sizes))} px{' (partner)' if spec.partner else ''}"
        for spec in run.method.views
    )
    backends = ", ".join(f"{op} {where[run.device.type]}" for op, where in ops.implementations().items())
    steps = batches.batches_per_epoch
    length = f"{training.epochs} epochs of {steps} steps"
    if training.steps is not None:
        length = f"{training.steps:,} steps, {training.steps / steps:.1f} epochs"
    lines = {
        "run": f"{run.folder}",
        "data": f"{run.source.name}: {len(run.source):,} images, {card.channels} channel{'s' * (card.channels > 1)}, "
        f"mean ({numbers[0]}), std ({numbers[1]})",
        "views": f"{views} (rendered by {_renderer_text(batches, config.data.workers)})",
        "encoder": f"{card.architecture}, {stems[card.stem]}, {parameters:.1f} M parameters, "
        f"{card.num_features} features",
        "training": f"{length}, batch {training.batch_size} over "
        f"{distributed.world_size()} process(es), {optim.name}, learning rate {rate:g}{scaling}{of_1d}{constant}",
        "device": f"{run.device}, {training.precision}; {backends}",
    }
    return "\n".join(f"{name:9} {value}" for name, value in lines.items())


def _renderer_text(batches: Batches, workers: int) -> str:
    """The renderer of the views and its input, in words."""
    if batches.renderer == "cpu":
        return f"cpu: {ops.cpp.chosen_instruction_set()}"
    if batches.renderer == "device":
        if batches.held_bytes:
            return f"device: {batches.held_bytes / 2**20:,.0f} MiB of images live there, no workers"
        return f"device: images come from {workers} worker(s)"
    return batches.renderer
