"""The sampled tokens' log-probabilities only: capture requests them from vLLM without the extra work that a client's logprobs need.

vLLM decodes the text of every token whose logprob it gives, one token at a time and once more than its answer needs. Capture keeps ids, so its
requests pass that by. A client that asks for logprobs gets vLLM's own, text and all.
"""

from typing import Any


def ask_alone(params: Any) -> None:
    """Turn the sampled tokens' logprobs on; they come as one flat list. No door of vLLM's server sets ``flat_logprobs``: it marks our requests."""
    params.logprobs, params.flat_logprobs = 0, True


def leave_out_text() -> None:
    """Let this process's vLLM give what was asked for alone without text. Imports it; once is enough, twice does no harm."""
    from vllm.v1.engine.logprobs import LogprobsProcessor

    begin = LogprobsProcessor.from_new_request

    def from_new_request(_: Any, tokenizer: Any, request: Any) -> Any:
        asked = request.sampling_params
        return begin(None if asked.flat_logprobs and asked.logprobs == 0 else tokenizer, request)

    LogprobsProcessor.from_new_request = classmethod(from_new_request)
