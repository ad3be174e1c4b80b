"The shipped suites: no case is made, who is right passes them, and nobody else does."

import json
import re
from functools import lru_cache
from importlib.resources import files

import pytest

from mypt.curriculum.adherence import TRAINED_RULES, make_adherence, read_common, read_rules
from mypt.curriculum.agentic import make_agentic
from mypt.curriculum.grammar import wrong_forms
from mypt.curriculum.ood import ood_suites, read_phrasings, read_prose
from mypt.curriculum.run import GENERATORS, PHASES
from mypt.curriculum.toolcall import TOOL_SUITE_SYSTEM, agent_case, make_toolcall
from mypt.data.serialize import dump_call, serialize, to_ids
from mypt.data.tokenizer import get_tokenizer
from mypt.eval.instructions import LIMITS, follows
from mypt.eval.metrics import CHECKS, Reply, squash
from mypt.eval.suite import Responder, SuiteResult, leaks, load_suite, run_suite

TOK = get_tokenizer('byte')
END = '</myPT_assistant><myPT_eot>'
OOD = ('phase3_chat_ood', 'phase4_multiturn_ood', 'phase5_toolcall_ood', 'phase6_agentic_ood')
SUITES = sorted(
    p.name.removesuffix('.jsonl') for p in (files('mypt') / 'assets' / 'suites').iterdir()
)
ASKERS = ('rag_chat', 'multiturn', 'toolcall', 'agentic', 'adherence', 'minimal_qa', 'gold')


@pytest.mark.parametrize('name', SUITES)
def test_enough_cases_each_with_a_name_and_a_known_check(name):
    cases = load_suite(name)
    assert len(cases) >= 100
    assert len({c.id for c in cases}) == len(cases)
    assert {c.check for c in cases} <= set(CHECKS)


@pytest.mark.parametrize('phase', '3456')
def test_every_phase_from_the_third_on_is_asked_as_people_ask(phase):
    gate = {r.name: r for r in PHASES[phase].gate}
    asked = gate['as people ask']
    assert asked.suites == (OOD[int(phase) - 3],) and asked.warns and asked.floor == 0.4
    assert any('system prompt' in name for name in gate)


def test_rows_that_the_documents_name():
    rows = {number: {r.name for r in PHASES[number].gate} for number in PHASES}
    assert {'answers in English', 'answers in German'} <= rows['1']
    assert 'anti-echo' in rows['3']


@pytest.mark.parametrize('lang', ['en', 'de'])
@pytest.mark.parametrize('phase', ['phase3', 'phase4', 'phase5', 'phase6'])
def test_sixty_phrasings_of_a_phase(lang, phase):
    found = [p for p in read_phrasings(lang) if p.part.startswith(phase)]
    assert len({squash(p.text) for p in found}) == len(found) >= 60
    registers = [p.register for p in found]
    assert len(set(registers)) >= 7
    assert max(map(registers.count, registers)) < 0.4 * len(found)


@pytest.mark.parametrize('lang', ['en', 'de'])
def test_every_phrasing_of_a_suite_is_asked(lang):
    "None is lost because no document answers it."
    for name, cases in ood_suites().items():
        said = [c for c in cases if lang in c['tags']]
        texts = [[c['episode']['messages'][-1]['content'], *c.get('then', ())] for c in said]
        heard = [squash(t) for group in texts for t in group]
        part = name.split('_')[0]
        for p in read_phrasings(lang):
            if p.part.startswith(part) and p.part != 'phase4 opening':
                assert any(pattern(p.text).fullmatch(t) for t in heard), p


def pattern(form: str) -> re.Pattern:
    "What a form can become, as `squash` leaves it."
    parts = (re.escape(squash(part)) for part in re.split(r'\{[sd]\}', form))
    return re.compile(' ?.{1,60}? ?'.join(parts))


@pytest.fixture(scope='module')
def made():
    return {kind: list(GENERATORS[kind](600, seed=11)) for kind in ASKERS}


@pytest.fixture(scope='module')
def forms() -> list[tuple[str, re.Pattern]]:
    "Every phrasing by hand; what a name stands for may be anything."
    texts = []
    for lang in ('en', 'de'):
        texts += [p.text for p in read_phrasings(lang)]
        texts += [q.text for _, questions in read_prose(lang) for q in questions]
    return [(text, pattern(text)) for text in texts]


@pytest.mark.parametrize('kind', ASKERS)
def test_no_phrasing_is_a_template_of_a_generator(kind, made, forms):
    "Compared without letters' cases and marks."
    said = {squash(m['content']) for e in made[kind] for m in e['messages'] if m['role'] == 'user'}
    found = [(text, q) for q in said for text, form in forms if form.fullmatch(q)]
    assert found == []


@pytest.mark.parametrize('kind', ASKERS)
def test_no_case_is_made(kind, made):
    assert leaks(made[kind], [*OOD, 'adherence']) == []


@pytest.mark.parametrize('lang', ['en', 'de'])
def test_the_grammar_of_what_was_written_by_hand(lang):
    texts = [p.text.format(s='Zorvik', d='zorvik.md') for p in read_phrasings(lang)]
    for doc, questions in read_prose(lang):
        texts += [doc.text, *(q.text for q in questions)]
    for form in read_rules()[lang].values():
        texts += [*form.trained, *form.held]
    assert [w for t in texts for w in wrong_forms(t, lang)] == []


def test_prose_says_what_is_expected_and_nothing_of_what_is_missing():
    for lang in ('en', 'de'):
        for doc, questions in read_prose(lang):
            for q in questions:
                if q.answers and q.phase != 'phase5':
                    assert any(squash(a) in squash(doc.text) for a in q.answers), q


@pytest.mark.parametrize('name', OOD)
def test_the_answer_stands_where_it_is_looked_for(name):
    "In the cited passage or document; and nowhere where the case is to be refused."
    for case in load_suite(name):
        context = case.episode['messages'][0].get('context', '')
        shown = dict(re.findall(r'^\[\d\] \((.+?)\) (.+)$', context, re.M))
        texts = shown | (case.documents or {})
        for want in case.wants:
            if case.check in ('answers', 'completes'):
                assert any(squash(a) in squash(texts[want['cite']]) for a in want['answer'])


def cases_by_question(name: str) -> dict:
    return {c.episode['messages'][0]['content']: c for c in load_suite(name)}


def cited(text: str, cite: str) -> str:
    return f'{text}<myPT_cite>{cite}</myPT_cite>{END}'


def call(name: str, **arguments) -> str:
    return f'<myPT_toolcall>{dump_call(name, arguments)}</myPT_toolcall></myPT_assistant>'


def right(case, history: dict, turn: int) -> str:
    "What somebody says who knows the case."
    want = case.wants[min(turn, len(case.wants) - 1)]
    if case.check == 'abstains':
        return 'The context does not say.' + END
    if case.check == 'no_call':
        return 'Gladly.' + END
    if case.check == 'calls':
        arguments = want['arguments'] or (dict(query='x') if 'search' in want['call'] else {})
        return call(want['call'], **arguments)
    if case.check == 'completes':
        done = sum(m['role'] == 'toolresult' for m in history['messages'])
        if done < 2:
            tool = (call('workspace.list_docs'), call('workspace.get_doc', doc_id=want['cite']))
            return tool[done]
    return cited(f'It is {want["answer"][0]}.', want['cite'])


@pytest.mark.parametrize('name', ['chat', 'injection', 'multiturn', *OOD[:2]])
def test_the_bare_value_is_an_answer(name):
    "In any words around it: a suite asks what is known, not how its generator says it."
    asked = 0
    for case in load_suite(name):
        for want in case.wants if case.check == 'answers' else ():
            if want['cite'] is None:
                continue
            said = cited(f'Well: {min(want["answer"], key=len)}.', want['cite'])
            reply = Reply(tuple(TOK.encode_with_tags(said)), TOK)
            assert all(CHECKS[check](reply, want) for check in ('answers', 'cites')), want
            assert 'topic' not in want or CHECKS['topic'](reply, want), want
            assert len(min(want['answer'], key=len).split()) < 7, want
            asked += 1
    assert asked > 40


def responder(name: str, answer) -> Responder:
    cases = cases_by_question(name)

    def respond(histories, limit, to_turn_end):
        said = []
        for h in histories:
            users = [m for m in h['messages'] if m['role'] == 'user']
            said.append(answer(cases[users[0]['content']], h, len(users) - 1))
        return [TOK.encode_with_tags(text) for text in said]

    return Responder(respond, TOK)


@pytest.mark.parametrize('name', OOD)
def test_who_is_right_passes_and_nobody_else(name):
    n = len(load_suite(name))
    assert run_suite(responder(name, right), name).count() == (n, n)
    wrong = dict(
        parrot=lambda case, h, turn: h['messages'][-1].get('content', 'x')[:300] + END,
        silent=lambda case, h, turn: END,
        refusing=lambda case, h, turn: 'I do not know.' + END,
        lister=lambda case, h, turn: call('workspace.list_docs'),
    )
    for who, answer in wrong.items():
        if who == 'parrot' and name == 'phase6_agentic_ood':
            continue  # a tool's result is no text to repeat
        k, _ = run_suite(responder(name, answer), name).count()
        assert k <= 0.3 * n, (who, k)


def reply_ids(message: dict) -> list[int]:
    "What a model says to write this message."
    ids = to_ids(serialize(dict(messages=[dict(role='user', content='?'), message])), TOK)
    opens = TOK.encode_with_tags('<myPT_assistant>')[0]
    return list(ids[ids.index(opens) + 1 :])


def trained_replies(e: dict) -> list[dict]:
    "What an episode trains, in its order: mistakes are left out."
    said = [m for m in e['messages'] if m['role'].startswith('assistant')]
    return [m for m in said if m.get('weight') != 0]


def expected_text(want) -> str:
    "What a case wants to be said; of several wordings the last."
    said = want.get('reply', want.get('answer')) if isinstance(want, dict) else want
    return said[-1] if isinstance(said, list) else said


def in_other_words(m: dict, asked: str) -> dict:
    "The same call; a search takes the words of the question, in its order."
    if 'query' not in m.get('arguments', {}):
        return m
    words = [w for w in re.findall(r'\w+', asked) if w in m['arguments']['query'].split()]
    return m | dict(arguments=dict(query=' '.join(words) + ' please', top_k=4))


CHAINS = dict(SEARCH_GETDOC_ANSWER=0.5, LIST_SELECT_SUMMARIZE=0.25, ERROR_RECOVERY=0.25)
TOOL_SUITES = dict(
    tool_choice=(make_toolcall, dict(search=0.4, list=0.2, get=0.2, summarize=0.2), 'calls'),
    grounded=(make_toolcall, dict(search=1.0), 'completes'),
    chains=(make_agentic, CHAINS, 'completes'),
)
ELSEWHERE = (*OOD, *TOOL_SUITES, 'adherence')  # which expects an answer that keeps a rule


@pytest.mark.parametrize('name', TOOL_SUITES)
def test_who_does_what_is_trained_passes_every_check(name, tmp_path):
    "No case wants a mistake, the very words of a search, or what no answer can hold."
    make, shares, check = TOOL_SUITES[name]
    made = make(150, 'mixed', 77, shares=shares, systems=TOOL_SUITE_SYSTEM, docs=(3,), held=True)
    eps = [e for e in made if e['_meta']['call']]
    cases = [agent_case(i, e, name, check) for i, e in enumerate(eps)]
    first = check == 'calls'
    if first:
        for case in cases:
            del case['documents'], case['snippet']
    path = tmp_path / f'{name}.jsonl'
    path.write_text('\n'.join(map(json.dumps, cases)) + '\n')
    says = {e['messages'][0]['content']: trained_replies(e) for e in eps}

    def respond(histories, limit, to_turn_end):
        said = []
        for h in histories:
            asked, *later = h['messages']
            before = sum(m['role'].startswith('assistant') for m in later)
            m = says[asked['content']][before]
            said.append(reply_ids(in_other_words(m, asked['content']) if first else m))
        return said

    result = run_suite(Responder(respond, TOK), path)
    judged = [None] if first else [None, 'no_loop', 'grounded', 'cites', 'thinks']
    if name == 'grounded':
        judged.remove('thinks')  # some of its answers are given without one
    for check in judged:
        wrong = [
            (c.question, c.wants[-1])
            for i, c in enumerate(result.cases)
            if not result.passes(i, check)
        ]
        assert not wrong, (check, wrong[:3])


def expected_reply(check: str, want) -> Reply:
    "Says what a case expects, and cites it."
    m = dict(role='assistant', content='I do not know.')
    if check != 'abstains':
        m['content'] = expected_text(want)
    if isinstance(want, dict) and want.get('cite'):
        m['cite'] = want['cite']
    return Reply(tuple(reply_ids(m)), TOK)


@lru_cache(None)
def expected_result(name: str) -> SuiteResult:
    cases = load_suite(name)
    return SuiteResult(name, cases, [[expected_reply(c.check, w) for w in c.wants] for c in cases])


@pytest.mark.parametrize('name', [s for s in SUITES if s not in ELSEWHERE])
def test_what_is_expected_passes(name):
    assert not expected_result(name).failed


@pytest.mark.parametrize('phase', sorted(PHASES))
def test_what_is_expected_passes_every_row_of_a_gate(phase):
    for row in PHASES[phase].gate:
        for name in (s for s in row.suites if s not in ELSEWHERE):
            passed, n = expected_result(name).count(row.check, row.tag)
            assert passed == n > 0, (row.name, name)


def test_adherence_is_judged_by_count():
    cases = load_suite('adherence')
    kept = {}
    for e in (e for rule in read_rules()['en'] for e in _held(rule)):
        kept[(e['system'], e['messages'][0]['content'])] = e['messages'][1]['content']
    say = responder_of(cases, lambda c: kept[(c.episode['system'], c.question)])
    assert run_suite(say, 'adherence').count() == (len(cases), len(cases))
    for text, most in (('I am MyPT', 0.2), ('Yes.', 0.1), ('.', 0.0)):
        k, n = run_suite(responder_of(cases, lambda c, text=text: text), 'adherence').count()
        assert k <= most * n, (text, k)


def _held(rule: str):
    return make_adherence(6, seed=f'adherence {rule}', rules=(rule,), pairs=0, held=True)


def responder_of(cases: list, answer) -> Responder:
    by_prompt = {(c.episode['system'], c.question): c for c in cases}

    def respond(histories, limit, to_turn_end):
        asked = [by_prompt[(h['system'], h['messages'][-1]['content'])] for h in histories]
        return [TOK.encode_with_tags(answer(c) + END) for c in asked]

    return Responder(respond, TOK)


def test_rules_have_wordings_in_both_languages_and_some_are_held_out():
    rules = read_rules()
    assert list(rules['en']) == list(rules['de']) and len(TRAINED_RULES) >= 20
    for forms in (*rules['en'].values(), *rules['de'].values()):
        assert forms.held and (not forms.trained or len(forms.trained) >= 3)
    held = {q for c in read_common(True) for q in c.question.values()}
    assert not held & {q for c in read_common(False) for q in c.question.values()}


def test_adherence_keeps_its_rules(made):
    "Counted again, and broken where the answer is another's."
    for e in made['adherence']:
        meta = e['_meta']
        assert set(meta['limits']) <= set(LIMITS)
        assert follows(e['messages'][-1]['content'], meta['limits'])
        about = meta['about']
        if meta['cite']:
            assert meta['cite'] in e['messages'][0]['context']
            assert about['sentence'][:-1] in e['messages'][0]['context']
    held = {form for rules in read_rules().values() for w in rules.values() for form in w.held}
    plain = [f for f in held if '{' not in f]
    assert not [e for e in made['adherence'] if any(f in e['system'] for f in plain)]


def test_a_name_that_is_shown_does_not_tell_whether_the_context_answers():
    shown = {False: 0, True: 0}  # by abstention
    asked = {False: 0, True: 0}
    for e in make_adherence(400, seed=3, rules=('unknown',), pairs=0):
        unknown = 'is' in e['_meta']['limits']
        asked[unknown] += 1
        shown[unknown] += e['_meta']['about']['subject'] in e['messages'][0]['context']
    assert shown[False] == asked[False] > 80
    assert 0.35 < shown[True] / asked[True] < 0.65


@pytest.mark.parametrize(
    'limits, good, bad',
    [
        (dict(begins='Sure:'), 'Sure: it is.', 'It is. Sure:'),
        (dict(ends='Over.'), 'It is. Over.', 'Over. It is.'),
        (dict(names='Ada'), 'Gladly, Ada. Yes.', 'Adam says so.'),
        (dict(avoids='lamp'), 'I keep it.', 'It is Lamp!'),
        (dict(upper=True), 'YES, 3.', 'YES, it is.'),
        (dict(lower=True), 'yes, it is.', 'Yes.'),
        (dict(no_digits=True), 'three', '3'),
        (dict(no_stop=True), 'It is', 'It is.'),
        (dict(dashes=2), '- a\n- b', '- a\nb'),
        (dict(numbered=2), '1. a\n2. b', '2. a\n1. b'),
        (dict(commas=3), 'a, b, c', 'a, b\nc'),
        (dict(quoted=True), '„Milch“', 'Milch'),
        (dict(language='de'), 'Das ist der Mond.', 'That is the moon.'),
        (dict(languages=['en', 'de']), 'It is so. / Es ist so.', 'Es ist so. / It is so.'),
        (dict(json_keys=['answer']), '{"answer": "milk"}', '{"reply": "milk"}'),
        ({'is': 'No entry.'}, 'No entry.', 'No entry here.'),
        (dict(min_words=3), 'It is milk.', 'Milk.'),
    ],
)
def test_limits(limits, good, bad):
    assert follows(good, limits) and not follows(bad, limits)


def test_shipped_files_are_what_the_makers_make():
    from mypt.curriculum.adherence import adherence_suites

    for name, cases in (ood_suites() | adherence_suites()).items():
        text = ''.join(json.dumps(c, ensure_ascii=False) + '\n' for c in cases)
        path = files('mypt') / 'assets' / 'suites' / f'{name}.jsonl'
        assert path.read_text(encoding='utf-8') == text
