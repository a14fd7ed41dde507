"""Folders of transformers, PEFT and diffusers: compressed, published, pulled, loaded, with the same outputs."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import nearzip as nz  # noqa: E402
from nearzip import errors  # noqa: E402
from nearzip.torch import from_pretrained  # noqa: E402
from tests.store.hosts import serving  # noqa: E402

#: Of the libraries, about themselves.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

TEXT = "to be or not to be that is the question"


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: i for i, word in enumerate(["<unk>", "<eos>", *sorted(set(TEXT.split()))])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))  # noqa: S106
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", eos_token="<eos>")  # noqa: S106


def network(seed: int = 0, **how) -> transformers.LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 500, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 1, "pad_token_id": 1}
    config = transformers.LlamaConfig(**{**sizes, **heads, "tie_word_embeddings": True, **how})
    net = transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()
    net.generation_config.repetition_penalty = 1.3  # which only the folder's own file says
    return net


def changed(net: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """The next release: every weight a little different."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in net.parameters():
            weight += (0.002 * torch.randn(weight.shape, generator=generator)).to(weight.dtype)
    return net


def tokens(net: torch.nn.Module, words=None) -> list[int]:
    words = words or tokenizer()
    inputs = words(TEXT.split(" that")[0], return_tensors="pt")
    return net.generate(inputs["input_ids"], max_new_tokens=20, do_sample=False)[0].tolist()


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """An old release in few shards and a new one in many."""
    net = network()
    net.save_pretrained(tmp_path / "old", max_shard_size="150KB")
    tokenizer().save_pretrained(tmp_path / "old")
    changed(net).save_pretrained(tmp_path / "new", max_shard_size="60KB")
    tokenizer().save_pretrained(tmp_path / "new")
    shards = [len(list((tmp_path / name).glob("*.safetensors"))) for name in ("old", "new")]
    assert 1 < shards[0] < shards[1]
    return tmp_path / "old", tmp_path / "new"


def load(folder: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def same_files(one: Path, other: Path) -> None:
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    for file in files:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file


@pytest.mark.parametrize("bound", [None, "upd:0.1"])
def test_a_model_folder_is_published_pulled_and_generates_the_same_tokens(tmp_path, folders, bound):
    old, new = folders
    with nz.Store(tmp_path / "site", create=True, bound=bound, policy="forward") as store:
        store.commit_file(old, tags=["one"])
        store.commit_file(new)
    with serving(tmp_path / "site") as host:
        nz.pull(host.url, tmp_path / "device", "tag:one")
        report = nz.pull(host.url, tmp_path / "device", "latest")
        assert (report.held, report.version) == (0, 1)
        direct = from_pretrained(host.url, transformers.AutoModelForCausalLM)
        words = from_pretrained(host.url, transformers.AutoTokenizer)
    if bound is None:
        same_files(new, tmp_path / "device")
        assert tokens(load(tmp_path / "device")) == tokens(load(new))
    assert tokens(direct, words) == tokens(load(tmp_path / "device"))
    assert direct.dtype == torch.bfloat16
    assert direct.lm_head.weight.data_ptr() == direct.model.embed_tokens.weight.data_ptr()
    assert direct.generation_config.repetition_penalty == 1.3


def test_a_model_comes_from_an_archive_against_a_base_with_other_shards(tmp_path, folders):
    old, new = folders
    nz.compress_file(new, tmp_path / "update.nz", base=old)
    assert (tmp_path / "update.nz").stat().st_size < sum(f.stat().st_size for f in new.glob("*.safetensors")) * 0.7
    net = from_pretrained(tmp_path / "update.nz", transformers.LlamaForCausalLM, base=old, dtype=torch.float32)
    assert net.dtype == torch.float32
    for (name, one), (_, other) in zip(net.state_dict().items(), load(new).state_dict().items(), strict=True):
        assert torch.equal(one, other.float()), name
    nz.decompress_file(tmp_path / "update.nz", tmp_path / "restored", base=old)
    same_files(new, tmp_path / "restored")
    with pytest.raises(errors.WrongBaseError):
        from_pretrained(tmp_path / "update.nz", transformers.LlamaForCausalLM)


def test_tensors_alone_need_a_configuration(tmp_path):
    net = network()
    archive = nz.compress(net.state_dict())
    assert tokens(from_pretrained(archive, transformers.AutoModelForCausalLM, config=net.config)) != []
    with pytest.raises(errors.UsageError, match="give config="):
        from_pretrained(archive, transformers.AutoModelForCausalLM)
    with pytest.raises(errors.UsageError, match="has no from_pretrained"):
        from_pretrained(archive, dict)
    (tmp_path / "file.bin").write_bytes(b"nothing")
    with pytest.raises(errors.UsageError, match="is no archive and no store"):
        from_pretrained(tmp_path / "file.bin", transformers.AutoModelForCausalLM)
    with pytest.raises(errors.NotFoundError):
        from_pretrained(tmp_path / "nothing", transformers.AutoModelForCausalLM)


def test_the_store_of_a_training_gives_its_network(tmp_path):
    from types import SimpleNamespace

    from nearzip.torch.transformers import NearzipCallback

    net = network()
    net.save_pretrained(tmp_path / "out" / "checkpoint-3")
    callback = NearzipCallback(tmp_path / "store")
    state = SimpleNamespace(is_world_process_zero=True, global_step=3, log_history=[])
    callback.on_save(SimpleNamespace(output_dir=tmp_path / "out"), state, None)
    callback.on_train_end(None, state, None)
    assert tokens(from_pretrained(tmp_path / "store", transformers.AutoModelForCausalLM)) == tokens(net)


def test_adapters_come_from_archives_too(tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    tuned = peft.get_peft_model(network(), config)
    tuned.save_pretrained(tmp_path / "one")
    changed(tuned, 5)
    tuned.save_pretrained(tmp_path / "two")
    nz.compress_file(tmp_path / "two", tmp_path / "a.nz", base=tmp_path / "one")
    nz.decompress_file(tmp_path / "a.nz", tmp_path / "restored", base=tmp_path / "one")
    same_files(tmp_path / "two", tmp_path / "restored")

    net = from_pretrained(tmp_path / "a.nz", peft.PeftModel, network(), base=tmp_path / "one")
    expected = peft.PeftModel.from_pretrained(network(), tmp_path / "two")
    for name, weight in expected.state_dict().items():
        assert torch.equal(weight, net.state_dict()[name]), name
    assert tokens(net) == tokens(expected) != tokens(network())
    assert not any(weight.requires_grad for weight in net.parameters())
    trainable = from_pretrained(tmp_path / "a.nz", peft.PeftModel, network(), base=tmp_path / "one", is_trainable=True)
    assert any(weight.requires_grad for weight in trainable.parameters())
    with pytest.raises(errors.UsageError, match="needs its network"):
        from_pretrained(tmp_path / "a.nz", peft.PeftModel, base=tmp_path / "one")


def test_pipelines_of_diffusers(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diffusers = pytest.importorskip("diffusers")

        def unet(seed: int) -> diffusers.UNet2DModel:
            torch.manual_seed(seed)
            blocks = {
                "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
                "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
            }
            return diffusers.UNet2DModel(8, 3, 3, block_out_channels=(32, 32), norm_num_groups=8, **blocks)

        def picture(pipeline) -> np.ndarray:
            pipeline.set_progress_bar_config(disable=True)
            return pipeline(generator=torch.manual_seed(3), num_inference_steps=2, output_type="np").images

        pipeline = diffusers.DDPMPipeline(unet(0), diffusers.DDPMScheduler(num_train_timesteps=10))
        pipeline.save_pretrained(tmp_path / "one")
        changed(pipeline.unet).save_pretrained(tmp_path / "two" / "unet")
        pipeline.save_pretrained(tmp_path / "two")
        nz.compress_file(tmp_path / "two", tmp_path / "a.nz", base=tmp_path / "one")
        nz.decompress_file(tmp_path / "a.nz", tmp_path / "restored", base=tmp_path / "one")
        same_files(tmp_path / "two", tmp_path / "restored")

        expected = picture(diffusers.DDPMPipeline.from_pretrained(tmp_path / "two"))
        whole = from_pretrained(tmp_path / "a.nz", diffusers.DDPMPipeline, base=tmp_path / "one")
        # Kernels take another way where memory is aligned in another way.
        assert np.allclose(picture(whole), expected, rtol=0, atol=1e-5)
        assert not np.allclose(picture(diffusers.DDPMPipeline.from_pretrained(tmp_path / "one")), expected, atol=1e-3)
        part = from_pretrained(tmp_path / "a.nz", diffusers.UNet2DModel, base=tmp_path / "one", subfolder="unet")
        assert torch.equal(part.conv_in.weight, pipeline.unet.conv_in.weight)
        half = from_pretrained(
            tmp_path / "a.nz", diffusers.DDPMPipeline, base=tmp_path / "one", torch_dtype=torch.bfloat16
        )
        assert half.unet.dtype == torch.bfloat16
        with pytest.raises(errors.NotFoundError, match="no subfolder 'vae'"):
            from_pretrained(tmp_path / "a.nz", diffusers.UNet2DModel, base=tmp_path / "one", subfolder="vae")
