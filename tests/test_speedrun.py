"The speedrun on a base: a small model of SmolLM2's shape through all six legs, and its parts."

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mypt.cli import main
from mypt.curriculum.legs import (
    BASE_LEGS,
    CASES_ASKED,
    Course,
    base_legs,
    frozen_names,
    with_numbers,
)
from mypt.curriculum.mixes import DOCUMENTED
from mypt.curriculum.speedrun import LEGS, ask_yardsticks, from_base, leg_sets, run_leg, small_phase
from mypt.curriculum.speedrun_report import leg_facts
from mypt.data.masks import encode
from mypt.data.mix import REPLAY
from mypt.data.tokenizer import get_tokenizer
from mypt.eval.gates import judge
from mypt.eval.suite import load_suite, responder, run_suite
from mypt.files import text_assets
from mypt.model.config import ModelConfig, load_config
from mypt.model.gpt import GPT
from mypt.train.callbacks import read_log

BYTES = get_tokenizer('byte')


def save_base(folder, context=2048):
    "A Llama with random weights, shaped like SmolLM2 and made small, with a tokenizer of its own."
    t = RustTokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=['<|endoftext|>', '<|im_end|>'],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    names = ('gold_en.txt', 'gold_de.txt', 'ood_en.txt', 'ood_de.txt')
    t.train_from_iterator(text_assets(*names).splitlines(), trainer)
    PreTrainedTokenizerFast(tokenizer_object=t, eos_token='<|im_end|>').save_pretrained(folder)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=t.get_vocab_size(),
        hidden_size=48,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        eos_token_id=1,
    )
    LlamaForCausalLM(shape).save_pretrained(folder)


def save_yardsticks(folder):
    folder.mkdir()
    qas = [dict(id='1', question='What is there?', answers=[dict(text='water', answer_start=0)])]
    places = [dict(context=f'There is water in lake {i}.', qas=qas) for i in range(5)]
    squad = dict(data=[dict(title='Lakes', paragraphs=places)])
    (folder / 'lakes.json').write_text(json.dumps(squad))
    parameters = dict(type='dict', properties={}, required=[])
    function = dict(name='now', description='The time.', parameters=parameters)
    ask = [[dict(role='user', content='How tall is it?')]]
    row = dict(id='irrelevance_0', question=ask, function=[function])
    (folder / 'irrelevance.json').write_text(json.dumps(row) + '\n')


@pytest.fixture
def fewer(monkeypatch):
    "A fiftieth of each leg's episodes."
    legs = tuple(
        replace(leg, n={kind: math.ceil(n / 50) + 4 for kind, n in leg.n.items()})
        for leg in BASE_LEGS
    )
    monkeypatch.setattr('mypt.curriculum.legs.BASE_LEGS', legs)
    return legs


def test_a_base_goes_through_all_legs(fewer, capsys, monkeypatch, tmp_path):
    "Gates stay red, and every part runs; run again, nothing is done twice."
    monkeypatch.chdir(tmp_path)
    save_base(tmp_path / 'small')
    save_yardsticks(tmp_path / 'asked')
    sets = ['max_iters=2', 'eval_iters=1', 'batch_size=1']
    argv = ['speedrun', '--base', 'small', '--yardsticks', 'asked', '--questions', '1']
    argv += ['--limit', '2', '--keep_going', '--quiet', '--sets', *sets]
    assert main(argv) == 1
    said = capsys.readouterr().out
    facts = json.loads((tmp_path / 'speedrun-small/speedrun.json').read_text())
    assert facts['finished'] and not facts['passed'] and facts['base'] == 'small'
    assert [leg['phase'] for leg in facts['legs']] == list('123456')
    assert [leg['frozen'] for leg in facts['legs']] == [0] * 6
    asked = [leg['yardsticks'] for leg in facts['legs']]
    assert {*facts['before']} == {'lakes.json', 'irrelevance.json'}
    assert all({*names} == {*facts['before']} for names in asked)
    sizes = [names['lakes.json'][0]['n'] for names in asked]
    assert sizes == [1, 1, 1, 1, 1, 4]
    for leg in facts['legs']:
        assert leg['minutes']['all'] > 0 and leg['tokens_read'] > 0
        assert all(row['n'] <= 2 * 3 for row in leg['gate'])
    assert (tmp_path / 'speedrun-small/report.html').stat().st_size > 20_000
    assert 'yardstick' in said and 'exact match' in said
    assert main(argv) == 1
    again = capsys.readouterr().out
    assert again.count('was done before') == 6 and '→' not in again.split('== phase 2')[0]
    same = json.loads((tmp_path / 'speedrun-small/speedrun.json').read_text())
    assert [leg['minutes'] for leg in same['legs']] == [leg['minutes'] for leg in facts['legs']]


@pytest.mark.slow
def test_smollm2_passes_its_first_gate(smollm2, tmp_path, capsys):
    "The first leg as it is shipped, on the real base: about eight minutes on two idle cores."
    _, base = smollm2
    course = from_base(Course(tmp_path, BASE_LEGS, quiet=True), str(base))
    result = run_leg(course, course.legs[0], course.base)
    assert result.gate.passed, str(result.gate)
    facts = leg_facts(result)
    assert facts['tokens_read'] > 70_000 and facts['val_loss'] < 1
    assert {row['name'] for row in facts['gate']} >= {'closes, English', 'echo'}


def test_adapters_from_leg_to_leg_and_a_run_that_was_killed(fewer, monkeypatch, tmp_path):
    "With `lora_rank` nothing is frozen; killed behind the second leg's gate, it goes on there."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('mypt.curriculum.legs.BASE_LEGS', fewer[:2])
    save_base(tmp_path / 'small')
    save_yardsticks(tmp_path / 'asked')
    sets = ['lora_rank=4', 'max_iters=2', 'eval_iters=1', 'batch_size=1']
    argv = ['speedrun', '--base', 'small', '--yardsticks', 'asked', '--questions', '1']
    argv += ['--limit', '1', '--keep_going', '--quiet', '--sets', *sets]

    def killed(course, model, out, questions):
        if out.name == 'phase2':
            raise KeyboardInterrupt
        return ask_yardsticks(course, model, out, questions)

    with monkeypatch.context() as m:
        m.setattr('mypt.curriculum.speedrun.ask_yardsticks', killed)
        assert main(argv) == 130
    first = json.loads((tmp_path / 'speedrun-small/speedrun.json').read_text())
    assert not first['finished'] and [leg['phase'] for leg in first['legs']] == ['1']
    trained = read_log(tmp_path / 'speedrun-small/models/phase2/log.jsonl')
    assert main(argv) == 1
    facts = json.loads((tmp_path / 'speedrun-small/speedrun.json').read_text())
    assert facts['finished'] and [leg['settings']['lora_rank'] for leg in facts['legs']] == [4, 4]
    assert [leg['frozen'] for leg in facts['legs']] == [0, 0]
    assert facts['legs'][0]['minutes'] == first['legs'][0]['minutes']
    assert read_log(tmp_path / 'speedrun-small/models/phase2/log.jsonl') == trained
    assert facts['legs'][1]['minutes']['train'] > 0


def test_one_language_gets_as_many_of_its_first_episodes_as_both():
    "… and twice as many from phase 3 on."
    for leg in BASE_LEGS:
        both, alone = with_numbers(leg), with_numbers(leg, alone=True)
        first = leg.phase.number in '12'
        for s, one in zip(both.sources, alone.sources, strict=True):
            assert one.n == (s.n // 2 if first else s.n) > 0
        course = Course(Path(), BASE_LEGS, language='en')
        assert small_phase(leg, course) == replace(alone, language='en')


def test_each_leg_is_its_phase_in_small():
    "The sources and shares of the recipe but for what is named; the same checks and floors."
    differ = {'3': {'written', 'questions'}, '5': {'no_tool'}, '6': {'no_tool'}}
    for leg in BASE_LEGS:
        whole, small = leg.phase, with_numbers(leg)
        if leg.phase.number in DOCUMENTED:
            recipe = {s.kind: s for s in DOCUMENTED[leg.phase.number].sources}
            other = {s.kind for s in whole.sources if s != recipe.get(s.kind)}
            assert other == differ.get(leg.phase.number, set())
            more = ['questions'] * (leg.phase.number == '3')
            assert [s.kind for s in whole.sources] == [*recipe, *more]
        assert [(s.kind, s.share, s.stands_in) for s in small.sources] == [
            (s.kind, s.share, s.stands_in) for s in whole.sources
        ]
        same = ('name', 'suites', 'floor', 'check', 'tag', 'warns')
        for a, b in zip(small.gate, whole.gate, strict=True):
            assert [getattr(a, k) for k in same] == [getattr(b, k) for k in same]
        assert leg.rows and small.pack_block_size == leg.rows <= 1024
        assert {*leg.replay} == {*REPLAY[leg.phase.number]}
        total = sum(s.share + s.stands_in for s in whole.sources)
        for s in whole.sources:
            share = leg.n[s.kind] / sum(leg.n.values())
            assert share == pytest.approx((s.share + s.stands_in) / total, abs=0.002)
        assert load_config(leg.config).train.gate == leg.phase.number
    named = {s for leg in BASE_LEGS for r in leg.phase.gate for s in r.suites}
    assert {*CASES_ASKED} <= named
    assert all(most <= len(load_suite(suite)) for suite, most in CASES_ASKED.items())


def test_a_short_base_is_stretched_first():
    legs = base_legs(ModelConfig(block_size=1024, rope_scale=1.0))
    assert legs[0].phase.number == '1b' and not legs[0].needed
    assert legs[0].sets == ('block_size=2048', 'rope_scale=2')
    assert base_legs(ModelConfig(block_size=2048)) == BASE_LEGS


def test_what_is_frozen_is_what_was_asked(tmp_path):
    course = Course(tmp_path, legs=BASE_LEGS, base='b', blocks=30)
    assert [leg_sets(leg, course) for leg in BASE_LEGS] == [[]] * 6
    part, frozen = replace(BASE_LEGS[1], frozen=2 / 3), json.dumps(frozen_names(30, 2 / 3))
    assert leg_sets(part, course) == [f'freeze={frozen}', 'freeze_input=true']
    assert len(json.loads(frozen)) == 20 and frozen.count('model.layers.') == 20
    untied = replace(course, tied=False)
    assert leg_sets(part, untied) == [f'freeze={frozen}', 'freeze_input=false']
    for own in ('lora_rank=8', 'freeze=[]'):
        assert leg_sets(part, replace(course, sets=(own,))) == [own]


def test_a_limit_holds_for_every_suite(tmp_path):
    phase = small_phase(BASE_LEGS[2], Course(tmp_path, legs=BASE_LEGS, limit=5))
    assert {r.most for r in phase.gate} == {5}


def test_the_toy_is_asked_other_peoples_phrasings_in_part():
    for leg in LEGS:
        for r in with_numbers(leg).gate:
            if any(s.endswith('_ood') and s.startswith('phase') for s in r.suites):
                assert r.most == 60 and r.warns


@pytest.mark.parametrize('suite', ['phase3_chat_ood', 'phase6_agentic_ood', 'multiturn'])
def test_what_does_not_fit_is_counted(suite):
    "A model of 256 bytes is asked what it can read; the rest fails, and is counted as too long."
    model = GPT(ModelConfig(n_layer=1, n_embd=32, n_head=2, block_size=256, vocab_size=320))
    result = run_suite(responder(model.eval(), BYTES), suite, limit=6, max_new_tokens=8)
    assert result.too_long() == 6 and result.count() == (0, 6)


def test_a_gate_says_how_many_were_too_long():
    leg = LEGS[4]
    gate = tuple(r for r in with_numbers(leg).gate if r.suites == ('phase3_chat_ood',))
    model = GPT(ModelConfig(n_layer=1, n_embd=32, n_head=2, block_size=256, vocab_size=320))
    report = judge(responder(model.eval(), BYTES), gate, limit=3)
    assert report.rows[0].too_long == 3 and '(3 too long)' in str(report)
    assert report.to_json()['suites'][0]['too_long'] == 3


def test_no_leg_makes_longer_episodes_than_its_rows():
    "By bytes, which are more than the tokens of any base."
    phase = with_numbers(BASE_LEGS[0])
    for s in phase.sources:
        lengths = [len(encode(ep, BYTES)) for ep in s.make(40, **s.options)]
        assert max(lengths) <= phase.pack_block_size
