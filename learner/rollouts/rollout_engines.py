"""Samples rollouts in the learner's own process, with one of two engines behind one interface."""

import hashlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from learner.models.lora_policy import Policy
from learner.settings import LearnerSettings
from streams.core.errors import ConfigError


@dataclass(frozen=True)
class Rollout:
    """One answer the learner sampled for training."""

    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    """Includes the end token if there was one: ending is an action, and is learned."""
    behaviour_logprobs: tuple[float, ...]
    """Log-probability of each output token under the distribution that it was sampled from (with adapter and temperature), in nats."""
    finish: Literal["stop", "cut"]
    """``stop``: it ended by itself; ``cut``: at the token limit."""
    policy_version: int
    """The step whose adapter sampled it."""
    routing: tuple[int, ...] = ()
    """With ``replay_routing``: the experts that each token but the last went to, flat by token (prompt included), layer and expert."""

    @classmethod
    def of(cls, values: Sequence[Any]) -> "Rollout":
        """From its fields in order, as JSON gives them back."""
        prompt_ids, output_ids, logprobs, finish, version, routing = values
        return cls(tuple(prompt_ids), tuple(output_ids), tuple(logprobs), finish, version, tuple(routing))


Told = Callable[[int, int], None]
"""Hears how many tokens are sampled, and how many there will be at most."""


def unheard(sampled: int, at_most: int) -> None:
    """Ignores progress."""


class RolloutEngine(Protocol):
    """Samples groups of rollouts with the adapter it was last given."""

    name: str

    def adopt(self, policy: Policy, version: int) -> None:
        """Use the policy's current adapter, named ``version``, for sampling from now on."""

    def sample(self, prompts: Sequence[tuple[int, ...]], samples: int, max_output_tokens: int, temperature: float, seed: int,
               told: Told = unheard) -> list[Rollout]:  # fmt: skip
        """``samples`` rollouts of each prompt, group after group. Equal arguments and weights give equal rollouts. ``told`` receives progress."""

    def rest(self) -> None:
        """Free memory where possible: nothing will be sampled before the next ``adopt``."""

    def close(self) -> None:
        """Free all resources."""


class TransformersEngine:
    """Samples with the trainer's own weights: no second copy, nothing handed over, and a gap to the trainer near zero. Or, to sample while
    the trainer trains, with a policy of its own, whose adapter is a copy.

    The prompt's keys and values are computed once a group and shared out; rows that have ended leave the batch.
    """

    name = "transformers"

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._version = 0

    def adopt(self, policy: Policy, version: int) -> None:
        if policy is not self._policy:
            with torch.no_grad():
                for name, weight in self._policy.parameters.items():
                    weight.copy_(policy.parameters[name])
        self._version = version

    @torch.inference_mode()
    def sample(self, prompts: Sequence[tuple[int, ...]], samples: int, max_output_tokens: int, temperature: float, seed: int,
               told: Told = unheard) -> list[Rollout]:  # fmt: skip
        with self._policy.decoding():
            return self._sampled(prompts, samples, max_output_tokens, temperature, seed, told)

    def _sampled(self, prompts: Sequence[tuple[int, ...]], samples: int, max_output_tokens: int, temperature: float, seed: int,
                 told: Told) -> list[Rollout]:  # fmt: skip
        policy, eos = self._policy, self._policy.eos_id
        generator = torch.Generator(policy.device).manual_seed(seed)
        ids_PN, there_PN = _left_padded(prompts, eos, policy.device)
        cache = DynamicCache(config=policy.causal_lm.config)
        with _written_down(policy) as seen:
            logits_PV = policy.next_logits(input_ids=ids_PN, attention_mask=there_PN.long(), position_ids=_positions(there_PN), past_key_values=cache)
        routing = _by_row(seen, there_PN.flatten())
        per_prompt = [routing[n : n + len(ids)] for n, ids in zip(itertools.accumulate(map(len, prompts), initial=0), prompts, strict=False)]
        routes = [list(per_prompt[n // samples]) for n in range(len(prompts) * samples)]
        cache.batch_repeat_interleave(samples)
        logits_BV = logits_PV.repeat_interleave(samples, dim=0)
        there_BN = there_PN.repeat_interleave(samples, dim=0)
        rows = torch.arange(len(prompts) * samples, device=ids_PN.device)
        tokens: list[list[int]] = [[] for _ in range(len(rows))]
        logprobs: list[list[float]] = [[] for _ in range(len(rows))]
        sampled = 0
        for drawn in range(1, max_output_tokens + 1):
            token_B, logprob_B = _draw(logits_BV, temperature, generator)
            for row, token, logprob in zip(rows.tolist(), token_B.tolist(), logprob_B.tolist(), strict=True):
                tokens[row].append(token)
                logprobs[row].append(logprob)
            sampled += len(rows)
            goes_on_B = token_B != eos
            told(sampled, sampled + int(goes_on_B.sum()) * (max_output_tokens - drawn))
            if drawn == max_output_tokens or not bool(goes_on_B.any()):
                break
            if not bool(goes_on_B.all()):
                kept = goes_on_B.nonzero()[:, 0]
                cache.batch_select_indices(kept)
                rows, token_B, there_BN = rows[kept], token_B[kept], there_BN[kept]
            there_BN = torch.cat([there_BN, there_BN.new_ones(len(there_BN), 1)], dim=1)
            positions_B1 = _positions(there_BN)[:, -1:]
            with _written_down(policy) as seen:
                logits_BV = policy.next_logits(
                    input_ids=token_B[:, None], attention_mask=there_BN.long(), position_ids=positions_B1, past_key_values=cache
                )
            for row, route in zip(rows.tolist(), _by_row(seen), strict=False):
                routes[row].append(route)
        return [
            Rollout(prompts[n // samples], tuple(tokens[n]), tuple(logprobs[n]), "stop" if tokens[n][-1] == eos else "cut", self._version,
                    tuple(itertools.chain.from_iterable(routes[n])))
            for n in range(len(tokens))
        ]  # fmt: skip

    def rest(self) -> None:
        return None

    def close(self) -> None:
        return None


class VllmEngine:
    """vLLM in this process; it does not report progress. The adapter is handed over through a folder in memory, under a name of its own for
    every version: vLLM caches prefixes by adapter name, and merging would lose small updates in bfloat16."""

    name = "vllm"

    def __init__(self, policy: Policy, settings: LearnerSettings) -> None:
        if settings.replay_routing:
            raise ConfigError("learner.replay_routing = true needs learner.engine = transformers: what vLLM's routers chose is not read yet")
        if problem := policy.lora_targets.unserved(policy.family):
            raise ConfigError(f"learner.engine = vllm: {problem}")
        # Read when vllm is imported: one process for engine and trainer, and as many threads as the trainer has.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, settings.engine_memory_bytes >> 30)))
        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        threads = torch.get_num_threads()
        try:
            from vllm import LLM
        except ImportError as error:
            raise ConfigError(
                f"learner.engine = vllm, but vllm cannot be imported ({error}): install it, or set learner.engine = transformers"
            ) from None
        on_cpu = policy.device.type == "cpu"
        self._sleeps, self._asleep = settings.engine_sleeps and not on_cpu, False
        self._folder = Path(tempfile.mkdtemp(prefix="tidemill-adapter-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
        self._request: Any = None
        self._version = 0
        self._llm = LLM(
            model=str(policy.base), dtype=settings.precision, enable_lora=True, max_loras=1,
            max_lora_rank=_lora_rank(max(settings.rank, settings.expert_rank)),
            lora_target_modules=policy.lora_targets.vllm_modules,
            max_model_len=settings.max_prompt_tokens + settings.max_output_tokens, enforce_eager=on_cpu, logprobs_mode="processed_logprobs",
            max_num_seqs=settings.prompts_per_step * settings.samples_per_prompt, seed=settings.seed, disable_log_stats=True,
            gpu_memory_utilization=settings.engine_gpu_ratio, enable_sleep_mode=self._sleeps,
        )  # fmt: skip
        torch.set_num_threads(threads)  # its worker leaves this process with one thread otherwise

    def adopt(self, policy: Policy, version: int) -> None:
        from vllm.lora.request import LoRARequest

        if self._asleep:
            self._llm.wake_up()
            self._asleep = False
        if self._request is not None:  # before the next is written: it may have the same version, and then the same folder
            self._llm.llm_engine.remove_lora(self._request.lora_int_id)
            shutil.rmtree(self._request.lora_path, ignore_errors=True)
        folder = self._folder / f"v{version}"
        policy.save_adapter(folder)
        self._request = LoRARequest(f"learner@{version}", version + 1, str(folder))
        self._version = version

    def sample(self, prompts: Sequence[tuple[int, ...]], samples: int, max_output_tokens: int, temperature: float, seed: int,
               told: Told = unheard) -> list[Rollout]:  # fmt: skip
        from vllm import SamplingParams

        asked = [
            SamplingParams(n=samples, temperature=temperature, top_p=1.0, top_k=0, max_tokens=max_output_tokens, logprobs=0,
                           seed=seed_of(seed, index), detokenize=False)
            for index in range(len(prompts))
        ]  # fmt: skip
        given = [{"prompt_token_ids": list(ids)} for ids in prompts]
        return [
            Rollout(prompt, tuple(one.token_ids), tuple(step[token].logprob for step, token in zip(one.logprobs, one.token_ids, strict=True)),
                    "stop" if one.finish_reason == "stop" else "cut", self._version)
            for prompt, done in zip(prompts, self._llm.generate(given, asked, lora_request=self._request, use_tqdm=False), strict=True)
            for one in done.outputs
        ]  # fmt: skip

    def rest(self) -> None:
        if self._sleeps and not self._asleep:
            self._llm.sleep(level=1)  # weights move to the host's memory and back; the key-value cache is discarded
            self._asleep = True

    def close(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()
        shutil.rmtree(self._folder, ignore_errors=True)


def seed_of(seed: int, prompt: int) -> int:
    """The seed of one prompt's samples in one step, below 2^62. vLLM adds the sample's number to it, and steps' seeds follow each other too:
    without a hash, rollouts of one step would be those of the step before."""
    return int.from_bytes(hashlib.sha256(f"{seed} {prompt}".encode()).digest()[:8], "big") >> 2


def _written_down(policy: Policy) -> AbstractContextManager[list[Tensor]]:
    """Within, the routers' choices of each layer are put in the list; it stays empty when they are not replayed."""
    return policy.routing.recorded() if policy.routing is not None else nullcontext([])


def _by_row(seen: Sequence[Tensor], there_N: Tensor | None = None) -> list[list[int]]:
    """What was written down, token by token: layer after layer, expert after expert. Tokens that are padding are left out."""
    if not seen:
        return []
    chosen_NF = torch.cat(list(seen), dim=1)
    return (chosen_NF if there_N is None else chosen_NF[there_N]).tolist()


def _lora_rank(rank: int) -> int:
    """vLLM supports only certain ranks; this is the next larger one."""
    return next(size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank)


def _left_padded(prompts: Sequence[tuple[int, ...]], padding_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and where they are real, both [P, N]; padding on the left, so that all prompts end in the last column."""
    width = max(map(len, prompts))
    ids_PN = torch.full((len(prompts), width), padding_id, device=device)
    there_PN = torch.zeros(len(prompts), width, dtype=torch.bool, device=device)
    for row, prompt in enumerate(prompts):
        ids_PN[row, width - len(prompt) :] = torch.tensor(prompt, device=device)
        there_PN[row, width - len(prompt) :] = True
    return ids_PN, there_PN


def _positions(there_BN: Tensor) -> Tensor:
    """Position of each token in its own sequence, padding left out."""
    return (there_BN.long().cumsum(dim=1) - 1).clamp(min=0)


def _draw(logits_BV: Tensor, temperature: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One token a row from ``softmax(logits / temperature)``, and its log-probability in that same distribution."""
    logprobs_BV = torch.log_softmax(logits_BV.float() / temperature, dim=-1)
    summed_BV = logprobs_BV.exp().cumsum(dim=-1)  # inverse of the distribution function: one random number a row, not one a token
    point_B1 = torch.rand(len(logprobs_BV), 1, generator=generator, device=logprobs_BV.device) * summed_BV[:, -1:]
    token_B1 = torch.searchsorted(summed_BV, point_B1, right=True).clamp(max=logprobs_BV.shape[1] - 1)
    return token_B1[:, 0], logprobs_BV.gather(-1, token_B1)[:, 0]
