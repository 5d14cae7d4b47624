"""A vision-language model: load it, put a question into its template, and let it reply.

Responders, the policy, judges and evaluations all go through here, so that one model is asked in one way only.
"""

from synthalign.vlm.chat import Chat
from synthalign.vlm.kept import KeptFeatures
from synthalign.vlm.language import LLM
from synthalign.vlm.replies import reply
from synthalign.vlm.responder import VLM, load_adapter, load_vlm
from synthalign.vlm.sampler import KeyedSampler, YesMargin, keyed_uniform

__all__ = [
    "LLM",
    "VLM",
    "Chat",
    "KeptFeatures",
    "KeyedSampler",
    "YesMargin",
    "keyed_uniform",
    "load_adapter",
    "load_vlm",
    "reply",
]
