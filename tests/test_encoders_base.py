import subprocess
import sys

import pytest

from cae.encoders import EncoderError, load_encoder
from cae.utils.cache import cache_dir


@pytest.mark.parametrize("spec", ["", "clip", "open_clip", "open_clip:", "lite:2"])
def test_an_unknown_spec_is_an_error_that_names_the_kinds(spec):
    with pytest.raises(EncoderError, match="open_clip:MODEL/PRETRAINED"):
        load_encoder(spec)


def test_lite_takes_no_weights_file(tmp_path):
    with pytest.raises(EncoderError, match="leave out the weights file"):
        load_encoder("lite", weights=tmp_path / "w.safetensors")


def test_a_missing_extra_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("cae.encoders.lite")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(EncoderError, match=r"pip install 'cae-clustering\[lite\]'"):
        load_encoder("lite")


def test_importing_the_package_imports_no_model_library():
    code = "import sys, cae.encoders; print([m for m in ('open_clip', 'timm', 'tokenizers') if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("CAE_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("CAE_CACHE")
    assert cache_dir().name == "cae"
