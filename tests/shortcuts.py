"Whether a label can be told without reading: two measures over episodes with passages."

import re
from collections import Counter

import numpy as np


def _masked(text: str, about: dict) -> list[str]:
    "Words in lower case, with marks for the subject and the attribute that are asked for."
    text = text.lower()
    for name, mark in ((about['subject'], ' zsubject '), (about['attribute'], ' zattribute ')):
        if name:
            text = re.sub(rf'(?<!\w){re.escape(name.lower())}(?!\w)', mark, text)
    return re.findall(r'\w+', text)


def bag_of_words(episodes: list[dict], least: int = 4) -> np.ndarray:  # float [episodes, words]
    "Log counts of the words of the question and, apart from them, of the context."
    bags = []
    for e in episodes:
        user, about = e['messages'][0], e['_meta']['about']
        asked = Counter(f'q {w}' for w in _masked(user['content'], about))
        bags.append(asked + Counter(_masked(user['context'], about)))
    seen = Counter(w for bag in bags for w in bag)
    index = {w: i for i, w in enumerate(sorted(w for w, n in seen.items() if n >= least))}
    x = np.zeros((len(bags), len(index)), np.float32)
    for row, bag in enumerate(bags):
        for w, n in bag.items():
            if w in index:
                x[row, index[w]] = np.log1p(n)
    return x


def logistic_accuracy(x: np.ndarray, y: np.ndarray, seed: int = 0, steps: int = 300) -> float:
    "Accuracy of a logistic regression on a held-out third, both classes as often."
    rng = np.random.default_rng(seed)
    counts = min(int((y == 0).sum()), int((y == 1).sum()))
    rows = np.concatenate([rng.permutation(np.flatnonzero(y == c))[:counts] for c in (0, 1)])
    rows = rng.permutation(rows)
    x, y = x[rows], y[rows]
    cut = len(y) * 2 // 3
    mean, spread = x[:cut].mean(0), x[:cut].std(0) + 0.1
    x = (x - mean) / spread
    best = 0.0
    for decay in (0.3, 0.03, 0.003):
        w, b = np.zeros(x.shape[1]), 0.0
        for step in range(steps):
            miss = 1 / (1 + np.exp(-np.clip(x[:cut] @ w + b, -30, 30))) - y[:cut]
            rate = 0.5 / (1 + step / 100)
            w -= rate * (x[:cut].T @ miss / cut / 10 + decay * w / 10)
            b -= rate * miss.mean()
        best = max(best, float((((x[cut:] @ w + b) > 0) == y[cut:]).mean()))
    return best


def rule_accuracy(episodes: list[dict], y: np.ndarray) -> float:
    "How well 'the subject or the attribute is not in the context' tells an abstention, balanced."
    lacks = []
    for e in episodes:
        context, about = e['messages'][0]['context'].lower(), e['_meta']['about']
        words = re.findall(r'\w+', f'{about["subject"]} {about["attribute"]}'.lower())
        lacks.append(not all(w in context for w in words))
    lack = np.array(lacks)
    return (float(lack[y == 1].mean()) + float((~lack)[y == 0].mean())) / 2
