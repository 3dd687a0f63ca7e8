"""transformers' models, two layers of 32 features each, from a configuration alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from models_sweep.definition import Batch, Definition
from torch import nn

# What most configurations of text models call the same, made small. Dropout draws differ between precisions.
SMALL = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    "attention_dropout": 0.0, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def ids(length: int = 9, **more: Callable[[], Any]) -> Callable[[], Batch]:
    """Token ids with the last two of one sentence padded."""

    def batch() -> Batch:
        mask = torch.ones(3, length, dtype=torch.long)
        mask[1, -2:] = 0
        words = torch.randint(3, 60, (3, length))
        return {"input_ids": words, "attention_mask": mask, **{name: make() for name, make in more.items()}}

    return batch


def model(kind: str, config: str, batch: Callable[[], Batch], **options: Any) -> tuple[str, Definition]:
    def make() -> nn.Module:
        import transformers

        made = getattr(transformers, kind)(getattr(transformers, config)(**options))
        if kind.startswith("Wav2Vec2"):
            made.freeze_feature_encoder()  # as it is fine-tuned; else it asks for a gradient of what is computed
        return made

    return f"transformers: {kind}", Definition(make, batch)


def pixels(size: int = 32, **more: Callable[[], Any]) -> Callable[[], Batch]:
    return lambda: {"pixel_values": torch.randn(4, 3, size, size), **{name: make() for name, make in more.items()}}


VISION = {"image_size": 32, "patch_size": 8, "num_labels": 5}

ZOO = dict(
    [
        model("BertForMaskedLM", "BertConfig", ids(), **SMALL),
        model("BertForSequenceClassification", "BertConfig", ids(), **SMALL, num_labels=5),
        model("RobertaForTokenClassification", "RobertaConfig", ids(), **SMALL, num_labels=5),
        model(
            "DistilBertForSequenceClassification", "DistilBertConfig", ids(), vocab_size=60, dim=32, n_layers=2,
            n_heads=4, hidden_dim=64, dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0,
        ),
        model(
            "DebertaV2ForSequenceClassification", "DebertaV2Config", ids(), **SMALL, num_labels=5,
            relative_attention=True, pos_att_type=["p2c", "c2p"], position_biased_input=False,
        ),
        model("AlbertForMaskedLM", "AlbertConfig", ids(), **SMALL, embedding_size=16),
        model("ElectraForPreTraining", "ElectraConfig", ids(), **SMALL, embedding_size=16),
        model(
            "GPT2LMHeadModel", "GPT2Config", ids(), vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=32,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        ),
        model("GPTNeoXForCausalLM", "GPTNeoXConfig", ids(), **SMALL, use_cache=False),
        model(
            "OPTForCausalLM", "OPTConfig", ids(), vocab_size=60, hidden_size=32, num_hidden_layers=2, ffn_dim=64,
            num_attention_heads=4, max_position_embeddings=32, word_embed_proj_dim=32, dropout=0.0, use_cache=False,
        ),
        model(
            "BloomForCausalLM", "BloomConfig", ids(), vocab_size=60, hidden_size=32, n_layer=2, n_head=4,
            hidden_dropout=0.0, attention_dropout=0.0, use_cache=False,
        ),
        model(
            "GemmaForCausalLM", "GemmaConfig", ids(), **SMALL, num_key_value_heads=2, head_dim=8, use_cache=False
        ),
        model("LlamaForCausalLM", "LlamaConfig", ids(), **SMALL, num_key_value_heads=2, use_cache=False),
        model(
            "MixtralForCausalLM", "MixtralConfig", ids(), **SMALL, num_key_value_heads=2, num_local_experts=4,
            use_cache=False,
        ),
        model(
            "Qwen3MoeForCausalLM", "Qwen3MoeConfig", ids(), **SMALL, num_key_value_heads=2, num_experts=4,
            num_experts_per_tok=2, moe_intermediate_size=48, head_dim=8, use_cache=False,
        ),
        model("Qwen2ForCausalLM", "Qwen2Config", ids(), **SMALL, num_key_value_heads=2, use_cache=False),
        model(
            "MambaForCausalLM", "MambaConfig", ids(), vocab_size=60, hidden_size=32, num_hidden_layers=2, state_size=8,
            use_cache=False,
        ),
        model(
            "T5ForConditionalGeneration", "T5Config", ids(decoder_input_ids=lambda: torch.randint(3, 60, (3, 5))),
            vocab_size=60, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0, use_cache=False,
        ),
        model(
            "BartForConditionalGeneration", "BartConfig",
            ids(decoder_input_ids=lambda: torch.randint(3, 60, (3, 5))),
            vocab_size=60, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=32, dropout=0.0,
            use_cache=False,
        ),
        model("ViTForImageClassification", "ViTConfig", pixels(), **SMALL, **VISION),
        model("Dinov2ForImageClassification", "Dinov2Config", pixels(), **SMALL, **VISION),
        model(
            "SegformerForSemanticSegmentation", "SegformerConfig", pixels(64), num_labels=5,
            hidden_sizes=[8, 16, 32, 64],
            depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 4, 8], decoder_hidden_size=32, drop_path_rate=0.0,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout_prob=0.0,
        ),
        model(
            "CLIPModel", "CLIPConfig", ids(pixel_values=lambda: torch.randn(4, 3, 32, 32)), projection_dim=16,
            text_config=SMALL | {"eos_token_id": 1, "bos_token_id": 2},
            vision_config=SMALL | {"image_size": 32, "patch_size": 8},
        ),
        model(
            "WhisperForConditionalGeneration", "WhisperConfig",
            lambda: {"input_features": torch.randn(2, 16, 40), "decoder_input_ids": torch.randint(3, 60, (2, 5))},
            vocab_size=60, num_mel_bins=16, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_source_positions=20,
            max_target_positions=16, dropout=0.0, use_cache=False, pad_token_id=0, bos_token_id=1, eos_token_id=2,
            decoder_start_token_id=1, suppress_tokens=None, begin_suppress_tokens=None,
        ),
        model(
            "Wav2Vec2ForCTC", "Wav2Vec2Config", lambda: {"input_values": torch.randn(2, 800)}, **SMALL,
            conv_dim=[16, 16],
            conv_stride=[5, 4], conv_kernel=[10, 8], num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=4,
            hidden_dropout=0.0, activation_dropout=0.0, feat_proj_dropout=0.0, final_dropout=0.0, layerdrop=0.0,
            apply_spec_augment=False, mask_time_prob=0.0,
        ),
    ]
)  # fmt: skip
