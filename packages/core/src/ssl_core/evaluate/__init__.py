"""How good is an encoder: frozen features, nearest neighbours, linear probes, and health in the log."""

from ssl_core.evaluate.accuracy import count_classes as count_classes
from ssl_core.evaluate.accuracy import label_ranks as label_ranks
from ssl_core.evaluate.commands import draw_neighbours as draw_neighbours
from ssl_core.evaluate.commands import draw_tsne as draw_tsne
from ssl_core.evaluate.commands import embed as embed
from ssl_core.evaluate.commands import evaluate_knn as evaluate_knn
from ssl_core.evaluate.commands import evaluate_linear as evaluate_linear
from ssl_core.evaluate.commands import evaluate_similarity as evaluate_similarity
from ssl_core.evaluate.commands import export as export
from ssl_core.evaluate.encoder import find_card as find_card
from ssl_core.evaluate.encoder import load_encoder as load_encoder
from ssl_core.evaluate.encoder import run_data as run_data
from ssl_core.evaluate.encoder import shared_data as shared_data
from ssl_core.evaluate.features import Features as Features
from ssl_core.evaluate.features import evaluating as evaluating
from ssl_core.evaluate.features import evaluation_view as evaluation_view
from ssl_core.evaluate.features import extract_features as extract_features
from ssl_core.evaluate.features import iterate_features as iterate_features
from ssl_core.evaluate.health import collapse as collapse
from ssl_core.evaluate.health import effective_rank as effective_rank
from ssl_core.evaluate.health import embedding_std as embedding_std
from ssl_core.evaluate.health import health as health
from ssl_core.evaluate.knn import knn_accuracy as knn_accuracy
from ssl_core.evaluate.knn import knn_ranks as knn_ranks
from ssl_core.evaluate.knn import knn_votes as knn_votes
from ssl_core.evaluate.knn import nearest as nearest
from ssl_core.evaluate.linear import LinearResult as LinearResult
from ssl_core.evaluate.linear import linear_probe as linear_probe
from ssl_core.evaluate.neighbours import choose_queries as choose_queries
from ssl_core.evaluate.neighbours import neighbour_picture as neighbour_picture
from ssl_core.evaluate.protocol import PROTOCOLS as PROTOCOLS
from ssl_core.evaluate.protocol import Protocol as Protocol
from ssl_core.evaluate.protocol import find_protocol as find_protocol
from ssl_core.evaluate.protocol import protocol_text as protocol_text
from ssl_core.evaluate.similarity import inter_class_similarity as inter_class_similarity
from ssl_core.evaluate.similarity import intra_class_similarity as intra_class_similarity
from ssl_core.evaluate.tsne import choose_images as choose_images
from ssl_core.evaluate.tsne import tsne_picture as tsne_picture
from ssl_core.evaluate.tsne import tsne_points as tsne_points

__all__ = [
    "PROTOCOLS",
    "Features",
    "LinearResult",
    "Protocol",
    "choose_images",
    "choose_queries",
    "collapse",
    "count_classes",
    "draw_neighbours",
    "draw_tsne",
    "effective_rank",
    "embed",
    "embedding_std",
    "evaluate_knn",
    "evaluate_linear",
    "evaluate_similarity",
    "evaluating",
    "evaluation_view",
    "export",
    "extract_features",
    "find_card",
    "find_protocol",
    "health",
    "inter_class_similarity",
    "intra_class_similarity",
    "iterate_features",
    "knn_accuracy",
    "knn_ranks",
    "knn_votes",
    "label_ranks",
    "linear_probe",
    "load_encoder",
    "nearest",
    "neighbour_picture",
    "protocol_text",
    "run_data",
    "shared_data",
    "tsne_picture",
    "tsne_points",
]
