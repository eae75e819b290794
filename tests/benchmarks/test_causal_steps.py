"""The program that counts how many steps insertion and deletion need, on a handful of images."""

from __future__ import annotations

import torch

from sklcam.metrics import causal_curves, deletion_auc, insertion_auc


def test_fewer_points_of_a_curve_are_those_of_fewer_steps():
    import causal_steps

    generator = torch.Generator().manual_seed(0)
    images, maps = torch.rand(3, 1, 6, 4, generator=generator), torch.rand(3, 6, 4)

    def score(changed, rows):
        return (changed * images[rows]).mean((1, 2, 3)).sigmoid()

    for n_steps in (3, 6, 12):
        fewer = causal_curves(score, images, maps, n_steps=n_steps)
        found = causal_steps.areas(causal_curves(score, images, maps, n_steps=12), 12 // n_steps)
        torch.testing.assert_close(found["insertion"], insertion_auc(fewer).double())
        torch.testing.assert_close(found["deletion"], deletion_auc(fewer).double())


def test_differences_are_printed(splits, capsys):
    import causal_steps

    small = ["--n-images", "2", "--n-steps", "4", "--fewer", "2", "--image-size", "64"]
    causal_steps.main(["--data", str(splits), *small])
    (insertion, deletion) = capsys.readouterr().out.splitlines()[-2:]
    assert insertion.split()[:3] == ["2", "5", "insertion"]
    assert 0 <= float(deletion.split()[3]) <= float(deletion.split()[4])
