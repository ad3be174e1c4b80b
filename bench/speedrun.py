"""The speedrun on a base: what it should take, what it took, and a search for better settings.

    python bench/speedrun.py                  # the tables of what was measured; nothing is run
    python bench/speedrun.py --plan           # minutes: speeds of this machine, tokens of each leg
    python bench/speedrun.py --run            # two hours: all six legs, undisturbed
    python bench/speedrun.py --search --phase 1 --rates 1e-4 3e-4 --episodes 1500 3300

The plan measures one thread's own time, so other work on the machine costs cache but no minutes,
and takes two threads as twice as fast. It counts the tokens of a sample of each leg's episodes, the
prompts of each suite, and takes a reply to a short question as 12 tokens and any other as 40. A
case with documents is read once for every call and its answer, and three calls are taken for one.

A run notes the load of the machine before it begins and how much of two cores it got; one that got
less than nine tenths of a core for each thread was disturbed, and the tables say so. It goes on
where it was stopped. A search trains one leg from the same start with each pair of learning rate
and number of episodes; its gate is asked `--limit` cases of a suite. Pairs that are there are
skipped.

Writes bench/results/speedrun_plan.json, speedrun_smollm2.json, speedrun_search.json.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
import numpy as np
import torch
from mypt.curriculum.legs import BASE_LEGS, Course, Leg, frozen_names, limited, with_numbers
from mypt.curriculum.speedrun import from_base, run_course, run_leg
from mypt.curriculum.speedrun_report import leg_facts, machine_facts
from mypt.data.batches import collate
from mypt.data.masks import encode
from mypt.eval.suite import fixed_sample, load_suite
from mypt.eval.yardsticks import find_yardsticks
from mypt.inference.cpu import for_inference
from mypt.inference.generate import generate, prompt_ids
from mypt.interop.import_model import base_checkpoint
from mypt.model.checkpoint import load_model
from mypt.model.config import TrainConfig
from mypt.train.optim import make_optimizers
from mypt.train.train import set_up_model

RESULTS = Path(__file__).resolve().parent / 'results'
SAMPLE = 60  # episodes of a source
SHORT, OTHER = 12, 40  # tokens of a reply
READINGS = 4  # of a case with documents
THREADS = 2


def stored(name: str) -> dict:
    path = RESULTS / f'{name}.json'
    return json.loads(path.read_text()) if path.exists() else {}


def store(name: str, value: dict):
    (RESULTS / f'{name}.json').write_text(json.dumps(value, indent=1, ensure_ascii=False) + '\n')


# ------------------------------------------------------------------------------------- the plan


def per_thread(work: Callable[[], object], tokens: int, rounds: int = 2) -> float:
    "Tokens in a second of one thread's own time, the best of the rounds."
    times = []
    for _ in range(rounds):
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    return tokens / min(times)


def training_step(model, batch) -> Callable[[], None]:
    "A step of AdamW on one batch."
    opts = make_optimizers(model, TrainConfig())

    def step():
        model.loss(batch).backward()
        for o in opts:
            o.step()
            o.zero_grad()

    return step


def speeds(base: str, batch) -> dict[str, float]:
    "Tokens a second and thread: training all and the upper third, reading, writing 16 replies."
    torch.set_num_threads(1)
    model, tok, _ = load_model(base)
    out = {'all': per_thread(training_step(model, batch), batch.n_tokens)}
    model.zero_grad(set_to_none=True)
    lower = frozen_names(model.cfg.n_layer, 2 / 3)
    set_up_model(model, TrainConfig(freeze=lower, freeze_input=model.cfg.tie_weights))
    out['upper third'] = per_thread(training_step(model, batch), batch.n_tokens)
    ids = batch.ids[0].tolist()
    halves = [ids[: len(ids) // 2], ids[len(ids) // 2 :]]
    heads = [ids[i : i + 60] for i in range(16)]
    model = for_inference(model)
    out['reading'] = per_thread(lambda: generate(model, tok, halves, 1), len(ids))
    out['writing'] = per_thread(lambda: generate(model, tok, heads, 20, stop=frozenset()), 320)
    return out


def a_batch(tok, leg: Leg, rows: int = 2):
    "Rows of a leg's episodes, one behind the other until a row is full."
    from types import SimpleNamespace

    out = []
    for k in range(rows):
        parts, n = [], 0
        for ep in leg_episodes(leg, seed=k):
            e = encode(ep, tok)
            if n + len(e) > (leg.rows or 1024):
                break
            parts.append(e)
            n += len(e)
        ids = np.concatenate([p.ids for p in parts])
        weights = np.concatenate([p.weights for p in parts])
        segments = np.repeat(np.arange(1, len(parts) + 1), [len(p) for p in parts])
        out.append(SimpleNamespace(ids=ids, weights=weights, segments=segments))
    return collate(out, tok.endoftext, leg.rows)


def leg_episodes(leg: Leg, seed: int = 1):
    "A sample of a leg's episodes in the shares of its mix."
    phase = with_numbers(leg)
    made = [
        list(s.make(SAMPLE, language=phase.language, seed=seed, **s.options)) for s in phase.sources
    ]
    total = sum(leg.n.values())
    picked = []
    for s, episodes in zip(phase.sources, made, strict=True):
        picked += episodes[: max(1, round(SAMPLE * leg.n[s.kind] / total))]
    np.random.default_rng(seed).shuffle(picked)
    return picked


def tokens_of(leg: Leg, tok, per_phase: dict[str, float]) -> float:
    "Tokens that a leg trains on: its own episodes, and what it replays."
    lengths = [len(encode(ep, tok)) for ep in leg_episodes(leg)]
    per_phase[leg.phase.number] = float(np.mean(lengths))
    own = sum(leg.n.values())
    mix = own / (1 - sum(leg.replay.values()))
    replayed = sum(mix * share * per_phase[k] for k, share in leg.replay.items())
    return 0.95 * (own * per_phase[leg.phase.number] + replayed)  # a twentieth is validation


def asked_tokens(leg: Leg, tok) -> tuple[int, int]:  # (read, written)
    "Tokens that a gate reads and writes."
    most = {}
    for r in with_numbers(leg).gate:
        for s in r.suites:
            most[s] = max(most.get(s, 0), r.most or 10**9)
    read = written = 0
    for suite, n in most.items():
        for case in fixed_sample(load_suite(suite), n):
            prompt, turns = len(prompt_ids(case.episode, tok)), 1 + len(case.then)
            if case.documents is not None:
                shown = sum(len(tok.encode(t)) for t in case.documents.values())
                prompt, turns = prompt + shown // 2, READINGS
            read += prompt * turns
            is_short = prompt < 60 and not case.limit and case.documents is None
            written += turns * (SHORT if is_short else OTHER)
    return read, written


def plan(base: str):
    base, load = base_checkpoint(base), os.getloadavg()[0]
    _, tok, _ = load_model(base)
    speed = speeds(base, a_batch(tok, BASE_LEGS[2], rows=1))
    two = {k: THREADS * v for k, v in speed.items()}
    legs, per_phase = [], {}
    for leg in BASE_LEGS:
        tokens = tokens_of(leg, tok, per_phase)
        read, written = asked_tokens(leg, tok)
        train = tokens / two['upper third' if leg.frozen else 'all']
        judge = read / two['reading'] + written / two['writing']
        legs.append(
            dict(
                phase=leg.phase.number,
                title=leg.phase.title,
                episodes=sum(leg.n.values()),
                tokens=round(tokens),
                gate_reads=read,
                gate_writes=written,
                train=round(train / 60, 1),
                gate=round(judge / 60, 1),
            )
        )
        print(legs[-1], flush=True)
    facts = machine_facts() | dict(load=round(load, 1), base=base, per_thread=speed)
    store('speedrun_plan', facts | dict(legs=legs))


# -------------------------------------------------------------------------------------- the run


def used() -> float:
    "Processor seconds of this process."
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def run(a: argparse.Namespace):
    course = Course(
        Path(a.output_dir).absolute(),
        BASE_LEGS,
        sets=tuple(a.sets),
        seed=a.seed,
        quiet=True,
        yardsticks=tuple(find_yardsticks(a.yardsticks)) if a.yardsticks else (),
        limit=a.limit,
        questions=a.questions,
        language=a.language,
    )
    load, start, cpu = os.getloadavg()[0], time.monotonic(), used()
    run_course(from_base(course, a.base), keep_going=a.keep_going)
    wall = time.monotonic() - start
    facts = json.loads((course.folder / 'speedrun.json').read_text())
    threads = min(torch.get_num_threads(), os.cpu_count() or 1)
    sitting = dict(
        load_before=load,
        wall_minutes=round(wall / 60, 1),
        cores_used=round((used() - cpu) / wall, 2),
        threads=threads,
    )
    store(a.out, facts | dict(sitting=sitting))
    show()


# ----------------------------------------------------------------------------------- the search


def scaled(leg: Leg, episodes: int) -> Leg:
    "The leg with another number of episodes in the same shares."
    part = episodes / sum(leg.n.values())
    return replace(leg, n={kind: max(1, round(part * n)) for kind, n in leg.n.items()})


def search(a: argparse.Namespace):
    found = stored('speedrun_search') or dict(machine_facts(), tried=[])
    leg = next(x for x in BASE_LEGS if x.phase.number == a.phase)
    suites = {s for r in leg.phase.gate for s in r.suites}
    leg = replace(leg, phase=limited(leg.phase, dict.fromkeys(suites, a.limit or 60)))
    for lr, episodes in product(a.rates, a.episodes):
        key = dict(phase=a.phase, lr=lr, episodes=episodes, sets=list(a.sets), seed=a.seed)
        key |= dict(base=a.base, start=a.start, limit=a.limit or 60)
        key |= dict(language=a.language) if a.language else {}
        if any(all(row.get(k) == v for k, v in key.items()) for row in found['tried']):
            continue
        with tempfile.TemporaryDirectory(dir=a.scratch) as d:
            sets = (*a.sets, f'learning_rate={lr}')
            course = Course(
                Path(d), BASE_LEGS, sets=sets, seed=a.seed, quiet=True, language=a.language
            )
            course = from_base(course, a.base)
            one = replace(scaled(leg, episodes), replay=leg.replay if a.folder else {})
            course = replace(course, legs=(one,))
            if a.folder:
                for k in one.replay:
                    (Path(d) / f'phase{k}').symlink_to(Path(a.folder).absolute() / f'phase{k}')
            result = run_leg(course, one, a.start or course.base)
            facts = leg_facts(result)
        kept = ('tokens', 'tokens_read', 'steps', 'val_loss', 'minutes', 'passed', 'frozen')
        rates = {row['name']: [row['k'], row['n'], row['floor']] for row in facts['gate']}
        found['tried'].append(key | {k: facts[k] for k in kept} | dict(gate=rates))
        store('speedrun_search', found)
    show()


# ------------------------------------------------------------------------------------ the tables


def show():
    "What was planned, run and tried."
    planned, ran = stored('speedrun_plan'), stored('speedrun_smollm2')
    measured = {leg['phase']: leg for leg in ran.get('legs', ())}
    line = '{:<7}{:<22}{:>9}{:>10}{:>12}{:>12}{:>12}{:>12}  {}'.format
    if planned:
        head = 'plan: train', 'plan: gate', 'train', 'gate'
        print(line('phase', '', 'episodes', 'tokens', *head, ''))
    for leg in planned.get('legs', ()):
        got = measured.get(leg['phase'], {})
        minutes = got.get('minutes', {})
        verdict = '' if not got else 'passed' if got['passed'] else 'NOT passed'
        shown = [leg[k] for k in ('phase', 'title', 'episodes', 'tokens', 'train', 'gate')]
        print(line(*shown, minutes.get('train', ''), minutes.get('gate', ''), verdict))
    sitting = ran.get('sitting')
    if sitting:
        fair = sitting['cores_used'] >= 0.9 * sitting['threads']
        print(
            f'{ran["minutes"]} minutes in all, {"undisturbed" if fair else "DISTURBED"}: {sitting}'
        )
    for row in stored('speedrun_search').get('tried', ()):
        gate = ', '.join(f'{name} {k}/{n}' for name, (k, n, _) in row['gate'].items())
        print(f'phase {row["phase"]}, {row["lr"]:g}, {row["episodes"]} episodes: {gate}')
    if not planned and not ran:
        print('speedrun: nothing measured yet; --plan, --run or --search measure')


def main():
    p = argparse.ArgumentParser(description='what a speedrun on a base takes')
    p.add_argument('--plan', action='store_true', help='minutes that each leg should take here')
    p.add_argument('--run', action='store_true', help='all legs; leave the machine alone')
    p.add_argument('--search', action='store_true', help='one leg with several settings')
    p.add_argument('--base', default='smollm2-135m')
    p.add_argument('--output_dir', default='speedrun-smollm2')
    p.add_argument('--yardsticks', help='folder with SQuAD and BFCL files')
    p.add_argument('--questions', type=int, default=12, help='of each yardstick after a leg')
    p.add_argument('--language', choices=('en', 'de'), help='one alone; both when left out')
    p.add_argument('--limit', type=int, help='cases of a suite at most')
    p.add_argument('--sets', nargs='*', default=[], help='config overrides, key=value')
    p.add_argument('--seed', type=int, default=42)
    p.add_argument('--keep_going', action='store_true', help='go on after a red gate')
    p.add_argument('--out', default='speedrun_smollm2', help='name of the file in bench/results')
    p.add_argument('--phase', default='1', help='search: the leg')
    p.add_argument('--rates', nargs='+', type=float, default=[1e-4, 2e-4, 4e-4])
    p.add_argument('--episodes', nargs='+', type=int, default=[1500, 3300])
    p.add_argument('--start', help='search: the model before the leg; the base when left out')
    p.add_argument('--folder', help='search: a speedrun whose phases are replayed')
    p.add_argument('--scratch', help='search: where models go meanwhile')
    a = p.parse_args()
    if a.plan:
        plan(a.base)
    if a.run:
        run(a)
    elif a.search:
        search(a)
    else:
        show()


if __name__ == '__main__':
    sys.exit(main())
