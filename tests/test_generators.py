"Promises of the generators of phases 1 and 2 and of the suites that judge them."

import json
import re
from collections import Counter
from importlib.resources import files
from itertools import accumulate, islice

import pytest

from mypt.agent.words import STOP_WORDS
from mypt.curriculum.adherence import make_adherence
from mypt.curriculum.foreign_tools import make_foreign_tools
from mypt.curriculum.format_lock import asks, format_lock_suites, make_echo, make_format_lock
from mypt.curriculum.grammar import wrong_forms
from mypt.curriculum.operators import OPERATORS, SIGNS, make_operators, operator_suites
from mypt.curriculum.reading import content_words
from mypt.curriculum.scene import counted_in_words
from mypt.curriculum.synthetic import Shortage, held_out, payload_words
from mypt.data.episodes import check_episode
from mypt.data.masks import encode
from mypt.data.tokenizer import get_tokenizer
from mypt.errors import UserError
from mypt.eval.suite import leaks, load_suite
from mypt.files import json_asset

MAKERS = dict(format_lock=make_format_lock, echo=make_echo, operators=make_operators)
SUITES = files('mypt') / 'assets' / 'suites'


def pair(e: dict) -> tuple[str, str]:
    return e['messages'][0]['content'], e['messages'][1]['content']


@pytest.mark.parametrize('kind', MAKERS)
def test_ten_thousand_are_different_legal_and_repeatable(kind):
    eps = list(MAKERS[kind](10_000))
    assert len(set(map(pair, eps))) == 10_000
    assert all(check_episode(e) == e for e in eps)
    assert eps[:300] == list(MAKERS[kind](300))
    assert eps[:50] != list(MAKERS[kind](50, seed=43))


def test_no_question_means_both_languages():
    "A short question that both languages have has two right answers, and the model must guess."
    asked = {}
    for e in make_format_lock(14_000):
        asked.setdefault(pair(e)[0].casefold(), set()).add(e['language'])
    assert [q for q, languages in asked.items() if len(languages) > 1] == []


@pytest.mark.parametrize('kind', MAKERS)
@pytest.mark.parametrize('language,share', [('en', 0.0), ('de', 1.0), ('mixed', 0.5)])
def test_languages_are_as_asked(kind, language, share):
    eps = list(MAKERS[kind](500, language))
    assert abs(sum(e['language'] == 'de' for e in eps) / 500 - share) < 0.02


def test_no_question_of_any_suite_is_ever_generated():
    "Thirty thousand of each kind, other seeds too, against every shipped case."
    names = [p.name.removesuffix('.jsonl') for p in SUITES.iterdir()]
    assert len(names) >= 5
    assert all(len(load_suite(n)) >= 100 for n in names)
    made = [
        *make_format_lock(14_000),
        *make_echo(30_000),
        *make_format_lock(8000, seed=7),
        *make_echo(10_000, seed=8),
        *make_operators(12_000),
    ]
    assert leaks(made, names) == []
    assert leaks([load_suite('echo')[3].episode], names)  # the check can find something


def test_shipped_suites_are_what_the_generator_makes():
    for name, cases in (format_lock_suites() | operator_suites()).items():
        text = ''.join(json.dumps(c, ensure_ascii=False) + '\n' for c in cases)
        assert (SUITES / f'{name}.jsonl').read_text(encoding='utf-8') == text


def test_payloads_of_the_echo_suite_are_held_out():
    for c in format_lock_suites()['echo']:
        words = c['expected'].split() if c['tags'][-1] == 'phrase' else [c['expected']]
        assert all(map(held_out, words))
    trained = {w for e in make_echo(5000) for w in e['_meta']['payload'].lower().split()}
    assert not {c['expected'].lower() for c in format_lock_suites()['echo']} & trained


@pytest.mark.parametrize('lang', ['en', 'de'])
def test_no_payload_is_a_word_that_the_search_skips(lang):
    "A password *hat* cannot be found, for *hat* is a German word of the kind of *the*."
    words = {w for w in json_asset('words.json')[lang]}
    assert len(words) > 100
    assert not words & STOP_WORDS
    assert all(map(content_words, words))  # what the check of meaning compares


def test_answers_are_short_enough_to_close_within_twenty_bytes():
    tok = get_tokenizer('byte')
    for e in make_format_lock(3000):
        assert encode(e, tok).mask.sum() <= 20
    for e in make_format_lock(100, held=True):
        assert encode(e, tok).mask.sum() <= 20


def test_anti_echo_never_says_its_payload_and_contrast_repeats_one():
    eps = list(make_echo(4000))
    anti = [e for e in eps if e['_meta']['category'] == 'anti_echo']
    assert 0.08 < len(anti) / len(eps) < 0.17
    assert all(e['_meta']['payload'] != e['messages'][1]['content'] for e in anti)
    echoed = {e['_meta']['payload'] for e in eps if e['_meta']['category'] != 'anti_echo'}
    assert sum(e['_meta']['payload'] in echoed for e in anti) > len(anti) / 3


@pytest.mark.parametrize(
    'kw,only',
    [
        (dict(math='only'), {'maths'}),
        (dict(mode='minimal', math='exclude'), {'say', 'yesno', 'status'}),
    ],
)
def test_modes(kw, only):
    assert {e['_meta']['category'] for e in make_format_lock(200, **kw)} <= only


@pytest.mark.parametrize('kw', [dict(gibberish='exclude'), dict(gibberish='only')])
def test_gibberish(kw):
    kinds = Counter(e['_meta']['category'] for e in make_echo(400, anti_echo_ratio=0.0, **kw))
    only = kw['gibberish'] == 'only'
    assert ('gibberish' in kinds) == only
    assert (len(kinds) == 1) == only


def test_asking_for_too_many_says_how_many_there_are():
    with pytest.warns(Shortage, match=r'only [\d,]+ different episodes of 1,000,000'):
        made = list(make_format_lock(10**6, 'en', only=('status',), simple=True))
    assert len({e['messages'][0]['content'] for e in made}) == len(made) > 500


@pytest.mark.parametrize(
    'call',
    [
        lambda: make_echo(1, 'fr'),
        lambda: make_echo(1, gibberish='x'),
        lambda: make_echo(1, anti_echo_ratio=2),
        lambda: make_operators(1, split='x'),
        lambda: make_format_lock(1, mode='x'),
        lambda: make_format_lock(1, math='x'),
    ],
)
def test_wrong_options_are_named(call):
    with pytest.raises(UserError):
        list(islice(call(), 1))


def share_of_forms(eps: list[dict], share: float) -> int:
    "How many question forms make up this share of the episodes."
    counts = Counter(e['_meta']['template'] for e in eps)
    sums = accumulate(count for _, count in counts.most_common())
    return 1 + sum(1 for seen in sums if seen < share * len(eps))


@pytest.mark.parametrize('lang', ['en', 'de'])
def test_sixty_forms_make_ninety_percent_of_each_phase(lang):
    first = [*make_format_lock(7000, lang), *make_echo(3000, lang)]
    assert share_of_forms(first, 0.9) >= 60
    assert share_of_forms(list(make_operators(6000, lang)), 0.9) >= 60
    for operator in OPERATORS:
        made = [e for e in make_operators(3000, lang) if e['_meta']['operator'] == operator]
        assert len({e['_meta']['template'] for e in made}) >= 20


def test_lengths_are_the_documented_ones():
    gpt2 = get_tokenizer('gpt2')

    def mean(eps):
        return sum(len(encode(e, gpt2)) for e in eps) / len(eps)

    assert 27 < mean([*make_format_lock(1400), *make_echo(600)]) < 33
    assert 40 < mean(list(make_operators(2000))) < 50


@pytest.mark.parametrize('lang', ['en', 'de'])
def test_the_ten_categories_are_there_to_the_end(lang):
    "Alone in its language, where the small categories are used most."
    last = list(make_format_lock(10_000, lang))[-2000:]
    found = Counter(e['_meta']['category'] for e in last)
    assert len(found) == 10
    assert max(found.values()) - min(found.values()) <= 40


@pytest.mark.parametrize('kind', MAKERS)
@pytest.mark.parametrize('lang', ['en', 'de'])
def test_no_wrong_form(kind, lang):
    for e in MAKERS[kind](2000, lang):
        assert wrong_forms(e['messages'][0]['content'], lang) == []


def test_no_wrong_form_in_the_suites():
    for name, cases in (format_lock_suites() | operator_suites()).items():
        for c in cases:
            lang = 'de' if 'de' in c['tags'] else 'en'
            assert wrong_forms(c['episode']['messages'][0]['content'], lang) == [], name


SIGN_OF = {'plus': '+', 'minus': '-', 'times': '×'}


def filled(e: dict) -> dict | None:
    "What stands in the named or nameless places of a question's form; None after a typing error."
    form, text = e['_meta']['template'], e['messages'][0]['content']
    pattern = re.escape(form.rstrip('.?!'))
    names, k = [], 0
    for place in re.findall(r'\\{(\w*)\\}', pattern):
        name = place or f'x{k}'
        k += not place
        group = f'(?P={name})' if name in names else f'(?P<{name}>.+?)'
        names.append(name)
        pattern = pattern.replace(f'\\{{{place}\\}}', group, 1)
    after = asks(e['language'])['closer'] + asks(e['language'])['keyword']
    tail = '|'.join(map(re.escape, after))
    found = re.fullmatch(rf'(?:.*[.!?] )?{pattern}[.?!]?(?: (?:{tail}))?', text, re.I)
    return found.groupdict() if found else None


def kind_of(e: dict, lang: str) -> str:
    "The kind of question by its form."
    form = e['_meta']['template']
    return next((kind for kind, forms in asks(lang).items() if form in forms), '')


def right_answer(kind: str, lang: str, x: dict) -> str | None:
    "The answer computed anew; None for kinds that are looked up elsewhere."
    yes, no = asks(lang)['yes_no']

    def claim(true):
        return yes if true else no

    a, b = (x.get(k, '') for k in ('x0', 'x1'))
    if kind in ('more', 'less'):
        return claim(int(a) > int(b) if kind == 'more' else int(a) < int(b))
    if kind in ('even', 'odd'):
        return claim((int(a) % 2 == 0) == (kind == 'even'))
    if kind in ('starts', 'ends', 'contains'):
        word, letter = x['w'], x['l']
        return claim(
            dict(starts=word[0] == letter, ends=word[-1] == letter, contains=letter in word)[kind]
        )
    if kind in SIGN_OF:
        a, b = int(x['a']), int(x['b'])
        return str(dict(plus=a + b, minus=a - b, times=a * b)[kind])
    if kind == 'maths':
        return str(eval(a.replace('×', '*'), {'__builtins__': {}}))
    if kind in ('first', 'last', 'second', 'third'):
        return a[dict(first=0, last=-1, second=1, third=2)[kind]]
    return str(len(a)) if kind == 'length' else None


@pytest.mark.parametrize('lang', ['en', 'de'])
def test_computed_answers_are_right(lang):
    "From the question alone: numbers, letters, comparisons, sums."
    checked = Counter()
    for e in make_format_lock(6000, lang, only=('yesno', 'spelling', 'maths')):
        kind, x = kind_of(e, lang), filled(e)
        right = right_answer(kind, lang, x) if x else None
        if right is not None:
            checked[kind] += 1
            assert e['messages'][1]['content'] == right, e['messages']
    assert sum(checked.values()) > 4000
    assert len(checked) == 16


@pytest.mark.parametrize('lang', ['en', 'de'])
def test_facts_are_right_and_half_of_the_claims_are_true(lang):
    facts = json_asset('facts.json')[lang]
    capitals, colours = dict(facts['capitals']), dict(facts['colours'])
    yes, _ = asks(lang)['yes_no']
    answers = Counter()
    for e in make_format_lock(3000, lang, only=('yesno',)):
        kind, x, said = kind_of(e, lang), filled(e), e['messages'][1]['content']
        answers[said] += 1
        if x and kind == 'is_capital':
            assert (said == yes) == (capitals[x['x']] == x['v'])
        if x and kind == 'is_colour' and x['x'] in colours:
            assert (said == yes) == (colours[x['x']].lower() == x.get('v', x.get('V', '')).lower())
    assert abs(answers[yes] / 3000 - 0.5) < 0.05


def test_please_is_said_once_and_du_does_not_meet_sie():
    formal = 0
    for e in make_format_lock(10_000, 'de'):
        text = re.sub('„.*?“', '', e['messages'][0]['content'])
        assert len(re.findall(r'\bbitte\b', text, re.I)) < 2, text
        if re.search(r'\b(?:Sagen|Wissen|Nennen) Sie\b', text):
            formal += 1
            assert not re.search(r'\b(?:[Dd](?:u|ich|ir)|Fass|Antworte|Kannst|Hast)\b', text), text
    assert formal > 50


def test_what_foreign_tools_return_is_said_to_the_last_digit():
    money = 0
    for e in make_foreign_tools(2000, shares=dict(one_call=1.0)):
        call, result, answer = e['messages'][1:4]
        if set(call['arguments']) == {'amount', 'from', 'to'}:
            money += 1
            said = re.findall(r'\d+(?:[.,]\d+)?', answer['content'])
            assert result['content']['result'] in [float(x.replace(',', '.')) for x in said], answer
    assert money > 100


def test_two_orders_are_two_sentences_and_a_sum_is_never_refused():
    for e in make_foreign_tools(600, shares=dict(two_calls=0.5, no_fitting_tool=0.5)):
        asked, answer = e['messages'][0]['content'], e['messages'][-1]['content']
        if e['_meta']['category'] == 'two_calls':
            assert re.search(r'[.?!] (?:And|Then|Also|Und|Dann|Außerdem): ', asked), asked
            assert not answer.startswith(('At ', 'Um ', 'That is', 'Das sind', 'It is at')), answer
        else:
            assert not re.search(r'\d [-+*] \d|metres|Meter', asked), asked


@pytest.mark.parametrize('split', ['train', 'val'])
def test_operators_say_what_their_question_asks(split):
    "Computed from the question and the payload: which signs are named, and what stands between."
    for e in make_operators(3000, split=split):
        question, answer = (m['content'] for m in e['messages'])
        operator, payload = e['_meta']['operator'], e['_meta']['payload']
        assert payload in question
        if operator == 'COPY':
            assert answer == payload
            continue
        names = [form for form in SIGNS[e['language']] if form in question]
        left, right = SIGNS[e['language']][max(names, key=len)]
        if operator == 'WRAP':
            assert answer == left + payload + right
            continue
        between = rf'{re.escape(left)}([^{re.escape(left + right)}]*){re.escape(right)}'
        assert re.findall(between, question) == [answer]


def test_training_and_validation_of_operators_share_nothing():
    train, val = list(make_operators(12_000)), list(make_operators(2000, split='val'))
    for key in ('payload', 'template'):
        assert not {e['_meta'][key] for e in train} & {e['_meta'][key] for e in val}
    held = {w for lang in ('en', 'de') for w in payload_words(lang, True)}
    for e in train:
        words = set(re.findall(r'[\w-]+', e['_meta']['payload']))
        assert e['_meta']['kind'] not in ('word', 'phrase', 'marked') or not words & held


def test_other_signs_stand_beside_and_around():
    "The name of the sign must be read: there are others, and the payload may hold some itself."
    eps = [e for e in make_operators(6000) if e['_meta']['operator'] == 'EXTRACT']
    marks = [
        {s for s in SIGNS[e['language']].values() if s[0] in e['messages'][0]['content']}
        for e in eps
    ]
    assert sum(len(found) > 1 for found in marks) > 0.5 * len(eps)
    kinds = Counter(e['_meta']['kind'] for e in eps)
    assert kinds['sentence'] > 0.2 * len(eps)
    assert kinds['marked'] > 0.1 * len(eps)


@pytest.mark.parametrize('lang', ['en', 'de'])
def test_a_word_is_said_as_it_was_given(lang):
    "Echo, its opposite and format lock answer alike: no capital and no full stop are added."
    for e in make_format_lock(100, lang, only=('say',)):
        assert e['messages'][1]['content'] in e['messages'][0]['content']
    anti = list(make_echo(100, lang, anti_echo_ratio=1.0))
    for e in anti:
        assert e['messages'][1]['content'] in asks(lang)['instead']
        assert f' {e["messages"][1]["content"]}' in re.sub(
            '["„:]', ' ', e['messages'][0]['content']
        )


@pytest.mark.parametrize('lang', ['en', 'de'])
def test_nothing_goes_before_a_greeting(lang):
    for e in make_format_lock(300, lang, only=('status',)):
        asked, template = e['messages'][0]['content'], e['_meta']['template']
        if not template.endswith('?'):
            assert asked.startswith(template.partition('{')[0]), asked


def test_a_capital_has_one_country():
    "Georgia is a state of the USA, too, with another capital."
    for lang in ('en', 'de'):
        countries, cities = zip(*json_asset('facts.json')[lang]['capitals'], strict=True)
        assert len(set(cities)) == len(cities)
        assert 'Georgia' not in countries


@pytest.mark.parametrize('lang', ['en', 'de'])
def test_orders_for_foreign_tools_can_be_understood(lang):
    for e in make_foreign_tools(300, lang):
        said = ' '.join(m['content'] for m in e['messages'] if m['role'] in ('user', 'assistant'))
        calls = [m for m in e['messages'] if m['role'] == 'assistant_toolcall']
        assert not re.search(r'\d/\d', said)  # 5/10 is two days
        if e['_meta']['category'] == 'two_calls':
            assert len({m['name'] for m in calls}) == 2
        if e['_meta']['category'] == 'no_fitting_tool':  # no sum, which needs no tool
            assert not re.search(r'\d [-+*] \d|metre|[Mm]eter', e['messages'][0]['content'])


@pytest.mark.parametrize('lang', ['en', 'de'])
def test_a_number_is_written_where_no_digits_are_allowed(lang):
    eps = list(make_adherence(60, lang, rules=('no_digits',)))
    words = set(counted_in_words(lang))
    said = [set(e['messages'][1]['content'].lower().split()) for e in eps]
    assert sum(bool(words & there) for there in said) > 0.6 * len(eps)
    assert not any('.".' in e['system'] for e in eps)


@pytest.mark.parametrize('lang', ['en', 'de'])
def test_no_order_stands_alone_and_no_mass_has_an_article(lang):
    for name in ('before_order', 'opener'):
        assert not {'Please.', 'Bitte.'} & set(asks(lang)[name])
    things = [thing for thing, _ in json_asset('facts.json')[lang]['colours']]
    assert not {'der Teer', 'das Mehl', 'die Milch', 'der Beton'} & set(things)
    assert set(asks(lang)['unclear']) <= set(things)
