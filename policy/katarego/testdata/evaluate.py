"""Evaluates policies with regopy (rego-cpp), one line of JSON each: {"policy", "input", "rules"} gives {"values"}.

A rule without a value is not in values. A process of its own evaluates each rule, since some take regopy very long: such a rule is in "late".
For the test TestRegopyAgrees, which compares coco-rego with it.
"""
import json
import os
import select
import sys

import regopy

SECONDS = 5

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # regopy writes about errors to the standard output


def evaluate(case, rule):
    rego = regopy.Interpreter()
    rego.add_module("policy", case["policy"])
    rego.set_input(case["input"])
    text = str(rego.query("[data.agent_policy." + rule + "]"))  # false alone would be undefined
    if text == "undefined":
        return {}
    try:
        return {"value": json.loads(text)["expressions"][0][0]}
    except (ValueError, KeyError):
        return {"broken": text[:200]}


def apart(case, rule):
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(r)
        try:
            got = evaluate(case, rule)
        except Exception as e:
            got = {"broken": str(e)[:200]}
        with os.fdopen(w, "w") as out:
            json.dump(got, out)
        os._exit(0)
    os.close(w)
    late = not select.select([r], [], [], SECONDS)[0]
    if late:
        os.kill(pid, 9)
    with os.fdopen(r) as f:
        text = f.read()
    os.waitpid(pid, 0)
    if late:
        return {"late": True}
    return json.loads(text) if text else {"broken": "the process ended"}


for line in sys.stdin:
    case = json.loads(line)
    out = {"values": {}, "late": [], "broken": []}
    for rule in case["rules"]:
        got = apart(case, rule)
        if "value" in got:
            out["values"][rule] = got["value"]
        elif got:
            out["late" if "late" in got else "broken"].append(rule)
    print(json.dumps(out), file=answers, flush=True)
