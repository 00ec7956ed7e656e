"""Classifiers of torchvision: their preprocessing, weights from a file, and messages."""

import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as V

from perdure.errors import WeightsError
from perdure.methods.tent import Config as TentConfig
from perdure.methods.tent import Tent
from perdure.models import torchvision_net
from perdure.types import Example, Query


def net(**settings):
    return torchvision_net.load(
        torchvision_net.Config(architecture="shufflenet_v2_x0_5", weights="none", classes=4, **settings)
    )


def test_an_image_goes_through_as_torchvision_prepares_it():
    image = Image.effect_noise((90, 70), 60).convert("RGB")
    model = net(resize=48, crop=40)
    pixels = model.transform.pixels(image)
    theirs = V.center_crop(V.resize(image, 48), 40)
    assert torch.equal(pixels, V.pil_to_tensor(theirs))
    normal = V.normalize(V.to_tensor(theirs), torchvision_net.MEAN, torchvision_net.STD)
    torch.testing.assert_close(model(pixels[None].float() / 255), model.net(normal[None]), rtol=0, atol=1e-5)


def test_tent_moves_its_norm_layers_and_weights_come_from_a_file(tmp_path):
    torch.manual_seed(0)
    model = net(resize=40, crop=32)
    torch.save(model.net.state_dict(), tmp_path / "net.pth")
    config = torchvision_net.Config(
        architecture="shufflenet_v2_x0_5", weights=str(tmp_path / "net.pth"), classes=4, resize=40, crop=32
    )
    again = torchvision_net.load(config)
    method = Tent(TentConfig(batch_size=3, lr=0.1), net=again)
    images = [Example(id=str(i), inputs={"image": Image.effect_noise((50, 40), 20 * i + 9)}) for i in range(3)]
    batch = {"image": torch.stack([method.preprocess(e, False)["image"] for e in images]), "seed": torch.arange(3)}
    predict = method.predictor(Query(kind="classify", candidates=("a", "b", "c", "d")))
    first, second = predict(batch), predict(batch)
    assert first.shape == (3, 4) and not torch.equal(first, second)
    with pytest.raises(WeightsError, match="Set its sizes"):
        torchvision_net.load(
            torchvision_net.Config(architecture="resnet18", weights=str(tmp_path / "net.pth"), classes=4)
        )


def test_an_unknown_architecture_is_one_message():
    with pytest.raises(WeightsError, match="torchvision has no 'resnet51'"):
        torchvision_net.load(torchvision_net.Config(architecture="resnet51"))
