"""Find the passage that answers a question: mypt's index against bm25s, the fast BM25 on numpy, on
the same passages.

python bench/retrieval.py            # recall on XQuAD and the exams, times on 127 documents;
                                     # writes bench/results/retrieval.json
python bench/retrieval.py --recall   # the recall only; the times of the file stay
python bench/retrieval.py --vectors  # words alone and with the built-in model, on the exams and
                                     # on bench/data/retrieval_dev.jsonl; half an hour on one core;
                                     # writes bench/results/retrieval_vectors.json
python bench/retrieval.py --sentence # the exams, answered without a model; writes
                                     # bench/results/exam_by_words.json

Recall: 1,190 questions on 240 passages, in English and in German; does the passage stand among
the first? bm25s gets the stop words of the language, once as it is and once with Snowball's
stemmer for that language; mypt gets the same text and is told nothing. Exams: 42 questions
each on the OWASP cheat sheets and on seven German statutes, in people's own words; does the
sentence that answers stand in one of the first passages? bm25s gets the same passages.
Without a model: of the three passages that an assistant is shown, the sentence that BM25 ranks
first among all sentences of the folder is the answer. It is what a schooled model must surpass.
Times: passages of the OWASP cheat sheets and seven German statutes, each heading asked as a
query, one by one. Each side runs in a process of its own, in turn; imports are not timed. mypt
reads its file (`file`) or holds everything (`memory`); bm25s holds everything.
"""

import argparse
import json
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path
from statistics import median

DATA, ROUNDS, QUERIES = (Path(__file__).resolve().parent.parent.parent / 'shared/data', 3, 300)
RESULTS = Path(__file__).parent / 'results'
FOLDERS = ('owasp_cheatsheets', 'law_de')
PASSAGES = 3  # that an assistant is shown
SIDES = ('memory', 'file', 'bm25s', 'bm25s+stem')


def squad(lang):
    "Passages, and (question, number of its passage)."
    passages, questions = [], []
    for article in json.loads((DATA / f'xquad/xquad.{lang}.json').read_text(encoding='utf-8'))[
        'data'
    ]:
        for p in article['paragraphs']:
            questions += [(q['question'], len(passages)) for q in p['qas']]
            passages.append(p['context'])
    return passages, questions


def documents():
    from mypt.agent.documents import read_documents

    return [
        d._replace(doc_id=f'{folder}/{d.doc_id}')
        for folder in FOLDERS
        for d in read_documents(DATA / folder)
    ]


def headings(docs):
    found = sorted({h for d in docs for h in re.findall(r'^#+ +(.{12,80})$', d.text, re.M)})
    return random.Random(0).sample(found, QUERIES)


def ours(texts, ids):
    "A search function: query → numbers of passages."
    from mypt.agent.documents import Document
    from mypt.agent.retrieval import Index

    index = Index.of(
        [Document(i, '', t) for i, t in zip(ids, texts, strict=False)], size=10**6, overlap=0
    )
    where = {d: i for i, d in enumerate(ids)}
    return lambda q, k: [where[h.doc_id] for h in index.search(q, k)]


def theirs(texts, lang, stem):
    import bm25s

    def tokens(ts):
        stemmer = None
        if stem:
            from Stemmer import Stemmer

            stemmer = Stemmer(dict(en='english', de='german')[lang])
        return bm25s.tokenize(ts, stopwords=lang, stemmer=stemmer, show_progress=False)

    index = bm25s.BM25()
    index.index(tokens(texts), show_progress=False)

    def search(q, k):
        try:
            return index.retrieve(tokens([q]), k=k, show_progress=False)[0][0].tolist()
        except ValueError:
            return []  # no word of the query is known

    return search


def recall(side, lang):
    "Recall at 1 and 5, in percent."
    passages, questions = squad(lang)
    search = (
        ours(passages, [f'{i:04}' for i in range(len(passages))])
        if side == 'mypt'
        else theirs(passages, lang, side == 'bm25s+stem')
    )
    found = [(search(q, 5), i) for q, i in questions]
    return {k: 100 * sum(i in top[:k] for top, i in found) / len(found) for k in (1, 5)}


EXAMS = dict(owasp_en='owasp_cheatsheets', law_de='law_de')


def exam_recall(name):
    "By side: recall of the evidence at 1, 3 and 5, in percent, on the passages of mypt's index."
    from mypt.agent.retrieval import Index
    from mypt.eval.exam import read_exam, single_spaced

    cases = [c for c in read_exam(name, DATA / EXAMS[name]) if c.answerable]
    index = Index.build(DATA / EXAMS[name])
    texts = list(index.store.texts.values())
    found = dict(mypt=[[h.text for h in index.search(c.question, 5)] for c in cases])
    for side in ('bm25s', 'bm25s+stem'):
        search = theirs(texts, cases[0].language, side == 'bm25s+stem')
        found[side] = [[texts[i] for i in search(c.question, 5)] for c in cases]

    def rate(tops, k):
        pairs = zip(cases, tops, strict=True)
        hits = sum(
            any(single_spaced(c.evidence) in single_spaced(t) for t in top[:k]) for c, top in pairs
        )
        return 100 * hits / len(cases)

    return {side: {k: rate(tops, k) for k in (1, 3, 5)} for side, tops in found.items()}


def holds_gold(row, hit):
    "Whether a hit is the passage that a question to develop on asks for."
    from mypt.eval.exam import single_spaced

    if hit.doc_id != row['doc_id']:
        return False
    if 'evidence' in row:
        return row['evidence'] in single_spaced(hit.text)
    heads = [*hit.headings, *re.findall(r'^#+ (.*)$', hit.text, re.M)]
    return any(re.match(re.escape(row['section']) + r'(?![0-9a-z])', h) for h in heads)


def with_vectors(name):
    "Recall by side, on an exam and on the questions to develop on; milliseconds of a query."
    from mypt.agent.retrieval import Index, PassageSearch, built_in_embed
    from mypt.eval.exam import read_exam, recall_scores

    folder, depths = EXAMS[name], (1, 3, 5, 10)
    dev = Path(__file__).parent / 'data/retrieval_dev.jsonl'
    rows = [json.loads(line) for line in dev.read_text(encoding='utf-8').splitlines()]
    rows = [r for r in rows if r['folder'] == folder]
    start = time.perf_counter()
    both = Index.build(DATA / folder, embed=built_in_embed())
    built, out = time.perf_counter() - start, {}
    for side, index in (('vectors', both), ('words', PassageSearch(both.store))):
        tops, ms = [], []
        for r in rows:
            start = time.perf_counter()
            tops.append(index.search(r['question'], max(depths)))
            ms.append(1e3 * (time.perf_counter() - start))
        scores = recall_scores(read_exam(name, DATA / folder), index, depths)
        found = {
            k: sum(any(holds_gold(r, h) for h in t[:k]) for r, t in zip(rows, tops, strict=True))
            for k in depths
        }
        out[side] = dict(
            exam={k: round(100 * x.k / x.n, 1) for k, x in zip(depths, scores, strict=True)},
            dev={k: round(100 * n / len(rows), 1) for k, n in found.items()},
            query_ms=median(ms),
        )
    return dict(out, index_s=built)


def answered_by_words(name):
    "An exam by the best sentence of the found passages; also how often any sentence answers."
    from mypt.agent.documents import Document, read_documents
    from mypt.agent.retrieval import Index
    from mypt.agent.tools import sentences
    from mypt.eval.exam import holding, read_exam
    from mypt.eval.same_answer import says_one_of

    folder = DATA / EXAMS[name]
    cases = [c for c in read_exam(name, folder) if c.answerable]
    index = Index.build(folder)
    texts = sorted({s for d in read_documents(folder) for s in sentences(d.text)})
    by_sentence = Index.of([Document(f'{i:06}', '', s) for i, s in enumerate(texts)], size=10**6)
    found = Counter(asked=len(cases))
    for case in cases:
        hits = index.search(case.question, PASSAGES)
        shown = {s for h in hits for s in sentences(h.text)}
        ranked = by_sentence.search(case.question, len(texts))
        best = next((h.text for h in ranked if h.text in shown), '')
        found['found'] += bool(holding(case, hits))
        found['right'] += says_one_of(best, case.answers, case.language)
        found['some sentence'] += any(says_one_of(s, case.answers, case.language) for s in shown)
    return dict(found)


def timed(side):
    "Seconds to index, milliseconds per query."
    from mypt.agent.documents import chunks
    from mypt.agent.retrieval import Index

    docs = documents()
    queries = headings(docs)
    with tempfile.TemporaryDirectory() as tmp:
        for d in docs if side == 'file' else ():
            path = Path(tmp) / 'docs' / d.doc_id
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(d.text, encoding='utf-8')
        texts = [c for d in docs for c in chunks(d.text)]
        start = time.perf_counter()
        if side == 'file':
            search = Index.build(f'{tmp}/docs', f'{tmp}/index').search
        elif side == 'memory':
            search = Index.of(docs).search
        else:
            search = theirs(texts, 'en', side == 'bm25s+stem')
        built = time.perf_counter()
        search('first query', 5)
        ms = []
        for q in queries:
            t = time.perf_counter()
            search(q, 5)
            ms.append(1e3 * (time.perf_counter() - t))
    return dict(
        index_s=built - start,
        query_ms=median(ms),
        p95_ms=sorted(ms)[int(0.95 * len(ms))],
        passages=len(texts),
    )


def child(*job):
    p = subprocess.run([sys.executable, __file__, '--job', *job], capture_output=True, text=True)
    if p.returncode:
        sys.exit(p.stderr[-3000:])
    return json.loads(p.stdout.splitlines()[-1])


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument('--job', nargs='+')
    ap.add_argument('--recall', action='store_true')
    ap.add_argument('--vectors', action='store_true')
    ap.add_argument('--sentence', action='store_true')
    a = ap.parse_args()
    if a.job:
        jobs = dict(recall=recall, exam=exam_recall, time=timed, vectors=with_vectors)
        job = jobs[a.job[0]]
        return print(json.dumps(job(*a.job[1:])))
    if not DATA.is_dir():
        sys.exit('no ../shared/data beside the repository: this benchmark needs its documents')
    if a.vectors:
        sides = {name: child('vectors', name) for name in EXAMS}
        print(json.dumps(sides, indent=1))
        return save('retrieval_vectors', sides)
    if a.sentence:
        answered = {name: answered_by_words(name) for name in EXAMS}
        print(json.dumps(answered, indent=1))
        return save('exam_by_words', answered)
    found = {
        lang: {s: child('recall', s, lang) for s in ('mypt', 'bm25s', 'bm25s+stem')}
        for lang in ('en', 'de')
    }
    for lang, sides in found.items():
        for s, r in sides.items():
            print(f'{lang} {s:<11} recall@1 {r["1"]:.1f} %, @5 {r["5"]:.1f} %')
    exams = {name: child('exam', name) for name in EXAMS}
    for name, sides in exams.items():
        for s, r in sides.items():
            print(f'{name} {s:<11} recall@1 {r["1"]:.1f} %, @3 {r["3"]:.1f} %, @5 {r["5"]:.1f} %')
    if a.recall:
        before = json.loads((RESULTS / 'retrieval.json').read_text())
        kept = {k: before[k] for k in ('times', 'query_time_ratio')}
        kept['times_date'] = before.get('times_date', before['date'])
        return save('retrieval', dict(recall=found, exams=exams, **kept))
    runs = {s: [] for s in SIDES}
    for _ in range(ROUNDS):
        for s in SIDES:
            runs[s].append(child('time', s))
    for s, rs in runs.items():
        mid = {k: median(r[k] for r in rs) for k in rs[0]}
        print(
            f'{s:<11} index {mid["index_s"]:.2f} s, query {mid["query_ms"]:.2f} ms (95 %:'
            f' {mid["p95_ms"]:.1f}), {mid["passages"]:,} passages'
        )
    ratio = {
        s: median(
            r['query_ms'] / b['query_ms'] for r, b in zip(runs[s], runs['bm25s'], strict=False)
        )
        for s in ('memory', 'file')
    }
    for s, r in ratio.items():
        print(f'{s}: a query takes {r:.2f}× the time of bm25s (median of {ROUNDS} pairs)')
    save('retrieval', dict(recall=found, exams=exams, times=runs, query_time_ratio=ratio))


def save(name, result):
    from importlib.metadata import PackageNotFoundError, version

    def v(p):
        try:
            return version(p)
        except PackageNotFoundError:
            return None

    cpu = next(
        (
            line.split(': ')[1].strip()
            for line in open('/proc/cpuinfo')
            if line.startswith('model name')
        ),
        platform.machine(),
    )
    RESULTS.mkdir(exist_ok=True)
    versions = {p: v(p) for p in ('bm25s', 'PyStemmer', 'numpy')}
    (RESULTS / f'{name}.json').write_text(
        json.dumps(dict(date=str(date.today()), machine=cpu, versions=versions, **result), indent=1)
        + '\n'
    )


if __name__ == '__main__':
    main()
