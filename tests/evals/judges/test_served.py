import logging

import pytest
from servers import Answer, Loopback, completion

from synthalign.clients import ServedLLM
from synthalign.evals.judges.asking import PROMPT, asked, hash_of
from synthalign.evals.judges.served import ServedJudge
from synthalign.types import Judgement

ROWS = (
    [["Cup"], ["Dog", "Lawn"], []],
    ["What colour is it?", "What is it?", "Why?"],
    ["Red.", "A dog.", "It rains."],
    ["Blue.", "A dog on a lawn.", "No idea."],
)
SAID = {
    "Blue.": "It is red.\nRating: 0",
    "A dog on a lawn.": "Right.\nRATING: 5.",
    "No idea.": "Rating: 3 or rating: 4",
}


def judging(number: int, body: dict) -> Answer:
    answer = body["messages"][-1]["content"].rpartition("Assistant's answer: ")[2].strip()
    return completion(SAID[answer])


def served(url: str, prompt=None, **settings) -> ServedJudge:
    return ServedJudge(server=ServedLLM(base_url=url, model="judge-1", max_retries=0, **settings), prompt=prompt)


def test_a_served_model_rates_from_our_prompt_greedily():
    with Loopback(judging) as server:
        judgements = served(server.url).judge(*ROWS)
    assert judgements == [
        Judgement(0, "It is red.\nRating: 0", True),
        Judgement(5, "Right.\nRATING: 5.", True),
        Judgement(0, "Rating: 3 or rating: 4", False),
    ]
    assert {request["temperature"] for request in server.requests} == {0.0}
    assert sorted(request["messages"][0]["content"] for request in server.requests) == sorted(asked(PROMPT, *ROWS))
    assert all(len(request["messages"]) == 1 and request["model"] == "judge-1" for request in server.requests)


def test_a_prompt_of_ones_own_is_what_is_sent(tmp_path):
    (tmp_path / "prompt.txt").write_text("{}/{}/{}/Assistant's answer: {}")
    with Loopback(judging) as server:
        served(server.url, tmp_path / "prompt.txt").judge(*ROWS)
    assert "Dog, Lawn/What is it?/A dog./Assistant's answer: A dog on a lawn." in [
        request["messages"][0]["content"] for request in server.requests
    ]
    (tmp_path / "prompt.txt").write_text("{} {} {}")
    with pytest.raises(ValueError, match=r"leaves out \{answer\}"):
        served("http://127.0.0.1:1/v1", tmp_path / "prompt.txt")


def test_a_judgement_that_is_cut_off_before_its_rating_is_said(caplog):
    with Loopback(lambda number, body: completion("It is", "length")) as server, caplog.at_level(logging.WARNING):
        judgements = served(server.url, max_new_tokens=2).judge(*ROWS)
    assert judgements == [Judgement(0, "It is", False)] * 3
    (record,) = caplog.records
    assert "judge judge-1: 3 of 3 judgements were cut off" in record.getMessage()
    assert "raise max_new_tokens (2)" in record.getMessage()


def test_who_judged_is_the_models_name_its_revision_and_the_prompts_hash(tmp_path):
    (tmp_path / "p").write_text("{}{}{}{}")
    about = served("http://127.0.0.1:1/v1").about()
    assert about["judge"] == "judge-1" and about["judge_revision"] == "unknown"
    assert about["judge_prompt"] == hash_of(PROMPT) and len(about["judge_prompt"]) == 12
    other = served("http://127.0.0.1:1/v1", tmp_path / "p", revision="2024-05", system_prompt="Be strict.").about()
    assert other["judge_revision"] == "2024-05"
    assert other["judge_prompt"] == f"{hash_of('{}{}{}{}')}, system {hash_of('Be strict.')}"


def test_a_server_that_fails_is_an_error_and_not_a_rating():
    with Loopback(lambda number, body: Answer(400, b'{"error": {"message": "no such model"}}')) as server:
        with pytest.raises(RuntimeError, match="status 400: no such model"):
            served(server.url).judge(*ROWS)
