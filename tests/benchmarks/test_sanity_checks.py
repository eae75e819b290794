"""The program of the sanity checks, on a handful of synthetic images."""

from __future__ import annotations

from argparse import Namespace

import numpy as np


def test_both_modes_of_a_handful(splits, tmp_path, capsys):
    import sanity_checks

    rst, claims = tmp_path / "sanity.rst", tmp_path / "claims.csv"
    sanity_checks.main(
        [
            *["--quick", "--data", str(splits), "--arch", "squeezenet1_1", "--weights", "none"],
            *["--image-size", "64", "--images", "4", "--layers", "3", "--device", "cpu"],
            *["--methods", "gradcam", "saliency", "guidedbackprop", "guidedgradcam"],
            *["--rst", str(rst), "--claims", str(claims)],
        ]
    )
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    titles = [line for line in lines if "squeezenet1_1" in line]
    assert [title.split()[0] for title in titles] == ["Cascading", "Independent"]
    assert all(title.endswith("4 images") for title in titles)
    for name in ("Grad-CAM", "the gradient", "guided backpropagation", "Guided Grad-CAM"):
        assert sum(line.startswith(f"{name} ") for line in lines) >= 2
    assert rst.read_text().count(".. list-table::") == 3
    rows = claims.read_text().splitlines()
    assert len(rows) == 1 + 5 and all(row.startswith("Adebayo et al.,") for row in rows[1:])


def test_claims_by_hand():
    from sanity_checks import claims_of

    kept = {"gradcam": 0.1, "saliency": 0.8, "guidedbackprop": 0.9, "layercam": 0.7}
    check = Namespace(
        randomized={"rank_correlation": {name: np.full((6, 2), of) for name, of in kept.items()}},
        other_images={"rank_correlation": dict.fromkeys(kept, np.full(6, 0.2))},
        other_classes={"rank_correlation": {"guidedbackprop": np.full(6, 0.5)}},
    )
    # By how far they are on their side of the middle, 0.6.
    assert {claim.text: round(claim.value) for claim in claims_of(check, 6)} == {
        "Grad-CAM is sensitive to the weights": 50,
        "the gradient is sensitive to the weights": -20,
        "guided backpropagation is insensitive to the weights": 30,
        "guided backpropagation is insensitive to the class": -10,
    }


def test_figures_leave_out_what_is_not_finite():
    from sanity_checks import figure

    assert figure(np.array([0.25, np.nan, 0.25])) == "25 (25 to 25)"
    assert figure(np.array([np.nan])) == "-"


def test_photographs_come_with_packages():
    from sanity_checks import images

    assert len(images(Namespace(data=None, images=2))) == 2
