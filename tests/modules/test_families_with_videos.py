"""Families of models whose processors take videos too go through `fit` and `test`, with no torchvision."""

import pytest
from vlm.eleven import ELEVEN

pytest.register_assert_rewrite("vlm.family_runs")

from vlm.family_runs import (  # noqa: E402, F401 - the tests are there
    plain,
    run,
    test_answers_are_those_of_plain_generate,
    test_every_linear_of_the_language_model_learns_and_nothing_else,
    test_images_and_prompts_are_read_once,
    test_losses_are_finite_and_the_first_is_log_2,
    test_the_saved_adapter_gives_plain_peft_the_same_logits,
)

# It compares token types by way of NumPy, as transformers has it for good.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


def pytest_generate_tests(metafunc):
    families = [family for family in ELEVEN if family.video is not None]
    metafunc.parametrize("run", families, ids=[family.name for family in families], indirect=True, scope="module")
