"""Serves an adapter on a tiny model of one family with vLLM, and says how far that is from plain PEFT: ``family_serving.py KIND TOKENIZER FOLDER``.

A process of its own, which writes ``found.json`` into FOLDER: log-probabilities on a prompt (as attestation reads them) and of what is decoded (as
people get it), and the adapter's tensors that the engine holds.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

MLP = ("gate_proj", "up_proj", "down_proj")
IDS = (1, 50, 900, 44, 7, 3000, 12, 2000, 41)
DECODED = 12


def serve(kind: str, tokenizer_of: Path, folder: Path, timeout_s: float = 500) -> dict[str, Any]:
    """Run in a child process; its findings."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-m", "tests.support.family_serving", kind, str(tokenizer_of), str(folder)]
    done = subprocess.run(command, timeout=timeout_s, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-4000:]
    return dict(json.loads((folder / "found.json").read_text()))


def main(kind: str, tokenizer_of: Path, folder: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from learner.models.lora_policy import Policy
    from learner.settings import LearnerSettings
    from reward.families.known_families import family_of
    from tests.support.tiny_models import tiny_model

    base, adapter = tiny_model(kind, folder / "base", tokenizer_of), folder / "adapter"
    family = family_of(kind)
    assert family is not None
    targets: dict[str, Any] = {"shared_targets": MLP} if family.shared else {}
    if family.experts is None:
        targets = {"attention_targets": (*family.served_attention, *MLP)}
    expert_rank = 4 if family.experts and not family.shared else 0  # with both, plain PEFT takes the pattern of ranks for an older adapter's
    policy = Policy(base, LearnerSettings(dtype="float32", rank=8, expert_rank=expert_rank, **targets))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in policy.parameters.values():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    policy.save_adapter(adapter)
    found = _served(base, adapter, family.lora_modules)
    whole = torch.tensor([[*IDS, *found.pop("decoded")]])
    model = AutoModelForCausalLM.from_pretrained(str(base), dtype=torch.float32, attn_implementation="eager").eval()
    plain = PeftModel.from_pretrained(model, str(adapter)).eval()

    def logprobs(module: Any) -> torch.Tensor:
        with torch.no_grad():
            return torch.log_softmax(module(whole).logits[0, :-1].float(), -1).gather(-1, whole[0, 1:, None])[:, 0]

    with plain.disable_adapter():
        base_N = logprobs(plain)
    own_N, prompt = logprobs(plain), len(IDS) - 1
    served = torch.tensor(found.pop("prompt") + found.pop("output"))
    found |= {
        "prompt_gap": float((served - own_N)[:prompt].abs().max()), "decoded_gap": float((served - own_N)[prompt:].abs().max()),
        "step": float((own_N - base_N).abs().mean()), "base_gap": float((torch.tensor(found.pop("base")) - base_N[:prompt]).abs().max()),
        "exported": len(policy.adapter()), "groups": list(policy.groups),
    }  # fmt: skip
    (folder / "found.json").write_text(json.dumps(found, indent=1))


def _served(base: Path, adapter: Path, modules: tuple[str, ...]) -> dict[str, Any]:
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1",
                   "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING", "TORCHDYNAMO_DISABLE": "1"}  # fmt: skip
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    from actor.adapters.placed_tensors import EXTENSION, METHOD

    llm = LLM(model=str(base), dtype="float32", enable_lora=True, max_loras=2, max_lora_rank=16, lora_target_modules=list(modules), max_model_len=128,
              enforce_eager=True, max_num_seqs=4, worker_extension_cls=EXTENSION, disable_log_stats=True)  # fmt: skip
    asked = SamplingParams(temperature=0.0, max_tokens=DECODED, logprobs=0, prompt_logprobs=0, ignore_eos=True)
    request = LoRARequest("tried", 1, str(adapter))
    (own,) = llm.generate([{"prompt_token_ids": list(IDS)}], [asked], lora_request=request, use_tqdm=False)
    (plain,) = llm.generate([{"prompt_token_ids": list(IDS)}], [asked], use_tqdm=False)

    def on_prompt(answer: Any) -> list[float]:
        return [place[token].logprob for token, place in zip(IDS[1:], answer.prompt_logprobs[1:], strict=True)]

    output = own.outputs[0]
    (placed,) = llm.llm_engine.collective_rpc(METHOD, args=(1, str(adapter)))
    return {
        "prompt": on_prompt(own), "base": on_prompt(plain), "decoded": list(output.token_ids),
        "output": [step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)],
        "same": placed["same"], "missing": placed["missing"],
    }  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
