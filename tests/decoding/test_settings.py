"""What cannot be exact is refused by name."""

from __future__ import annotations

import pytest
import torch
import transformers

from lessen.decoding import Decoder
from lessen.errors import ConfigError, InputError, NonFiniteError
from tiny_models import FLAT, llama, plain


@pytest.fixture(scope="module")
def decoder(model):
    return Decoder(model, costs=FLAT)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_beams": 3}, "num_beams=3"),
        ({"cache_implementation": "static"}, "cache_implementation='static'"),
        ({"cache_implementation": "quantized"}, "cannot be cut"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate"),
        ({"output_scores": True, "return_dict_in_generate": True}, "refused"),
        ({"prompt_lookup_num_tokens": 10}, "prompt_lookup_num_tokens"),
        ({"use_cache": False}, "use_cache"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_length": 3}, "max_length=3"),
        ({"no_such_option": 1}, "no_such_option"),
        ({"stop_strings": ["x"]}, "tokenizer"),
        ({"inputs_embeds": torch.zeros(1, 1, 32)}, "inputs_embeds"),
        ({"assistant_model": object()}, "assistant_model"),
    ],
)
def test_arguments_that_cannot_be_exact_are_refused_by_name(decoder, options, named):
    with pytest.raises(ConfigError, match=named):
        decoder.generate(torch.tensor([[5, 6, 7, 8]]), **options)


@pytest.mark.parametrize(
    ("prompts", "named"),
    [
        ([], "no prompt"),
        ([[5], []], "prompt 1 is empty"),
        ([[5] * 128], "context is 128"),
        ([[5, 40]], "token 40"),
        ([[-1]], "token -1"),
    ],
)
def test_bad_prompts_are_refused_by_name(decoder, prompts, named):
    with pytest.raises(InputError, match=named):
        decoder.complete(prompts, max_new_tokens=3)


def test_bad_tensors_are_refused(decoder):
    with pytest.raises(InputError, match="batch, length"):
        decoder.generate(torch.tensor([5, 6]))
    with pytest.raises(InputError, match="attention_mask"):
        decoder.generate(torch.tensor([[5, 6]]), torch.ones(1, 3))
    with pytest.raises(InputError, match="prompt 0 is empty"):
        decoder.generate(torch.tensor([[5, 6]]), torch.zeros(1, 2))
    with pytest.raises(ConfigError, match="streamer"):
        decoder.generate(torch.tensor([[5, 6], [7, 8]]), streamer=object())


def test_recurrent_models_are_refused():
    config = transformers.MambaConfig(vocab_size=40, hidden_size=32, num_hidden_layers=1)
    with pytest.raises(InputError, match="MambaForCausalLM keeps a recurrent cache"):
        Decoder(transformers.MambaForCausalLM(config).eval(), costs=FLAT)


def test_a_model_that_leaves_its_cache_out_by_default_is_decoded_with_one():
    torch.manual_seed(0)
    config = transformers.MptConfig(vocab_size=40, d_model=32, n_heads=4, n_layers=2, initializer_range=0.3)
    model = transformers.MptForCausalLM(config).eval()
    assert model.generation_config.use_cache is False
    decoder = Decoder(model, costs=FLAT)
    for prompt in ([5, 6, 7] * 5, [9, 8]):
        want = plain(model, prompt, 20, pad_token_id=0)
        assert decoder.complete([prompt], max_new_tokens=20)[0].tokens == want
    with pytest.raises(ConfigError, match="use_cache=False"):
        decoder.complete([[5]], max_new_tokens=2, use_cache=False)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"num_return_sequences": 2, "do_sample": True}, "generate"),
        ({"repetition_penalty": 0.0}, "penalty"),
        ({"suppress_tokens": "x"}, "generate"),
    ],
)
def test_arguments_of_a_completion_are_refused_by_name(decoder, options, named):
    with pytest.raises(ConfigError, match=named):
        decoder.complete([[5, 6]], max_new_tokens=2, **options)


def test_encoder_decoders_and_strangers_are_refused():
    config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(InputError, match="encoder-decoder"):
        Decoder(transformers.T5ForConditionalGeneration(config).eval(), costs=FLAT)
    with pytest.raises(InputError, match="Linear is no Hugging Face language model"):
        Decoder(torch.nn.Linear(2, 2), costs=FLAT)


def test_training_mode_is_refused():
    with pytest.raises(InputError, match=r"call model.eval\(\)"):
        Decoder(llama().train(), costs=FLAT)


def test_nan_weights_are_found_before_decoding_and_nan_logits_while_decoding():
    damaged = llama()
    damaged.lm_head.weight.data[3, 3] = float("nan")
    with pytest.raises(NonFiniteError, match="weights are damaged"):
        Decoder(damaged, costs=FLAT)
    model = llama()
    decoder = Decoder(model, costs=FLAT)
    model.model.embed_tokens.weight.data[17] = float("nan")
    with pytest.raises(NonFiniteError, match="NaN or infinite logits"):
        decoder.complete([[16, 17, 18]], max_new_tokens=3)


@pytest.mark.parametrize("options", [{"key_length": 0}, {"remember": -1}])
def test_bad_decoder_options_are_refused(model, options):
    with pytest.raises(ConfigError, match="key_length"):
        Decoder(model, costs=FLAT, **options)
