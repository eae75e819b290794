"""What embedding nets and explainers of embeddings refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from refusals import (
    IMAGES,
    INPUTS,
    NAN,
    NET,
    Row,
    X,
    Y,
    embedder,
    embedding_net,
    of_explaining,
    of_parameters,
    of_training,
    of_unfitted,
    rows_of,
)
from sklearn.exceptions import NotFittedError
from small_networks import TupleNet

from sklcam import EmbeddingCAMExplainer
from sklcam.embeddings import NearestProxies, SinglePoint, Text, TripletCAM


class First(torch.nn.Module):
    def forward(self, outputs):
        return outputs[0]


def first_of_two():
    return torch.nn.Sequential(TupleNet(), First()).eval()


REFUSALS: dict[str, list[Row]] = {
    "Text": [
        ("no words", lambda: Text(7).names(), "prompts of Text must be one string .* got an int"),
        ("none", lambda: Text([]).names(), "prompts of Text must be one string or several"),
        (
            "no texts",
            lambda: EmbeddingCAMExplainer(NET, Text("a")).fit(INPUTS),
            "Text is for networks of images and texts; a SmallNet has neither",
        ),
    ],
    "EmbeddingNet": [
        *of_training(embedding_net),
        *of_parameters(
            embedding_net,
            embedding_dim=[0, "a"],
            miner=["x", 3],
            sampler=["x", 3],
            normalize=["x"],
            proxy_lr=[-1],
        ),
        ("no history", lambda: embedding_net().history_frame_, "not fitted yet", NotFittedError),
        *of_unfitted(embedding_net, "predict", "transform", "score", "explain"),
    ],
    "EmbeddingCAMExplainer": [
        *of_parameters(
            lambda **changed: EmbeddingCAMExplainer(**{"model": NET, **changed}),
            model=[None],
            proxy=["x", None, 3],
            top_channels=[0, "a"],
            contrast=["x"],
        ),
        (
            "vectors",
            lambda: EmbeddingCAMExplainer(NET, [1, 2]).fit(X),
            r"Proxies must be of .*\(2,",
        ),
        ("zeros", lambda: EmbeddingCAMExplainer(NET, np.zeros((3, 3))).fit(X), "have no direction"),
        ("no labels", lambda: EmbeddingCAMExplainer(NET).fit(X), "proxy='mean' needs y"),
        ("no images", lambda: EmbeddingCAMExplainer(NET).fit(), "needs images X and labels y"),
        ("few labels", lambda: EmbeddingCAMExplainer(NET).fit(X, Y[:3]), r"shape \(3,\) for 12"),
        ("NaN", lambda: EmbeddingCAMExplainer(NET).fit(X, np.full(12, NAN)), "y has labels that a"),
        ("sums", lambda: EmbeddingCAMExplainer(NET, "self").partial_fit(X, Y), "keeps sums"),
        (
            "classes",
            lambda: EmbeddingCAMExplainer(NET, classes=[0, 1, 2]).fit(X, Y),
            "give no classes with proxy='mean'",
        ),
        (
            "embedding_layer",
            lambda: EmbeddingCAMExplainer(NET, "self", embedding_layer="fc").fit(X),
            "no layer 'fc' for embedding_layer",
        ),
        (
            "a layer of two outputs",
            lambda: EmbeddingCAMExplainer(first_of_two(), "self", embedding_layer="0").fit(INPUTS),
            "embedding_layer='0' returns a tuple, not a Tensor",
        ),
        (
            "contrast",
            lambda: (
                EmbeddingCAMExplainer(NET, contrast=True, verbose=0)
                .fit(X, Y)
                .explain(X, lambda output: output[:, 0])
            ),
            "subtracts the mean of the proxies from a proxy or an embedding",
        ),
        (
            "channels",
            lambda: EmbeddingCAMExplainer(NET, top_channels=99).fit(X, Y).explain(X),
            "99",
        ),
        ("references", lambda: embedder().explain(X, X[:2]), "2 reference images for 12 images"),
        ("pairs", lambda: embedder().explain_pairs(X[:3], X[:1]), "must be pairs .* got 3 and 1"),
        ("a target", lambda: embedder().explain_pairs(X, X, target=0), "takes no target"),
        ("no neighbour", lambda: embedder().explain_neighbors(X, X, 0), "k, .* 1 to 12; got 0"),
        ("too many", lambda: embedder().explain_neighbors(X, X, 13), "k, .* 1 to 12; got 13"),
        ("a word", lambda: embedder().explain_neighbors(X, X, "a"), "k, .* an int .* got 'a'"),
        ("no gallery", lambda: embedder().explain_neighbors(X, X[:0]), "X is empty"),
        *of_explaining(embedder, X),
    ],
    "TripletCAM": [
        ("before fit", lambda: TripletCAM().check(), "call its fit with an expl", NotFittedError),
        ("none", lambda: TripletCAM(0).fit(embedder(), X, Y), "n_triplets must .* >= 1; got 0"),
        (
            "a margin",
            lambda: TripletCAM(margin="a").fit(embedder(), X, Y),
            "margin must .* got 'a'",
        ),
        (
            "a seed",
            lambda: TripletCAM(random_state="a").fit(embedder(), X, Y),
            "'a' cannot be used",
        ),
        ("a network", lambda: TripletCAM().fit(NET, X, Y), "a fitted EmbeddingCAMExplainer; got"),
        ("no labels", lambda: TripletCAM().fit(embedder(), X), "TripletCAM needs y"),
        ("one class", lambda: TripletCAM().fit(embedder(), X, Y * 0), "12 images of 1 classes"),
    ],
    "NearestProxies": [
        ("maps", lambda: NearestProxies(torch.eye(3)).resolve(IMAGES), "not .n_images, n_classes"),
    ],
    "SinglePoint": [
        ("zero", lambda: SinglePoint().resolve(torch.zeros(2, 3)), "2 of 2 images are zero or not"),
    ],
}


@pytest.mark.parametrize(("call", "match", "error"), rows_of(REFUSALS))
def test_refusals(call, match, error):
    with pytest.raises(error, match=match):
        call()
