"""A merged export behind ``transformers serve`` answers as its base with the adapter on."""

import servers
from dpo.drawn_pairs import FIT, draw
from exported_runs import NEW_TOKENS, write_run

from synthalign.clients import ServedVLM
from synthalign.export import write
from synthalign.vlm import VLM


def test_a_server_of_a_merged_export_says_what_the_adapter_does(tiny_llava, tmp_path):
    write_run(tmp_path / "fit", tiny_llava)
    merged = str(write(tmp_path / "fit", merged=True).path)
    images, questions = [draw(pair.drawing) for pair in FIT], [pair.question for pair in FIT]
    base = VLM(model=str(tiny_llava), device="cpu", max_new_tokens=NEW_TOKENS)
    adapted = VLM(model=str(tiny_llava), adapter=str(tmp_path / "fit/adapter"), device="cpu", max_new_tokens=NEW_TOKENS)
    with servers.transformers_serve(tmp_path / "fit/export/merged", tmp_path / "log") as url:
        served = ServedVLM(base_url=url, model=merged, max_new_tokens=NEW_TOKENS, timeout_s=60)
        said = [one.text for one in served.respond(images, questions)]
    assert said == [one.text for one in adapted.respond(images, questions)]
    assert said != [one.text for one in base.respond(images, questions)]
