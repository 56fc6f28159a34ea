"""Where images come from, and how batches of views are made of them."""

from ssl_core.data.batches import Batches as Batches
from ssl_core.data.batches import Labelled as Labelled
from ssl_core.data.batches import rows_at_once as rows_at_once
from ssl_core.data.config import DataConfig as DataConfig
from ssl_core.data.config import Images as Images
from ssl_core.data.config import decoded as decoded
from ssl_core.data.config import identity as identity
from ssl_core.data.config import open_encoded as open_encoded
from ssl_core.data.config import open_source as open_source
from ssl_core.data.config import probed as probed
from ssl_core.data.config import without_foreign_classes as without_foreign_classes
from ssl_core.data.dataset import dataset_source as dataset_source
from ssl_core.data.decode import decode_image as decode_image
from ssl_core.data.pipeline import Batch as Batch
from ssl_core.data.pixels import BrokenImageError as BrokenImageError
from ssl_core.data.report import DataReport as DataReport
from ssl_core.data.report import inspect as inspect
from ssl_core.data.source import ImageSource as ImageSource
from ssl_core.data.source import LazyImages as LazyImages
from ssl_core.data.source import MemoryImages as MemoryImages
from ssl_core.data.source import hold_in_memory as hold_in_memory
from ssl_core.data.statistics import channel_statistics as channel_statistics
from ssl_core.data.statistics import normalization as normalization
