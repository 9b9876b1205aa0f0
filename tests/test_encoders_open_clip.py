import json
import pickle
import time

import open_clip
import pytest
import torch
from open_clip import factory
from PIL import Image
from safetensors.torch import save_file

from cae.encoders import EncoderError, load_encoder
from cae.encoders import open_clip as subject
from cae.utils import hub

TEXTS = ["a photo of a dog", "a photo of an aardvark in the rain", "dog", "", "word " * 200, "a photo of a dog"]
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
CONFIGS = {
    "tiny-causal": TINY,
    "tiny-bidirectional": TINY | {"text_cfg": TINY["text_cfg"] | {"no_causal_mask": True}},
    "tiny-custom": TINY | {"custom_text": True},
    "tiny-last": TINY | {"text_cfg": TINY["text_cfg"] | {"pool_type": "last"}},
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights files of tiny random models, by name."""
    folder = tmp_path_factory.mktemp("models")
    paths, configs = list(factory._MODEL_CONFIG_PATHS), dict(factory._MODEL_CONFIGS)
    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    files = {}
    for name in CONFIGS:
        torch.manual_seed(0)
        files[name] = folder / f"{name}.safetensors"
        save_file(open_clip.create_model(name).state_dict(), files[name])
    yield files
    factory._MODEL_CONFIG_PATHS[:] = paths
    factory._MODEL_CONFIGS.clear()
    factory._MODEL_CONFIGS.update(configs)


@pytest.fixture
def encoder(weights):
    return load_encoder("open_clip:tiny-causal", weights=weights["tiny-causal"])


@pytest.mark.parametrize("name", CONFIGS)
def test_texts_equal_plain_encode_text(weights, name):
    encoder = load_encoder(f"open_clip:{name}", weights=weights[name])
    model = open_clip.create_model(name, pretrained=str(weights[name])).eval()
    with torch.inference_mode():
        expected = model.encode_text(open_clip.get_tokenizer(name)(TEXTS), normalize=True)
    vectors = encoder.encode_texts(TEXTS)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=0)
    assert encoder._reads_out_at_end_of_text() == (name == "tiny-causal")


def test_no_texts_give_no_rows(encoder):
    assert encoder.encode_texts([]).shape == (0, 16)


def test_images_are_unit_rows_equal_to_open_clip_and_to_the_bit_in_any_batch(encoder, weights):
    model = open_clip.create_model("tiny-causal", pretrained=str(weights["tiny-causal"])).eval()
    images = torch.randn(19, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    vectors = encoder.encode_images(images)
    with torch.inference_mode():
        torch.testing.assert_close(vectors, model.encode_image(images, normalize=True), atol=1e-5, rtol=0)
    order = torch.randperm(19, generator=torch.Generator().manual_seed(1))
    for size in (1, 3, 19):
        shuffled = torch.cat([encoder.encode_images(part) for part in images[order].split(size)])
        assert torch.equal(shuffled, vectors[order])


def test_preprocess_is_picklable_and_gives_the_model_size(encoder):
    preprocess = pickle.loads(pickle.dumps(encoder.preprocess))
    picture = preprocess(Image.new("RGB", (50, 40), "red"))
    assert picture.shape == (3, encoder.image_size, encoder.image_size) == (3, 32, 32)
    assert picture.dtype == torch.float32


def test_fingerprint_follows_weights_and_not_their_file(weights, tmp_path):
    def fingerprint(state):
        path = tmp_path / "w.pt"
        torch.save(state, path)
        return load_encoder("open_clip:tiny-causal", weights=path).fingerprint

    original = load_encoder("open_clip:tiny-causal", weights=weights["tiny-causal"])
    state = {name: tensor.clone() for name, tensor in original._model.state_dict().items()}
    assert fingerprint(state) == original.fingerprint
    state["visual.proj"][0, 0] += 1
    assert fingerprint(state) != original.fingerprint


def test_a_tag_sets_activation_and_preprocessing_of_a_weights_file(monkeypatch, weights):
    plain = load_encoder("open_clip:tiny-causal", weights=weights["tiny-causal"])
    monkeypatch.setattr(subject, "get_pretrained_cfg", lambda *_: {"quick_gelu": True, "mean": (0.5, 0.5, 0.5)})
    tagged = load_encoder("open_clip:tiny-causal/some", weights=weights["tiny-causal"])
    assert isinstance(tagged._model.transformer.resblocks[0].mlp.gelu, open_clip.transformer.QuickGELU)
    assert isinstance(plain._model.transformer.resblocks[0].mlp.gelu, torch.nn.GELU)
    assert tagged._model.visual.preprocess_cfg["mean"] == (0.5, 0.5, 0.5)
    assert tagged.spec == "open_clip:tiny-causal/some"
    assert tagged.fingerprint != plain.fingerprint


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("open_clip:ViT-B32/openai", "near names: .*ViT-B-32"),
        ("open_clip:ViT-B-32/open-ai", "has no weights 'open-ai' for ViT-B-32; it has: openai, "),
        ("open_clip:ViT-B-32", "needs a pretrained tag"),
    ],
)
def test_unknown_names_are_errors_that_list_known_ones(spec, message):
    with pytest.raises(EncoderError, match=message):
        load_encoder(spec)


@pytest.mark.parametrize("content", [b"", b"not weights"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_broken_weights_file_is_an_error(tmp_path, content, suffix, weights):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(EncoderError, match="cannot be loaded as plain weights of tiny-causal"):
        load_encoder("open_clip:tiny-causal", weights=path)


def test_weights_of_another_model_missing_files_and_other_kinds_are_errors(tmp_path, weights):
    with pytest.raises(EncoderError, match="cannot be loaded"):
        load_encoder("open_clip:tiny-causal", weights=weights["tiny-custom"])
    with pytest.raises(EncoderError, match=r"ends in \.safetensors"):
        load_encoder("open_clip:tiny-causal", weights=tmp_path / "weights.npz")
    with pytest.raises(EncoderError, match="no such weights file"):
        load_encoder("open_clip:tiny-causal", weights=tmp_path / "none.pt")


class Exploit:
    def __reduce__(self):
        return print, ("code from a weights file ran",)


def test_a_pickle_that_runs_code_is_refused(tmp_path, weights, capfd):
    path = tmp_path / "w.pt"
    torch.save({"visual.proj": Exploit()}, path)
    with pytest.raises(EncoderError, match="cannot be loaded"):
        load_encoder("open_clip:tiny-causal", weights=path)
    assert "ran" not in capfd.readouterr().out


def test_an_unreachable_hub_is_asked_once_and_the_error_says_what_to_do(monkeypatch, capfd):
    calls = []

    class Session:
        def head(self, url, timeout):
            calls.append(timeout)
            raise OSError("Name or service not known")

    monkeypatch.setattr(subject, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(hub, "get_session", Session)
    start = time.monotonic()
    with pytest.raises(EncoderError, match=r"--encoder lite`.*--encoder-weights FILE.*encoder='lite'"):
        load_encoder("open_clip:ViT-B-32/openai")
    assert time.monotonic() - start < 5
    assert calls == [hub.HUB_TIMEOUT_S]
    assert capfd.readouterr() == ("", "")


def test_weights_in_the_hub_cache_need_no_network(monkeypatch, weights):
    asked = []

    def cached(repository, file):
        asked.append((repository, file))
        return str(weights["tiny-causal"])

    monkeypatch.setattr(subject, "try_to_load_from_cache", cached)
    monkeypatch.setattr(hub, "get_session", lambda: pytest.fail("asked the network"))
    tag = {"hf_hub": "timm/tiny/", "mean": (0.5, 0.5, 0.5)}
    monkeypatch.setattr(subject, "get_pretrained_cfg", lambda *_: tag)
    encoder = load_encoder("open_clip:tiny-causal/some")
    assert asked == [("timm/tiny", "open_clip_model.safetensors")]
    assert encoder._model.visual.preprocess_cfg["mean"] == (0.5, 0.5, 0.5)


@pytest.mark.gpu
def test_half_precision_on_a_gpu_is_close_to_float32(encoder, weights):
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected_images, expected_texts = encoder.encode_images(images), encoder.encode_texts(TEXTS)
    on_gpu = load_encoder("open_clip:tiny-causal", weights=weights["tiny-causal"], device="cuda")
    torch.testing.assert_close(on_gpu.encode_images(images).cpu(), expected_images, atol=5e-3, rtol=0)
    torch.testing.assert_close(on_gpu.encode_texts(TEXTS).cpu(), expected_texts, atol=5e-3, rtol=0)
