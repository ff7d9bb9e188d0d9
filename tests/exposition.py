"""Prometheus' text format, version 0.0.4, read as strictly as its grammar says."""

import re

NAME = "[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?P<value>(?:[^"\\\n]|\\[\\n"])*)"'
NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|inf)|nan"
HELP = re.compile(rf"# HELP (?P<name>{NAME}) (?:[^\\\n]|\\[\\n])*")
TYPE = re.compile(rf"# TYPE (?P<name>{NAME}) (?:counter|gauge)")
SAMPLE = re.compile(rf"(?P<name>{NAME})(?:{{{LABEL}}})? (?P<number>{NUMBER})")


def parsed(text):
    """Read the text format 0.0.4 as its grammar says: each metric's HELP, TYPE and samples together, no sample twice. Return the samples."""
    assert text == "" or text.endswith("\n")
    samples, named, current = {}, set(), None
    for line in text.split("\n")[:-1]:
        if line.startswith("# HELP "):
            current = HELP.fullmatch(line)["name"]
            assert current not in named
            named.add(current)
            typed = False
        elif line.startswith("# TYPE "):
            assert TYPE.fullmatch(line)["name"] == current
            typed = True
        else:
            found = SAMPLE.fullmatch(line)
            assert found, line
            assert found["name"] == current
            assert typed
            value = found["value"] and re.sub(r"\\(.)", lambda each: {"n": "\n"}.get(each[1], each[1]), found["value"])
            assert (current, value) not in samples
            samples[current, value] = float(found["number"])
    return samples
