"Promises of the episodes with tools: true labels, shares, ways out of errors, lengths, variety."

import json
import random
import re
from collections import Counter
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pytest

from mypt.agent.documents import Document
from mypt.agent.tools import Workspace, check_call, sentences
from mypt.curriculum.agentic import PATTERN_SHARES, make_agentic
from mypt.curriculum.facts import unwrap_lines
from mypt.curriculum.shelf import Shelf
from mypt.curriculum.chat_words import fact_sentence
from mypt.curriculum.facts import Fact
from mypt.curriculum.plain_plays import _first_sentences
from mypt.curriculum.small_talk import talk_forms
from mypt.curriculum.tool_script import ScriptStyle, ToolScript, names_what_is_asked
from mypt.curriculum.toolcall import TOOL_SHARES, look_thought, make_toolcall
from mypt.data.masks import encode
from mypt.data.tokenizer import get_tokenizer

MAKERS = dict(toolcall=make_toolcall, agentic=make_agentic)
LAWS = Path(__file__).resolve().parents[2] / 'shared' / 'data' / 'law_de'
PRODUCTS = dict(
    lamp='The lamp Lumo gives 800 lumens. Lumo costs 49 euros. It was designed by Ida Brandt.',
    kettle='The kettle Aqua holds 1.7 litres. Aqua costs 35 euros. It boils water in 3 minutes.',
    chair='The chair Sedo is made of beech. Sedo weighs 6 kilograms. It was designed by Tom Falk.',
    desk='The desk Plano is 160 centimetres wide. Plano costs 320 euros. It is made of oak.',
    radio='The radio Onda runs for 20 hours. Onda costs 79 euros. It weighs 1 kilogram.',
    clock='The clock Tempo is set by radio. Tempo costs 25 euros. It has a warranty of 2 years.',
    heater='The heater Calor needs 1500 watts. Calor weighs 9 kilograms. It is made of steel.',
    fan='The fan Vento has three speeds. Vento costs 55 euros. Its warranty lasts 3 years.',
    scale='The scale Libra carries 150 kilograms. Libra is made of glass. It costs 29 euros.',
    mixer='The mixer Rota has a bowl of 5 litres. Rota costs 140 euros. It weighs 4 kilograms.',
    iron='The iron Ferro needs 2400 watts. Ferro costs 45 euros. Its cable is 2 metres long.',
    camera='The camera Lux takes 30 pictures a second. Lux costs 510 euros. It weighs 1 kilogram.',
)


@pytest.fixture(scope='module')
def products(tmp_path_factory):
    "A folder of twelve small documents about products."
    folder = tmp_path_factory.mktemp('products')
    for name, text in PRODUCTS.items():
        first = text.split(' gives ')[0].split(' is ')[0].split(' has ')[0].split(' ')[2]
        body = (
            f'# The {name} {first}\n\n{first} is a {name} for every home and office.\n\n{text}\n\n'
        )
        care = f'## Care\n\nThe {name} is cleaned with a soft and dry cloth once a month.\n'
        (folder / f'{name}.md').write_text(body + care, encoding='utf-8')
    return folder


@pytest.fixture(scope='module')
def made():
    return {kind: list(make(600, seed=21, long=0)) for kind, make in MAKERS.items()}


def title_of(doc_id: str, text: str) -> str:
    first = text.split('\n', 1)[0]
    return first[2:].strip() if first.startswith('# ') else doc_id


def workspace_of(meta: dict) -> Workspace:
    documents = [Document(i, title_of(i, t), t) for i, t in meta['documents'].items()]
    return Workspace.of(documents, snippet=meta['snippet'])


def calls_of(ep: dict) -> list[tuple[dict, dict]]:
    "Calls and their results."
    pairs = zip(ep['messages'], ep['messages'][1:], strict=False)
    return [(m, r['content']) for m, r in pairs if m['role'] == 'assistant_toolcall']


@pytest.mark.parametrize('kind', MAKERS)
def test_results_are_what_the_tools_return(kind, made):
    again = 0
    for e in made[kind]:
        if 'documents' in e['_meta']:
            space = workspace_of(e['_meta'])
            for call, result in calls_of(e):
                assert space.call(call['name'], call['arguments']) == result
                again += 1
    assert again > 500


@pytest.mark.parametrize('kind', MAKERS)
def test_lists_are_complete_and_without_what_is_known(kind, made):
    seen = Counter()
    for e in made[kind]:
        meta = e['_meta']
        if 'listing' in meta:
            there = set(meta['documents']) - {meta.get('without')}
            named = re.findall(r'[\w-]+\.md', e['messages'][-1]['content'].partition(':')[2])
            named = named or re.findall(r'[\w-]+\.md', e['messages'][-1]['content'])
            assert there <= set(named)
            assert sorted(meta['listing']) == sorted(there)
            seen['without' in meta] += 1
    if kind == 'toolcall':
        assert min(seen.values()) > 10


@pytest.mark.parametrize('kind', MAKERS)
def test_an_answer_stands_in_a_result_and_an_abstention_in_none(kind, made):
    abstained = meant = 0
    for e in made[kind]:
        shown = unwrap_lines(json.dumps([r for _, r in calls_of(e)], ensure_ascii=False))
        last, about = e['messages'][-1], e['_meta'].get('about')
        if e['_meta'].get('abstains'):
            abstained += 1
            assert 'cite' not in last
            assert json.dumps(about['sentence'], ensure_ascii=False)[1:-1] not in shown
        elif isinstance(last.get('cite'), str):
            said = about['sentence'] if about else last['content']
            assert json.dumps(said, ensure_ascii=False)[1:-1] in shown
            if about:
                said = fact_sentence(Fact(title='', lang=e['language'], **about))
                assert about['value'] in said
            assert last['content'].endswith(said)
            meant += last['content'] != said
    assert meant > 5
    assert abstained > 15


@pytest.mark.parametrize('kind', MAKERS)
def test_an_empty_search_without_the_name_is_not_learned(kind, made):
    untrained = 0
    for e in made[kind]:
        if e['_meta'].get('variant') not in ('search_again', 'search_again_read', 'four_calls'):
            continue
        subject = e['_meta']['about']['subject']
        for call, result in calls_of(e):
            if call['name'] == 'workspace.search' and not result.get('documents', True):
                meant = get_close_matches(call['arguments']['query'], subject.split(), 1, 0.6)
                assert meant or call.get('weight') == 0, call
                untrained += not meant
    assert untrained > 1  # there are such searches


def test_a_document_is_said_to_mention_a_name_only_where_it_does():
    "A hit is also read because the question has its title."
    script = ToolScript(random.Random(1), 'en', Shelf(), ScriptStyle(think=1))
    name = script.fact.subject
    texts = dict(first='It is dry.', care='Wash it.', named=f'{name} is small.')
    hits = [dict(doc_id=f'{t}.md', title=t, text=text) for t, text in texts.items()]
    said = {h['doc_id']: '' for h in hits}
    for d in 30 * list(said):
        said[d] += look_thought(script, dict(documents=hits), d)
    assert {d for d, thoughts in said.items() if name in thoughts} == {'named.md'}


@pytest.mark.parametrize('kind', MAKERS)
def test_an_answer_is_a_sentence_and_not_hearsay(kind, made):
    hearsay = ('Die wenigsten wissen', 'Wie alle hier wissen', 'As everyone here knows')
    for e in made[kind]:
        about, last = e['_meta'].get('about'), e['messages'][-1]
        if about and about['kind'] == 'value' and last.get('cite'):
            assert last['content'].endswith('.'), last
            assert not last['content'].startswith(hearsay), last


@pytest.mark.parametrize('kind', MAKERS)
def test_nobody_greets_in_the_middle(kind, made):
    for e in made[kind]:
        later = [m['content'] for m in e['messages'] if m['role'] == 'user'][1:]
        assert not [text for text in later if re.search(r'\b[Hh]ey, ', text)]


@pytest.mark.parametrize('kind', MAKERS)
def test_a_first_search_that_is_trained_has_the_name(kind, made):
    "One without it finds nothing; it is read, not learned."
    empty = 0
    for e in made[kind]:
        for m, call, result in zip(
            e['messages'], e['messages'][1:], e['messages'][2:], strict=False
        ):
            found = result['content'].get('documents') if result['role'] == 'toolresult' else None
            if m['role'] != 'user' or found != [] or call.get('weight') == 0:
                continue
            names = set(re.findall(r'\b[A-Z]\w{3,}', m['content']))
            assert names & set(re.findall(r'\w+', call['arguments']['query'])), (m, call)
            empty += 1
    assert empty > 5


@pytest.mark.parametrize('kind', MAKERS)
def test_a_question_back_is_for_a_word_that_no_other_title_has(kind, made):
    for e in made[kind]:
        meta = e['_meta']
        if 'choices' in meta:
            titles = {i: title_of(i, text) for i, text in meta['documents'].items()}
            meant = [set(re.findall(r'\w+', titles[i])) for i in meta['choices']]
            others = [t.casefold() for i, t in titles.items() if i not in meta['choices']]
            shared = [w for w in set.intersection(*meant) if len(w) > 3]
            assert any(not [t for t in others if w.casefold() in t] for w in shared), titles


def test_summaries_of_laws_begin_as_the_law_does():
    if not LAWS.is_dir():
        pytest.skip(f'{LAWS} is not there')
    summaries = 0
    for e in make_toolcall(150, 'de', docs_dir=str(LAWS), seed=4, long=0):
        documents = e['_meta'].get('documents') or {}
        for m, after in zip(e['messages'], e['messages'][1:], strict=False):
            if m['role'] == 'toolresult' and after['role'] == 'assistant':
                short, text = m['content'].get('summary'), documents.get(m['content'].get('doc_id'))
                if short and text:
                    summaries += 1
                    assert sentences(short)[0] == sentences(text)[0]
    assert summaries > 3


_NAMED = re.compile(  # thoughts before a document is read: what it names
    r'(\S+\.md) (?:nennt|erwähnt|mentions) ([^.]+)\. (?:Zur|Vielleicht|Perhaps)'
    r'|([^.]+) comes up in (\S+\.md),'
)


def test_a_thought_names_what_is_in_the_document(made):
    named = 0
    for e in made['toolcall'] + made['agentic']:
        for m in e['messages']:
            said = _NAMED.match(m.get('think', ''))
            if said and 'documents' in e['_meta']:
                named += 1
                doc_id, subject = (said[1], said[2]) if said[1] else (said[4], said[3])
                text = unwrap_lines(e['_meta']['documents'][doc_id]).casefold()
                assert subject.strip('"„“').casefold() in text, m
    assert named > 5


def test_ten_errors_each_with_a_way_out(made):
    variants = Counter()
    for e in made['agentic']:
        if e['_meta']['category'] != 'ERROR_RECOVERY':
            continue
        variants[e['_meta']['variant']] += 1
        calls = calls_of(e)
        failed = [i for i, (_, result) in enumerate(calls) if 'error' in result]
        assert failed
        for i in failed:
            call, _ = calls[i + 1]
            assert check_call(call['name'], call['arguments']) is None
            assert call['think']
        illegal = [c for c, _ in calls if check_call(c['name'], c['arguments'])]
        assert all(c['weight'] == 0 for c in illegal)  # read, not learned
    assert len(variants) >= 9


@pytest.mark.parametrize('kind', MAKERS)
def test_eight_in_a_hundred_use_the_wrong_tool_first(kind, made):
    wrong = Counter(e['_meta'].get('variant') for e in made[kind])
    of_tools = {v: n for v, n in wrong.items() if v in WRONG_TOOLS}
    assert abs(sum(of_tools.values()) / len(made[kind]) - 0.08) < 0.02
    assert len(of_tools) >= 4
    first = Counter()
    for e in made[kind]:
        if e['_meta'].get('variant') in WRONG_TOOLS:
            first.update(c['name'] for c, _ in calls_of(e) if c.get('weight') == 0)
    assert first['workspace.list_docs'] < 0.5 * sum(first.values())


WRONG_TOOLS = (
    'wrong_list wrong_guess wrong_summary wrong_search wrong_get wrong_piece wrong_summary_found'
).split()


def test_chains_have_one_to_four_calls(made):
    calls = Counter()
    for e in made['agentic']:
        turn = [m['role'] for m in e['messages']]
        last = len(turn) - 1 - turn[::-1].index('user')
        calls[turn[last:].count('assistant_toolcall')] += 1
    assert set(calls) == {0, 1, 2, 3, 4}
    assert calls[3] > 40


def test_searches_find_two_to_five(made):
    for eps in made.values():
        found = Counter()
        for e in eps:
            for call, result in calls_of(e):
                if call['name'] == 'workspace.search' and 'documents' in result:
                    found[len(result['documents'])] += 1
        del found[0]  # the first words of a second search
        assert sum(found[n] for n in (2, 3, 4, 5)) > 0.8 * sum(found.values())


def test_what_needs_no_tool_is_said_in_sentences(made):
    for eps, kind in ((made['toolcall'], 'no_tool'), (made['agentic'], 'NO_TOOL')):
        plain = [e for e in eps if e['_meta']['category'] == kind]
        assert abs(len(plain) / len(eps) - 0.2) < 0.02
        assert all(e['messages'][-2]['role'] == 'user' for e in plain)  # no call in the last turn
        words = [len(e['messages'][-1]['content'].split()) for e in plain]
        assert sum(n > 2 for n in words) > 0.8 * len(words)


@pytest.mark.parametrize('kind, shares', [('toolcall', TOOL_SHARES), ('agentic', PATTERN_SHARES)])
def test_shares_hold_whatever_the_folder(kind, shares, products, made):
    small = list(MAKERS[kind](200, 'en', docs_dir=str(products), long=0))
    for eps in (made[kind], small):
        counted = Counter(e['_meta']['category'] for e in eps)
        for name, share in shares.items():
            off = abs(counted[name] - share * len(eps))
            assert off <= 0.02 * len(eps) + 1e-6, (name, counted)
    for e in small:
        for call, result in calls_of(e):
            if call['name'] == 'workspace.list_docs':
                assert len(result['documents']) <= 12


@pytest.mark.parametrize('kind', MAKERS)
def test_one_in_twenty_is_near_the_window_and_none_beyond(kind):
    tok = get_tokenizer('gpt2')
    lengths = [len(encode(e, tok).ids) for e in MAKERS[kind](200, seed=5)]
    assert 0.02 < np.mean(np.array(lengths) >= 3000) < 0.1
    assert max(lengths) <= 4096


def test_wordings():
    for lang in ('en', 'de'):
        forms = talk_forms('tool_talk', lang)
        assert sum(len(f) for slot, f in forms.items() if slot.startswith('ask.')) >= 60
        assert sum(len(f) for slot, f in forms.items() if slot.startswith('think.')) >= 12
        for slot, said in forms.items():
            assert len(set(said)) == len(said), slot
    english, german = talk_forms('tool_talk', 'en'), talk_forms('tool_talk', 'de')
    assert set(english) == set(german)
    for slot in english:
        fields = [set(re.findall(r'{(\w)}', ' '.join(f[slot]))) for f in (english, german)]
        assert fields[0] == fields[1], slot


def test_simple_episodes_are_short(made):
    tok = get_tokenizer('gpt2')
    for make in MAKERS.values():
        eps = list(make(200, seed=3, simple=True))
        assert np.mean([len(encode(e, tok).ids) for e in eps]) < 450
        assert all(sum(m['role'] == 'user' for m in e['messages']) == 1 for e in eps)


def turns_and_tools(eps: list[dict]) -> tuple[list[str], list[str]]:
    "Every request, and the tool that is called next, or none."
    asked, tools = [], []
    for e in eps:
        for m, after in zip(e['messages'], e['messages'][1:], strict=False):
            if m['role'] == 'user':
                asked.append(m['content'])
                tools.append(after.get('name', 'none'))
    return asked, tools


def bag_of_words_accuracy(texts: list[str], labels: list[str]) -> float:
    "Of a logistic regression on words, trained on one half and judged on the other, 1 is all."
    half, classes = len(texts) // 2, sorted(set(labels))
    bags = [set(re.findall(r'\w+', t.lower())) for t in texts]
    known = Counter(w for bag in bags[:half] for w in bag)
    vocabulary = {w: i for i, w in enumerate(w for w, n in known.items() if n > 1)}
    X = np.zeros((len(texts), len(vocabulary) + 1))
    X[:, -1] = 1
    for row, bag in zip(X, bags, strict=True):
        row[[vocabulary[w] for w in bag if w in vocabulary]] = 1
    y = np.array([classes.index(label) for label in labels])
    W = np.zeros((X.shape[1], len(classes)))
    for _ in range(300):
        scores = np.exp(X[:half] @ W)
        probabilities = scores / scores.sum(1, keepdims=True)
        W -= 0.5 * (X[:half].T @ (probabilities - np.eye(len(classes))[y[:half]]) / half + 1e-4 * W)
    return float(np.mean((X[half:] @ W).argmax(1) == y[half:]))


@pytest.mark.parametrize('kind', MAKERS)
def test_words_alone_do_not_tell_whether_a_tool_is_needed(kind, made):
    "As many requests with a tool as without; chance is 0.5. Who names a list gets a list."
    texts, tools = turns_and_tools(made[kind])
    none = [t for t, tool in zip(texts, tools, strict=True) if tool == 'none']
    some = [t for t, tool in zip(texts, tools, strict=True) if tool != 'none']
    rng = np.random.default_rng(1)
    n = min(len(none), len(some))
    chosen = [(t, 'none') for t in rng.permutation(none)[:n]]
    chosen += [(t, 'tool') for t in rng.permutation(some)[:n]]
    order = rng.permutation(len(chosen))
    accuracy = bag_of_words_accuracy([chosen[i][0] for i in order], [chosen[i][1] for i in order])
    print(f'{kind}: {accuracy:.2f}')
    assert accuracy < 0.85


def test_sentences_end_where_they_end():
    text = 'Am 3. März galt z. B. Abs. 2 nicht. Use one, e.g. a token. See Fig. 2. It ends.'
    assert sentences(text) == [
        'Am 3. März galt z. B. Abs. 2 nicht.',
        'Use one, e.g. a token.',
        'See Fig. 2.',
        'It ends.',
    ]


@pytest.mark.parametrize(
    'subject, shown, named',
    [
        ('Defense in Depth', 'The principle of Defense-in-Depth', True),
        ('Cross-Site Scripting', '## Cross Site Scripting (XSS)', True),
        ('A05: Security', '### A05 Security', True),
        ('§ 93', '### Art 93', False),
        ('Pinning', 'Unpinning', False),
    ],
)
def test_a_hit_names_what_is_asked_with_hyphens_or_without(subject, shown, named):
    fact = Fact('a.md', 'A', 'en', 'section', subject, '', 'x')
    assert names_what_is_asked(dict(title='Other', text=shown), fact) == named


def test_a_text_to_shorten_ends_with_a_sentence():
    text = 'Es gilt das Gesetz. Der Bericht nach § 325 Abs. 2a ist zu erstatten. Er ist lang.'
    assert _first_sentences(text, 30) == 'Es gilt das Gesetz.'
    assert _first_sentences(text, 55) == 'Es gilt das Gesetz.'  # not with *§ 325 Abs.*
    assert _first_sentences(text, 75) == text.removesuffix(' Er ist lang.')
    assert _first_sentences(text, 5) == ''
