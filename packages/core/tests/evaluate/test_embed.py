import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ssl_core.data import DataConfig
from ssl_core.evaluate import embed, nearest, plane_points
from ssl_core.evaluate.embed import _neighbors
from ssl_core.evaluate.features import own_batches

QUIET = {"progress": False}


def test_a_viewer_finds_places_neighbors_and_images_beside_the_features(run, tmp_path, capsys):
    columns = {"points": True, "neighbors": 3, "thumbnails": 12}
    path = embed(str(run), str(tmp_path / "x.parquet"), split="train", **columns, **QUIET)
    table = pq.read_table(path)
    assert table.column_names == ["identifier", "label", "class", "features", "x", "y", "neighbors", "image"]
    features = torch.tensor(table["features"].to_pylist())
    similarity, index = nearest(features, features, 15)
    places, _ = plane_points(features, seed=0)
    for row, found in enumerate(table.to_pylist()):
        assert (found["x"], found["y"]) == pytest.approx(places[row].tolist())
        others = [other for other in index[row].tolist() if other != row][:3]
        assert found["neighbors"]["ids"] == others
        at = [index[row].tolist().index(other) for other in others]
        assert found["neighbors"]["distances"] == pytest.approx((1 - similarity[row, at]).tolist(), abs=1e-6)
        image = Image.open(io.BytesIO(found["image"]["bytes"]))
        assert (image.format, image.size, found["image"]["path"]) == ("JPEG", (12, 12), f"{row}.jpg")
        assert found["class"] == Path(found["identifier"]).parent.name
        level = {"dark": 30, "gray": 90, "bright": 150}[found["class"]]
        assert np.asarray(image).mean() == pytest.approx(level, abs=9)
    assert capsys.readouterr().out == (
        f"wrote 15 features of length 8 to {path}; x and y by t-SNE, perplexity 4.67; 3 neighbors; images of 12 px\n"
    )


def test_each_column_is_there_only_where_it_is_asked_for(run, tmp_path, capsys):
    path = embed(str(run), str(tmp_path / "x.parquet"), split="test", neighbors=1, **QUIET)
    assert pq.read_schema(path).names == ["identifier", "label", "class", "features", "neighbors"]
    assert str(pq.read_schema(path).field("neighbors").type).startswith("struct<ids: list<element: int64>")
    path = embed(str(run), str(tmp_path / "x.parquet"), split="test", points=True, **QUIET)
    assert "x and y by PCA, of less than 10 images" in capsys.readouterr().out


def test_neighbors_and_images_of_others_move_up_where_an_image_is_broken(run, tmp_path):
    (tmp_path / "images/train/dark/2.png").write_bytes(b"")
    for memory in (4.0, 0.0):  # decoded in memory, or when they are needed
        data = DataConfig(str(tmp_path / "images"), workers=0, broken_limit=0.3, memory_gib=memory)
        columns = {"neighbors": 13, "thumbnails": 8}
        table = pq.read_table(embed(str(run), str(tmp_path / "x.parquet"), data=data, **columns, **QUIET))
        assert len(table) == 14
        for row, found in enumerate(table["neighbors"].to_pylist()):
            assert sorted([row, *found["ids"]]) == [*range(14)]


def test_no_distance_is_negative_where_rounding_takes_a_cosine_above_one():
    rows = torch.rand(200, 8, generator=torch.Generator().manual_seed(0)).repeat(2, 1)
    found = _neighbors(rows, 1, progress=False)
    assert min(each["distances"][0] for each in found) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "x.npz", "points": True}, r"points, neighbors and thumbnails are columns of a \.parquet file, not of"),
        ({"thumbnails": 7}, "thumbnails must be 0, or 8 to 512 pixels, got 7"),
        ({"neighbors": 15}, r"neighbors must be 0 to 14, the other images of .*, not 15"),
        ({"neighbors": -1}, r"neighbors must be 0 to 14, .*, not -1"),
    ],
)
def test_columns_that_cannot_be_are_refused_before_the_work(options, message, run, tmp_path, monkeypatch):
    monkeypatch.setattr("ssl_core.evaluate.subject.extract_features", lambda *_, **__: pytest.fail("it was encoded"))
    out = str(tmp_path / options.pop("out", "x.parquet"))
    with pytest.raises(ValueError, match=message):
        embed(str(run), out, **options, **QUIET)


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [1, 256, 257, 1000])
def test_processes_share_whole_batches_and_each_image_once(length, processes, monkeypatch):
    monkeypatch.setattr("ssl_core.distributed.world_size", lambda: processes)
    shares = []
    for rank in range(processes):
        monkeypatch.setattr("ssl_core.distributed.rank", lambda rank=rank: rank)
        shares.append(own_batches(length))
    assert [index for share in shares for index in share] == [*range(length)]
    assert all(share.start % 256 == 0 for share in shares if share)
