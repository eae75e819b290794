"""What evaluate, scorers and tables of results refuse."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from refusals import (
    BOX,
    COLOUR,
    INPUTS,
    VALUES,
    Row,
    X,
    Y,
    classifier,
    evaluate,
    evaluation,
    fitted,
    rows_of,
)
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC
from small_networks import Blocks

from sklcam import CAMExplainer, cam, metrics

KEPT, OTHERS = {"ssim": {"m": np.ones((2, 1))}}, {"ssim": {"m": np.zeros(2)}}
SANITY = metrics.SanityCheck("cascading", [("fc",)], KEPT, OTHERS, {}, {})


def with_params(metric, **options):
    return evaluate(metric, boxes=[BOX] * 12, metric_params={metric: options})


def sanity_of_blocks(**options):
    explainer = CAMExplainer(Blocks().eval(), verbose=0).fit(INPUTS)
    return metrics.sanity_check(explainer, INPUTS, progress=False, **options)


def sanity(**options):
    return metrics.sanity_check(fitted(), **{"X": X, **options})


REFUSALS: dict[str, list[Row]] = {
    "sanity_check": [
        ("no estimator", lambda: metrics.sanity_check(SVC(), X), "must be a ConsistentCAM.* SVC"),
        (
            "unfitted",
            lambda: metrics.sanity_check(classifier(), X),
            "call fit first",
            NotFittedError,
        ),
        ("no images", lambda: sanity(X=None), "X is None"),
        ("one image", lambda: sanity(X=X[:1]), "maps of different images. Give at least two"),
        ("a method", lambda: sanity(method="gradcm"), "Did you mean: gradcam"),
        ("channels", lambda: sanity(method=cam.Saliency("keep")), "sanity_check measures one map"),
        ("a mode", lambda: sanity(mode="top down"), "mode must be .* got 'top down'"),
        ("no steps", lambda: sanity(layers=0), "layers, the number of steps .* got 0"),
        ("a layer", lambda: sanity(layers=["fc"]), "The network has no module 'fc'"),
        ("a part", lambda: sanity_of_blocks(layers=["0.0", "0"]), "names a module, and another wi"),
        ("numbers", lambda: sanity(layers=[3]), "layers must be names of modules; got a list"),
        ("classes", lambda: sanity(target=[[0, 1]] * len(X)), "explains one class per image"),
        ("a seed", lambda: sanity(random_state="0"), "'0' cannot be used to seed"),
    ],
    "SanityCheck": [
        ("hog", lambda: SANITY.verdict("hog"), r"likeness must be one of \['ssim'\]; got 'hog'"),
        ("a level", lambda: SANITY.curves("ssim", level=2), "level must be .* got 2"),
    ],
    "evaluate": [
        ("few groups", lambda: evaluate(groups=[0, 1]), "groups must be one label for each of 12"),
        ("one group", lambda: evaluate(groups="a"), "groups must be one label for .* got a str"),
        ("no groupings", lambda: evaluate(groups={}), "or a dict of names to these; got a dict"),
        (
            "groups of the class",
            lambda: evaluate(groups={"class": Y}),
            '"class" is reserved for the true labels, y',
        ),
        (
            "few of a grouping",
            lambda: evaluate(groups={"age": Y[1:]}),
            r"groups\['age'\] must be one label for each of 12 images",
        ),
        (
            "groups NaN",
            lambda: evaluate(groups=np.where(Y == 1, np.nan, Y)),
            r"groups lacks the label of \d image",
        ),
        (
            "groups NA",
            lambda: evaluate(groups=pd.Series([pd.NA] + [1] * 11, dtype="Int64")),
            r"groups lacks the label of 1 image\(s\), the first of them 0",
        ),
        (
            "groups NaN among words",
            lambda: evaluate(groups=["a"] * 11 + [float("nan")]),
            r"groups lacks the label of 1 image\(s\), the first of them 11",
        ),
        (
            "pairs of groups",
            lambda: evaluate(groups=pd.Series([("a", 1)] * 12)),
            "Labels of groups must be numbers or strings",
        ),
        (
            "a list of both",
            lambda: evaluate(groups=["a"] * 11 + [1]),
            "Labels of groups must be numbers or strings, not both",
        ),
        (
            "words and numbers",
            lambda: evaluate(groups=np.array(["a"] * 11 + [1], object)),
            "Labels of groups must be numbers or strings, not both",
        ),
        ("no estimator", lambda: evaluate(estimator=SVC()), "must be a ConsistentCAM.* got SVC"),
        (
            "labels of no class",
            lambda: evaluate("accuracy", y=["cat"] * 12),
            r"None of the labels in y is a class .* \['cat'\], its classes \[0, 1, 2\]",
        ),
        (
            "a search",
            lambda: evaluate(estimator=GridSearchCV(SVC(), {})),
            "not fitted yet",
            NotFittedError,
        ),
        ("unfitted", lambda: evaluate(estimator=classifier()), "call fit first", NotFittedError),
        ("no images", lambda: evaluate(X=None), "X is None"),
        ("a slip", lambda: evaluate("adc"), "no metric 'adc'. Did you mean: adcc"),
        ("no names", lambda: evaluate([]), "metrics is empty"),
        ("None", lambda: evaluate(None), "metrics must be a name or a sequence .* got None"),
        ("a number", lambda: evaluate([3]), "There is no metric 3"),
        ("a list", lambda: evaluate([["adcc"]]), r"There is no metric \['adcc'\]"),
        ("a method", lambda: evaluate(method="gradcm"), "Did you mean: gradcam"),
        ("a method twice", lambda: evaluate(method=["cam", "cam"]), "Two methods share a name"),
        ("no method", lambda: evaluate(method=[]), "There is no method to explain with"),
        (
            "several methods of a run",
            lambda: metrics.Evaluator(
                fitted(), X, metrics="sparsity", method=["cam", "gradcam"]
            ).run(),
            "run measures one method; got several: cam, gradcam",
        ),
        ("a target", lambda: evaluate(target=99), "not seen in fit"),
        ("TopK", lambda: evaluate(target=cam.TopK(2)), "one class per image"),
        ("no labels", lambda: evaluate("accuracy"), "accuracy needs y"),
        ("few labels", lambda: evaluate("accuracy", y=[0]), "y has 1 entries for 12 images"),
        ("a table", lambda: evaluate("accuracy", y=np.ones((12, 2))), r"one label .*\(12, 2\)"),
        ("no boxes", lambda: evaluate("localization_accuracy"), "needs boxes"),
        ("nowhere", lambda: evaluate("pointing_game"), "needs boxes or masks"),
        ("boxes 3", lambda: evaluate(boxes=3), "boxes must be a sequence .* 12 images; got an int"),
        ("few boxes", lambda: evaluate(boxes=[BOX] * 3), "boxes has 3 entries for 12 images"),
        (
            "the last",
            lambda: evaluate(boxes=[BOX] * 11 + [-BOX]),
            r"boxes\[11\]: A box is .* x1 < x2",
        ),
        ("five", lambda: evaluate(boxes=[[[0, 0, 1, 1, 1]]] * 12), r"boxes\[0\]: .*\(n_boxes, 4\)"),
        (
            "boxes in shares",
            lambda: evaluate("pointing_game", boxes=[[[0, 0.5, 1, 1]]] * 12),
            "in pixels of each image, not as shares",
        ),
        ("few masks", lambda: evaluate(masks=X[:3]), "masks has 3 entries for 12 images"),
        (
            "by class and not",
            lambda: evaluate(boxes=[*[{0: BOX}] * 11, BOX]),
            r"boxes\[11\] is .* in dicts, for all images or for none",
        ),
        (
            "by other classes",
            lambda: evaluate(boxes=[{"apple": BOX}] * 12),
            "None of the labels of boxes is a class",
        ),
        (
            "boxes of 3",
            lambda: evaluate("top5_localization_error", y=Y, boxes=[BOX] * 12),
            "the 5 highest-scoring classes are explained, and the estimator has 3",
        ),
        (
            "no threshold",
            lambda: evaluate("pointing_game_reject", y=Y, boxes=[BOX] * 12),
            "no default for threshold. Choose it: .* rejection_threshold",
        ),
        (
            "no references",
            lambda: evaluate("reference_correlation"),
            "needs references. Give a map to compare with for each image",
        ),
        ("unasked references", lambda: evaluate(references=X), "none of the metrics uses it"),
        (
            "few references",
            lambda: evaluate("reference_correlation", references=X[:3]),
            "references has 3 entries for 12 images",
        ),
        (
            "colours",
            lambda: evaluate("reference_correlation", references=COLOUR),
            r"references\[0\] must be a map of numbers, .*\(8, 8, 3\)",
        ),
        ("sizes", lambda: evaluate("pointing_game", masks=X[:, :5]), r"masks of \(1, 5, 8\)"),
        ("255", lambda: evaluate("pointing_game", masks=X * 255), r"float64 beyond \[0, 1\]"),
        ("no class", lambda: evaluate("adcc", target=lambda o: o[:, 0]), "Give score="),
        ("score 3", lambda: evaluate("adcc", score=3), "score must be a callable .* got an int, 3"),
        (
            "a score",
            lambda: evaluate("adcc", score=lambda o: 1),
            "score must return .* it returned",
        ),
        ("scores", lambda: evaluate("adcc", score=lambda o: o), r"score must return .* \(6, 3\)"),
        ("batch 0", lambda: evaluate(batch_size=0), "batch_size must be an int >= 1; got 0"),
        ("half a worker", lambda: evaluate(num_workers=0.5), "num_workers must be an int >= 0; g"),
        ("shared alone", lambda: evaluate(shard=(0, 2)), "shard= is for .* Give its path as st"),
        ("of 2 the third", lambda: evaluate(store="no/values", shard=(2, 2)), r"shard must be"),
        ("of a map", lambda: evaluate(store="."), "is not a folder of maps or values"),
        ("jobs", lambda: evaluate(n_jobs=0), "n_jobs must be None or an int other than 0; got 0"),
        ("a seed", lambda: evaluate(random_state="a"), "'a' cannot be used to seed"),
        ("params", lambda: evaluate(metric_params=3), "metric_params must be a dict .* an int, 3"),
        (
            "of none",
            lambda: evaluate(metric_params={"x": {}}),
            r"unknown metrics: \['x'\]\. There are: accuracy, ",
        ),
        ("a number", lambda: evaluate(metric_params={"iauc": 3}), "a dict of options of iauc; got"),
        ("unknown", lambda: with_params("iauc", steps=3), r"iauc has no options \['steps'\]"),
        ("no step", lambda: with_params("iauc", n_steps=0), "n_steps must be an int >= 1; got 0"),
        (
            "a start",
            lambda: with_params("iauc", start=VALUES),
            "start must be a callable that makes",
        ),
        (
            "views",
            lambda: with_params("consistency", views=3),
            "views must be a ViewSampler or None",
        ),
        ("view", lambda: with_params("consistency", method="gradcm"), "Did you mean: gradcam"),
        (
            "shear",
            lambda: with_params("cose", transformations=["Rotat"]),
            "no transformation 'Rotat'.* Rotate",
        ),
        ("one name", lambda: with_params("cose", transformations="Rotate"), "must be a sequence"),
        ("61", lambda: with_params("cose", n_magnitudes=61), "n_magnitudes must .* 60; got 61"),
        ("random", lambda: with_params("cose", randomized=1), "randomized must be True or False"),
        ("a file", lambda: with_params("cose", checkpoints="a.pt"), "checkpoints must be a list"),
        (
            "IoU",
            lambda: with_params("localization_accuracy", iou_threshold=2),
            "iou_threshold must",
        ),
        (
            "share",
            lambda: with_params("localization_accuracy", threshold=-1),
            "threshold must be a",
        ),
        ("pixels", lambda: with_params("pointing_game", tolerance=-1), "tolerance must .* got -1"),
        ("noise", lambda: with_params("road", noise=-1), "noise must be a finite number >= 0"),
        ("patches", lambda: with_params("rank_correlation", occlusion=3), "must be an Occlusion()"),
    ],
    "rejection_threshold": [
        (
            "no boxes",
            lambda: metrics.rejection_threshold(fitted(), X, Y),
            "pointing_game_reject needs boxes or masks",
        ),
        (
            "3 classes",
            lambda: metrics.rejection_threshold(fitted(), X, Y, boxes=[BOX] * 12),
            "the 5 highest-scoring classes .* the estimator has 3",
        ),
        (
            "tolerance",
            lambda: metrics.rejection_threshold(fitted(), X, Y, boxes=[BOX] * 12, tolerance=-1),
            "tolerance must be a finite number >= 0; got -1",
        ),
    ],
    "Evaluator": [
        ("no estimator", lambda: metrics.Evaluator(SVC(), X), "must be a ConsistentCAM.* got SVC"),
        ("a slip", lambda: metrics.Evaluator(fitted(), X, metrics="adc"), "Did you mean: adcc"),
        (
            "a need",
            lambda: metrics.Evaluator(fitted(), X, needs=["mapz"]),
            "no metric or quantity 'mapz'. Did you mean: maps",
        ),
        ("jobs", lambda: metrics.Evaluator(fitted(), X).run(n_jobs=0), "n_jobs must be .* got 0"),
        (
            "a share",
            lambda: metrics.Evaluator(fitted(), X).run_to("no/values", shard=3),
            "shard mu",
        ),
    ],
    "Metric": [
        ("no name", lambda: metrics.Metric("", max, ("maps",)), "A metric needs a name; got a str"),
        ("a quantity", lambda: metrics.Metric("maps", max, ("maps",)), "name of a quantity"),
        (
            "no function",
            lambda: metrics.Metric("a", 3, ("maps",)),
            "function must be .* got an int",
        ),
        ("a word", lambda: metrics.Metric("a", max, "maps"), "needs must be a tuple .* a str"),
        ("a slip", lambda: metrics.Metric("a", max, ("map",)), "needs 'map', .* Did you mean: "),
        (
            "a range",
            lambda: metrics.Metric("a", max, ("maps",), range=(1, 0)),
            r"range must be \(low, high\) .* got \(1, 0\)",
        ),
    ],
    "register": [
        ("a name", lambda: metrics.register("adcc"), "register takes a Metric; got a str, 'adcc'"),
        (
            "another adcc",
            lambda: metrics.register(metrics.Metric("adcc", max, ("maps",))),
            "There is a metric 'adcc' already",
        ),
    ],
    "get_metric": [
        ("a slip", lambda: metrics.get_metric("adc"), "no metric 'adc'. Did you mean: adcc"),
        ("None", lambda: metrics.get_metric(None), "There is no metric None"),
    ],
    "consistency_score": [
        ("no one", lambda: metrics.consistency_score(None, X), "estimator must be .* NoneType"),
        (
            "views",
            lambda: metrics.consistency_score(fitted(), X, views=3),
            "views must be a ViewSam",
        ),
        ("a method", lambda: metrics.consistency_score(fitted(), X, method="x"), "no method 'x'"),
        (
            "a seed",
            lambda: metrics.consistency_score(fitted(), X, random_state="a"),
            "'a' cannot be",
        ),
    ],
    "Evaluation": [
        ("level 95", lambda: evaluation().summary(level=95), "level must be .* 0 and 1; got 95"),
        ("level 0", lambda: evaluation().summary(level=0), "level must be .* 0 and 1; got 0"),
        ("-5", lambda: evaluation().summary(n_resamples=-5), "n_resamples must .* >= 1; got -5"),
        ("no classes", lambda: evaluation().summary(by="class"), "needs y, the true labels"),
        (
            "few groups",
            lambda: evaluation().summary(by=[0, 1]),
            "label for each of 3 images; got a",
        ),
        (
            "a slip",
            lambda: evaluation().summary(by="clas"),
            "no grouping 'clas'; by= takes 'class'",
        ),
        (
            "a missing group",
            lambda: evaluation().summary(by=["a", None, "b"]),
            r"by lacks the label of 1 image\(s\), the first of them 1",
        ),
        (
            "no groups",
            lambda: evaluation().by_group(),
            "There are no groups.* Give groups= to evaluate",
        ),
        ("nothing", lambda: metrics.Evaluation().summary(), "needs a metric, .* none at all"),
        ("no means", lambda: metrics.Evaluation().means(), "needs a metric, .* none at all"),
        ("ragged", lambda: metrics.Evaluation(a=[1], b=[1, 2]).means(), "'a': 1, 'b': 2"),
    ],
    "compare": [
        ("None", lambda: metrics.compare(None, None), "first must be an Evaluation; got None"),
        ("a list", lambda: metrics.compare(evaluation(), [1]), "second must be .* got a list"),
        ("3 and 4", lambda: metrics.compare(evaluation(), evaluation(4)), "of the same images"),
        ("level", lambda: metrics.compare(evaluation(), evaluation(), level="a"), "level must be"),
        (
            "0",
            lambda: metrics.compare(evaluation(), evaluation(), n_resamples=0),
            "n_resamples must",
        ),
    ],
    "get_scorer": [
        (
            "several methods",
            lambda: metrics.get_scorer("sparsity", method=["cam"])(fitted(), X),
            "A scorer takes one method; got method=a list",
        ),
        ("a slip", lambda: metrics.get_scorer("adc"), "no scorer 'adc'. Did you mean: adcc"),
        ("None", lambda: metrics.get_scorer(None), "A scorer needs a name, .* got None"),
        ("a list", lambda: metrics.get_scorer(["adcc"]), "A scorer needs a name, .* got a list"),
        (
            "the wrong way",
            lambda: metrics.get_scorer("average_drop"),
            "Lower is better for 'average_drop', .* Use 'neg_average_drop'",
        ),
        ("a curve", lambda: metrics.get_scorer("dauc"), "Use 'neg_dauc'"),
        ("a sign", lambda: metrics.get_scorer("neg_adcc"), "no scorer 'neg_adcc'. Did you mean"),
        ("a mean", lambda: metrics.get_scorer("mean_adcc"), "There is no scorer 'mean_adcc'"),
        ("nothing", lambda: metrics.get_scorer(""), "There are: accuracy, adcc"),
        (
            "an option",
            lambda: metrics.get_scorer("adcc", n_steps=1),
            r"adcc has no options \['n_steps'\]; it takes batch_size, method",
        ),
        (
            "an option with a slip",
            lambda: metrics.get_scorer("iauc", nsteps=5),
            r"iauc has no options \['nsteps'\]; .*n_steps",
        ),
        ("boxes", lambda: metrics.get_scorer("adcc", boxes=[BOX]), "has no options"),
        (
            "another's option",
            lambda: metrics.get_scorer("consistency", n_steps=5),
            r"has no options \['n_steps'\]; .*random_state, .*views",
        ),
    ],
    "consistent_and_accurate": [
        (
            "a tolerance below 0",
            lambda: metrics.consistent_and_accurate(-0.1),
            "tolerance must be .* got -0.1",
        ),
        (
            "a scorer for a name",
            lambda: metrics.consistent_and_accurate(consistency=metrics.get_scorer("adcc")),
            "A score needs a name, .* got a",
        ),
        (
            "no such score",
            lambda: metrics.consistent_and_accurate()({"mean_test_score": [0.5], "params": [{}]}),
            "no score 'accuracy'; it has score. Give scoring=explanation_scorer",
        ),
        (
            "no numbers",
            lambda: metrics.consistent_and_accurate()(
                {"mean_test_accuracy": [np.nan, 0.5], "mean_test_consistency": [0.5, np.nan]}
            ),
            "No candidate has both .* error_score",
        ),
    ],
    "explanation_scorer": [
        ("a name", lambda: metrics.explanation_scorer("adcc"), "a sequence of names; got a str"),
        ("None", lambda: metrics.explanation_scorer(None), "a sequence of names; got None"),
        ("none", lambda: metrics.explanation_scorer([]), "metrics is empty"),
        ("a slip", lambda: metrics.explanation_scorer(["adc"]), "Did you mean: adcc"),
        ("second", lambda: metrics.explanation_scorer(["adcc", "dauc"]), "Use 'neg_dauc'"),
        (
            "an option of one",
            lambda: metrics.explanation_scorer(["adcc"], metric_params={"adcc": {"n_steps": 5}})(
                fitted(), X
            ),
            "options",
        ),
        (
            "3",
            lambda: metrics.explanation_scorer(["adcc"], metric_params=3),
            "metric_params must be",
        ),
        (
            "x",
            lambda: metrics.explanation_scorer(["adcc"], metric_params={"x": {}}),
            "unknown metrics",
        ),
        (
            "an option",
            lambda: metrics.explanation_scorer(["adcc"], n_steps=3),
            "go into metric_par",
        ),
    ],
    "ExplanationScorer": [
        ("a slip", lambda: metrics.ExplanationScorer("adc")(fitted(), X), "Did you mean: adcc"),
        ("no one", lambda: metrics.ExplanationScorer("adcc")(None, X), "estimator must be"),
    ],
    "ExplanationScorers": [
        ("a slip", lambda: metrics.ExplanationScorers(["adc"])(fitted(), X), "Did you mean: adcc"),
    ],
}


@pytest.mark.parametrize(("call", "match", "error"), rows_of(REFUSALS))
def test_refusals(call, match, error):
    with pytest.raises(error, match=match):
        call()
