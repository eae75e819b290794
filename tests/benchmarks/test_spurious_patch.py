"""The program of the patch that gives the class away, on a handful of digits."""

from __future__ import annotations

import numpy as np


def test_masks_are_of_digits_and_patches_of_classes():
    import spurious_patch

    digits = np.full((5, 16, 16), 0.5)
    images, masks = spurious_patch.with_patches(digits, np.arange(5), np.random.default_rng(0))
    np.testing.assert_allclose(images[:, 0, 0], [0.1, 0.325, 0.55, 0.775, 1.0], rtol=1e-6)
    assert not masks[:, :5, :5].any() and (images[masks] == 0.5).all()
    assert masks.sum((1, 2)).min() >= 16 * 16 - 25


def test_losses_are_trained_and_compared(tmp_path, capsys):
    import spurious_patch

    file = tmp_path / "table.rst"
    spurious_patch.main(
        [
            *["--images", "40", "--test-images", "30", "--epochs", "1", "--seeds", "2"],
            *["--mask-loss", "energy", "rrr", "--device", "cpu", "--rst", str(file)],
        ]
    )
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for start in ("cross-entropy", "with energy", "with rrr"):
        assert any(line.startswith(start) and line.count("±") == 2 for line in lines)
    claims = [line for line in lines if line.startswith(("energy raises", "rrr raises"))]
    assert len(claims) == 4 and file.read_text().count("list-table") == 2
