"""vLLM's engine for the adapter loader: called from the loader's thread, runs on the server's event loop. Implements AdapterEngine."""

import asyncio
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest, UnloadLoRAAdapterRequest
from vllm.sampling_params import SamplingParams

from actor.adapters.attestation import AttestationProbe
from actor.adapters.placed_tensors import METHOD, PlacedTensors
from actor.adapters.request_routing import Route, Router
from streams.core.errors import AttestationFailed, BadArtifact
from streams.core.events import new_id


class ServingEngine:
    """Loads, probes, routes and unloads adapters in vLLM."""

    def __init__(self, engine: Any, models: Any, router: Router, timeout_s: float) -> None:
        self._engine, self._models, self._router, self._timeout_s = engine, models, router, timeout_s
        self._loop = asyncio.get_running_loop()

    def load(self, name: str, folder: Path) -> None:
        answer = self._ask(self._models.load_lora_adapter(LoadLoRAAdapterRequest(lora_name=name, lora_path=str(folder))))
        if isinstance(answer, ErrorResponse):
            raise BadArtifact(f"vLLM cannot load {name}: {answer.error.message[:500]}")

    def placed(self, name: str, folder: Path) -> PlacedTensors:
        return self._ask(self._compare(name, folder))

    def probe(self, name: str | None, probes: tuple[AttestationProbe, ...]) -> list[list[float]]:
        return self._ask(self._probe_all(name, probes))

    def add(self, name: str, sha256: str) -> None:
        async def note() -> None:
            self._router.add(name, sha256)

        self._ask(note())

    def route(self, route: Route) -> None:
        async def switch() -> None:
            self._router.route = route

        self._ask(switch())

    def drop(self, name: str) -> None:
        self._ask(self._unload(name))

    def unload_idle(self) -> list[str]:
        async def unload() -> list[str]:
            names = self._router.idle()
            for name in names:
                self._router.remove(name)  # before the first await, so that no request can start with it
            for name in names:
                await self._unload(name)
            return names

        return self._ask(unload())

    async def _compare(self, name: str, folder: Path) -> PlacedTensors:
        """Each worker compares its memory; a tensor is in place when it is in all workers."""
        found = await self._engine.collective_rpc(METHOD, args=(self._models.lora_requests[name].lora_int_id, str(folder)))
        missing, hidden = ({each for one in found for each in one[what]} for what in ("missing", "hidden"))
        same = {each for one in found for each in one["same"]} - missing - hidden
        return PlacedTensors(tuple(sorted(same)), tuple(sorted(missing)), tuple(sorted(hidden - missing)))

    async def _probe_all(self, name: str | None, probes: tuple[AttestationProbe, ...]) -> list[list[float]]:
        longest = max(len(probe.prompt_ids) + len(probe.output_ids) for probe in probes)
        if longest >= self._engine.model_config.max_model_len:
            raise BadArtifact(f"a probe of {longest} tokens does not fit actor.max_model_tokens = {self._engine.model_config.max_model_len}")
        lora = None if name is None else self._models.lora_requests[name]
        return await asyncio.gather(*(self._probe(lora, probe) for probe in probes))

    async def _probe(self, lora: Any, probe: AttestationProbe) -> list[float]:
        """Log-probabilities of the output as part of a prompt: nothing is sampled, and the prefix cache is not used."""
        tokens = [*probe.prompt_ids, *probe.output_ids]
        params = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0.0)
        found: list[Any] = []
        async for output in self._engine.generate({"prompt_token_ids": tokens}, params, new_id("probe"), lora_request=lora):
            found = output.prompt_logprobs or found
        if len(found) != len(tokens):
            raise AttestationFailed(f"the engine gave logprobs of {len(found)} of {len(tokens)} tokens of a probe")
        start = len(probe.prompt_ids)
        return [position[token].logprob for token, position in zip(tokens[start:], found[start:], strict=True)]

    async def _unload(self, name: str) -> None:
        lora = self._models.lora_requests.get(name)
        await self._models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=name))
        if lora is not None:
            await self._engine.remove_lora(lora.lora_int_id)

    def _ask(self, coroutine: Any) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(self._timeout_s)
        except TimeoutError:
            future.cancel()
            raise AttestationFailed(f"the engine did not answer within actor.load_timeout_s = {self._timeout_s:g}") from None
