"""Training: the loop, what it asks of a method, optimizers, schedules, checkpoints and the log."""

from ssl_core.schedules import cosine_schedule as cosine_schedule
from ssl_core.schedules import scalar_schedule as scalar_schedule
from ssl_core.step import Step as Step
from ssl_core.train.checkpoint import load_checkpoint as load_checkpoint
from ssl_core.train.checkpoint import save_checkpoint as save_checkpoint
from ssl_core.train.config import TrainConfig as TrainConfig
from ssl_core.train.learning_rate import learning_rate as learning_rate
from ssl_core.train.log import read_metrics as read_metrics
from ssl_core.train.loop import CollapseError as CollapseError
from ssl_core.train.loop import train as train
from ssl_core.train.method import Method as Method
from ssl_core.train.method import StepOutput as StepOutput
from ssl_core.train.method import method_name as method_name
from ssl_core.train.optim import OptimConfig as OptimConfig
from ssl_core.train.optim import make_optimizer as make_optimizer
from ssl_core.train.optim import scaled_learning_rate as scaled_learning_rate
from ssl_core.train.window import Speed as Speed
