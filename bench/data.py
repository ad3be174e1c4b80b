"""What the episodes of every generator are like: forms of questions, passages, searches, chains,
thoughts, lengths, what a bag of words can guess, and what `mypt check-meaning` finds.

    python bench/data.py                 # this code's data; writes bench/results/data.json
    python bench/data.py --code FOLDER   # data made by another checkout; data_before.json
    python bench/data.py --only rag_chat --episodes 300    # prints, writes nothing

Invented documents, and real ones where `../shared/data` holds them: the OWASP cheat sheets in
English, German laws in German. The data is made by one process under the code that is asked for
and measured by this one, so that before and now are measured alike.
"""

import argparse
import inspect
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import date
from pathlib import Path
from time import perf_counter
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
KINDS = 'format_lock echo operators rag_chat multiturn toolcall agentic'.split()
KINDS += 'minimal_qa tasks structured gold'.split()
FOLDERS = dict(en='owasp_cheatsheets', de='law_de')
PROMPT_RULE = 'the system prompt is in the language'
DOCUMENTED = dict(  # what the documents and the issue ask for
    tokens=dict(
        format_lock=30, echo=30, operators=45, rag_chat=250, multiturn=500, toolcall=400,
        agentic=800,
    ),
    long_share=0.05,
    long_tokens=3000,
    forms=60,
    passages=[3, 5],
    hits=[2, 5],
    think_forms=12,
    errors=5,
    guess=0.65,
)  # fmt: skip


def make(folder: Path, only: list[str], n: int, data: Path):
    "Write the episodes of every generator; runs under the code that is measured."
    from mypt.curriculum.run import GENERATORS
    from mypt.data.episodes import dump_line

    for kind in only:
        takes_documents = 'docs_dir' in inspect.signature(GENERATORS[kind]).parameters
        for lang, name in FOLDERS.items():
            for source in ('invented', 'real') if takes_documents else ('invented',):
                options = dict(docs_dir=str(data / name)) if source == 'real' else {}
                if source == 'real' and not (data / name).is_dir():
                    continue
                count = min(n, 400) if kind == 'gold' else n
                path = folder / f'{kind}.{lang}.{source}.jsonl'
                start, note = perf_counter(), ''
                with path.open('wb') as f:
                    try:
                        for ep in GENERATORS[kind](count, language=lang, seed=11, **options):
                            f.write(dump_line(ep))
                    except Exception as e:  # what could be made is measured, and why it ended
                        note = f'{type(e).__name__}: {e}'
                seconds = round(perf_counter() - start, 2)
                path.with_suffix('.note').write_text(json.dumps(dict(note=note, seconds=seconds)))


NAME = r'(?<=[\w,›] )(?!I\b)[A-ZÄÖÜ][\w.-]*'
MASKS = [
    (r'\[[^\]]*\]|"[^"]+"|„[^“]+“|“[^”]+”|«[^»]+»|\'[^\']{2,}\'', ' ‹quote› '),
    (r'[\w/.#-]+\.(?:md|txt|pdf|docx?|html?|csv|tsv)(?:#\d+)?', '‹file›'),
    (r'\d+(?:[.,:]\d+)*', '‹number›'),
    (NAME, '‹name›'),
    (r'(?:‹name›[\s,]+)+(?=‹name›)', ''),
    (r'\b(?:der|die|das|den|dem|des)\b', '‹d›'),
    (r'\b([Ww]elche|[Ee]ine|[Ii]hre|[Ss]eine)[rsnm]?\b', r'\1'),
]


def mask(text: str, *known: str) -> str:
    "A text with its names, values, numbers and quotes masked, and German articles as one."
    for word in sorted(filter(None, known), key=len, reverse=True):
        text = re.sub(rf'(?<!\w){re.escape(word)}(?!\w)', '‹name›', text, flags=re.I)
    for pattern, mark in MASKS:
        text = re.sub(pattern, mark, text)
    return ' '.join(re.sub(r'[.!?,;]+(?=\s|$)', ' ', text).lower().split())


def known_words(ep: dict) -> list[str]:
    "What is asked for in an episode: subject, attribute, value, payload, titles."
    meta = ep.get('_meta') or {}
    about = meta.get('about') or {}
    words = [str(about.get(k) or '') for k in ('subject', 'attribute', 'value')]
    payload = str(meta.get('payload') or '')
    question = next(m['content'] for m in ep['messages'] if m['role'] == 'user')
    return [*words, payload if 2 * len(payload) < len(question) else '']


def core(text: str) -> str:
    "The sentence of a masked text that names something: a story before it is another matter."
    sentences = re.split(r'(?<=[.!?])\s+', text)
    named = [s for s in sentences if '‹' in mask(s)]
    return (named or sentences)[-1]


def form(ep: dict, attributes: re.Pattern) -> str:
    "The form of the first question: its last sentence, masked; a payload after a colon is cut."
    template = (ep.get('_meta') or {}).get('template')
    if template:
        return mask(template)
    question = next(m['content'] for m in ep['messages'] if m['role'] == 'user')
    known = known_words(ep)
    for word in sorted(filter(None, known), key=len, reverse=True):
        question = re.sub(rf'(?<!\w){re.escape(word)}(?!\w)', '‹name›', question, flags=re.I)
    question = attributes.sub('‹name›', question)
    return re.sub(r': [^?]*$', ': ‹text›', mask(core(question)))


def coverage(forms: list[str]) -> dict:
    "Forms for 90 % of the episodes, the share of the five commonest, and these."
    counts = Counter(forms).most_common()
    total, sum_, needed = len(forms), 0, 0
    for _, n in counts:
        if sum_ >= 0.9 * total:
            break
        sum_ += n
        needed += 1
    top = sum(n for _, n in counts[:5]) / max(1, total)
    return dict(
        forms90=needed, forms=len(counts), top5=round(top, 3), most=[f for f, _ in counts[:5]]
    )


def bag(text: str) -> set[str]:
    return set(re.findall(r'[^\W\d_]+', text.casefold()))


def guessable(texts: list[set[str]], labels: list, seed: int = 0) -> float | None:
    """How well a bag of words tells the labels on held-out texts, classes made equally frequent:
    0.5 for two classes is a coin. Logistic regression; None without 60 texts of each class."""
    rng, by = np.random.default_rng(seed), {}
    for i, label in enumerate(labels):
        by.setdefault(label, []).append(i)
    by = {label: rows for label, rows in by.items() if len(rows) >= 60}
    if len(by) < 2:
        return None
    least = min(len(rows) for rows in by.values())
    chosen = [rng.permutation(rows)[: least - least % 2] for rows in by.values()]
    half = len(chosen[0]) // 2
    train, test = (
        np.concatenate([c[:half] for c in chosen]),
        np.concatenate([c[half:] for c in chosen]),
    )
    count = Counter(w for i in train for w in texts[i])
    words = {w: j for j, (w, n) in enumerate(count.most_common(3000)) if n > 1}

    def matrix(rows):
        x = np.zeros((len(rows), len(words) + 1), np.float32)
        x[:, -1] = 1
        for r, i in enumerate(rows):
            x[r, [words[w] for w in texts[i] if w in words]] = 1
        return x / np.sqrt(np.maximum(1, x.sum(1, keepdims=True)))

    y = np.repeat(np.arange(len(by)), half)
    x, w = matrix(train), np.zeros((len(words) + 1, len(by)), np.float32)
    target = np.eye(len(by), dtype=np.float32)[y]
    for _ in range(400):
        z = x @ w
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        w -= 4.0 * (x.T @ (p - target) / len(y) + 1e-4 * w)
    return round(float(np.mean((matrix(test) @ w).argmax(1) == y)), 3)


def balanced(guess: list[bool], truth: list[bool]) -> float | None:
    "Accuracy with both classes equally frequent."
    if not 20 <= sum(truth) <= len(truth) - 20:
        return None
    guess, truth = np.array(guess), np.array(truth)
    return round(float((np.mean(guess[truth]) + np.mean(~guess[~truth])) / 2), 3)


def abstention(eps: list[dict]) -> dict:
    "How far words, and the rule 'name or attribute absent', tell who abstains."
    from mypt.curriculum.meaning import abstains, turns_of
    from mypt.curriculum.reading import asked_attributes, holds, wording_of

    texts, truth, rule = [], [], []
    for ep in eps:
        turns = turns_of(ep)
        t = turns[-1] if turns else None
        if t is None or not t.passages or t.calls:
            continue
        about = t.about or {}
        subject = about.get('subject') or str(t.meta.get('payload') or '')
        asked = asked_attributes(t.question.replace(subject, ' ') if subject else t.question)
        attribute = about.get('attribute') or (asked.pop() if len(asked) == 1 else '')
        context = ' '.join(p.text for p in t.passages)
        absent = bool(subject) and not holds(context, subject)
        if attribute and (not about or about.get('kind') == 'value'):
            absent = absent or not wording_of(attribute).search(context)
        texts.append({f'q {w}' for w in bag(t.question)} | bag(context))
        truth.append(abstains(t))
        rule.append(absent)
    if not truth:
        return {}
    return dict(
        share=round(sum(truth) / len(truth), 3),
        by_words=guessable(texts, truth),
        by_rule=balanced(rule, truth),
    )


def tools(eps: list[dict]) -> dict:
    "Hits of a search, calls of a chain, kinds of errors, and how far words tell the first tool."
    hits, calls, errors, first, questions = [], [], Counter(), [], []
    copied = 0
    for ep in eps:
        names, question = [], ep['messages'][0]['content']
        for m in ep['messages']:
            if m['role'] == 'assistant_toolcall':
                names.append(m['name'].removeprefix('workspace.'))
                query = m['arguments'].get('query')
                copied += bool(query) and query.casefold() in question.casefold()
            if m['role'] == 'toolresult' and isinstance(m['content'], dict):
                if names and names[-1] == 'search' and 'documents' in m['content']:
                    hits.append(len(m['content']['documents']))
                if 'error' in m['content']:
                    error = re.sub(r"'[^']*'|\"[^\"]*\"|\d+", '…', str(m['content']['error']))
                    errors[error[:80]] += 1
        calls.append(len(names))
        first.append(names[0] if names else 'none')
        questions.append(bag(question))
    if not any(calls):
        return {}
    chains = [n for n in calls if n]
    return dict(
        hits=dict(sorted(Counter(hits).items())),
        hits_mean=round(float(np.mean(hits)), 2) if hits else None,
        one_hit=round(np.mean([h == 1 for h in hits]), 3) if hits else None,
        query_copied=round(copied / max(1, len(hits)), 3),
        calls=dict(sorted(Counter(calls).items())),
        calls_mean=round(float(np.mean(chains)), 2),
        errors=dict(errors.most_common()),
        error_kinds=len(errors),
        no_tool=round(calls.count(0) / len(calls), 3),
        tool_or_none=guessable(questions, [f == 'none' for f in first]),
        which_tool=guessable(questions, first),
    )


def passages(eps: list[dict]) -> dict:
    "Passages in the first context, and where the cited one stands."
    from mypt.curriculum.meaning import turns_of

    counts, places = [], []
    for ep in eps:
        for t in turns_of(ep)[:1]:
            if t.block:
                counts.append(len(t.block))
                numbers = [p.number for p in t.block if t.cites and p.doc_id == t.cites[0]['text']]
                if len(numbers) == 1:
                    places.append((numbers[0], len(t.block)))
    if not counts:
        return {}
    return dict(
        count=dict(sorted(Counter(counts).items())),
        mean=round(float(np.mean(counts)), 2),
        gold_place=dict(sorted(Counter(p for p, _ in places).items())),
        gold_first=round(float(np.mean([p == 1 for p, _ in places])), 3) if places else None,
        gold_last=round(float(np.mean([p == n for p, n in places])), 3) if places else None,
    )


def thoughts(eps: list[dict]) -> dict:
    "Forms of thoughts and how many answers or calls have one."
    found, n = [], 0
    for ep in eps:
        for m in ep['messages']:
            if m['role'] in ('assistant', 'assistant_toolcall'):
                n += 1
                if m.get('think'):
                    found.append(mask(m['think'], *known_words(ep)))
    return (
        dict(share=round(len(found) / max(1, n), 3), **coverage(found))
        if found
        else dict(share=0.0)
    )


def lengths(eps: list[dict]) -> dict:
    "GPT-2 tokens of an episode as it is trained."
    from mypt.data.masks import encode_batch
    from mypt.data.tokenizer_state import open_tokenizer

    tok = open_tokenizer('gpt2')
    parts = [eps[i : i + 500] for i in range(0, len(eps), 500)]
    n = np.concatenate([encode_batch(part, tok).lengths for part in parts])
    return dict(
        mean=round(float(n.mean()), 1),
        median=int(np.median(n)),
        p90=int(np.percentile(n, 90)),
        most=int(n.max()),
        long_share=round(float(np.mean(n >= DOCUMENTED['long_tokens'])), 4),
        too_long=int((n > 4096).sum()),
    )


def wrong_forms_of(eps: list[dict], lang: str) -> dict | None:
    "Wrong case forms in what is asked, thought and answered; None where no rules are there."
    try:
        from mypt.curriculum.grammar import wrong_forms
    except ImportError:
        return None
    found = Counter()
    for ep in eps:
        texts = [
            m[k] for m in ep['messages'] for k in ('content', 'think') if isinstance(m.get(k), str)
        ]
        if any(wrong_forms(text, lang) for text in texts):
            found['episodes'] += 1
    return dict(episodes=found['episodes'], of=len(eps))


def attribute_words() -> re.Pattern:
    "The wordings that `mypt check-meaning` knows for attributes."
    from mypt.curriculum.reading import WORDINGS

    return re.compile('|'.join(w.pattern for w in WORDINGS.values()), re.I)


def measure(path: Path, data: Path) -> dict:
    "All measures of one file of episodes."
    from mypt.curriculum.meaning import check_meaning
    from mypt.data.episodes import read_episodes

    _, lang, source = path.stem.split('.')
    eps = read_episodes(path)
    if not eps:
        return dict(episodes=0)
    words = attribute_words()
    report = check_meaning(eps, str(data / FOLDERS[lang]) if source == 'real' else None)
    prompts = [f for f in report.findings if f.rule == PROMPT_RULE]
    labels = [f for f in report.findings if f.rule != PROMPT_RULE]
    kinds = Counter(str((ep.get('_meta') or {}).get('category')) for ep in eps)
    return dict(
        episodes=len(eps),
        questions=coverage([form(ep, words) for ep in eps]),
        passages=passages(eps),
        abstention=abstention(eps),
        tools=tools(eps),
        think=thoughts(eps),
        tokens=lengths(eps),
        kinds={k: round(n / len(eps), 3) for k, n in kinds.most_common()},
        wrong_labels=dict(
            episodes=len({f.line for f in labels}),
            prompts=len({f.line for f in prompts}),
            by_rule=report.by_rule(),
            judged=sum(report.judged.values()),
            not_judged=dict(report.not_judged),
        ),
        wrong_forms=wrong_forms_of(eps, lang),
    )


def collect(code: Path, only: list[str], n: int, data: Path) -> dict:
    "Make the data by the code in a folder and measure each file."
    rows = {}
    with tempfile.TemporaryDirectory() as tmp:
        words = [sys.executable, __file__, '--make', tmp, '--episodes', str(n), '--only', *only]
        env = os.environ | dict(PYTHONPATH=str(code), OMP_NUM_THREADS='1', TQDM_DISABLE='1')
        subprocess.run([*words, '--data', str(data)], check=True, env=env)
        for path in sorted(Path(tmp).glob('*.jsonl')):
            rows[path.stem] = json.loads(path.with_suffix('.note').read_text()) | measure(
                path, data
            )
            print(line(path.stem, rows[path.stem]), flush=True)
    return rows


def line(name: str, row: dict) -> str:
    if not row['episodes']:
        return f'{name:<24} nothing: {row["note"]}'
    guess, tool = row['abstention'], row['tools']
    return (
        f'{name:<24} {row["episodes"]:>6,}  forms {row["questions"]["forms90"]:>4}'
        f'  tokens {row["tokens"]["mean"]:>6.0f}  ≥3k {row["tokens"]["long_share"]:.1%}'
        f'  wrong {row["wrong_labels"]["episodes"]:>5,}'
        f'  abstain by words {guess.get("by_words")} by rule {guess.get("by_rule")}'
        f'  tool {tool.get("tool_or_none")} {tool.get("which_tool")}'
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--code', type=Path, help='make the data by this checkout')
    parser.add_argument('--episodes', type=int, default=500, help='of each generator')
    parser.add_argument('--only', nargs='+', default=KINDS, help='generators')
    parser.add_argument('--data', type=Path, default=ROOT.parent / 'shared/data')
    parser.add_argument('--make', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make(args.make, args.only, args.episodes, args.data)
        return
    sys.path.insert(0, str(ROOT))
    start = perf_counter()
    rows = collect((args.code or ROOT).resolve(), args.only, args.episodes, args.data)
    if args.only != KINDS:
        return
    out = ROOT / 'bench/results' / ('data_before.json' if args.code else 'data.json')
    about = dict(
        date=str(date.today()), machine=platform.machine(), python=platform.python_version()
    )
    about |= dict(episodes=args.episodes, seconds=round(perf_counter() - start))
    out.write_text(
        json.dumps(about | dict(documented=DOCUMENTED, rows=rows), indent=1, ensure_ascii=False)
        + '\n'
    )
    print(out)


if __name__ == '__main__':
    main()
