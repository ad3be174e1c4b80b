"The inspector in a browser: hostile content stays text, nothing is lost, colour is never alone."

import json
import random
import re
import shutil
import string

import numpy as np
import pytest
from mypt.report.board import chat_html, facts_html, gate_board, loss_board, report_html, tree_html
from mypt.train.callbacks import read_log
from mypt.data.episodes import check_episode, write_episodes
from mypt.report.inspect import (
    Item,
    inspect,
    inspect_data,
    inspect_html,
    inspector,
    item_text,
    items_of,
    run_lengths,
    score,
    token_texts,
    write_inspect_html,
)
from mypt.report.page import html_page, json_script
from mypt.data.masks import encode
from mypt.data.prepare import prepare
from mypt.data.serialize import ROLES, random_episode
from mypt.data.tokenizer import get_tokenizer
from mypt.errors import UserError
from browser import AXE, CHROMIUM, Browser

HOSTILE = [
    '</script><script>document.title="owned"</script>',
    '<img src=x onerror="document.title=\'owned\'">',
    '<!-- <script> -->',
    ']]>',
    '<svg onload=document.title="owned">',
    '"><b id=owned>',
    '&lt;i&gt;&amp;',
    "'};document.title='owned'//",
    '\u2028\u2029\u202e\x01\x07\x1b[31m',
    '<myPT_assistant>',
    '${document.title="owned"}',
    '</style></title></textarea>',
    '\ud7ff\ue000😀é\u0301',
]


def hostile_items():
    "Every hostile string in every field of an episode, under two tokenizers."
    out = []
    for k, bad in enumerate(HOSTILE):
        e = check_episode(
            dict(
                system=bad,
                messages=[
                    dict(role='user', content=bad, context=bad),
                    dict(role='assistant', content=bad, think=bad, cite=bad),
                    dict(role='user', content='and then?'),
                    dict(role='assistant_toolcall', name='t', arguments={'q': bad}, think=bad),
                    dict(role='toolresult', name='t', content={'r': bad}),
                    dict(role='assistant', content=bad),
                ],
            )
        )
        [it] = items_of(encode(e, get_tokenizer('byte' if k % 2 else 'gpt2'), weighted=True))
        it.label, it.note = bad, bad
        out.append(it)
    return out


def words(rng):
    "A maker of short texts."
    return lambda: ' '.join(
        rng.choices(['salt', 'Brücke', 'und', '1,024', 'seven\n', '中文'], k=rng.randrange(1, 12))
    )


def packed_item(n=4096, seed=0, kind='gpt2'):
    "One packed row of random episodes with padding at its end."
    rng, tok = random.Random(seed), get_tokenizer(kind)
    ids, w, seg = [], [], []
    while len(ids) < n - 50:
        e = encode(random_episode(rng, words(rng)), tok, weighted=True)
        if len(ids) + len(e) > n:
            break
        seg += [max(seg, default=0) + 1] * len(e)
        ids += e.ids.tolist()
        w += e.weights.tolist()
    pad = n - len(ids)
    ids, w, seg = ids + [tok.endoftext] * pad, w + [0.0] * pad, seg + [0] * pad
    return Item(
        np.array(ids, np.uint32), tok, weights=np.array(w, np.float32), segments=np.array(seg)
    )


def chat(user, assistant):
    "One question, one answer."
    return dict(
        messages=[dict(role='user', content=user), dict(role='assistant', content=assistant)]
    )


def embedded(page):
    "The data of every inspector of a page."
    pattern = r'<script type="application/json" data-inspect>(.*?)</script>'
    return [json.loads(s) for s in re.findall(pattern, page, re.S)]


def unrun(a):
    return [v for v, n in zip(a[::2], a[1::2], strict=True) for _ in range(n)]


def test_data_round_trip_through_the_page():
    items = [*hostile_items(), packed_item(1024)]
    [data] = embedded(inspect_html(items, HOSTILE[0]))
    assert data['title'] == HOSTILE[0] and data['roles'] == list(ROLES)
    for it, got in zip(items, data['items'], strict=True):
        vocab = [data['vocab'][t] for t in got['t']]
        assert [v[0] for v in vocab] == it.ids.tolist()
        assert ''.join(v[1] for v in vocab) == it.tok.decode(it.ids)
        assert unrun(got['roles']) == it.roles.tolist()
        np.testing.assert_allclose(unrun(got['weights']), it.weights, atol=1e-4)
        if it.segments is not None:
            assert unrun(got['segments']) == it.segments.tolist()
        assert (got['label'], got['note']) == (it.label, it.note)


def test_no_content_can_end_the_script():
    for bad in HOSTILE:
        s = json_script([bad])
        assert not set('<>&') & set(s) and json.loads(s) == [bad]
    page = inspect_html(hostile_items(), '</title><script>1</script>')
    assert page.count('<script') == 2 and page.count('</script') == 2
    assert '<img' not in page and '<title>&lt;/title&gt;' in page


@pytest.mark.parametrize('kind', ['gpt2', 'gpt2:512', 'byte'])
def test_texts_join_to_the_decoded_text(kind):
    tok, rng = get_tokenizer(kind), random.Random(1)
    for _ in range(200):
        text = ''.join(
            rng.choice(string.printable + 'äöüß€中文😀\u202e') for _ in range(rng.randrange(40))
        )
        assert ''.join(s for s, _ in token_texts(tok.encode(text), tok)) == text


def test_runs():
    rng = np.random.default_rng(0)
    for n in (0, 1, 2, 50):
        a = rng.integers(0, 3, n)
        assert unrun(run_lengths(a)) == a.tolist()


def test_bad_input_is_one_line():
    tok, e = get_tokenizer('byte'), chat('a', 'b')
    for call in (
        lambda: items_of(3),
        lambda: items_of(e),
        lambda: items_of(object(), tok),
        lambda: Item(np.arange(3), tok, weights=np.zeros(2)),
    ):
        with pytest.raises(UserError) as err:
            call()
        assert '\n' not in str(err.value)


def test_widget_holds_the_same_data():
    pytest.importorskip('anywidget')
    items = hostile_items()[:2]
    w = inspector(items, title='t')
    assert w.data == inspect_data(items, 't') and 'export default' in w._esm
    w.show(items[0])
    assert len(w.data['items']) == 1 and w.data['title'] == 't' and w.index == 0
    with pytest.raises(Exception, match='layer'):
        inspector(items, layer='colour')


@pytest.fixture(scope='module')
def browser():
    if CHROMIUM is None:
        pytest.skip('no Chromium on this machine')
    pytest.importorskip('websocket', reason='websocket-client drives Chromium')
    with Browser() as b:
        yield b


def load(browser, tmp_path, items, title='Tokens'):
    browser.open(write_inspect_html(items, tmp_path / 'page.html', title))
    return browser


def shown(b):
    return b.js("[...document.querySelectorAll('.text .tok')].map(t => t.textContent)")


ALIEN = 'img, b, i:not(.chip i), script:not([type]), #owned, .inspector script, .inspector style'


def test_hostile_content_is_inert(browser, tmp_path):
    b = load(browser, tmp_path, hostile_items(), 'safe')
    for _ in HOSTILE:
        assert b.js(f"document.querySelectorAll('{ALIEN}').length") == 0
        assert b.js('document.title') == 'safe'
        b.press('n')
    assert b.problems() == []


def test_a_token_that_is_markup_stays_text(browser, tmp_path):
    "No tokenizer here has such tokens; an imported one may."
    data = inspect_data(hostile_items()[:3], 'safe')
    data['vocab'] = [
        [i, HOSTILE[k % len(HOSTILE)], kind] for k, (i, _, kind) in enumerate(data['vocab'])
    ]
    part = f'<div></div><script type="application/json" data-inspect>{json_script(data)}</script>'
    (tmp_path / 'page.html').write_text(html_page(part, 'safe'))
    browser.open(tmp_path / 'page.html')
    browser.hover('.text .tok')
    assert '<img src=x' in ''.join(shown(browser)) and browser.js('document.title') == 'safe'
    assert browser.js(f"document.querySelectorAll('{ALIEN}').length") == 0


def test_policy_lets_no_other_script_run(browser, tmp_path):
    evil = '<script>document.title="owned"</script>'
    evil += '<img src="http://127.0.0.1:9/x" onerror="document.title=1">'
    page = inspect_html(hostile_items()[:1], 'safe').replace('<main>', '<main>' + evil)
    (tmp_path / 'page.html').write_text(page)
    browser.open(tmp_path / 'page.html')
    assert browser.js('document.title') == 'safe' and len(shown(browser)) > 0


def test_every_token_is_shown_in_order(browser, tmp_path):
    items = [*hostile_items()[:4], packed_item(1024)]
    b = load(browser, tmp_path, items)
    for it in items:
        assert (
            b.js("[...document.querySelectorAll('.text .tok')].map(t => +t.dataset.id)")
            == it.ids.tolist()
        )
        on = b.js(
            "[...document.querySelectorAll('.text .tok')].map(t => t.classList.contains('on'))"
        )
        assert on == (it.weights > 0).tolist()
        b.press('n')


def test_newlines_and_hidden_characters_are_visible(browser, tmp_path):
    items = items_of(chat('a\n\nb\tc\u202ed\x07\u00a0', 'ok'), get_tokenizer('gpt2'))
    text = ''.join(shown(load(browser, tmp_path, items)))
    for want in ('a⏎\n⏎\nb', '⇥\tc', '[U+202E]d', '[U+0007]', '[U+00A0]'):
        assert want in text, want


def test_trained_is_told_without_colour(browser, tmp_path):
    b = load(browser, tmp_path, hostile_items()[9:10])
    for layer in ('role', 'trained', 'weight'):
        b.js(f"document.querySelector('.layers input[value={layer}]').click()")
        tokens = b.js("""[...document.querySelectorAll('.text .tok')].map(t => {
            const s = getComputedStyle(t)
            return [t.classList.contains('on'), s.borderBottomColor,
                    parseFloat(s.borderBottomWidth), s.getPropertyValue('--w')] })""")
        assert {on for on, *_ in tokens} == {True, False}
        for on, color, *_ in tokens:
            assert on == (color != 'rgba(0, 0, 0, 0)')
        light, heavy = (max(t[2] for t in tokens if t[3] == w) for w in '12')
        assert heavy > light >= 1

    def count(what):
        return b.js(f"document.querySelectorAll('{what}').length")

    assert count('.block .who') == count('.block') > 2


def test_keys_walk_through_items_and_tokens(browser, tmp_path):
    items = hostile_items()[:3]
    b = load(browser, tmp_path, items)

    def where():
        return b.js("document.querySelector('.where').textContent")

    assert where() == '1 of 3'
    for key, want in (('ArrowRight', 2), ('n', 3), ('n', 1), ('p', 3), ('ArrowLeft', 2)):
        b.press(key)
        assert where() == f'{want} of 3', key
    b.js("document.querySelector('.text').focus()")

    def active():
        return b.js("+document.querySelector('.text [aria-selected=true]').dataset.i")

    assert active() == 0
    b.press('ArrowRight', 3)
    assert active() == 3 and where() == '2 of 3'
    b.press('ArrowLeft')
    assert active() == 2
    b.press('End')
    assert active() == len(items[1].ids) - 1
    b.press('Home')
    assert active() == 0
    b.press('ArrowDown')
    assert active() > 0
    b.press('ArrowUp')
    assert active() == 0
    said = b.js("document.querySelector('.text [aria-selected=true]').getAttribute('aria-label')")
    assert 'role system' in said and 'trained no' in said
    named = b.js("document.querySelector('.text').getAttribute('aria-activedescendant')")
    assert b.js(f"document.getElementById('{named}').ariaSelected") == 'true'


def test_search_finds_across_tokens_and_items(browser, tmp_path):
    episodes = [
        chat('grüne Brücke', 'ja'),
        chat('nichts', 'nein'),
        chat('zwei', 'BRÜCKE und Brücke (.*)'),
    ]
    b = load(browser, tmp_path, items_of(episodes, get_tokenizer('byte')))

    def says(what):
        return b.js(f"document.querySelector('{what}').textContent")

    texts = "[...document.querySelectorAll('.text .hit')].map(t => t.textContent).join('')"

    def hits():
        return b.js(texts).replace('·', '')

    b.press('/')
    b.type('brücke')
    assert says('.found') == '1 of 1' and hits() == 'Brücke'
    b.press('Enter')
    assert says('.where') == '3 of 3' and says('.found') == '1 of 2'
    b.press('Enter')
    assert says('.found') == '2 of 2'
    b.press('Escape')
    b.type('(.*)')
    assert hits() == '(.*)'
    assert b.problems() == []


def test_filter_and_hover(browser, tmp_path):
    b = load(browser, tmp_path, hostile_items()[9:10])
    b.js("document.querySelector('.chip.f-think').click()")
    assert b.js("document.querySelector('.chip.f-think').getAttribute('aria-pressed')") == 'true'
    kept = b.js("""[...document.querySelectorAll('.block:not([hidden]) .tok')].map(t =>
        [t.classList.contains('f-think'), getComputedStyle(t).opacity])""")
    assert kept and all((o == '1') == f for f, o in kept)
    assert b.js("document.querySelectorAll('.block[hidden]').length") > 0
    b.js("document.querySelector('.text').focus()")
    b.press('ArrowRight', 3)
    assert b.js(
        "document.querySelector('.text [aria-selected=true]').classList.contains('f-think')"
    )
    b.js("document.querySelector('.chip.f-think').click()")
    assert b.js("document.querySelectorAll('.block[hidden]').length") == 0
    b.hover('.text .f-toolcall.tag.on')
    assert b.js("document.querySelector('.detail').textContent").startswith(
        'token<myPT_toolcall>id'
    )


def test_a_packed_row_shows_its_episodes_and_attention(browser, tmp_path):
    it = packed_item(1024)
    b, n = load(browser, tmp_path, [it, it]), int(it.segments.max())
    assert b.js("document.querySelectorAll('.divider').length") == n + (it.segments[-1] == 0)
    b.js("document.querySelector('.chip.f-toolcall').click()")
    calls = {
        int(s)
        for s, r in zip(it.segments, it.roles, strict=True)
        if ROLES[r].startswith('toolcall')
    }
    assert b.js("document.querySelectorAll('.divider:not([hidden])').length") == len(calls) > 0
    triangles = re.findall(
        r'M(\d+) \1L(\d+) \2H\1z', b.js("document.querySelector('.tri').getAttribute('d')")
    )
    cuts = np.flatnonzero(np.diff(it.segments)) + 1
    assert [int(a) for a, _ in triangles] == [0, *cuts.tolist()][:n]
    assert int(triangles[-1][1]) == int((it.segments > 0).sum())


def test_thousands_of_tokens_stay_quick(browser, tmp_path):
    b = load(browser, tmp_path, [packed_item(16384, s) for s in (1, 2)])
    assert b.js("document.querySelectorAll('.text .tok').length") == 16384
    frame = 'await new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))'
    clock = (
        '(async () => { const t = performance.now(); CODE; FRAME; return performance.now() - t })()'
    )

    def took(code):
        return b.js(clock.replace('CODE', code).replace('FRAME', frame))

    assert took("document.querySelector('.layers input[value=weight]').click()") < 1500
    b.js("document.querySelector('.text').focus()")
    assert (
        took("""for (let k = 0; k < 50; k++) document.querySelector('.text')
        .dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true}))""")
        < 1500
    )


@pytest.mark.parametrize('dark', [False, True])
def test_text_is_legible(dark, tmp_path):
    "WCAG AA: text and its background differ by 4.5 : 1 on every layer."
    if CHROMIUM is None:
        pytest.skip('no Chromium on this machine')
    pytest.importorskip('websocket', reason='websocket-client drives Chromium')
    with Browser(dark=dark) as b:
        load(b, tmp_path, hostile_items()[9:10])
        worst = {}
        for layer in ('role', 'trained', 'weight'):
            b.js(f"document.querySelector('.layers input[value={layer}]').click()")
            worst[layer] = b.js(CONTRAST)
    assert all(c >= 4.5 for c, _ in worst.values()), worst


CONTRAST = """(() => {
  const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1})
  const ctx = canvas.getContext('2d', {willReadFrequently: true})
  const over = (...layers) => {
    ctx.clearRect(0, 0, 1, 1)
    for (const c of layers) { ctx.fillStyle = c; ctx.fillRect(0, 0, 1, 1) }
    return [...ctx.getImageData(0, 0, 1, 1).data]
  }
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4
  const lum = p => p.slice(0, 3).map(v => linear(v / 255))
    .reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0)
  let worst = [99, '']
  const what = '.tok, .who, .chip, .chip small, .summary p, .layers span, .detail .k, .where, ' +
    '.search input, figcaption'
  for (const e of document.querySelectorAll(what)) {
    const back = []
    for (let n = e; n; n = n.parentElement) back.unshift(getComputedStyle(n).backgroundColor)
    const a = lum(over('#fff', ...back)), b = lum(over('#fff', ...back, getComputedStyle(e).color))
    const c = (Math.max(a, b) + .05) / (Math.min(a, b) + .05)
    if (c < worst[0]) worst = [c, e.className + ': ' + e.textContent]
  }
  return worst
})()"""


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    d, rng = tmp_path_factory.mktemp('inspect'), random.Random(3)
    write_episodes(d / 'e.jsonl', [random_episode(rng, words(rng)) for _ in range(120)])
    return prepare(
        str(d / 'e.jsonl'),
        str(d / 'set'),
        'byte',
        enable_packing=True,
        pack_block_size=4096,
        workers=1,
    )


def test_the_command_prints_and_writes(dataset, tmp_path, capsys):
    inspect(dataset.dir, show_samples=3, html=str(tmp_path / 'p.html'))
    out = capsys.readouterr().out
    assert (
        f'{dataset.train.n_episodes:,} episodes' in out
        and '⟦' in out
        and 'episodes a row' in out
        and 'full' in out
    )
    assert not set(map(chr, [*range(10), *range(11, 32), 127])) & set(
        out
    )  # nothing that a terminal would obey
    [data] = embedded((tmp_path / 'p.html').read_text())
    assert len(data['items']) == min(3, dataset.train.n_rows)
    assert [data['vocab'][t][0] for t in data['items'][0]['t']] == dataset.train.row(0).ids.tolist()
    with pytest.raises(UserError, match='no split'):
        inspect(dataset.dir, split='test')
    with pytest.raises(UserError):
        inspect(dataset.dir, show_samples=-1)


def test_roles_of_rows_are_those_of_the_episodes(dataset):
    [it] = items_of(dataset.train, dataset.tok, n=1)
    real = it.segments > 0
    assert (it.roles[~real] == 0).all() and (it.roles[real] > 0).all()
    assert ((it.weights > 0) <= np.isin(it.roles, [ROLES.index(r) for r in ROLES[7:17]])).all()


def test_paths_are_items_too(dataset, tmp_path):
    write_episodes(tmp_path / 'e.jsonl', [chat('a', 'b'), chat('c', 'd')])
    tok = get_tokenizer('byte')
    assert [it.label for it in items_of(tmp_path / 'e.jsonl', tok)] == ['line 1', 'line 2']
    assert items_of(str(dataset.dir), n=1)[0].ids.tolist() == dataset.train.row(0).ids.tolist()
    (tmp_path / 'bad.jsonl').write_text('{"messages": 3}\n')
    for bad in (tmp_path / 'bad.jsonl', tmp_path / 'none.jsonl'):
        with pytest.raises(UserError, match=bad.name):
            items_of(bad, tok)


def test_scores_are_the_models_own_probabilities():
    torch = pytest.importorskip('torch')
    from mypt.model.config import ModelConfig
    from mypt.model.gpt import GPT

    tok, row = get_tokenizer('byte'), packed_item(512, kind='byte')
    model = GPT(
        ModelConfig(
            n_layer=2, n_head=2, n_embd=32, vocab_size=tok.vocab_size, block_size=512, dropout=0.1
        )
    )
    [got] = score(model, row)
    assert model.training and np.isnan(got.probs[row.segments == 0]).all()
    for s in range(1, int(row.segments.max()) + 1):
        here = np.flatnonzero(row.segments == s)
        with torch.no_grad():
            logits = model.eval()(torch.tensor(row.ids[here].astype(np.int64))[None])[0]
        alone = logits[:-1].softmax(-1)[range(len(here) - 1), row.ids[here[1:]].astype(np.int64)]
        assert np.isnan(got.probs[here[0]])
        np.testing.assert_allclose(got.probs[here[1:]], alone.numpy(), rtol=1e-3)


def test_filters_by_weight_and_by_likelihood(browser, tmp_path):
    [it] = hostile_items()[9:10]
    it.probs = np.where(np.arange(len(it.ids)) % 7, 0.95, 0.02)
    b = load(browser, tmp_path, [it])

    def left():
        return b.js("[...document.querySelectorAll('.text .tok:not(.off)')].map(t => +t.dataset.i)")

    def mark(text):
        return b.js(
            f"[...document.querySelectorAll('.mark')].find(m => m.textContent === '{text}').click()"
        )

    mark('× 2')
    assert left() == np.flatnonzero(it.weights == 2).tolist() != []
    b.js("document.querySelector('.chip.f-think').click()")
    think = np.isin(it.roles, [ROLES.index('think'), ROLES.index('think_tag')])
    assert left() == np.flatnonzero((it.weights == 2) & think).tolist()
    b.js("document.querySelector('.chip.f-think').click()")
    b.press('4')
    assert b.js("document.querySelector('.inspector').dataset.layer") == 'probability'
    assert left() == list(range(len(it.ids)))  # the weights' filter is gone with its chips
    mark('p < 0.1')
    assert left() == list(range(0, len(it.ids), 7))
    assert 'perplexity' in b.js("document.querySelector('.summary').textContent")
    b.press('i')
    assert b.js("document.querySelector('.inspector').classList.contains('ids')")


def test_strips_speak_the_language_of_the_layer(browser, tmp_path):
    it = packed_item(1024)
    b, n = load(browser, tmp_path, [it]), int(it.segments.max())

    def bars(name):
        return b.js(
            f"(document.querySelector('.map .{name}')?.getAttribute('d').match(/M/g) ?? []).length"
        )

    b.js("document.querySelector('.layers input[value=segment]').click()")
    assert (bars('odd'), bars('even')) == ((n + 1) // 2, n // 2)
    b.js("document.querySelector('.layers input[value=role]').click()")
    assert bars('odd') == 0 and bars('f-user') > 0


def test_a_reply_grows_with_its_probabilities():
    torch = pytest.importorskip('torch')
    from mypt.model.config import ModelConfig
    from mypt.inference.generate import generate, prompt_ids
    from mypt.report.inspect import watch_reply
    from mypt.model.gpt import GPT

    torch.manual_seed(0)
    tok, history = (get_tokenizer('byte'), dict(messages=[dict(role='user', content='Well?')]))
    model = GPT(
        ModelConfig(n_layer=2, n_head=2, n_embd=32, vocab_size=tok.vocab_size, block_size=64)
    )
    it, prompt = (watch_reply(model, tok, history, max_new_tokens=20), prompt_ids(history, tok))
    assert it.ids.tolist() == prompt + generate(model, tok, [prompt], 20)[0]
    [whole] = score(model, Item(it.ids, tok, weights=np.ones(len(it.ids), np.float32)))
    assert np.isnan(it.probs[: len(prompt)]).all()
    np.testing.assert_allclose(it.probs[len(prompt) :], whole.probs[len(prompt) :], rtol=1e-3)


def test_json_for_other_programs(dataset, tmp_path, capsys):
    inspect(dataset.dir, show_samples=2, json=True)
    out = json.loads(capsys.readouterr().out)
    assert out['samples'][0]['ids'] == dataset.train.row(0).ids.tolist()
    assert out['samples'][0]['episode'] == dataset.train.row(0).segments.tolist()
    write_episodes(tmp_path / 'e.jsonl', [chat('für', 'b')])
    inspect(tmp_path / 'e.jsonl', tokenization='byte', json=True)
    [got] = json.loads(capsys.readouterr().out)['samples']
    assert {len(got[k]) for k in ('ids', 'text', 'role', 'weight')} == {
        len(got['ids'])
    } and 'für' in ''.join(got['text'])


def test_text_of_an_item_keeps_every_word():
    [it] = items_of(chat('one\x1b[2J two', 'three'), get_tokenizer('gpt2'))
    assert item_text(it).split('\n') == [
        '  user        <user>one\\u001b[2J two</user>',
        '  assistant   <assistant>⟦three</assistant><eot>⟧',
    ]


def test_report_is_inert_and_complete(browser, tmp_path):
    bad = HOSTILE[0] + HOSTILE[1]
    suite = dict(name=bad, passed=False, n=10, rate=0.5, low=0.2, high=0.8, floor=0.9)
    log = [
        dict(step=1, loss=2.0),
        {'step': 2, 'loss': 1.0, 'val_loss': 1.5, f'val_loss/{bad}': 2.0},
    ]
    talk = chat(bad, bad) | dict(system=bad)
    talk['messages'][0]['context'] = talk['messages'][1]['think'] = bad
    talk['messages'][1]['cite'] = [dict(at=3, text=bad), bad]
    page = report_html(
        tmp_path / 'r.html',
        {
            bad: bad,
            'mask': hostile_items()[:2],
            'gate': gate_board(dict(phase=bad, model=bad, passed=False, suites=[suite])),
            'loss': loss_board({bad: log}, bad),
            'chat': chat_html(talk),
            'config': {bad: bad},
            'other': 3.5,
            'lineage': tree_html({bad: [bad, {bad: bad}]}),
            'facts': facts_html({bad: [bad]}),
        },
        bad,
        bad,
    )
    b = browser.open(page)
    assert (
        b.js("document.querySelectorAll('img, script:not([type]), #owned').length") == 0
        and b.problems() == []
    )
    assert b.js('document.title') == bad.replace('\n', ' ')
    assert b.js("document.querySelectorAll('section').length") == 9
    assert b.js("document.querySelectorAll('.inspector .tok').length") > 50
    assert b.js("document.querySelector('.verdict').textContent") == '✗ failed'


@pytest.fixture(scope='module', params=[False, True], ids=['light', 'dark'])
def seen(request):
    "A browser in each scheme, with axe-core."
    if CHROMIUM is None:
        pytest.skip('no Chromium on this machine')
    pytest.importorskip('websocket', reason='websocket-client drives Chromium')
    if not AXE.exists():
        pytest.skip('no axe-core: npm pack axe-core, and AXE_CORE=path/to/axe.min.js')
    with Browser(dark=request.param) as b:
        yield b


def a_run():
    "A run's records and its gate."
    log = [
        dict(
            step=k, loss=3 / k, lr=1e-3, tok_per_s=900, **({} if k % 5 else dict(val_loss=3.1 / k))
        )
        for k in range(1, 40)
    ]
    suites = [
        dict(name=n, passed=ok, n=200, rate=r, low=r - 0.03, high=r + 0.02, floor=0.9)
        for n, ok, r in (('format', True, 0.97), ('echo', False, 0.7))
    ]
    return log, [dict(phase=p, model='m', passed=p == '1', suites=suites) for p in '12']


def test_inspector_is_accessible(seen, tmp_path):
    items = [*hostile_items()[:3], packed_item(512, kind='byte')]
    for it in items:
        it.probs = np.linspace(0, 1, len(it.ids))
    b = load(seen, tmp_path, items)
    for layer in ('role', 'trained', 'weight', 'segment', 'probability'):
        b.js(f"document.querySelector('.layers input[value={layer}]').click()")
        assert b.axe() == [], layer
    b.press('p')
    b.js("document.querySelector('.mark').click()")
    assert b.axe() == []
    b.resize(380, 800)
    try:
        assert b.axe() == []
    finally:
        b.resize(*b.size)


def test_report_is_accessible(seen, tmp_path):
    log, gates = a_run()
    talk = chat('Hello?', 'Yes.') | dict(system='Be brief.')
    seen.open(
        report_html(
            tmp_path / 'r.html',
            {
                'Gates': ('Judged on prompts that the training data lacks.', gate_board(gates)),
                'Loss': loss_board(dict(a=log, b=log)),
                'Chat': chat_html(talk),
                'Settings': dict(n_layer=4),
                'Lineage': tree_html({'base': ['x']}),
                'Rows': [packed_item(256)],
            },
            'A run',
            'Made up.',
        )
    )
    assert seen.axe() == []


@pytest.fixture(scope='module')
def site_folder(tmp_path_factory, root):
    "Three pages of the site, as `make docs` builds them from notebooks."
    docs = pytest.importorskip('tools.docs', reason='pages need pypandoc')
    out = tmp_path_factory.mktemp('site')
    for f in ('styles.css', 'favicon.svg'):
        shutil.copy(root / 'nbs' / f, out)
    shutil.copytree(root / 'nbs' / 'images', out / 'images')
    for name in ('03_masks.ipynb', 'report/inspect.ipynb', 'report/board.ipynb'):
        here = docs.page_name(name)
        (out / here).parent.mkdir(exist_ok=True)
        sidebar = docs.sidebar_html(docs.sidebar(root), here)
        page = docs.build_page(root / 'nbs' / name, root, docs.site(root), sidebar, here)
        (out / here).write_text(page, encoding='utf-8')
    return out


def test_site_pages_are_accessible(seen, site_folder):
    for f in sorted(site_folder.rglob('*.html')):
        seen.open(f)
        assert seen.axe() == [], f.name


def test_the_site_shows_tokens_without_network_or_kernel(browser, site_folder):
    b = browser.open(site_folder / 'report/inspect.html')
    assert b.problems() == []
    with b.frame() as f:
        assert f.js("document.querySelectorAll('.text .tok').length") > 50
        f.js("document.querySelector('.layers input[value=weight]').click()")
        assert f.js("document.querySelector('.inspector').dataset.layer") == 'weight'


def test_loss_board_takes_logs_records_and_holes(tmp_path):
    log = tmp_path / 'run' / 'log.jsonl'
    log.parent.mkdir()
    lines = [
        '{"step": 1, "loss": 3.0}',
        '{"step": 2, "loss": NaN}',
        '{"step": 3, "loss": 1, "val_loss": 2}',
        '{"st',
    ]
    log.write_text('\n'.join(lines))
    assert len(read_log(log)) == 3
    text = loss_board([log, [dict(step=1, loss=1.0)]]).html
    assert 'nan' not in text.lower() and '>run <' in text and 'run 2' in text
    for empty in ([], [dict(step=1)]):
        assert 'No steps yet' in loss_board(empty).html
    (tmp_path / 'bad').write_text('hello\n{"step": 1}\n')
    for bad in (tmp_path / 'bad', tmp_path / 'none'):
        with pytest.raises(UserError):
            read_log(bad)
