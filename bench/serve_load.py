"""Many clients against `mypt serve` at once: every answer must be the one its own conversation gets
when it is asked alone.
"""

import argparse
import asyncio
import json
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
import torch
from openai import APIError, AsyncOpenAI
from mypt.model.checkpoint import load_model, save_checkpoint
from mypt.model.config import ModelConfig
from mypt.inference.generate import reply
from mypt.model.gpt import GPT
from mypt.data.tokenizer import get_tokenizer
from mypt.errors import UserError

WORDS = 'bridge window zorvik amber seven harbour lantern copper meadow ticket'.split()


def rambler(folder: Path) -> Path:
    """A small model that was never trained: it says something else to every prompt, which is all
    that this needs.
    """
    torch.manual_seed(1)
    model = GPT(ModelConfig(n_layer=2, n_head=4, n_embd=64, block_size=1024))
    for p in model.parameters():
        p.data *= 3
    return save_checkpoint(folder / 'rambler', model, get_tokenizer('byte'))


def text_of(model, tok, layout, messages, tokens) -> str | None:
    """What a model says to a conversation that it has to itself; None where that cannot go on as an
    episode.
    """
    try:
        said = reply(
            model, tok, dict(system='You are MyPT.', messages=messages), layout, tokens
        ).get('content')
    except UserError:
        return None
    return (
        None if said and said.endswith('\ufffd') else said
    )  # half a letter, where the answer was cut


def conversations(
    path, n: int, tokens: int
) -> list[list[tuple[str, str]]]:  # Per conversation (question, expected answer), turn by turn
    model, tok, meta = load_model(path)
    model.eval()
    rng, out = random.Random(7), []
    for i in range(10 * n):
        said, talk = [], []
        for _turn in range(2):
            q = (
                f'{rng.choice(["Repeat", "Say", "Wiederhole"])}:'
                f' {" ".join(rng.sample(WORDS, rng.randint(1, 4)))} {i}'
            )
            answer = text_of(
                model, tok, meta['layout'], [*talk, dict(role='user', content=q)], tokens
            )
            if not answer or not answer.strip():
                break
            talk += [dict(role='user', content=q), dict(role='assistant', content=answer)]
            said.append((q, answer))
        if said:
            out.append(said)
        if len(out) == n:
            return out
    raise SystemExit(
        f'{path}: only {len(out)} of {n} conversations got an answer; take another model'
    )


def memory(pid: int) -> float:  # MiB
    return int(re.search(r'VmRSS:\s+(\d+)', Path(f'/proc/{pid}/status').read_text())[1]) / 1024


class Tally:
    def __init__(self):
        self.asked = self.right = self.mixed = self.lost = 0
        self.times, self.why = [], {}

    def lose(self, e):
        self.lost += 1
        k = f'{type(e).__name__}: {e}'[:120]
        self.why[k] = self.why.get(k, 0) + 1


async def ask(client, model, messages, tokens, stream) -> str:
    kw = dict(
        model=model,
        messages=[dict(role='system', content='You are MyPT.'), *messages],
        max_tokens=tokens,
    )
    if not stream:
        return (await client.chat.completions.create(**kw)).choices[0].message.content
    return ''.join(
        [
            c.choices[0].delta.content or ''
            async for c in await client.chat.completions.create(**kw, stream=True)
        ]
    )


async def one(client, model, talks, tokens, until, tally, number):
    "A client: conversation after conversation, some streamed, some given up on the way."
    rng = random.Random(number)
    while time.monotonic() < until:
        talk, messages = rng.choice(talks), []
        if rng.random() < 0.05:  # a client that goes away
            try:
                await asyncio.wait_for(
                    ask(client, model, [dict(role='user', content=talk[0][0])], tokens, True), 0.02
                )
            except (asyncio.TimeoutError, APIError):
                pass
        for q, expected in talk:
            messages.append(dict(role='user', content=q))
            tally.asked += 1
            start = time.monotonic()
            try:
                got = await ask(client, model, messages, tokens, rng.random() < 0.5)
            except APIError as e:
                tally.lose(e)
                break
            tally.times.append(time.monotonic() - start)
            if got != expected:
                tally.mixed += 1
                tally.why[f'{expected!r} → {got!r}'[:160]] = 1
                break
            tally.right += 1
            messages.append(dict(role='assistant', content=expected))


async def load(url, model, talks, args, pid):
    tally, rss = Tally(), []
    clients = [
        AsyncOpenAI(base_url=f'{url}/v1', api_key='none', max_retries=0, timeout=120)
        for _ in range(args.clients)
    ]
    await ask(
        clients[0], model, [dict(role='user', content=talks[0][0][0])], args.tokens, False
    )  # the model is loaded now
    until = time.monotonic() + 60 * args.minutes

    async def watch():
        while time.monotonic() < until:
            rss.append(memory(pid))
            await asyncio.sleep(min(5, 3 * args.minutes))

    await asyncio.gather(
        watch(),
        *(one(c, model, talks, args.tokens, until, tally, i) for i, c in enumerate(clients)),
    )
    return tally, [*rss, memory(pid)]


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--model', help='a checkpoint; a small untrained model when left out')
    p.add_argument('--clients', type=int, default=32)
    p.add_argument('--minutes', type=float, default=1.0)
    p.add_argument('--tokens', type=int, default=32, help='of an answer, at most')
    p.add_argument('--conversations', type=int, default=32)
    p.add_argument('--slots', type=int, default=16)
    p.add_argument('--output', help='also write the numbers to this JSON file')
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as d:
        path = Path(args.model) if args.model else rambler(Path(d))
        talks = conversations(path, args.conversations, args.tokens)
        argv = [
            sys.executable,
            '-m',
            'mypt.cli',
            'serve',
            '--models',
            str(path),
            '--port',
            '0',
            '--slots',
            str(args.slots),
        ]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
            try:
                url = server.stdout.readline().split()[0]
                tally, rss = asyncio.run(load(url, path.name, talks, args, server.pid))
                alive = server.poll() is None
            finally:
                server.terminate()
    times = sorted(tally.times)
    settled = rss[len(rss) // 10]  # once every buffer has been used
    out = dict(
        clients=args.clients,
        minutes=args.minutes,
        requests=tally.asked,
        right=tally.right,
        lost=tally.lost,
        mixed=tally.mixed,
        per_second=round(tally.right / 60 / args.minutes, 1),
        p50_s=round(times[len(times) // 2], 3),
        p95_s=round(times[len(times) * 95 // 100], 3),
        rss_start_mib=round(settled),
        rss_end_mib=round(rss[-1]),
        rss_most_mib=round(max(rss)),
        alive=alive,
        machine=platform.machine(),
        torch=torch.__version__,
    )
    print(json.dumps(out, indent=1))
    for why, n in tally.why.items():
        print(f'  {n} × {why}')
    if args.output:
        Path(args.output).write_text(json.dumps(out, indent=1) + '\n')
    sys.exit(bool(tally.lost or tally.mixed or not alive))


if __name__ == '__main__':
    main()
