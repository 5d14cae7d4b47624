"""What rewards of text have in common: how question and response are worded, and that no text is scored twice."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, tensor

from synthalign.batching import in_batches
from synthalign.weights import load


def check_format(name: str, text: str, required: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Refuse a format that leaves out a field, or asks for one that nobody fills.

    Args:
        name: Of the setting, for the message.
        text: The format.
        required: Fields it must hold.
        optional: Fields it may hold.

    Raises:
        ValueError: It does not.
    """
    known = ", ".join(f"{{{field}}}" for field in [*optional, *required])
    marks: Mapping[str, str] = {field: f"<{field}>" for field in [*required, *optional]}
    try:
        filled = text.format(**marks)
    except (AttributeError, KeyError, IndexError, ValueError) as error:
        raise ValueError(f"{name} {text!r} knows only {known}") from error
    if missing := next((field for field in required if marks[field] not in filled), None):
        raise ValueError(f"{name} {text!r} leaves out {{{missing}}}")


def chat_tokenizer(model: str, revision: str | None) -> Any:  # noqa: ANN401 - every family has its own class
    """Load the tokenizer of a reward model.

    Raises:
        ValueError: There is none, or it has no chat template.
    """
    from transformers import AutoTokenizer

    tokenizer = load(AutoTokenizer, model, revision=revision)
    if tokenizer.chat_template is None:
        raise ValueError(f"model {model!r} has no chat template to put question and response in")
    return tokenizer


def render(tokenizer: Any, question: str, response: str) -> str:  # noqa: ANN401
    """Put a question, as the user's turn, and its response into a model's template."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": response}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False))


def score_distinct(
    texts: Sequence[str], size: int, work: Callable[[Sequence[str]], Sequence[float]], name: str
) -> Tensor:
    """Score texts, equal ones once, in batches of texts alike in length: little padding.

    Args:
        texts: n texts.
        size: Texts scored at once.
        work: Scores a batch.
        name: Of the part, for messages.

    Returns:
        The scores, shape (n,), float32.
    """
    distinct = sorted(set(texts), key=lambda text: (len(text), text))
    scores = dict(zip(distinct, in_batches(distinct, size, work, name), strict=True))
    return tensor([scores[text] for text in texts])
