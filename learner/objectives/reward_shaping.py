"""What is added to the score of a rollout for its form: empty, cut off, or nearly too long. Pure."""

from learner.objectives.rollout_objective_settings import RolloutObjectiveSettings


def overlong(tokens: int, limit: int, margin: int) -> float:
    """DAPO's soft punishment of long answers, from 0 to -1 (Yu et al. 2025, eq. 13).

    0 up to ``limit - margin`` tokens, then ``((limit - margin) - tokens) / margin``, and -1 at ``limit`` and beyond. Without it an answer of one
    token more is suddenly cut, and whether it was good so far does not show. 0 where ``margin`` is 0.
    """
    if margin == 0 or tokens <= limit - margin:
        return 0.0
    return max(-1.0, (limit - margin - tokens) / margin)


def shaped(score: float, answer: str, tokens: int, cut: bool, limit: int, settings: RolloutObjectiveSettings) -> float:
    """The reward of an answer of so many tokens, of at most ``limit``."""
    s = settings
    reward = score if answer.strip() else s.empty_reward
    return reward - (s.cut_penalty if cut else 0.0) + s.overlong_penalty * overlong(tokens, limit, s.overlong_tokens)
