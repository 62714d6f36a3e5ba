"""One step of learning, as data: prompts in, a better adapter and the step's figures out."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Protocol

import torch
from torch import Tensor

from learner.models.lora_policy import Policy
from learner.models.value_head import ValueHead
from learner.objectives import advantages, losses
from learner.objectives.hindsight_objective import HindsightObjective
from learner.objectives.reward_shaping import shaped
from learner.objectives.rollout_objective import RolloutObjective
from learner.objectives.thumb_objective import ThumbObjective
from learner.ring.labelled_answers import LabelledAnswer, advised
from learner.rollouts.rollout_engines import Rollout, RolloutEngine, Told, seed_of, unheard
from learner.runs.learning_rate import learning_rate
from learner.runs.step_progress import StepTeller, tell_nobody
from learner.settings import LearnerSettings
from streams.core.chat_prompt import Prompt as Prompt
from streams.core.errors import InvalidEvent, StalePolicy


class Scorer(Protocol):
    """Scores answers: a reward model, or a plain function in tests."""

    def __call__(self, pairs: Sequence[tuple[Prompt, str]]) -> Sequence[float]: ...


class Objective(Protocol):
    """One objective of a step (rollouts, thumbs, words)."""

    @property
    def tokens(self) -> int:
        """Tokens that one update computes for it, padding included."""

    def backward(self, passed: Callable[[int], None] = lambda _: None) -> None:
        """Add its gradients to the adapter's; called once an update. ``passed`` hears the tokens of each pass that is done."""

    def metrics(self) -> dict[str, float]:
        """Figures that it measured; read after the last update."""


@dataclass(frozen=True)
class StepResult:
    """The result of one step."""

    step: int
    """Steps taken so far, this one included."""
    rollouts: tuple[Rollout, ...]
    answers: tuple[str, ...]
    rewards: tuple[float, ...]
    base_gaps: tuple[float, ...]
    """Mean distance of each rollout's log-probabilities from the base's before the update, in nats; 0 where it was not measured."""
    ahead: bool
    """True when the rollouts were sampled during the step before."""
    metrics: dict[str, float]
    """Rewards as given, nats, ratios; seconds and tokens by phase."""


@dataclass(frozen=True)
class _Sampled:
    """Rollouts of this row's prompts, of a certain step."""

    prompts: Sequence[Prompt]
    rollouts: list[Rollout]
    seconds: float


class Trainer:
    """Takes steps. Everything random comes from (seed, step), so a step is a function of adapter, optimizer and input."""

    def __init__(self, policy: Policy, engine: RolloutEngine, settings: LearnerSettings, teller: StepTeller | None = None) -> None:
        self.policy, self.engine, self.settings = policy, engine, settings
        self._teller = teller or StepTeller(tell_nobody)
        self.optimizer = torch.optim.AdamW(policy.parameters.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        self.step_number = 0
        self.kl_coefficient = settings.kl_coefficient
        """Of the next step; it moves only when ``kl_target_nats`` is set."""
        self._ahead: _Sampled | None = None
        self.value_head = ValueHead(policy.hidden_size, settings.value_learning_rate, policy.device) if settings.advantage == "gae" else None

    def step(
        self, prompts: Sequence[Prompt], scorer: Scorer, labelled: Sequence[LabelledAnswer] = (), following: Sequence[Prompt] = ()
    ) -> StepResult:
        """Sample a group for each prompt, score, and update the adapter, also by what people said of the ``labelled`` live answers.

        ``following``: the next step's prompts, to be sampled from this step's policy while it is trained. Prompts that are too long count as an
        error of the caller.
        """
        clock: dict[str, float] = {}
        s, mesh, in_hand = self.settings, self.policy.mesh, self.step_number + 1
        asked, labelled = mesh.share(prompts), labelled if mesh.data_rank == 0 else ()  # people's own are few: the first row learns from them
        self.engine.adopt(self.policy, self.step_number)
        ahead, unwanted = self._sampled_ahead(asked)
        self._teller.begin(in_hand, "rollout", len(asked) * self.settings.samples_per_prompt * self.settings.max_output_tokens)
        sampled = ahead or self._sample(asked, self.step_number, self._teller.done)
        asked, rollouts, stale = self._fresh(asked, sampled.rollouts)
        clock["rollout"] = sampled.seconds
        with _timed(clock, "rollout"):
            worded = [one for one in labelled if one.has_hindsight] if self.settings.hindsight_weight else []
            taught_on = self._taught_on(worded)
            if not following and not s.resample_tries:
                self.engine.rest()
        answers = self.policy.tokenizer.batch_decode([r.output_ids for r in rollouts], skip_special_tokens=True)
        self._teller.begin(in_hand, "score", sum(len(r.output_ids) for r in rollouts))
        with _timed(clock, "score"):
            rewards = self._rewards(asked, rollouts, answers, scorer)
        flat, redrawn = flat_groups(rewards, s.samples_per_prompt, s.least_spread), 0
        first_flat = len(flat)
        while flat and redrawn < s.resample_tries:
            redrawn += 1
            with _timed(clock, "rollout"):
                rollouts, answers, rewards = self._drawn_again(flat, redrawn, asked, rollouts, answers, rewards, scorer)
            flat = flat_groups(rewards, s.samples_per_prompt, s.least_spread)
        if s.resample_tries and not following:
            self.engine.rest()
        rollouts = [Rollout.of(values) for values in mesh.gathered([astuple(r) for r in rollouts])]
        answers, rewards = mesh.gathered(answers), torch.tensor(mesh.gathered(rewards.tolist()))
        self._teller.begin(in_hand, "train", sum(len(r.output_ids) for r in rollouts) * self.settings.updates_per_step)
        with _timed(clock, "train"), _threads(self._training_threads()), self._sampling_ahead(mesh.share(following)):
            chosen = self._chosen(rewards)
            rewards_PG = rewards[chosen].view(len(rewards) // self.settings.samples_per_prompt, -1)
            trained = [rollouts[n] for n in chosen]
            on_rollouts = RolloutObjective(self.policy, self.settings, self.step_number, self.kl_coefficient, trained, rewards_PG, self.value_head)
            objectives: list[Objective] = [on_rollouts]
            if self.settings.thumb_weight and (thumbs := [one for one in labelled if one.good is not None]):
                objectives.append(ThumbObjective(self.policy, self.settings, thumbs))
            if worded:
                objectives.append(HindsightObjective(self.policy, self.settings, worded, taught_on))
            norm = self._update(objectives)
        metrics = {name: value for objective in objectives for name, value in objective.metrics().items()}
        found = dict(zip(chosen, on_rollouts.base_gaps(), strict=True))
        gaps = tuple(found.get(n, 0.0) for n in range(len(rollouts)))
        self._teller.end()
        self.step_number += 1
        if self.kl_coefficient > 0 and self.settings.kl_target_nats > 0:
            self.kl_coefficient = losses.steered(self.kl_coefficient, metrics["kl_nats"], self.settings.kl_target_nats, self.settings.kl_coefficient)
        output_tokens = sum(len(r.output_ids) for r in rollouts)
        train_tokens = sum(mesh.gathered([objective.tokens for objective in objectives])) * self.settings.updates_per_step
        metrics |= {f"{phase}_s": seconds for phase, seconds in clock.items()} | {
            "gradient_norm": norm,
            "learning_rate": learning_rate(s, in_hand),
            "flat_groups_ratio": sum(mesh.gathered([first_flat])) / (len(rollouts) / s.samples_per_prompt),
            "resample_tries": float(max(mesh.gathered([redrawn]))),
            "train_tokens": float(train_tokens),
            "reward_mean": float(rewards.mean()),
            "reward_std": float(rewards.std()),
            "stale_rollouts": float(sum(mesh.gathered([stale + unwanted]))),
            "output_tokens": float(output_tokens),
            "policy_lag": float(max(self.step_number - 1 - r.policy_version for r in rollouts)),
            "cut_ratio": sum(r.finish == "cut" for r in rollouts) / len(rollouts),
            "rollout_tokens_per_s": output_tokens / clock["rollout"],
            "train_tokens_per_s": train_tokens / clock["train"],
        }
        return StepResult(self.step_number, tuple(rollouts), tuple(answers), tuple(rewards.tolist()), gaps, ahead is not None, metrics)

    def fits(self, prompt: Prompt) -> bool:
        """True when the prompt is within ``max_prompt_tokens`` and can be rendered."""
        return self.why_not(prompt) is None

    def why_not(self, prompt: Prompt) -> str | None:
        """Why a prompt cannot be learned from, as a countable word; None where it can."""
        try:
            return None if len(self.policy.prompt_ids(prompt)) <= self.settings.max_prompt_tokens else "too_long"
        except InvalidEvent as error:
            return error.reason

    def why_not_labelled(self, one: LabelledAnswer) -> str | None:
        """The same for a labelled answer, whose prompt, words and tool calls must all be rendered."""
        try:
            if one.tool_calls:
                self.policy.reply_ids(one.prompt, one.answer, one.tool_calls, one.ended, self.settings.judged_tokens)
        except InvalidEvent as error:
            return error.reason
        rendered = (one.prompt, advised(one)) if one.has_hindsight else (one.prompt,)
        return next((found for prompt in rendered if (found := self.why_not(prompt)) is not None), None)

    def evaluate(self, prompts: Sequence[Prompt], scorer: Scorer) -> dict[str, float]:
        """What one answer to each of these prompts is worth, always drawn from the same seed. Changes nothing. Figures of all processes together."""
        s, mesh = self.settings, self.policy.mesh
        asked = mesh.share(prompts)
        self.engine.adopt(self.policy, self.step_number)
        ids = [self.policy.prompt_ids(prompt) for prompt in asked]
        rollouts = self.engine.sample(ids, 1, s.max_output_tokens, s.temperature, seed_of(s.seed, -1 - mesh.data_rank)) if ids else []
        self.engine.rest()
        answers = self.policy.tokenizer.batch_decode([r.output_ids for r in rollouts], skip_special_tokens=True)
        scores = scorer(list(zip(asked, answers, strict=True))) if rollouts else ()
        told = [(float(score), len(r.output_ids), r.finish == "cut") for score, r in zip(scores, rollouts, strict=True)]
        rewards, tokens, cut = (torch.tensor(each, dtype=torch.float64) for each in zip(*mesh.gathered(told), strict=True))
        return {
            "evaluation_prompts": float(len(rewards)),
            "evaluation_reward_mean": float(rewards.mean()),
            "evaluation_reward_error": float(rewards.std(correction=0) / len(rewards) ** 0.5),
            "evaluation_output_tokens": float(tokens.mean()),
            "evaluation_cut_ratio": float(cut.mean()),
        }

    def _drawn_again(self, flat: Sequence[int], again: int, asked: Sequence[Prompt], rollouts: Sequence[Rollout], answers: Sequence[str],
                     rewards: Tensor, scorer: Scorer) -> tuple[list[Rollout], list[str], Tensor]:  # fmt: skip
        """The step's rollouts, answers and rewards with new ones for the ``flat`` groups, drawn the ``again``-th time."""
        size, prompts = self.settings.samples_per_prompt, [asked[n] for n in flat]
        fresh = self._sample(prompts, self.step_number, again=again).rollouts
        said = self.policy.tokenizer.batch_decode([r.output_ids for r in fresh], skip_special_tokens=True)
        found = self._rewards(prompts, fresh, said, scorer)
        rollouts, answers, rewards = list(rollouts), list(answers), rewards.clone()
        for k, n in enumerate(flat):
            there, here = slice(n * size, (n + 1) * size), slice(k * size, (k + 1) * size)
            rollouts[there], answers[there], rewards[there] = fresh[here], said[here], found[here]
        return rollouts, answers, rewards

    def _sample(self, prompts: Sequence[Prompt], step: int, told: Told = unheard, again: int = 0) -> _Sampled:
        """The rollouts of this row's prompts for a step, by the adapter that the engine has. Rows, and draws ``again``, have seeds of their own."""
        s, start = self.settings, time.perf_counter()
        seed = (s.seed << 32) + (self.policy.mesh.data_rank << 24) + step
        seed = seed_of(seed, -1 - again) if again else seed
        ids = [self.policy.prompt_ids(prompt) for prompt in prompts]
        rollouts = self.engine.sample(ids, s.samples_per_prompt, s.max_output_tokens, s.temperature, seed, told) if ids else []
        return _Sampled(prompts, rollouts, time.perf_counter() - start)

    def _sampled_ahead(self, prompts: Sequence[Prompt]) -> tuple[_Sampled | None, int]:
        """What was sampled for these prompts during the step before; and how many rollouts were, but for others or too long ago."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return None, 0
        oldest = min((rollout.policy_version for rollout in ahead.rollouts), default=self.step_number)
        if list(ahead.prompts) == list(prompts) and self.step_number - oldest <= self.settings.max_policy_lag:
            return ahead, 0
        return None, len(ahead.rollouts)

    def _training_threads(self) -> int:
        """Half of them where sampling goes on beside: as many for both, since some libraries keep one number for all of a process."""
        return max(1, torch.get_num_threads() // 2) if self.settings.sample_ahead else self.settings.train_threads

    @contextmanager
    def _sampling_ahead(self, prompts: Sequence[Prompt]) -> Iterator[None]:
        """Within, the next step's rollouts are sampled beside; then they are there."""
        if not prompts:
            yield
            return
        with ThreadPoolExecutor(1, "sampling", torch.set_num_threads, (torch.get_num_threads(),)) as beside:
            sampling = beside.submit(self._sample, prompts, self.step_number + 1)
            yield
            self._ahead = sampling.result()

    def _fresh(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout]) -> tuple[list[Prompt], list[Rollout], int]:
        """The groups whose every rollout is young enough to learn from, and how many rollouts are not. Raises StalePolicy when none is."""
        size, oldest = self.settings.samples_per_prompt, self.step_number - self.settings.max_policy_lag
        kept = [n for n in range(len(prompts)) if min(r.policy_version for r in rollouts[n * size : (n + 1) * size]) >= oldest]
        if prompts and not kept:
            raise StalePolicy(
                f"every rollout is older than learner.max_policy_lag = {self.settings.max_policy_lag} allows at step {self.step_number}"
            )
        young = [rollout for n in kept for rollout in rollouts[n * size : (n + 1) * size]]
        return [prompts[n] for n in kept], young, len(rollouts) - len(young)

    def _taught_on(self, worded: Sequence[LabelledAnswer]) -> list[tuple[tuple[int, ...], ...]]:
        """For each labelled answer, the answers whose tokens its words teach on."""
        s = self.settings
        told = [one for one in worded if one.comments and not one.correction] if s.hindsight_on == "rewritten" else []
        rewritten: dict[str, list[tuple[int, ...]]] = {one.episode_id: [] for one in told}
        if told:
            prompts = [self.policy.prompt_ids(advised(one)) for one in told]
            seed = (s.seed << 32) + (1 << 31) + self.step_number
            for n, rollout in enumerate(self.engine.sample(prompts, s.hindsight_samples, s.max_output_tokens, s.temperature, seed)):
                rewritten[told[n // s.hindsight_samples].episode_id].append(rollout.output_ids)
        return [
            tuple(rewritten.get(one.episode_id, ()))
            or (
                self.policy.answer_ids(one.correction, True, s.judged_tokens)
                if one.correction
                else self.policy.reply_ids(one.prompt, one.answer, one.tool_calls, one.ended, s.judged_tokens),
            )
            for one in worded
        ]

    def _rewards(self, prompts: Sequence[Prompt], rollouts: Sequence[Rollout], answers: Sequence[str], scorer: Scorer) -> Tensor:
        """Rewards: scores after the penalties for empty and truncated answers. [P x G]."""
        s = self.settings
        asked = [prompts[n // s.samples_per_prompt] for n in range(len(rollouts))]
        scores = scorer(list(zip(asked, answers, strict=True))) if rollouts else ()
        return torch.tensor([
            shaped(float(score), answer, len(rollout.output_ids), rollout.finish == "cut", s.max_output_tokens, s)
            for score, answer, rollout in zip(scores, answers, rollouts, strict=True)
        ])  # fmt: skip

    def _chosen(self, rewards_B: Tensor) -> list[int]:
        """The rollouts that are trained on."""
        s = self.settings
        if not s.trained_per_prompt:
            return list(range(len(rewards_B)))
        within_PK = advantages.most_telling(rewards_B.view(-1, s.samples_per_prompt), s.trained_per_prompt)
        return (within_PK + torch.arange(len(within_PK))[:, None] * s.samples_per_prompt).flatten().tolist()

    def _update(self, objectives: Sequence[Objective]) -> float:
        """The optimizer's updates on the sum of the objectives. Returns the last gradient's norm before it was scaled down."""
        norm, done, in_all = torch.zeros(()), 0, sum(objective.tokens for objective in objectives) * self.settings.updates_per_step

        def passed(tokens: int) -> None:
            nonlocal done
            done += tokens
            self._teller.done(done, in_all)

        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, self.step_number + 1)
        for _ in range(self.settings.updates_per_step):
            self.optimizer.zero_grad(set_to_none=True)
            for objective in objectives:
                objective.backward(passed)
            self.policy.mesh.add_gradients(self.policy.parameters, self.policy.whole)
            norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters.values(), self.settings.max_gradient_norm)
            if bool(norm.isfinite()):  # a step that is not a number would end the policy; it is left out, and the metric shows it
                self.optimizer.step()
        return float(norm)


def flat_groups(rewards_B: Tensor, size: int, least_spread: float) -> list[int]:
    """The groups whose rewards differ by no more than ``least_spread``."""
    rewards_PG = rewards_B.view(-1, size)
    return (rewards_PG.amax(1) - rewards_PG.amin(1) <= least_spread).nonzero().flatten().tolist() if len(rewards_B) else []


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Within, torch computes with so many threads; 0 leaves them as they are."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _timed(clock: dict[str, float], phase: str) -> Iterator[None]:
    """Adds the seconds within to those of a phase."""
    start = time.perf_counter()
    yield
    clock[phase] = clock.get(phase, 0.0) + time.perf_counter() - start
