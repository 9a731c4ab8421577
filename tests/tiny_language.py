"""A language model of 300 tokens and 16 dimensions with fixed random weights, and text for it: no download needed."""

import json
import warnings
from pathlib import Path

import numpy as np
import torch

VOCABULARY, WIDTH, LAYERS = 300, 16, 3
END = "<|endoftext|>"
_MERGES = ("t h", "th e", "a n", "an d", "i n", "e r", "o f", "Ġ the", "Ġ and", "Ġ of")

_STORY = (
    "the river and the stone of an old mill turn in winter when ice and snow hold the wheel still "
    "until thaw brings water grain flour bread then evening over quiet fields"
)


def tiny_model(folder: Path) -> Path:
    """A Llama-shaped causal model (3 layers, 2 heads) and a byte-level tokenizer; returns the folder."""
    import transformers

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=LAYERS,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=False,
        bos_token_id=256 + len(_MERGES), eos_token_id=256 + len(_MERGES), initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):  # transformers draws first weights, which are replaced
        model = transformers.LlamaForCausalLM(config)
    generator = np.random.default_rng(20250614)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = generator.standard_normal(tuple(weight.shape), dtype=np.float32)
            # Norms differ from ones, so that a model drawn anew is told from one that kept them.
            weight.copy_(torch.from_numpy(1 + 0.1 * drawn if "norm" in name else 0.3 * drawn))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
        _tokenizer(transformers).save_pretrained(folder)
    return folder


def _tokenizer(transformers):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    merges = [tuple(pair.split()) for pair in _MERGES]
    # Sorted, because the alphabet comes in another order in every process.
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet()) + ["".join(pair) for pair in merges] + [END]
    made = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=END, eos_token=END, clean_up_tokenization_spaces=False
    )


def tiny_text(folder: Path, scale: int = 1) -> Path:
    """Documents of about 3,600 tokens in all (times `scale`): among them one that is empty, one of a single token,
    one that is not UTF-8, one in a subfolder and a hidden file that is not text; returns the folder."""
    folder = Path(folder)
    (folder / "more").mkdir(parents=True, exist_ok=True)
    generator, vocabulary = np.random.default_rng(7), _STORY.split()
    for number, length in enumerate((9, 40, 150, 300, 60, 5)):
        words = generator.choice(vocabulary, length * scale)
        (folder / f"document-{number}.txt").write_text(" ".join(words) + ".\n")
    (folder / "more" / "deep.txt").write_text(" ".join(generator.choice(vocabulary, 200 * scale)) + "\n")
    (folder / "empty.txt").write_text("")
    (folder / "one-token.txt").write_text("x")
    (folder / "not-utf8.txt").write_bytes(b"caf\xe9 \xff\xfe and the snow\n")
    (folder / ".hidden.json").write_text(json.dumps({"not": "text"}))
    return folder
