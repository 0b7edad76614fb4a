"""Fields of a published config.json that do not change what a forward pass computes.

A field is listed only if no forward pass of the reference implementation reads it, for any of the model types; a
slow test sets each of them on the reference and compares logits. Two kinds:

- INERT: has no effect in any value.
- NEUTRAL: names a feature. It has no effect in the one value that says the feature is off; any other value is an error.

Not listed, so that they are errors: a top-level `original_max_position_embeddings`, which takes the place of the one in
`rope_scaling`; whatever `rope_scaling` holds and the scaling does not read; windows and chunks of attention.
"""

import re
from typing import Any

# Training. Dropout acts in training only.
TRAINING = """
    attention_dropout attn_pdrop aux_loss_alpha classifier_dropout embd_pdrop ep_size gradient_checkpointing
    hidden_dropout hidden_dropout_prob initializer_range neftune_noise_alpha num_mtp_layers num_nextn_predict_layers
    output_router_logits pretraining_tp resid_pdrop residual_dropout router_aux_loss_coef seq_aux
"""
# Sampling. The reference drops these fields from a config, or keeps them in generation_config.json.
SAMPLING = """
    assistant_confidence_threshold assistant_early_exit assistant_lookbehind bad_words_ids begin_suppress_tokens
    cache_config cache_implementation constraints diversity_penalty disable_compile do_sample dola_layers early_stopping
    encoder_no_repeat_ngram_size encoder_repetition_penalty epsilon_cutoff eta_cutoff
    exponential_decay_length_penalty force_words_ids guidance_scale is_assistant length_penalty low_memory
    max_length max_matching_ngram_size max_new_tokens max_time min_length min_new_tokens min_p no_repeat_ngram_size
    num_assistant_tokens num_assistant_tokens_schedule num_beam_groups num_beams num_return_sequences
    output_logits output_scores penalty_alpha prefill_chunk_size prompt_lookup_num_tokens remove_invalid_values
    renormalize_logits repetition_penalty return_dict_in_generate sequence_bias stop_strings suppress_tokens
    target_lookbehind temperature token_healing top_h top_k top_p typical_p use_mtp watermarking_config
"""
# Labels of a classifier (the classes read here have none), and the task of a fine-tune.
LABELS = "_num_labels finetuning_task id2label label2id num_labels prefix problem_type task_specific_params"
# The tokenizer and its lengths. Ids of tokens are below, in PATTERNS.
TOKENIZER = """
    bos_token chat_template cls_token eos_token mask_token max_sequence_length model_max_length pad_token
    processor_class sep_token tokenizer_class tokenizer_model_max_length tokenizer_padding_side unk_token
"""
# Which outputs a call returns, and which kernels compute them.
EXECUTION = """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _experts_implementation
    _experts_implementation_internal _flash_attn_2_enabled _output_attentions attn_implementation
    chunk_size_feed_forward experts_implementation output_attentions output_hidden_states return_dict tf_legacy_loss
    tie_last_hidden_states torchscript use_bfloat16 use_cache use_flash_attention use_flash_attention_2 use_flash_attn
"""
# Storage of the weights, which the package `weights` reads, and the library or tool that wrote the file.
STORAGE = """
    _commit_hash _name_or_path compression_config dtype is_llama_config model_type name_or_path quantization
    quantization_config torch_dtype transformers.js_config transformers_version
"""
INERT = frozenset(" ".join((TRAINING, SAMPLING, LABELS, TOKENIZER, EXECUTION, STORAGE)).split())
# Inert names by pattern: ids of tokens, and fields that Unsloth adds. `experts_per_token` is not inert.
PATTERNS = (r"[a-z0-9_]+_token_(id|ids|index)", r"unsloth_[a-z0-9_]+")
_PATTERN = re.compile("|".join(PATTERNS))

# Features that none of the architectures has, each with the value that turns it off.
NEUTRAL: dict[str, Any] = {
    "add_cross_attention": False,
    "is_causal": True,  # the reference drops the causal mask where it is false
    "is_decoder": False,
    "is_encoder_decoder": False,
    "partial_rotary_factor": 1.0,  # the share of a head's width that is rotated
    "pruned_heads": {},
    "tie_encoder_decoder": False,
}

# A multimodal wrapper's own fields: the text part is read, the vision part is not built.
VISION = frozenset(
    """
    audio_config mm_tokens_per_image multimodal_projector_bias projector_hidden_act spatial_merge_size text_config
    vision_config vision_feature_layer
    """.split()
)


def is_inert(name: str) -> bool:
    """Whether the field has no effect on a forward pass, whatever its value."""
    return name in INERT or _PATTERN.fullmatch(name) is not None


def alike(one: Any, other: Any) -> bool:
    """Whether two values are equal, and both or neither are bools."""
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)
