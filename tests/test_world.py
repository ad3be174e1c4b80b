"The invented world, the facts of real documents, and the grammar of both."

import random
import re
from collections import Counter

import pytest

from mypt.agent.documents import Document
from mypt.curriculum.attributes import TABLE, WORLD, attribute_value, fill_sentence
from mypt.curriculum.facts import facts, stands_alone, states
from mypt.curriculum.grammar import (
    CASES,
    GENDER,
    count_noun,
    determiner,
    enumerate_items,
    noun_form,
    phrase,
    with_article,
    wrong_forms,
)
from mypt.curriculum.chat_words import fact_sentence
from mypt.curriculum.invented import make_document, make_documents, other_value
from mypt.curriculum.questions import _names, follow_up, question, search_query, with_typo
from mypt.curriculum.shelf import Shelf, passage
from mypt.curriculum.synthetic import held_out
from mypt.curriculum.values import (
    Fact,
    long_forms,
    without_markup,
    split_sentences,
    unwrap_lines,
    value_facts,
)

LANGUAGES = ('en', 'de')


# grammar


@pytest.mark.parametrize(
    'wrong',
    [
        'Was steht in eckige Klammern?',
        'Umgib das Wort mit runde Klammern.',
        'Setze es in der Klammern.',
        'Was ist Den Gemeinden?',
        'Die ersten 1 Fakten, dann eine Zusammenfassung.',
        'Wie ist der Besitzer von Velm?',
        'Wie ist die Gründerin von Velm?',
        'Was ist der Autor von Velm?',
        'Welche Funktion druckt in Python?',
        'Nenne der Preis von Velm.',
        'Welcher Farbe hat Velm?',
        'Er fährt mit der Schiff.',
        'Es geht um dem Hafen.',
        'Velm ist ein kleine Mühle.',
        'Velm ist eine kleines Turm.',
        'Im Mühle steht es.',
        'Das sind 3 Wort.',
        'Antworte in genau 2 Satz.',
        'Wer von von Velm weiß es?',
        'Er kommt aus dem kleine Museum.',
        'Sie gab den Kuh Heu.',
        'Sein Farbe ist rot.',
        'Wegen des Titel fragt niemand, mit seine Fakten.',
        'Wie viel Garantie gibt es auf es?',
        'Wo befindet sich sie?',
        'Welches Dokument handelt von Die Heizung Trotral?',
        'Woraus ist es? [Nimm|Nehmen Sie] dafür das Dokument „Lager“.',
    ],
)
def test_wrong_german_is_found(wrong):
    assert wrong_forms(wrong, 'de'), wrong


@pytest.mark.parametrize(
    'right',
    [
        'Was steht in eckigen Klammern?',
        'Umgib das Wort mit runden Klammern.',
        'Setze es in runde Klammern.',
        'Wer ist der Besitzer von Velm? Wem gehört Velm?',
        'Der erste Fakt, 1 Fakt, 3 Fakten, die ersten 3 Fakten.',
        'Nenne den Preis. Welche Farbe hat es, welchen Preis, welches Gewicht?',
        'Nach § 1 Absatz 2 Satz 1 gilt die Frist von vier Wochen.',
        'Der Turm, der Tieren gehört, steht in der kleinen Stadt.',
        'Im Falle der Banken, auf der einen Seite, seit Jahren, ohne Namen.',
        'Die zu bestimmende Frist und die der Bank obliegenden Pflichten.',
        'Antworte in einem Satz, in zwei Sätzen, mit 3 Wörtern.',
        'Danke. Und ihre Farbe? Und sein Preis? Wie hoch ist er?',
        'Seit den fünfziger Jahren, in den achtziger Jahren.',
    ],
)
def test_right_german_is_left_alone(right):
    assert wrong_forms(right, 'de') == []


@pytest.mark.parametrize(
    'wrong',
    [
        'A owner asks.',
        'It has 1 facts.',
        'It has 3 fact.',
        'What is the owner of Velm?',
        'Who is the colour of it?',
        'How much pages does it have?',
        'Give the first 1 facts.',
        'It is an unit of the the army.',
    ],
)
def test_wrong_english_is_found(wrong):
    assert wrong_forms(wrong, 'en'), wrong


def test_right_english_is_left_alone():
    right = 'An owner, a unit, an hour, a user, an SQL query, 1 fact, 3 facts, a European one.'
    assert wrong_forms(right, 'en') == []
    assert wrong_forms('Which characters does an XPath query escape?', 'en') == []
    assert wrong_forms('Who is the owner of Velm? What is the price of Velm?', 'en') == []


def test_every_phrase_of_the_grammar_agrees():
    "What `phrase` makes, the rules accept; what it does not, they refuse."
    for noun in GENDER:
        for case in CASES:
            one = phrase(noun, case, 'welch', ('klein',))
            assert wrong_forms(one, 'de') == [], one
            many = phrase(noun, case, 'der', ('klein',), plural=True)
            assert wrong_forms(many, 'de') == [], many
    wrong = [f'{determiner("der", "f")} {noun}' for noun in ('Hafen', 'Museum', 'Falke')]
    assert all(wrong_forms(text, 'de') for text in wrong)


def test_numbers_lists_and_articles():
    assert [count_noun(n, 'Fakt', 'de') for n in (1, 3)] == ['1 Fakt', '3 Fakten']
    assert [count_noun(n, 'year', 'en') for n in (1, 3)] == ['1 year', '3 years']
    assert enumerate_items(['a', 'b', 'c'], 'en') == 'a, b and c'
    assert enumerate_items(['a', 'b'], 'de') == 'a und b'
    assert [with_article(w) for w in ('owner', 'hour', 'unit')] == ['an owner', 'an hour', 'a unit']
    assert noun_form('Fakt', 'dative', plural=True) == 'Fakten'


# invented documents


@pytest.mark.parametrize('lang', LANGUAGES)
def test_every_form_is_read_as_what_it_says(lang):
    rng = random.Random(1)
    for entry in TABLE[lang].values():
        name = 'Mira Velm' if 'person' in entry.groups else 'Velm'
        value = attribute_value(rng, lang, entry.kind)
        said = [fill_sentence(form, entry, name, value) for form in entry.say]
        for where, form in long_forms(entry):
            clause = fill_sentence(form, entry, name, value)
            for opening in WORLD[where][lang]:
                long = opening.format(x=clause) if where == 'subs' else f'{opening} {clause}.'
                said.append(long)
        for sentence in said:
            found = value_facts(Document('x.md', name, f'# {name}\n\n{sentence}\n'), lang)
            assert [(f.attribute, f.value) for f in found] == [(entry.noun, value)], sentence
        assert entry.say[0].endswith('{v}.')


@pytest.mark.parametrize('lang', LANGUAGES)
@pytest.mark.parametrize('simple', [False, True])
def test_all_that_is_stated_is_found_and_nothing_else(lang, simple):
    for seed in range(300):
        doc = make_document(random.Random(seed), lang, facts=4, simple=simple)
        found = value_facts(doc, lang)
        assert len({f.attribute for f in found}) == len(found) == 4, doc.text
        assert len({f.subject for f in found}) == 1
        for f in found:
            assert f.sentence in unwrap_lines(doc.text)
            assert f.value in f.sentence
            assert f.thing
            assert states(doc.text, f)


@pytest.mark.parametrize('lang', LANGUAGES)
def test_texts_and_questions_have_no_wrong_forms(lang):
    rng = random.Random(3)
    for _ in range(300):
        doc = make_document(rng, lang, words=rng.choice((0, 150)))
        assert wrong_forms(doc.text, lang) == []
        for f in value_facts(doc, lang):
            for asked in (question(rng, f), follow_up(rng, f), question(rng, f, unseen=True)):
                assert wrong_forms(asked, lang) == [], asked
                assert '{' not in asked


@pytest.mark.parametrize('lang', LANGUAGES)
def test_no_filler_states_an_attribute(lang):
    nouns = '|'.join(re.escape(noun) for noun in TABLE[lang])
    for forms in WORLD['filler'][lang].values():
        named = [form for form in forms if '{s}' in form]
        assert [form for form in named if re.search(rf'\b(?:{nouns})\b', form)] == []


def test_names_and_values_keep_to_their_side_of_the_split():
    for held in (False, True):
        for seed in range(60):
            lang = LANGUAGES[seed % 2]
            found = value_facts(make_document(random.Random(seed), lang, 4, held), lang)
            assert held_out(found[0].subject) == held
            for f in found:
                if TABLE[lang][f.attribute].kind in ('word', 'number', 'code', 'firm', 'town'):
                    assert held_out(f.value) == held


def test_documents_can_be_as_long_as_a_window():
    doc = make_document(random.Random(1), 'en', words=2000)
    assert len(doc.text.split()) >= 2000
    assert len(value_facts(doc, 'en')) == 4
    assert make_document(random.Random(1), 'en', words=2000) == doc


@pytest.mark.parametrize('lang', LANGUAGES)
def test_another_source_says_otherwise_and_looks_like_any(lang):
    names = Counter()
    for seed in range(100):
        rng = random.Random(seed)
        fact = value_facts(make_document(rng, lang), lang)[0]
        doc, other = other_value(rng, fact)
        assert (other.subject, other.attribute) == (fact.subject, fact.attribute)
        assert other.value != fact.value
        assert doc.doc_id != fact.doc_id
        assert states(doc.text, fact)
        names[other.subject.lower().replace(' ', '-') in doc.doc_id] += 1
    assert min(names.values()) > 10


@pytest.mark.parametrize('lang', LANGUAGES)
@pytest.mark.parametrize('simple', [False, True])
def test_rivals_share_a_name_or_an_attribute_and_are_silent(lang, simple):
    shelf, rng = Shelf(simple=simple), random.Random(2)
    for _ in range(60):
        ((_, found),) = shelf.sample(rng, lang, 1)
        fact = rng.choice(found)
        rivals = shelf.rivals(rng, fact, 4)
        assert len(rivals) == 4
        for rival, said in rivals:
            assert not states(rival.text, fact)
            same = fact.subject in rival.text
            assert same or fact.attribute in {f.attribute for f in said}
            if same and said:
                assert not {f.attribute for f in said} & {f.attribute for f in found}


def test_a_pronoun_is_shown_with_its_name():
    shelf, rng = Shelf(), random.Random(4)
    for _ in range(300):
        (doc, found), *_ = shelf.sample(rng, 'de', 1, words=200)
        for f in found:
            text = passage(doc, f, 150)
            assert f.subject in text
            assert f.sentence in text


# questions


def masked(f: Fact, text: str) -> str:
    for word in (f.subject, f.thing, f.attribute):
        text = text.replace(word, '_') if word else text
    return text


@pytest.mark.parametrize('lang', LANGUAGES)
def test_questions_have_many_forms_and_held_out_ones_are_others(lang):
    rng, seen, unseen = random.Random(5), Counter(), Counter()
    for _ in range(2000):
        f = value_facts(make_document(rng, lang, 2), lang)[0]
        seen[masked(f, question(rng, f))] += 1
        unseen[masked(f, question(rng, f, unseen=True))] += 1
    assert len(seen) > 600
    assert sum(n for _, n in seen.most_common(5)) < 0.25 * seen.total()
    assert not seen.keys() & unseen.keys()


def test_typing_errors_spare_names_and_numbers():
    rng = random.Random(6)
    for _ in range(300):
        text = with_typo(rng, 'Tell me the height of velmar harbour 4711 in Tolmar.', 'velmar')
        assert all(word in text for word in ('velmar', '4711', 'Tolmar'))
        assert text != 'Tell me the height of velmar harbour 4711 in Tolmar.'


@pytest.mark.parametrize(
    'thing,attribute,right',
    [
        ('Mühle', 'Farbe', 'ihre Farbe'),
        ('Turm', 'Farbe', 'seine Farbe'),
        ('Mühle', 'Code', 'ihr Code'),
        ('Zelt', 'Preis', 'sein Preis'),
    ],
)
def test_follow_ups_have_the_gender_of_the_thing(thing, attribute, right):
    f = Fact('a.md', 'Velm', 'de', 'value', 'Velm', attribute, '', '', thing)
    asked = [follow_up(random.Random(i), f) for i in range(80)]
    assert any(right in text for text in asked)
    assert all(wrong_forms(text, 'de') == [] and 'Velm' not in text for text in asked)


def follow_ups(lang):
    "Every attribute of every kind of thing that has it, with follow-ups of it."
    for entry in TABLE[lang].values():
        for group in entry.groups:
            for thing in WORLD['things'][lang][group]:
                f = Fact('a.md', 'Velm', lang, 'value', 'Velm', entry.noun, '', '', thing)
                yield group, [follow_up(random.Random(i), f) for i in range(12)]


def test_follow_ups_speak_of_things_without_a_preposition_and_a_pronoun():
    for group, asked in follow_ups('de'):
        if group not in ('person', 'animal'):
            wrong = [text for text in asked if re.search(PREPOSITION_PRONOUN, text)]
            assert not wrong, wrong
        assert not any(re.search(r'sich (?:er|sie|es)\b', text) for text in asked)
    said = {text for _, asked in follow_ups('de') for text in asked}
    assert any('darauf' in text for text in said) and any('dafür' in text for text in said)


PREPOSITION_PRONOUN = r'\b(?:auf|für|um|an|in|über|zu|mit|aus|bei) (?:ihn|ihm|ihr|sie|es)\b'


def test_follow_ups_keep_the_order_of_english_words():
    for _, asked in follow_ups('en'):
        assert not any(re.search(r'\b(?:up|off|out) (?:it|him|her)\b', text) for text in asked)


def test_a_follow_up_on_an_unknown_thing_has_no_possessive():
    for lang, attribute in (('de', 'Farbe'), ('en', 'colour')):
        f = Fact('a.md', 'Velm', lang, 'value', 'Velm', attribute, '')
        asked = [follow_up(random.Random(i), f) for i in range(200)]
        assert not any(re.search(r'\b(?:[Ii]ts|[Ii]hre?|[Ss]eine?)\b', text) for text in asked)


# English that nobody says: *one sees*, *whoever wants*, *At Velm work 771 people*
STILTED = r'\b(?:one (?:sees|must|pays|needs|dials|opens|finds|reads|can)|[Ww]hoever)\b'


def test_the_english_of_the_world_is_plain():
    forms = [form for row in TABLE['en'].values() for form in (*row.say, *row.ask, *row.whether)]
    forms += [form for forms in WORLD['filler']['en'].values() for form in forms]
    for form in forms:
        assert not re.search(STILTED, form), form
        assert not re.match(r'(?:At|On|Under|In|From)\b.* (?:work|are|answers for) \{v\}', form)


def test_a_title_can_stand_in_a_sentence():
    for lang in LANGUAGES:
        assert not any(re.match(r'(?:The|Das|Der|Die|\{Das_)', t) for t in WORLD['titles'][lang])


def test_a_filler_is_used_once():
    for i in range(200):
        text = make_document(random.Random(i), 'en', 2, words=250).text
        assert text.count('ended in a lively debate') < 2


def test_ports_and_years_of_birth_are_possible():
    rng = random.Random(4)
    for _ in range(300):
        assert 1023 < int(attribute_value(rng, 'en', 'port', rng.random() < 0.5)) < 65536
        assert 1929 < int(attribute_value(rng, 'de', 'birth_year')) < 2005


@pytest.mark.parametrize('lang', LANGUAGES)
def test_a_search_is_not_the_question_again(lang):
    rng, same = random.Random(7), 0
    for _ in range(300):
        f = value_facts(make_document(rng, lang), lang)[0]
        query = search_query(rng, f)
        assert f.subject in query
        same += query == question(rng, f)
        assert len(query.split()) <= len(f.subject.split()) + 8
    assert same < 6  # where the question itself is key words


# real documents


def test_sentences_are_not_cut_at_abbreviations():
    text = 'Use e.g. Apache. See Abs. 2 and No. 5. Am 4. Mai 1987, z. B. um 9 Uhr, nach Art. 3. Ja.'
    assert [s for _, s in split_sentences(text)] == [
        'Use e.g. Apache.',
        'See Abs. 2 and No. 5.',
        'Am 4. Mai 1987, z. B. um 9 Uhr, nach Art. 3.',
        'Ja.',
    ]


def test_what_leans_on_other_sentences_is_no_fact():
    text = """# Notes

## Danger

It is a problem that many applications have today.

## Details

This depends on the following list of all the things that were said before.

## Reason

The goal is a system that nobody can break into within a day.
"""
    found = facts(Document('notes.md', 'Notes', text))
    assert [(f.kind, f.subject) for f in found] == [('section', 'Reason')]
    assert not stands_alone('Dies gilt nicht für die in Absatz 1 genannten Personen.', 'de')


@pytest.mark.parametrize('corpus,lang', [('owasp_cheatsheets', 'en'), ('law_de', 'de')])
def test_facts_of_real_documents(corpus, lang, shared_data):
    folder = shared_data / corpus
    shelf, rng = Shelf(str(folder)), random.Random(8)
    kinds = Counter(f.kind for _, found in shelf.read[lang] for f in found)
    assert len(kinds) >= 6
    assert kinds['section'] < 0.6 * kinds.total()
    for doc, found in rng.sample(shelf.read[lang], 150):
        text = unwrap_lines(doc.text)
        for f in found:
            assert f.sentence in text
            assert not re.match(r'(?:It|This|These|Es|Dies|Den|Dem)\b', f.subject)
            asked = question(rng, f)
            mine = asked.replace(f.subject, '').replace(f.title, '').replace(f.attribute, '')
            assert wrong_forms(mine, lang) == [], asked
            assert '{' not in mine
    for doc, found in rng.sample(shelf.read[lang], 10):
        for rival, _ in shelf.rivals(rng, found[0], 3):
            assert rival.doc_id != doc.doc_id
            assert not states(rival.text, found[0])


def test_facts_of_marked_text_are_whole_and_plain():
    text = """# Binding

## Ports

**Option 1: Bind published ports to localhost only:**

## Cookies

**Rule**: A cookie in `Secure` mode is sent over **TLS** only, see rule \\#7.

- You should **never** leave a cookie without a lifetime.
- **HttpOnly** protects the cookie from scripts on the page.
- With `app.js` containing the code below, nothing more is needed.

## Steps

1. Send the token in the header, which is
    - the first
    - the second
2. As part of the key-establishment process (Section 4.2.5).
3. These components talk to the backend of the **gateway**.
4. Delete the `token` on the server side.
"""
    found = facts(Document('binding.md', 'Binding', text), 'en')
    shown = unwrap_lines(text)
    assert all(f.sentence in shown for f in found)
    assert {(f.kind, f.subject, f.sentence) for f in found} == {
        ('section', 'Cookies', 'Rule: A cookie in Secure mode is sent over TLS only, see rule #7.'),
        ('item', 'HttpOnly', 'HttpOnly protects the cookie from scripts on the page.'),
        ('step', 'Steps', 'Delete the token on the server side.'),
    }


def test_a_range_is_no_number_and_praise_no_definition():
    text = """# Sessions

## Lifetime

A session ends after between 4 and 8 hours without a request.

## Waiting

The server waits for 15-60 minutes after a failed login.

## Pauses

The client waits for 30 seconds before it asks again.

## Errors

Failed logins are a normal occurrence in every larger application.

Even more egregious is the use of a password in the address of a page.
"""
    found = facts(Document('sessions.md', 'Sessions', text), 'en')
    assert {f.subject for f in found if f.kind in ('number', 'definition')} == {'Pauses'}


@pytest.mark.parametrize('lang', LANGUAGES)
def test_a_list_stands_below_a_paragraph_about_its_thing(lang):
    "The items do not say whose values they are."
    name, rng, lists = 'Zorvik', random.Random(3), 0
    near = [re.split(r'\{\w+\}', form) for form in WORLD['near'][lang]]
    for _ in range(400):
        text = make_document(rng, lang, 5, name=name, words=rng.choice((0, 200))).text
        blocks = text.split('\n\n')
        for before, _, below in zip(blocks, blocks[1:], blocks[2:], strict=False):
            if below.startswith('- '):
                lists += 1
                first = before.partition('. ')[0] + '.'
                assert name in before
                assert not any(all(piece in first for piece in form) for form in near), before
    assert lists > 20


def test_an_item_of_a_list_is_said_as_a_sentence():
    doc = Document('velm.md', 'Velm', '# Velm\n\nVelm is a mill.\n\n- Owner: Mira Kardun\n')
    (item,) = value_facts(doc, 'en')
    assert item.sentence == 'Owner: Mira Kardun'
    assert fact_sentence(item) == 'The owner of Velm is Mira Kardun.'


def test_an_item_that_is_cut_is_not_a_fact():
    text = """# Gesetz

## § 1 Angaben

(1) Anzugeben sind

1.  die Angaben nach § 341l Abs. 1 über die
    a)  Einnahmen,
2.  in 30 Jahren, wenn der Mangel
    a)  in einem Recht besteht,
3.  das Immobiliar-
    Verbraucherdarlehen und die Ein-
    oder Ausfuhr nach dem Gesetz vom 8.
    November 1994,
4.  die Person, die in der Lage ist, um
"""
    found = facts(Document('g.md', 'Gesetz', text), 'de')
    said = 'das Immobiliar-Verbraucherdarlehen und die Ein- oder Ausfuhr nach dem Gesetz vom 8. '
    assert [(f.attribute, f.sentence) for f in found] == [('3', f'{said}November 1994')]


@pytest.mark.parametrize(
    ('marked', 'plain'),
    [
        ('**Use `x`** and _e.g._ *this*', 'Use x and e.g. this'),
        (r'200\.000 for \#7', '200.000 for #7'),
        ('```\na = `b` ** 2\n```\n`c`', '```\na = `b` ** 2\n```\nc'),
        ('the __proto__ and a_b_c, 2 * 3 * 4, *.example.com', None),
        ('a __defense in depth__ approach', 'a defense in depth approach'),
    ],
)
def test_plain_text_has_no_markup(marked, plain):
    assert without_markup(marked) == (marked if plain is None else plain)


@pytest.mark.parametrize('lang', LANGUAGES)
def test_values_fit_the_thing(lang):
    "No rucksack of marble, no harbour with a height, no tractor of ninety metres."
    nouns = {noun for group in WORLD['things'][lang].values() for noun in group}
    table = WORLD['materials'][lang]
    assert set(table) | set(WORLD['lacks'][lang]) <= nouns
    assert {m for known in table.values() for m in known} <= set(WORLD['values'][lang]['material'])
    assert {a for known in WORLD['lacks'][lang].values() for a in known} <= set(TABLE[lang])
    both = {n for words in WORLD['things'].values() for group in words.values() for n in group}
    both |= set(WORLD['things']['en'])
    assert {n for known in WORLD['ranges'].values() for n in known} <= both
    stated = 0
    for doc in make_documents(300, lang, 3, facts=6):
        for f in value_facts(doc, lang):
            kind = TABLE[lang][f.attribute].kind
            assert f.attribute not in WORLD['lacks'][lang].get(f.thing, ())
            if kind == 'material':
                assert f.value in table[f.thing]
            known = WORLD['ranges'].get(kind, {}).get(f.thing)
            if known:
                low, high = known
                assert low <= int(f.value.split()[0]) <= high
                stated += 1
    assert stated > 60


def test_a_german_password_is_a_noun():
    rng = random.Random(5)
    for held in (False, True):
        words = {attribute_value(rng, 'de', 'word', held) for _ in range(200)}
        assert len(words) > 20 and all(w[0].isupper() for w in words)


@pytest.mark.parametrize('lang', LANGUAGES)
def test_a_list_follows_what_is_said_of_its_thing(lang):
    near = [form.partition('{')[0] or form.partition('} ')[2] for form in WORLD['near'][lang]]
    near = [text.partition('{')[0] for text in near]
    lists = 0
    for seed in range(400):
        blocks = make_document(random.Random(seed), lang).text.split('\n\n')
        for before, heading, block in zip(blocks, blocks[1:], blocks[2:], strict=False):
            if block.startswith('- '):
                lists += 1
                assert heading.startswith('## ')
                assert not [text for text in near if text in before], before
    assert lists > 20


def test_no_opening_is_twice_in_a_document():
    for lang in LANGUAGES:
        forms = [s.split('{x}')[0] for where in ('leads', 'subs') for s in WORLD[where][lang]]
        for doc in make_documents(150, lang, 4, facts=6):
            for start in forms:
                assert doc.text.count(start) < 2, doc.text


@pytest.mark.parametrize(
    'after, asked',
    [('', ['1', '2']), ('die Gerichte zuständig.', ['1']), ('Die Gerichte wachen.', ['1', '2'])],
)
def test_the_last_item_of_a_list_that_its_sentence_goes_on_after(after, asked):
    "On one line nothing shows where the item ends."
    items = '1. für die Abteilung der Nutzer,\n\n2. für die Fragen der Verwaltung'
    text = f'# Gesetz\n\n## § 7 Zuständigkeit\n\nNach den Regeln sind\n\n{items}\n\n{after}\n'
    steps = [f for f in facts(Document('gesetz.md', 'Gesetz', text)) if f.kind == 'step']
    assert [f.attribute for f in steps] == asked


def test_an_item_leaves_out_how_the_list_goes_on():
    items = '1. die Parteien vereinbaren das Ende; oder\n2. das Gericht stellt es fest, und'
    text = f'# Gesetz\n\n## § 7 Ende\n\n{items}\n3. die Frist ist abgelaufen;\n'
    steps = [f for f in facts(Document('gesetz.md', 'Gesetz', text)) if f.kind == 'step']
    found = [f.sentence.rstrip('.') for f in steps]
    assert found == [
        'die Parteien vereinbaren das Ende',
        'das Gericht stellt es fest',
        'die Frist ist abgelaufen',
    ]


def test_a_heading_loses_its_marks_in_pairs():
    text = '# Rules\n\n## Keep the level at `info`\n\nServers write every event to a central log.\n'
    (fact,) = facts(Document('a.md', 'Rules', text))
    assert fact.subject == 'Keep the level at info'


def test_a_noun_is_not_in_a_verb_that_begins_with_it():
    assert _names('Wem gehört der Hofladen?', 'Hof') and _names('der hof von Ada', 'Hof')
    assert not _names('Ich hoffe, es geht dir gut.', 'Hof')
    assert not _names('Hoffnung bleibt.', 'Hof') and not _names('', 'Hof')
