"""The staged regime: what its generators make, what its checks let pass, what is in its suites."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from importlib.resources import files
import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mypt.data.episodes import check_episode
from mypt.eval.gates import judge
from mypt.curriculum.gold_episodes import make_gold
from mypt.data.masks import encode
from mypt.eval.metrics import CHECKS, Reply
from mypt.eval.instructions import (
    GOLD_CHECKS,
    fields_of,
    follows,
    key_facts,
    n_sentences,
    n_words,
    parse_json,
    schema_error,
    write_key_facts,
)
from mypt.curriculum.synthetic import held_out
from mypt.curriculum.gold import GOLD, gold_suites
from mypt.curriculum.grammar import wrong_forms
from mypt.curriculum.minimal_qa import is_whole, make_minimal_qa
from mypt.curriculum.structured import make_structured
from mypt.curriculum.tasks import make_tasks
from mypt.curriculum.format_lock import make_format_lock
from mypt.curate.quality import balance, category_of
from mypt.eval.suite import Responder, leaks, load_suite
from mypt.data.tokenizer import get_tokenizer
from mypt.errors import UserError

MAKERS = dict(
    minimal_qa=make_minimal_qa, tasks=make_tasks, structured=make_structured, gold=make_gold
)
SUITES = ('gold_stop', 'minimal_qa', 'tasks', 'structured', 'gold')
DOCS = {
    'csrf.md': (
        '# CSRF\n\n## Introduction\n\nCSRF is an attack that makes a browser send requests '
        'its user never meant. It relies on "cookies".\n\n## Tokens\n\nA token per session '
        'defeats most of these attacks, if it cannot be guessed.\n'
    ),
    'tls.md': (
        '# TLS\n\n## What it is\n\nTLS is a protocol that encrypts a connection between '
        'two programs.\n\n## Age\n\nIts first version is from the last century, and it was '
        'not called TLS.\n\nZorvik has the age unknown. Zorvik has the colour red.\n'
    ),
    'de.md': (
        '# Kanal\n\n## Lage\n\nDer Kanal ist eine Wasserstraße, die zwei Flüsse verbindet '
        'und nicht mehr befahren wird.\n'
    ),
    'de2.md': (
        '# Turm\n\n## Lage\n\nDer Turm ist ein Bauwerk, das auf dem Hügel steht und nicht '
        'bewohnt ist.\n'
    ),
    'de3.md': (
        '# Hof\n\n## Lage\n\nDer Hof ist ein Betrieb, der seit langem in der Familie ist '
        'und Milch verkauft.\n'
    ),
}
tok = get_tokenizer('byte')


def said(text):
    return Reply(tuple(tok.encode_with_tags(text + '</myPT_assistant>')), tok)


@pytest.fixture
def docs(tmp_path):
    for name, text in DOCS.items():
        (tmp_path / name).write_text(text, encoding='utf-8')
    return str(tmp_path)


@pytest.mark.parametrize('kind', MAKERS)
def test_different_legal_repeatable_and_in_balance(kind):
    eps = list(MAKERS[kind](2000, 'mixed'))
    texts = set()
    for e in eps:
        shown = [{k: m.get(k) for k in ('role', 'content', 'context')} for m in e['messages']]
        texts.add(str(shown))
    assert len(texts) == 2000
    assert eps == list(MAKERS[kind](2000, 'mixed')) and eps[:50] != list(
        MAKERS[kind](50, 'mixed', seed=43)
    )
    for e in eps:
        check_episode(e)
    assert Counter(e['language'] for e in eps) == {'en': 1000, 'de': 1000}
    for lang in ('en', 'de'):
        assert {e['language'] for e in MAKERS[kind](60, lang)} == {lang}
    with pytest.raises(UserError):
        list(MAKERS[kind](1, 'fr'))


def test_a_generator_is_the_same_in_another_process():
    code = (
        'import hashlib\n'
        'from mypt.curriculum.gold_episodes import make_gold\n'
        'from mypt.curriculum.minimal_qa import make_minimal_qa\n'
        'from mypt.curriculum.structured import make_structured\n'
        'from mypt.curriculum.tasks import make_tasks\n'
        'made = [list(m(40)) for m in (make_minimal_qa, make_tasks, make_structured, make_gold)]\n'
        'print(hashlib.sha256(str(made).encode()).hexdigest())'
    )

    def run(i):
        env = os.environ | {'PYTHONHASHSEED': str(i)}
        command = [sys.executable, '-c', code]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout

    assert run(1) == run(2)


@pytest.mark.parametrize('seed', [42, 7])
def test_no_question_of_any_suite_is_made(seed):
    made = [e for make in MAKERS.values() for e in make(4000, 'mixed', seed)] + list(
        make_format_lock(3000, 'en', seed)
    )
    assert leaks(made, SUITES) == []
    assert leaks([load_suite('tasks')[3].episode], SUITES)


def test_names_and_payloads_of_the_suites_are_held_out():
    for e in [
        *make_tasks(200, held=True),
        *make_structured(100, held=True, kinds=('extract', 'build', 'list')),
    ]:
        assert held_out(e['_meta']['payload'])
    for e in [
        *make_tasks(2000),
        *make_structured(2000, kinds=('extract', 'build', 'list', 'tool')),
    ]:
        assert not held_out(e['_meta']['payload'])


def test_shipped_suites_are_what_the_generators_make():
    for name, cases in gold_suites().items():
        text = ''.join(json.dumps(c, ensure_ascii=False) + '\n' for c in cases)
        assert (files('mypt') / 'assets' / 'suites' / f'{name}.jsonl').read_text(
            encoding='utf-8'
        ) == text
        assert len(cases) >= 100 and {c['check'] for c in cases} <= set(CHECKS)
        assert all(len(c['expected']['reply'].encode()) < c['limit'] for c in cases)
        if name != 'gold_stop':
            assert {'en', 'de'} <= {t for c in cases for t in c['tags']}
    cases = [c for s in gold_suites().values() for c in s]
    assert len({str(c['episode']['messages']) for c in cases}) == len(cases)


def test_limits_are_obeyed_and_the_same_question_comes_with_several():
    eps = list(make_minimal_qa(3000))
    ways = {}
    for e in eps:
        m, a = e['_meta'], e['messages'][1]['content']
        assert follows(a, m['want']) and n_sentences(a) <= 3, (a, m)
        if m['category'] == 'unknown':
            assert CHECKS['dont_know'](said(a), m['want'])
        else:
            ways.setdefault(m['payload'], set()).add(a)
    assert sum(len(a) > 1 for a in ways.values()) > len(ways) / 4
    numbers = [e['_meta']['constraint']['n'] for e in eps if e['_meta']['category'] == 'words']
    assert 10 in numbers and len(set(numbers)) > 8


WORDS = dict(
    en='one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen',
    de='eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn',
)


def test_the_limit_of_the_question_is_counted_again():
    "The number in the question, in digits or as a word, is what the answer has in pieces."
    checked = 0
    for e in make_minimal_qa(2000, kinds=('words',)):
        question, answer = (m['content'] for m in e['messages'])
        n, words = e['_meta']['constraint']['n'], WORDS[e['language']].split()
        assert e['_meta']['constraint']['kind'] == 'words'
        assert len(answer.split()) == n, answer
        named = re.findall(r'\w+', question.lower())
        assert str(n) in named or words[n - 1] in named, question
        checked += n == 10
    assert checked > 60


def test_what_is_unknown_stands_nowhere_in_the_context():
    for e in make_minimal_qa(600, kinds=('unknown',)):
        name, context = e['_meta']['payload'], e['messages'][0].get('context', '')
        about = e['_meta']['about']  # None: a stranger's life, or what only the user knows
        assert name in e['messages'][0]['content']
        assert (about['sentence'] if about else name) not in context


@pytest.mark.parametrize('lang', ['en', 'de'])
def test_twenty_wordings_of_each_kind_of_task(lang):
    "Names, numbers and lists masked, the questions of a kind still begin in many ways."
    for kind in ('all', 'count', 'query', 'fields'):
        opened = set()
        for e in make_tasks(300, lang, kinds=(kind,)):
            asked = e['messages'][0]['content'].split('\n\n')[-1]
            opened.add(asked.replace(e['_meta']['payload'], 'X')[:14])
        assert len(opened) >= 12, (kind, opened)


@pytest.mark.parametrize('lang', ['en', 'de'])
def test_key_facts_are_whole_different_and_no_summary(lang):
    for e in make_tasks(1200, lang, kinds=('all', 'count', 'query')):
        question, answer = e['messages']
        facts, summary = key_facts(answer['content'])
        n = e['_meta']['constraint']['n']
        assert len(facts) == len(set(facts)) == n
        assert summary not in facts
        assert all(is_whole(f) or ': ' in f for f in facts), facts
        asked = question['content'].split('\n\n')[-1]
        if e['_meta']['category'] == 'count':
            assert (str(n) in asked) == (n > 1)
            assert not re.search(r'\b1 (?:Fakt|Tatsache|fact)', asked)


def test_a_sentence_that_was_cut_is_no_fact():
    for cut in (
        'Use a library (e.g.',
        'Das steht in Abs.',
        'It says "no.',
        'A heading',
        'One. Two.',
    ):
        assert not is_whole(cut)
    for whole in ('It has the version 18.7.', 'See the list (all of it).', 'Er sagt „ja“.'):
        assert is_whole(whole)


@pytest.mark.parametrize('kind', MAKERS)
@pytest.mark.parametrize('lang', ['en', 'de'])
def test_no_wrong_form(kind, lang):
    for e in MAKERS[kind](600, lang):
        for m in e['messages']:
            assert wrong_forms(m['content'], lang) == [], m['content']


def test_no_wrong_form_in_the_suites():
    for name, cases in gold_suites().items():
        for c in cases:
            lang = 'de' if 'de' in c['tags'] else 'en'
            for m in c['episode']['messages']:
                assert wrong_forms(m['content'], lang) == [], (name, m['content'])


@pytest.mark.parametrize('lang', ['en', 'de'])
def test_kinds_of_gold_are_known_without_metadata(lang):
    for e in make_gold(600, lang):
        named = e['_meta']['category']
        assert category_of({'messages': e['messages']}) == named, e['messages']


def test_a_german_episode_has_a_german_system_prompt():
    prompts = {(e['language'], e['system'].split()[0]) for e in make_gold(60, 'mixed')}
    assert prompts == {('en', 'You'), ('de', 'Du')}


def test_an_order_without_its_tool_is_told_so():
    "Not that something is not known, but that there is no tool; in more than one wording."
    answers = set()
    for e in make_structured(300, kinds=('no_such_tool',)):
        answers.add(json.loads(e['messages'][1]['content'])['answer'])
    assert len(answers) >= 10
    assert not answers & {"I don't know.", 'Das weiß ich nicht.'}
    assert all(re.search('tool|Werkzeug', a) for a in answers)


def test_facts_fields_and_summaries_stand_in_the_text():
    for e in make_tasks(2000):
        q, a, want = (str(e['messages'][0]), e['messages'][1]['content'], e['_meta']['want'])
        if 'fields' in want:
            assert fields_of(a) == want['fields'] and all(
                v == '-' or v in q for v in want['fields'].values()
            )
            continue
        facts, short = key_facts(a)
        assert all(f in q for f in facts) and CHECKS['task'](said(a), want)
        assert len(short) <= sum(map(len, facts))


def test_json_conforms_to_the_schema_of_the_question_says_jsonschema():
    for e in make_structured(2000):
        x, want = json.loads(e['messages'][1]['content']), e['_meta']['want']
        jsonschema.validate(x, want['schema'])
        assert x == want['json']
        if e['_meta']['category'] in ('extract', 'build', 'classify'):
            assert json.dumps(want['schema'], ensure_ascii=False) in e['messages'][0]['content']


def test_a_tool_is_called_only_where_it_is_listed_with_arguments_of_the_question():
    for e in make_structured(1500, kinds=('tool', 'direct', 'no_such_tool')):
        q, x = e['messages'][0]['content'], json.loads(e['messages'][1]['content'])
        listed = dict(re.findall(r'([\w.]+)\(([^)]*)\)', q))
        assert (x['action'] == 'tool') == (e['_meta']['category'] == 'tool')
        if x['action'] == 'tool':
            assert listed[x['name']] == ', '.join(x['arguments']) and all(
                str(v) in q for v in x['arguments'].values()
            )


@pytest.mark.parametrize('kind', MAKERS)
def test_documents_of_a_folder(kind, docs):
    eps = list(
        MAKERS[kind](
            6, 'mixed', docs_dir=docs, **({'only': ('technical',)} if kind == 'gold' else {})
        )
    )
    for e in eps:
        check_episode(e)
    if kind == 'tasks':
        assert all(
            f in str(e['messages'][0]) or json.dumps(f)[1:-1] in str(e)
            for e in eps
            for f in (key_facts(e['messages'][1]['content']) or ((),))[0]
        )


def test_gold_shares_ids_and_snippets():
    eps = list(make_gold(200))
    assert not any(balance(eps).data['missing'].values())
    assert [check_episode(e)['_meta']['episode_id'] for e in eps] == [
        f'{i:04d}' for i in range(1, 201)
    ]
    assert all('context' not in check_episode(e) for e in eps)
    with pytest.raises(UserError, match='category'):
        list(make_gold(1, only=('poems',)))


def test_the_code_in_gold_episodes_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for lang in ('en', 'de'):
        blocks = {
            b
            for e in make_gold(600, lang, only=('how_to', 'multi_turn'))
            for m in e['messages']
            for b in re.findall(r'```python\n(.*?)```', m['content'], re.S)
        }
        assert len(blocks) > 20
        for b in sorted(blocks)[::9]:
            for name in re.findall(r"open\('([^']+)'", b):
                (tmp_path / name).write_text('{}')
            exec(b, {})


def test_gold_fits_a_block():
    gpt2 = get_tokenizer('gpt2')
    for make in (*MAKERS.values(),):
        assert max(len(encode(check_episode(e), gpt2)) for e in make(300, 'mixed')) < 1024


@pytest.mark.parametrize('phase', GOLD)
def test_gates_pass_the_perfect_and_nobody_else(phase):
    reply = {str(c.episode['messages']): c.expected['reply'] for s in SUITES for c in load_suite(s)}

    def speaker(answer):
        return Responder(
            lambda hs, n, end: [
                tok.encode_with_tags(answer(reply[str(h['messages'])])) for h in hs
            ],
            tok,
        )

    end = '</myPT_assistant>'
    assert judge(speaker(lambda a: a + end), GOLD[phase].gate, phase).passed
    assert judge(speaker(lambda a: a + end + '<myPT_eot>'), GOLD[phase].gate, phase).passed
    for bad in (
        lambda a: a,
        lambda a: end,
        lambda a: '<myPT_user>' + a + end,
        lambda a: 'Of course, let me help you with that. ' * 3 + end,
    ):
        assert not judge(speaker(bad), GOLD[phase].gate, phase).passed


def test_json_gate_is_99_of_100():
    cases = load_suite('structured')
    bad = {str(c.episode['messages']) for c in cases[:3]}
    reply = {str(c.episode['messages']): c.expected['reply'] for s in SUITES for c in load_suite(s)}

    def speaker(worse):
        def say(h):
            messages = str(h['messages'])
            extra = '}' if messages in worse else ''
            return reply[messages] + extra + '</myPT_assistant>'

        return Responder(lambda hs, n, end: [tok.encode_with_tags(say(h)) for h in hs], tok)

    def row(worse):
        rows = judge(speaker(worse), GOLD['3a-4'].gate).rows
        return next(r for r in rows if r.name == 'JSON')

    assert row(set(sorted(bad)[:2])).passed and not row(bad).passed


def test_recipes_chain_and_use_the_policy():
    assert [GOLD[p].base for p in ('3a-1', '3a-2', '3a-3', '3a-4')] == [
        '1b',
        '3a-1',
        '3a-2',
        '3a-3',
    ]
    assert all(p.prepare['mask_policy'] == 'phase3a' and p.gate for p in GOLD.values())
    assert {
        e['language']
        for s in GOLD['3a-1'].sources
        for e in s.make(50, language=GOLD['3a-1'].language, **s.options)
    } == {'en'}
    for p in GOLD.values():
        for earlier in p.replay:
            assert earlier in GOLD


# The checks

values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from('abc'), x, max_size=3),
    max_leaves=6,
)
kinds = st.sampled_from(['string', 'object', 'array', 'boolean', 'null', 'number', 'integer'])
few = st.integers(0, 2)
leaf = st.fixed_dictionaries(
    {},
    optional=dict(
        type=kinds | st.lists(kinds, min_size=1, max_size=2, unique=True),
        minimum=st.integers(-3, 3),
        minItems=few,
    ),
)
schemas = st.recursive(
    leaf,
    lambda s: st.fixed_dictionaries(
        {},
        optional=dict(
            properties=st.dictionaries(st.sampled_from('abc'), s, max_size=2),
            required=st.lists(st.sampled_from('abc'), unique=True),
            additionalProperties=st.booleans() | s,
            items=s,
            anyOf=st.lists(s, min_size=1, max_size=2),
            maxItems=few,
            maximum=st.integers(-3, 3),
            enum=st.lists(st.booleans() | st.integers(0, 1) | st.none(), min_size=1, max_size=3),
        ),
    ),
    max_leaves=5,
)


@settings(max_examples=400, deadline=None)
@given(values, schemas)
def test_schema_checker_agrees_with_jsonschema(x, schema):
    assert (schema_error(x, schema) is None) == jsonschema.Draft202012Validator(schema).is_valid(x)


def test_an_unknown_keyword_is_an_error():
    for s in ({'pattern': 'x'}, {'type': 'text'}):
        with pytest.raises(UserError, match='unknown'):
            schema_error('x', s)


@pytest.mark.parametrize(
    'text',
    [
        '',
        '{',
        '{"a": 1, "a": 1}',
        'NaN',
        '[1e999]',
        '{} {}',
        "{'a': 1}",
        '```json\n{}\n```',
        '[' * 100_000,
    ],
)
def test_what_is_no_json(text):
    with pytest.raises(ValueError):
        parse_json(text)
    assert not GOLD_CHECKS['json'](said(text), {})


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_no_reply_breaks_a_check(text):
    r = said(text)
    want = dict(
        words=3,
        max_words=3,
        answer='x',
        any=['x'],
        text='x',
        values=['x'],
        n=1,
        facts=['x'],
        fields={'A': 'x'},
        schema={},
        json={'action': 'tool'},
    )
    for check in GOLD_CHECKS.values():
        assert check(r, want) in (True, False)


@pytest.mark.parametrize(
    'text,n',
    [('one', 1), ('e-mail and don’t', 3), (' – ', 0), ('3.14, 2', 2), ('„ja“', 1), ('a\nb', 2)],
)
def test_words(text, n):
    assert n_words(text) == n


@pytest.mark.parametrize(
    'text,n',
    [
        ('', 0),
        ('...', 0),
        ('a', 1),
        ('A. B! C?', 3),
        ('See a.md.', 1),
        ('It is 3.5.', 1),
        ('He said "no." Then left.', 2),
        ('Wait... what?', 2),
    ],
)
def test_sentences(text, n):
    assert n_sentences(text) == n


@given(
    st.lists(st.from_regex(r'[A-Za-z][a-z ]{0,9}\.', fullmatch=True), min_size=1, max_size=4),
    st.from_regex(r'[A-Z][a-z ]{0,9}\.', fullmatch=True),
)
def test_key_facts_round_trip(facts, summary):
    assert key_facts(write_key_facts(facts, summary)) == (facts, summary)


def test_invented_repeated_and_unasked_facts_are_caught():
    want = dict(
        text='Zor has the colour red. Zor has the age 3 years.',
        facts=['Zor has the colour red.'],
        n=1,
        values=['red'],
    )

    def make(*facts):
        return said(write_key_facts(list(facts), 'Zor has the colour red.'))

    ok = GOLD_CHECKS['facts_grounded']
    assert ok(make('Zor has the colour red.'), want)
    for facts in (
        ('Zor has the colour blue.',),
        ('Zor has the colour red.',) * 2,
        ('Zor has the age 3 years.',),
        ('Zor has the colour red.', 'Zor has the age 3 years.'),
    ):
        assert not ok(make(*facts), want)
    assert not GOLD_CHECKS['summarizes'](said(write_key_facts(['x.'], 'It is red. Really.')), want)
