"""Results come to the host by themselves, and are waited for when the device has more to do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from pretend_device import PretendDevice, moved
from small_networks import SmallNet

from sklcam import CAMExplainer, open_maps
from sklcam.cam import GradCAM
from sklcam.networks.fetching import Fetching, fetch_all, one_behind, sent_to

IMAGES = torch.rand(8, 1, 12, 12, generator=torch.Generator().manual_seed(0))
PIXELS = IMAGES[:, 0].numpy()


class Noting(PretendDevice):
    """Notes, in order, the passes of the network and where a result is waited for."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def wait(self, name):
        super().wait(name)
        self.seen.append("wait")


def tensors(device, log):
    for i in range(3):
        log.append(f"made {i}")
        yield torch.full((2, 2), float(i), device=device)


def test_a_device_is_asked_for_more_before_it_is_waited_for():
    log = []
    with PretendDevice():
        for fetching in one_behind(map(Fetching, tensors("pretend", log))):
            log.append(f"got {fetching.get()[0, 0].item():.0f}")
    assert log == ["made 0", "made 1", "got 0", "made 2", "got 1", "got 2"]


def test_the_host_has_each_at_once():
    log = []
    for fetching in one_behind(map(Fetching, tensors("cpu", log))):
        log.append(f"got {fetching.get()[0, 0].item():.0f}")
    assert log == ["made 0", "got 0", "made 1", "got 1", "made 2", "got 2"]


def test_nothing_comes_of_nothing():
    assert list(one_behind(iter(()))) == []


@pytest.mark.parametrize("device", ["cpu", "pretend"])
def test_all_in_one_array(device):
    with PretendDevice():
        found = fetch_all(tensors(device, []))
    assert_array_equal(found, np.repeat([0.0, 1, 2], 2)[:, None] * np.ones((1, 2)))


def test_images_are_sent():
    with PretendDevice() as device:
        sent = sent_to(torch.device("pretend"), IMAGES)
        assert sent.device.type == "pretend" and not device.waits
    assert_array_equal(sent.cpu(), IMAGES)
    assert sent_to(torch.device("cpu"), IMAGES) is IMAGES


def explaining(device=None):
    torch.manual_seed(0)
    network = SmallNet(num_classes=3, width=4).eval()
    if device is not None:
        network = moved(network)
        network.register_forward_hook(lambda *_: device.seen.append("pass"))
    method = GradCAM(relu=False)
    return CAMExplainer(network, method, target_layer="5", verbose=0, batch_size=2).fit(IMAGES)


ASKED = {
    "explain": lambda explainer, _: explainer.explain(IMAGES),
    "image": lambda explainer, _: np.stack(explainer.explain(PIXELS, frame="image")),
    "predict_proba": lambda explainer, _: explainer.predict_proba(IMAGES),
    "predict": lambda explainer, _: explainer.predict(IMAGES),
    "explain_to": lambda explainer, path: (
        explainer.explain_to(IMAGES, path) or np.array(open_maps(path))
    ),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_a_batch_is_fetched_when_the_next_is_queued(ask, tmp_path):
    with Noting() as device:
        ours = explaining(device)
        device.seen.clear()
        found = ask(ours, tmp_path / "ours")
    assert device.seen.count("pass") == 4
    seen = device.seen[device.seen.index("pass") :]  # weights are read first, to be known again
    assert seen[: seen.index("wait")] == ["pass", "pass"]
    assert_array_equal(found, ask(explaining(), tmp_path / "host"))
