"""What metrics refuse that are functions of maps, confidences, boxes and embeddings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from refusals import (
    BOX,
    IMAGES,
    INF,
    MAPS,
    MORE,
    NAN,
    VALUES,
    Row,
    Y,
    causal,
    of_maps,
    of_pairs,
    rows_of,
)

from sklcam import metrics


def of_masks(function: Callable) -> list[Row]:
    """What functions of maps and masks refuse, all alike."""
    return [
        *of_maps(lambda maps: function(maps, MAPS > 0.5)),
        ("no masks", lambda: function(MAPS, None), "a mask of the map's size .* masks of None"),
        ("a mask too few", lambda: function(MAPS, MAPS[:1]), r"masks of \(1, 12, 12\)"),
        ("masks elsewhere", lambda: function(MAPS, MAPS.to("meta")), "on one device; got cpu and"),
    ]


def of_values(function: Callable, *names: str) -> list[Row]:
    """What functions of one value an image refuse, all alike."""
    last = f"{names[-1]} must be a floating-point Tensor of shape \\(n_images,\\); got "
    others = [VALUES] * (len(names) - 1)
    return [
        ("None", lambda: function(*others, None), last + "None"),
        ("a float", lambda: function(*others, 0.5), last + "a float, 0.5"),
        ("a column", lambda: function(*others, VALUES[:, None]), last + r".* shape \(2, 1\)"),
        ("more values", lambda: function(*others, MORE), "must be of one shape; got .*and .3,"),
    ]


def similarity(**options):
    return metrics.structural_similarity(MAPS, MAPS, **options)


def of_curves(follow: Callable) -> list[Row]:
    """What insertion and deletion refuse alike."""
    return [
        *of_scores(follow),
        ("no steps", lambda: causal(follow, n_steps=0), "n_steps, .* from 1 to 144; got 0"),
        ("too many", lambda: causal(follow, n_steps=145), "n_steps, .* from 1 to 144; got 145"),
        ("half a step", lambda: causal(follow, n_steps=2.5), "n_steps, .* an int .* got 2.5"),
        ("steps as text", lambda: causal(follow, n_steps="4"), "n_steps, .* an int .* got '4'"),
        ("full as a list", lambda: causal(follow, n_steps=4, full=[1]), "full must be .* a list"),
        ("full too long", lambda: causal(follow, n_steps=4, full=MORE), "full must be one .* 2 im"),
    ]


def of_scores(follow: Callable) -> list[Row]:
    """What is refused wherever a score is followed."""
    steps = {} if follow is metrics.road else {"n_steps": 4}

    def call(**changes):
        return causal(follow, **steps, **changes)

    return [
        ("no score", lambda: call(score=None), "score must be a callable .* got None"),
        ("a float scored", lambda: call(score=lambda *_: 0.5), "one number for each of . images.*"),
        ("columns scored", lambda: call(score=lambda i, r: i[:, 0, 0]), r"score must return a Ten"),
        ("no images", lambda: call(images=None), "images must be .* got None"),
        ("arrays", lambda: call(images=IMAGES.numpy()), "images must be .* got an ndarray"),
        ("grey images", lambda: call(images=MAPS), r"images must be .* got .* \(2, 12, 12\)"),
        ("empty", lambda: call(images=IMAGES[:0], maps=MAPS[:0]), "images is empty"),
        ("no maps", lambda: call(maps=None), "maps must be .* got None"),
        ("maps with channels", lambda: call(maps=IMAGES), r"maps must be .* \(2, 1, 12, 12\)"),
        ("smaller maps", lambda: call(maps=MAPS[:, 2:]), r"maps must be of shape .*\(2, 10, 12\)"),
        ("maps elsewhere", lambda: call(maps=MAPS.to("meta")), "maps are on meta, and images on"),
        ("no batch", lambda: call(batch_size=0), "batch_size must be an int >= 1; got 0"),
        ("a batch as text", lambda: call(batch_size="8"), "batch_size must be an int .* got '8'"),
    ]


def of_neighbours(function: Callable) -> list[Row]:
    """What functions of maps, and of those of images near to them, refuse alike."""
    wanted = r"neighbour_maps must be a Tensor of shape \(n_samples, 2, 12, 12\) on cpu; got "
    return [
        *of_maps(lambda maps: function(maps, MAPS[None])),
        ("no neighbours", lambda: function(MAPS, None), wanted + "None"),
        ("of one image", lambda: function(MAPS, MAPS), wanted + r".* shape \(2, 12, 12\)"),
        ("none at all", lambda: function(MAPS, MAPS[None][:0]), wanted + ".* shape .0, 2"),
        ("elsewhere", lambda: function(MAPS, MAPS[None].to("meta")), wanted),
    ]


REFUSALS: dict[str, list[Row]] = {
    # Of maps and confidences
    "average_drop": of_values(metrics.average_drop, "full", "masked"),
    "average_increase": of_values(metrics.average_increase, "full", "masked"),
    "adcc": of_values(metrics.adcc, "coherency", "complexity", "average_drop"),
    "arcc": of_values(metrics.arcc, "coherency", "complexity", "road"),
    "coherency": of_pairs(metrics.coherency, "maps", "maps_of_masked"),
    "complexity": of_maps(metrics.complexity),
    "sparsity": of_maps(metrics.sparsity),
    "lp_norm": [
        *of_maps(metrics.lp_norm),
        ("p -1", lambda: metrics.lp_norm(MAPS, -1), "p must be a finite number >= 0; got -1"),
        ("p -inf", lambda: metrics.lp_norm(MAPS, -INF), "p must be a finite number >= 0; got -inf"),
        ("p NaN", lambda: metrics.lp_norm(MAPS, NAN), "p must be a finite number >= 0; got nan"),
        ("p a word", lambda: metrics.lp_norm(MAPS, "2"), "p must be a finite number >= 0; got '2'"),
    ],
    "structural_similarity": [
        *of_pairs(metrics.structural_similarity, "maps", "others"),
        ("small", lambda: metrics.structural_similarity(MAPS[:, 2:], MAPS[:, 2:]), "11 x 11 pixel"),
        ("1 x 1", lambda: similarity(window=1), "window, the side .* an int >= 3; got 1"),
        ("4 x 4", lambda: similarity(window=4), "window, the side .* must be odd; got 4"),
        ("a word", lambda: similarity(window="gaussian"), "window, .* got 'gaussian'"),
        ("valid", lambda: similarity(valid=MAPS), "valid must be a bool Tensor; got a Tensor"),
        ("of 1", lambda: similarity(valid=MAPS[:1] > 0), "maps and valid must be of one shape"),
        ("not one", lambda: similarity(valid=True), "valid must be .* got .*True"),
    ],
    "ssim_consistency": [
        *of_pairs(metrics.ssim_consistency, "view_of_maps", "maps_of_view"),
        ("valid", lambda: metrics.ssim_consistency(MAPS, MAPS, MAPS), "valid must be a bool"),
    ],
    "cose": of_values(metrics.cose, "consistency", "sensitivity"),
    "rank_correlation": [
        *of_maps(lambda maps: metrics.rank_correlation(maps, MAPS)),
        ("None", lambda: metrics.rank_correlation(MAPS, None), "references must be .* got None"),
        (
            "sizes",
            lambda: metrics.rank_correlation(MAPS, MAPS[:, 1:]),
            "maps and references must b",
        ),
        ("cell 0", lambda: metrics.rank_correlation(MAPS, MAPS, cell=0), "cell, .* >= 1; got 0"),
        ("cell 1.5", lambda: metrics.rank_correlation(MAPS, MAPS, cell=1.5), "cell, .* got 1.5"),
    ],
    "max_sensitivity": of_neighbours(metrics.max_sensitivity),
    "local_lipschitz": [
        *of_neighbours(
            lambda maps, others: metrics.local_lipschitz(maps, others, torch.ones(1, 2))
        ),
        (
            "distances",
            lambda: metrics.local_lipschitz(MAPS, MAPS[None], VALUES),
            r"distances must be a Tensor of shape \(1, 2\), .* got a Tensor",
        ),
    ],
    # As pixels come and go
    "causal_curves": [
        *of_curves(metrics.causal_curves),
        (
            "start",
            lambda: causal(metrics.causal_curves, n_steps=4, start="blur"),
            "start or end, if",
        ),
        ("end", lambda: causal(metrics.causal_curves, n_steps=4, end=0), "start or end, .* 0"),
        ("a row", lambda: causal(metrics.causal_curves, n_steps=4, end=MORE), r"images' .*\(3,\)"),
    ],
    "insertion_curve": of_curves(metrics.insertion_curve),
    "deletion_curve": of_curves(metrics.deletion_curve),
    "insertion_auc": [
        ("None", lambda: metrics.insertion_auc(None), "curves must be .* NoneType, which has no"),
        (
            "deletion",
            lambda: metrics.insertion_auc(causal(metrics.deletion_curve, n_steps=2)),
            "or InsertionCurve; got DeletionCurve, which has no insertion",
        ),
    ],
    "deletion_auc": [
        ("a tensor", lambda: metrics.deletion_auc(VALUES), "curves must be .* got Tensor"),
        (
            "insertion",
            lambda: metrics.deletion_auc(causal(metrics.insertion_curve, n_steps=2)),
            "or DeletionCurve; got InsertionCurve, which has no deletion",
        ),
    ],
    "road": [
        *of_scores(metrics.road),
        ("none", lambda: causal(metrics.road, percentiles=()), "sequence of at least one number"),
        (
            "a number",
            lambda: causal(metrics.road, percentiles=20),
            "percentiles must be a sequence",
        ),
        ("200", lambda: causal(metrics.road, percentiles=[200]), "between 0 and 100; got 200"),
        ("words", lambda: causal(metrics.road, percentiles="ab"), "between 0 and 100; got 'a'"),
        ("noise inf", lambda: causal(metrics.road, noise=INF), "noise, .* a finite number .* inf"),
        ("noise", lambda: causal(metrics.road, noise=-1), "noise, .* number >= 0; got -1"),
        (
            "a seed",
            lambda: causal(metrics.road, generator=3),
            "generator must be a torch.Generator",
        ),
    ],
    "blur": [
        ("None", lambda: metrics.blur(None), "images must be a floating-point Tensor .* got None"),
        ("grey", lambda: metrics.blur(MAPS), r"images must be .* shape \(2, 12, 12\)"),
        ("bytes", lambda: metrics.blur(IMAGES.byte()), "images must be .*uint8"),
    ],
    "impute": [
        ("None", lambda: metrics.impute(None, MAPS > 0.5), "images must be .* got None"),
        ("bytes", lambda: metrics.impute(IMAGES.byte(), MAPS > 0.5), "images must be .*uint8"),
        ("shares", lambda: metrics.impute(IMAGES, MAPS), "removed must be bool .*float32"),
        ("smaller", lambda: metrics.impute(IMAGES, MAPS[:, 2:] > 0.5), r"removed .*\(2, 10, 12\)"),
        ("noise", lambda: metrics.impute(IMAGES, MAPS > 0.5, noise="a"), "noise, .* got 'a'"),
    ],
    # Against the truth
    "heatmap_ratio": of_masks(metrics.heatmap_ratio),
    "inside_outside_ratio": of_masks(metrics.inside_outside_ratio),
    "relevance_rank_accuracy": of_masks(metrics.relevance_rank_accuracy),
    "pixel_auc": of_masks(metrics.pixel_auc),
    "topk_intersection": [
        *of_masks(lambda maps, masks: metrics.topk_intersection(maps, masks, k=9)),
        ("k 0", lambda: metrics.topk_intersection(MAPS, MAPS, k=0), "k, .* 1 to 144; got 0"),
        ("k 1000", lambda: metrics.topk_intersection(MAPS, MAPS), "k, .* 1 to 144; got 1000"),
    ],
    "pointing_game": [
        *of_masks(metrics.pointing_game),
        (
            "-1",
            lambda: metrics.pointing_game(MAPS, MAPS, tolerance=-1),
            "tolerance, .* >= 0; got -1",
        ),
        ("a word", lambda: metrics.pointing_game(MAPS, MAPS, tolerance="a"), "tolerance, .* 'a'"),
    ],
    **{
        name: [
            ("None", lambda f=f: f(None, None, threshold=1), "maps must be .* got None"),
            ("no classes", lambda f=f: f(MAPS, MAPS, threshold=1), r"n_images, k, height, width\)"),
            ("sizes", lambda f=f: f(IMAGES, IMAGES[:1], threshold=1), "maps and masks must be of"),
            ("a word", lambda f=f: f(IMAGES, IMAGES, threshold="a"), "threshold must be a finite"),
            ("tolerance", lambda f=f: f(IMAGES, IMAGES, threshold=1, tolerance=-1), "tolerance, "),
        ]
        for name, f in {
            "pointing_game_with_rejection": metrics.pointing_game_with_rejection,
            "pointing_precision_recall": metrics.pointing_precision_recall,
        }.items()
    },
    "box_from_map": [
        *of_maps(metrics.box_from_map),
        (
            "beyond",
            lambda: metrics.box_from_map(MAPS, 2),
            "a share of the maximum, .* 0 to 1; got 2",
        ),
        ("no share", lambda: metrics.box_from_map(MAPS, None), "a share of .* got None"),
    ],
    "box_masks": [
        ("None", lambda: metrics.box_masks(None, (4, 4)), "boxes for each image; got None"),
        ("text", lambda: metrics.box_masks("abc", (4, 4)), "boxes for each image; got a str"),
        ("no images", lambda: metrics.box_masks([], (4, 4)), "boxes for at least one image; got"),
        ("words", lambda: metrics.box_masks(["abc"], (4, 4)), r"\(x1, y1, x2, y2\).* got a str"),
        (
            "five",
            lambda: metrics.box_masks([[[0, 0, 1, 1, 1]]], (4, 4)),
            r"\(n_boxes, 4\).*\(1, 5\)",
        ),
        ("eight", lambda: metrics.box_masks([[0, 0, 1, 1] * 2], (4, 4)), r"\(n_boxes, 4\).*\(8,\)"),
        ("turned", lambda: metrics.box_masks([[[1, 1, 0, 0]]], (4, 4)), "x1 < x2 and y1 < y2; got"),
        ("NaN", lambda: metrics.box_masks([[[NAN, 1, 2, 2]]], (4, 4)), "x1 < x2 .*nan"),
        ("no size", lambda: metrics.box_masks([BOX], (0, 4)), r"size must be .* got \(0, 4\)"),
    ],
    "box_iou": [
        (
            "None",
            lambda: metrics.box_iou(None, BOX),
            r"boxes must be .*\(\.\.\., 4\), or \(\.\.\., 6\) for volumes; got None",
        ),
        ("lists", lambda: metrics.box_iou(BOX, [0, 0, 1, 1]), "others must be a Tensor .* a list"),
        ("triples", lambda: metrics.box_iou(MORE, BOX), r"boxes must be .* shape \(3,\)"),
        ("2 and 3", lambda: metrics.box_iou(torch.rand(2, 4), torch.rand(3, 4)), "must broadcast"),
    ],
    "localization_accuracy": [
        ("None", lambda: metrics.localization_accuracy(None, [BOX]), "boxes must be .* got None"),
        (
            "no truth",
            lambda: metrics.localization_accuracy(BOX, None),
            "boxes for each image; got N",
        ),
        (
            "2 for 1",
            lambda: metrics.localization_accuracy(BOX, [BOX, BOX]),
            "for 1 images; got boxes",
        ),
        ("five", lambda: metrics.localization_accuracy(torch.rand(1, 5), [BOX]), r"\(\.\.\., 4\)"),
        (
            "IoU 2",
            lambda: metrics.localization_accuracy(BOX, [BOX], iou_threshold=2),
            "iou_thresho",
        ),
    ],
    "localization_error": [
        (
            "one class",
            lambda: metrics.localization_error(BOX, Y[:1], [BOX], Y[:1]),
            r"boxes must be a Tensor of shape \(n_images, k, 4\); got .*\(1, 4\)",
        ),
        (
            "two labels",
            lambda: metrics.localization_error(
                BOX[None], torch.tensor([[0]]), [BOX], torch.tensor([0, 1])
            ),
            r"\(n_images,\); got \(1, 1, 4\), \(1, 1\) and \(2,\)",
        ),
        (
            "IoU",
            lambda: metrics.localization_error(
                BOX[None], torch.tensor([[0]]), [BOX], torch.tensor([0]), iou_threshold="a"
            ),
            "iou_threshold must be a number from 0 to 1; got 'a'",
        ),
    ],
    "seeds_iou": [
        ("None", lambda: metrics.seeds_iou(None, MAPS.long()), "maps must be .* got None"),
        ("no classes", lambda: metrics.seeds_iou(MAPS, MAPS.long()), "n_classes, height, width"),
        (
            "5",
            lambda: metrics.seeds_iou(IMAGES, MAPS.long() + 5),
            "have a class 5, and there are 1 maps",
        ),
        ("shares", lambda: metrics.seeds_iou(IMAGES, MAPS), "segmentations must be integers"),
        ("smaller", lambda: metrics.seeds_iou(IMAGES, MAPS[:, 1:].long()), r"\(2, 11, 12\)"),
        (
            "a word",
            lambda: metrics.seeds_iou(IMAGES, MAPS.long(), threshold="a"),
            "threshold, a share of the maximum, must b",
        ),
    ],
    "cover": [
        ("None", lambda: metrics.cover(None, MAPS), "images must be .* got None"),
        ("no map", lambda: metrics.cover(IMAGES, None), "maps must be .* got None"),
        ("one to two", lambda: metrics.cover(IMAGES, MAPS[:1]), r"maps must be of shape .*\(1, 12"),
        ("a share", lambda: metrics.cover(IMAGES, MAPS, share=20), "share, of the pixels, must"),
        ("a base", lambda: metrics.cover(IMAGES, MAPS, base=0), "start or end, if not a Tensor"),
        ("a small base", lambda: metrics.cover(IMAGES, MAPS, base=MAPS), "of the images' shape"),
    ],
    "seeds_from_maps": [
        ("None", lambda: metrics.seeds_from_maps(None), "maps must be .* got None"),
        ("none", lambda: metrics.seeds_from_maps(IMAGES[:, :0]), "maps of 1 to 254 classes; got 0"),
        (
            "a word",
            lambda: metrics.seeds_from_maps(IMAGES, background="a"),
            "background, a share of the pixels, must be a number from 0 to 1; got 'a'",
        ),
        (
            "larger",
            lambda: metrics.seeds_from_maps(IMAGES, overlap="larger"),
            'overlap must be "smaller" or "unknown"; got .*larger',
        ),
        (
            "a smaller saliency",
            lambda: metrics.seeds_from_maps(IMAGES, saliency=MAPS[:, 1:]),
            "saliency and the maps of a class must be of one shape",
        ),
        (
            "no saliency",
            lambda: metrics.seeds_from_maps(IMAGES, saliency=[1.0]),
            "saliency must be .* got a list",
        ),
    ],
    "recall_at_k": [
        ("None", lambda: metrics.recall_at_k(None, None), r"embeddings must be numbers of shape"),
        ("a row", lambda: metrics.recall_at_k([1.0, 2.0], [0, 1]), r"\(n_images, dim\).*\(2,\)"),
        ("words", lambda: metrics.recall_at_k([["a"], ["b"]], [0, 1]), "must be numbers .*<U1"),
        ("ragged", lambda: metrics.recall_at_k([[1.0], [1.0, 2.0]], [0, 1]), "must be arrays: "),
        ("no length", lambda: metrics.recall_at_k(np.zeros((3, 0)), [0, 1, 1]), r"shape \(3, 0\)"),
        ("one", lambda: metrics.recall_at_k([[1.0]], [0]), "at least two images .* got 1"),
        ("labels", lambda: metrics.recall_at_k(np.eye(3), [0]), r"one label each; .* \(1,\)"),
        (
            "a column",
            lambda: metrics.recall_at_k(np.eye(3), [[0]] * 3),
            r"labels of shape \(3, 1\)",
        ),
        ("k 1.5", lambda: metrics.recall_at_k(np.eye(3), [0, 1, 1], 1.5), "k, .* 1 to 2; got 1.5"),
        ("k 0", lambda: metrics.recall_at_k(np.eye(3), [0, 1, 1], 0), "k, .* from 1 to 2; got 0"),
        ("k 3", lambda: metrics.recall_at_k(np.eye(3), [0, 1, 1], 3), "k, .* from 1 to 2; got 3"),
        ("NaN", lambda: metrics.recall_at_k([[NAN], [1.0]], [0, 1]), "zero or not finite"),
    ],
}


@pytest.mark.parametrize(("call", "match", "error"), rows_of(REFUSALS))
def test_refusals(call, match, error):
    with pytest.raises(error, match=match):
        call()
