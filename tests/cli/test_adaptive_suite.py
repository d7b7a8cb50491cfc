"""The suite that looks first, from the command line: what it saw, what it did, whether it settled."""

import json


def test_the_command_says_what_it_saw(stalwart, copied):
    said = stalwart("evaluate", copied, "--suite", "adaptive", "--samples", "12", "--eps", "0.1", "--device", "cpu")
    assert said.code == 0, said.err
    assert "saw:" not in said.out, "nothing is wrong with an ordinary net"
    assert "settled: " in said.out
    evaluation = json.loads((copied / "report.json").read_text())["runs"][0]["evaluation"]
    assert evaluation["suite"] == "adaptive"
    assert {trait["code"] for trait in evaluation["probe"]["traits"]} >= {"randomised", "spiking", "saturated-logits"}
    assert "settle-steps" in [row["name"] for row in evaluation["attacks"]]
