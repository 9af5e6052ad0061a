"""Text towers and tokenisers: the same numbers as transformers gives, and clear errors for folders that lack something."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fedmap.encoders.text import TextEncoder, make_text_encoder, masked_mean
from fedmap.encoders.tokens import HashingTokenizer, WordPieceTokenizer, pad
from fedmap.errors import ModelError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "robot", "love", "##s", "paints", "the", "sea", "."]
TEXTS = ["A robot loves the sea.", "the robot paints", "love", "unknown things, the sea . a robot paints the sea"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small real BertModel and its tokeniser, as transformers saves them."""
    from fedmap.encoders.torchvision_repair import import_transformers

    transformers = import_transformers()
    folder = tmp_path_factory.mktemp("towers") / "small-bert"
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, max_position_embeddings=32
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        transformers.BertModel(config).save_pretrained(folder)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS) + "\n")
    transformers.BertTokenizer(str(vocabulary)).save_pretrained(folder)
    return folder


def encode(encoder: TextEncoder, texts: list[str]) -> torch.Tensor:
    ids, mask = pad(encoder.tokenizer.encode(texts), encoder.tokenizer.padding)
    features: torch.Tensor = encoder.frozen(CPU)(torch.from_numpy(ids), torch.from_numpy(mask))
    return features


@pytest.mark.parametrize("pooling", ["pooler", "mean"])
def test_a_folder_gives_what_transformers_gives(bert_folder: Path, pooling: str) -> None:
    from transformers import AutoTokenizer, BertModel

    encoder = TextEncoder(str(bert_folder), pooling, max_length=12)
    batch = AutoTokenizer.from_pretrained(bert_folder)(TEXTS, padding=True, truncation=True, max_length=12, return_tensors="pt")
    ids, mask = pad(encoder.tokenizer.encode(TEXTS), encoder.tokenizer.padding)
    np.testing.assert_array_equal(ids, batch["input_ids"].numpy())
    np.testing.assert_array_equal(mask, batch["attention_mask"].numpy())
    with torch.no_grad():
        output = BertModel.from_pretrained(bert_folder).eval()(**batch)
    expected = output.pooler_output if pooling == "pooler" else masked_mean(output.last_hidden_state, batch["attention_mask"])
    assert encoder.width == 16
    torch.testing.assert_close(encode(encoder, TEXTS), expected, rtol=0, atol=1e-6)


def test_a_bare_vocabulary_tokenises_like_the_tokenizer_file(bert_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    plain, full = WordPieceTokenizer(tmp_path, 12, len(WORDS)), WordPieceTokenizer(bert_folder, 12, len(WORDS))
    assert [list(ids) for ids in plain.encode(TEXTS)] == [list(ids) for ids in full.encode(TEXTS)]


def test_texts_are_cut_to_the_maximum_and_padding_changes_no_feature(bert_folder: Path) -> None:
    encoder = TextEncoder(str(bert_folder), "mean", max_length=5)
    assert [len(ids) for ids in encoder.tokenizer.encode(["the sea " * 20, "love"])] == [5, 3]
    torch.testing.assert_close(encode(encoder, ["love", "the sea a robot"])[:1], encode(encoder, ["love"]), rtol=0, atol=1e-6)


def test_masked_mean_by_hand() -> None:
    states = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]], [[5.0, 6.0], [9.0, 9.0], [9.0, 9.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    torch.testing.assert_close(masked_mean(states, mask), torch.tensor([[2.0, 3.0], [5.0, 6.0]]))


def test_mean_pooling_has_no_untrained_pooler_to_send(bert_folder: Path) -> None:
    names = [name for name, _ in TextEncoder(str(bert_folder), "mean", 12).trainable().named_parameters()]
    assert names
    assert not [name for name in names if "pooler" in name]


def test_random_weights_come_from_the_callers_seed_and_pretrained_ones_leave_it_alone(bert_folder: Path) -> None:
    random = TextEncoder(str(bert_folder), "mean", 12, pretrained=False)
    for encoder, consumes in ((random, True), (TextEncoder(str(bert_folder), "mean", 12), False)):
        torch.manual_seed(3)
        before = torch.get_rng_state()
        encoder.trainable()
        assert torch.equal(before, torch.get_rng_state()) != consumes


def test_a_fingerprint_needs_no_tower_and_follows_content_and_settings(bert_folder: Path, tmp_path: Path) -> None:
    import shutil

    fingerprint = TextEncoder(str(bert_folder), "mean", 12).fingerprint
    copy = tmp_path / "copy"
    shutil.copytree(bert_folder, copy)
    assert TextEncoder(str(copy), "mean", 12).fingerprint == fingerprint
    others = {TextEncoder(str(copy), "pooler", 12).fingerprint, TextEncoder(str(copy), "mean", 11).fingerprint}
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(bytes(content))
    others.add(TextEncoder(str(copy), "mean", 12).fingerprint)
    assert len(others | {fingerprint}) == 4


def test_the_tiny_tower_is_the_same_in_every_process() -> None:
    code = (
        "import torch; from fedmap.encoders.text import make_text_encoder\n"
        "from fedmap.encoders.tokens import pad\n"
        "e = make_text_encoder('tiny'); ids, mask = pad(e.tokenizer.encode(['A robot loves the sea.']), 0)\n"
        "print(ids.tolist(), e.fingerprint, e.frozen(torch.device('cpu'))(torch.from_numpy(ids), torch.from_numpy(mask)).tolist())\n"
        "import sys; print('transformers' in sys.modules, 'torchvision' in sys.modules)"
    )
    outputs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}).stdout
        for seed in "12"
    }
    assert len(outputs) == 1
    assert outputs.pop().splitlines()[1] == "False False"


def test_hashed_words_ignore_case_and_punctuation_and_stay_in_range() -> None:
    tokenizer = HashingTokenizer(vocab_size=64, max_length=4)
    loud, quiet, empty, long = tokenizer.encode(["ROBOT, sea!", "robot sea", "...", "a b c d e f"])
    assert list(loud) == list(quiet)
    assert list(empty) == [1]
    assert len(long) == 4
    assert all(2 <= i < 64 for i in [*loud[1:], *long[1:]])


def test_padding_to_the_longest_of_the_batch() -> None:
    ids, mask = pad([np.array([1, 2, 3], np.int32), np.zeros(0, np.int32)], 9)
    assert ids.tolist() == [[1, 2, 3], [9, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 0]]
    assert pad([], 0)[0].shape == (0, 1)


def test_what_a_folder_may_lack(bert_folder: Path, tmp_path: Path) -> None:
    import shutil

    def without(*names: str) -> str:
        folder = tmp_path / "-".join(names)
        shutil.copytree(bert_folder, folder, ignore=lambda _, files: set(names) & set(files))
        return str(folder)

    with pytest.raises(ModelError, match=r"has no model\.safetensors.*pretrained_text=false"):
        TextEncoder(without("model.safetensors"), "mean", 12).trainable()
    with pytest.raises(ModelError, match=r"neither tokenizer\.json nor vocab\.txt"):
        TextEncoder(without("tokenizer.json", "vocab.txt"), "mean", 12).fingerprint  # noqa: B018
    broken = Path(without("special"))
    tensors = load_file(broken / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in tensors.items() if "pooler" not in name}, broken / "model.safetensors", metadata={"format": "pt"}
    )
    TextEncoder(str(broken), "mean", 12).trainable()
    with pytest.raises(ModelError, match=r"lacks 2 tensors.*pooler.*use text_pooling=mean"):
        TextEncoder(str(broken), "pooler", 12).trainable()
    (broken / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(ModelError, match="cannot be read"):
        TextEncoder(str(broken), "mean", 12).trainable()
    (broken / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="is not the configuration of a text tower"):
        TextEncoder(str(broken), "mean", 12)


def test_a_tokeniser_of_another_tower_is_refused(bert_folder: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "mixed"
    shutil.copytree(bert_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 7}))
    with pytest.raises(ModelError, match=r"13 tokens.*vocab_size=7"):
        TextEncoder(str(folder), "mean", 12).tokenizer.encode(["robot"])


def test_settings_out_of_range(bert_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"text_pooling='max': expected one of pooler, mean"):
        make_text_encoder(str(bert_folder), "max")
    with pytest.raises(ModelError, match=r"max_text_length=33.*3 to 32 tokens"):
        make_text_encoder(str(bert_folder), "mean", 33)
