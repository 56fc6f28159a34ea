"""Losses: against a queue of past keys, and within a batch."""

from ssl_core.losses.batch import barlow_twins as barlow_twins
from ssl_core.losses.batch import negative_cosine as negative_cosine
from ssl_core.losses.batch import nt_xent as nt_xent
from ssl_core.losses.queue import Columns as Columns
from ssl_core.losses.queue import KeySoftmax as KeySoftmax
from ssl_core.losses.queue import SoftTargetTerms as SoftTargetTerms
from ssl_core.losses.queue import info_nce as info_nce
from ssl_core.losses.queue import key_softmax as key_softmax
from ssl_core.losses.queue import soft_target_cross_entropy as soft_target_cross_entropy
from ssl_core.losses.queue import soft_target_terms as soft_target_terms
