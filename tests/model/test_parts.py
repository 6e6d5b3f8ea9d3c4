from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, SiglipVisionConfig, SiglipVisionModel

from llavamed.errors import InputError
from llavamed.model import chat, folder, parts
from llavamed.model.folder import Assembled
from llavamed.model.parts import build, trainable_parameters
from llavamed.recipe import ModelSection


def picture(width: int = 90, height: int = 60, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8))


def inputs(assembled: Assembled, image: Image.Image) -> dict[str, torch.Tensor]:
    text = "<s>[INST] <image>\nWhat is shown? [/INST]"
    return dict(assembled.processor(images=image, text=text, add_special_tokens=False, return_tensors="pt"))


def test_the_shipped_tiny_parts_join_and_answer() -> None:
    tiny = build(ModelSection(), seed=0)
    assert chat.image_tokens(tiny.processor) == 36  # 96 pixels in patches of 16
    assert torch.isfinite(tiny.model(**inputs(tiny, picture())).logits).all()
    assert {p.dtype for p in tiny.model.parameters()} == {torch.float32}, "not the checkpoint's own dtype"


def test_pretrained_weights_arrive_unchanged_and_the_projector_follows_the_seed(
    build_small: Callable[..., Assembled], tower: Path, language_model: Path
) -> None:
    from transformers import CLIPVisionModel, MistralForCausalLM

    first, same, other = build_small(seed=3), build_small(seed=3), build_small(seed=4)
    for name, value in CLIPVisionModel.from_pretrained(tower).state_dict().items():
        assert torch.equal(first.model.model.vision_tower.state_dict()[name], value), name
    for name, value in MistralForCausalLM.from_pretrained(language_model).model.state_dict().items():
        assert torch.equal(first.model.model.language_model.state_dict()[name], value), name
    weight = [m.model.model.multi_modal_projector.linear_1.weight for m in (first, same, other)]
    assert torch.equal(weight[0], weight[1])
    assert not torch.equal(weight[0], weight[2])


def test_building_leaves_the_global_random_state_alone(build_small: Callable[..., Assembled]) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    build_small(seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_one_layer_projector_is_exactly_one_linear_layer(build_small: Callable[..., Assembled]) -> None:
    model = build_small(projector_layers=1).model
    projector = model.model.multi_modal_projector
    features = torch.randn(5, 32)
    assert torch.equal(projector(features), projector.linear_1(features))
    chosen = trainable_parameters(model, ("projector",))
    assert set(chosen["projector"]) == {
        "model.multi_modal_projector.linear_1.weight",
        "model.multi_modal_projector.linear_1.bias",
    }


def test_trainable_parameters_freezes_all_but_the_parts_named(build_small: Callable[..., Assembled]) -> None:
    model = build_small().model
    chosen = trainable_parameters(model, ("projector", "language_model"))
    assert list(chosen) == ["projector", "language_model"]
    trained = {name for part in chosen.values() for name in part}
    assert trained == {name for name, p in model.named_parameters() if p.requires_grad}
    assert "lm_head.weight" in chosen["language_model"]
    assert not any("vision_tower" in name for name in trained)
    every = trainable_parameters(model, tuple(parts.PREFIXES))
    assert sum(p.numel() for part in every.values() for p in part.values()) == sum(
        p.numel() for p in model.parameters()
    )


def test_mean_embedding_start_shows_every_patch_as_the_mean_token(build_small: Callable[..., Assembled]) -> None:
    model = build_small(projector_init="mean_embedding").model
    mean = model.get_input_embeddings().weight.mean(0)
    shown = model.model.multi_modal_projector(torch.randn(4, 32))
    torch.testing.assert_close(shown, mean.expand(4, -1))


def test_missing_tokens_are_added_at_the_mean_of_the_old_rows(
    tower: Path, write_language_model: Callable[..., Path], tmp_path: Path
) -> None:
    bare = write_language_model(tmp_path / "bare", specials=("<unk>", "<s>", "</s>"))
    joined = build(ModelSection(vision_tower=str(tower), language_model=str(bare), image_wrap=True), seed=0)
    tokenizer, table = joined.processor.tokenizer, joined.model.get_input_embeddings().weight
    new = ["<image>", "<im_start>", "<im_end>", "<pad>"]
    assert tokenizer.pad_token == "<pad>"
    assert len(table) == len(tokenizer) == joined.model.config.text_config.vocab_size
    for token in new:
        row = tokenizer.convert_tokens_to_ids(token)
        assert tokenizer.encode(token, add_special_tokens=False) == [row]
        torch.testing.assert_close(table[row], table[: -len(new)].mean(0))
    assert joined.model.config.image_token_id == tokenizer.convert_tokens_to_ids("<image>")


def test_padding_to_a_square_is_llavas_expand2square_in_the_mean_colour(build_small: Callable[..., Assembled]) -> None:
    image = picture(90, 60)
    mean = (0.48145466, 0.4578275, 0.40821073)
    square = Image.new("RGB", (90, 90), tuple(int(x * 255) for x in mean))  # haotian-liu/LLaVA, mm_utils.expand2square
    square.paste(image, (0, 15))
    padded, plain = build_small(), build_small(pad_to_square=False)
    ours = padded.processor.image_processor(image, return_tensors="pt")["pixel_values"]
    theirs = plain.processor.image_processor(square, return_tensors="pt")["pixel_values"]
    assert ours.shape == (1, 3, 48, 48)
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, plain.processor.image_processor(image, return_tensors="pt")["pixel_values"])


def test_without_padding_the_towers_own_preprocessing_is_kept(
    build_small: Callable[..., Assembled], tower: Path
) -> None:
    from transformers import AutoImageProcessor

    own = AutoImageProcessor.from_pretrained(tower, backend="pil")
    ours = build_small(pad_to_square=False).processor.image_processor
    for image in (picture(90, 60), picture(60, 90), picture(48, 48), picture(300, 31)):
        assert torch.equal(
            ours(image, return_tensors="pt")["pixel_values"], own(image, return_tensors="pt")["pixel_values"]
        )


def test_the_vision_half_of_a_whole_clip_serves_as_a_tower(tower: Path, language_model: Path, tmp_path: Path) -> None:
    vision = json.loads((tower / "config.json").read_text())
    text = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 9,
    }
    torch.manual_seed(0)
    whole = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=8))
    whole.save_pretrained(tmp_path)
    shutil.copy(tower / "preprocessor_config.json", tmp_path)
    joined = build(ModelSection(vision_tower=str(tmp_path), language_model=str(language_model)), seed=0)
    for name, value in whole.vision_model.state_dict().items():
        assert torch.equal(joined.model.model.vision_tower.state_dict()[name], value), name


def test_a_siglip_tower_has_no_class_token_to_drop(language_model: Path, tmp_path: Path) -> None:
    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=48, patch_size=16
    )
    SiglipVisionModel(config).save_pretrained(tmp_path / "tower")
    settings = {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": 48, "width": 48},
        "resample": 3,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (tmp_path / "tower" / "preprocessor_config.json").write_text(json.dumps(settings))
    joined = build(ModelSection(vision_tower=str(tmp_path / "tower"), language_model=str(language_model)), seed=0)
    assert chat.image_tokens(joined.processor) == joined.model.config.image_seq_length == 9
    folder.save(joined, tmp_path / "model")
    again = folder.load(tmp_path / "model")
    batch = inputs(joined, picture())
    assert torch.equal(joined.model(**batch).logits, again.model(**batch).logits)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vision_tower": "./nowhere"}, "no such folder"),
        ({"language_model": "somewhere/else-entirely"}, "hf download somewhere/else-entirely"),
        ({"feature_layer": -9}, "the tower has 3 layers"),
    ],
)
def test_a_part_that_cannot_be_had_says_what_to_do(
    build_small: Callable[..., Assembled], changes: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        build_small(**changes)


def test_a_language_model_is_no_tower(language_model: Path) -> None:
    with pytest.raises(InputError, match="cannot serve as a tower"):
        build(ModelSection(vision_tower=str(language_model)), seed=0)


def test_a_part_that_lacks_a_tensor_is_refused_not_filled_at_random(
    tower: Path, language_model: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(tower, tmp_path / "tower")
    tensors = load_file(tower / "model.safetensors")
    lost = next(name for name in tensors if name.endswith("layers.1.mlp.fc1.weight"))
    del tensors[lost]
    save_file(tensors, tmp_path / "tower" / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"missing tensors, first .*layers\.1\.mlp\.fc1\.weight"):
        build(ModelSection(vision_tower=str(tmp_path / "tower"), language_model=str(language_model)), seed=0)


def test_pickled_parts_are_refused(tower: Path, language_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    shutil.copytree(tower, tmp_path / "tower")
    torch.save(load_file(tower / "model.safetensors"), tmp_path / "tower" / "pytorch_model.bin")
    (tmp_path / "tower" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="safetensors"):
        build(ModelSection(vision_tower=str(tmp_path / "tower"), language_model=str(language_model)), seed=0)


def test_init_from_goes_on_from_a_finished_folder(build_small: Callable[..., Assembled], tmp_path: Path) -> None:
    first = build_small(seed=5)
    folder.save(first, tmp_path / "model")
    again = build(ModelSection(init_from=str(tmp_path / "model")), seed=6)
    for name, value in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
    with pytest.raises(InputError, match="no such folder"):
        build(ModelSection(init_from="nowhere"), seed=0)


@pytest.mark.parametrize("ask", [lambda section: build(section, seed=0), parts.processor])
def test_what_init_from_decides_may_not_be_set_beside_it(
    assembled: Assembled, tmp_path: Path, ask: Callable[[ModelSection], object]
) -> None:
    folder.save(assembled, tmp_path / "model")
    section = ModelSection(init_from=str(tmp_path / "model"), chat_template="vicuna", pad_to_square=False)
    with pytest.raises(InputError, match=r"model\.chat_template=vicuna, model\.pad_to_square=False: without effect"):
        ask(section)
