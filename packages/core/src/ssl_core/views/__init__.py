"""Views are data before they are pixels: spec -> parameters -> picture.

A `ViewSpec` holds the paper's numbers. `sample_parameters` samples the random parameters of each image, from (seed,
epoch, image index, view index) and nothing else. `render` turns these and an image into pixels.
"""

from ssl_core.ops.instructions import PackedImages as PackedImages
from ssl_core.views.config import ViewConfig as ViewConfig
from ssl_core.views.config import make_ops as make_ops
from ssl_core.views.config import make_view_specs as make_view_specs
from ssl_core.views.gallery import save_view_gallery as save_view_gallery
from ssl_core.views.gallery import to_picture as to_picture
from ssl_core.views.gallery import view_gallery as view_gallery
from ssl_core.views.images import pack_images as pack_images
from ssl_core.views.images import unpack_images as unpack_images
from ssl_core.views.op import ViewOp as ViewOp
from ssl_core.views.ops import *  # noqa: F403  # whatever ops there are
from ssl_core.views.ops.jitter import JITTER_ORDERS as JITTER_ORDERS
from ssl_core.views.pools import DISTORTIONS as DISTORTIONS
from ssl_core.views.pools import POOLS as POOLS
from ssl_core.views.pools import Magnitude as Magnitude
from ssl_core.views.pools import Pool as Pool
from ssl_core.views.presets import HEAVY as HEAVY
from ssl_core.views.presets import PRESETS as PRESETS
from ssl_core.views.presets import eval_spec as eval_spec
from ssl_core.views.render import render as render
from ssl_core.views.render import render_batch as render_batch
from ssl_core.views.renderers import RENDERERS as RENDERERS
from ssl_core.views.renderers import choose_renderer as choose_renderer
from ssl_core.views.renderers import render_views as render_views
from ssl_core.views.resolution import shortest_side as shortest_side
from ssl_core.views.sampling import sample_parameters as sample_parameters
from ssl_core.views.spec import ViewSpec as ViewSpec
from ssl_core.views.spec import derive as derive
from ssl_core.views.spec import num_parameters as num_parameters
from ssl_core.views.spec import parameter_names as parameter_names
