"The engine: requests are independent, nothing is read twice, the shortlist finds the best."

import random
import threading
import pytest
import torch
import mypt.inference.cpu
import mypt.inference.generate
from contextlib import contextmanager, nullcontext
from torch._dynamo.utils import counters
from mypt.model.config import ModelConfig
from mypt.inference.engine import Engine
from mypt.inference.cpu import Columns, Head, Shortlist, cpu_decoder, cpu_head, for_inference
from mypt.inference.fixed import FixedDecode, FixedShapes
from mypt.inference.generate import feed, generate
from mypt.inference.sampling import GREEDY, Sampling
from mypt.model.cache import KVCache
from mypt.model.gpt import GPT, compile_blocks
from mypt.model.rope import rope_tables
from mypt.errors import UserError

ARCHS = dict(
    llama={},
    grouped=dict(n_kv_head=2, rope_scale=4.0),
    learned=dict(pos_encoding='learned', mlp_type='gelu', norm_type='layernorm'),
)


def model_of(arch='llama', V=320, **kw):
    torch.manual_seed(1)
    m = GPT(
        ModelConfig(
            **dict(n_layer=2, n_head=4, n_embd=64, block_size=96, vocab_size=V) | ARCHS[arch] | kw
        )
    )
    for p in m.parameters():
        p.data *= 3
    return m.eval()


class Even:
    "Only even ids, odd ones at the end."

    def mask(self, ids, left):
        return torch.arange(320) % 2 == (left == 1)


def draw(rng, n):
    "Requests of all kinds; many share a beginning."
    for i in range(n):
        ids = [7] * rng.choice((0, 20)) + [rng.randrange(320) for _ in range(rng.randint(1, 30))]
        sampling = Sampling()
        if rng.random() >= 0.4:
            choices = ((0.7, 1.5), (0, 20), (1.0, 0.9), (1.0, 1.3))
            sampling = Sampling(*(rng.choice(c) for c in choices), seed=i)
        new = rng.randint(1, 30)
        stop = frozenset(rng.sample(range(320), 12))
        yield ids, new, sampling, stop, rng.choice((None, None, Even()))


def alone(model, ids, new, sampling=GREEDY, stop=frozenset(), allow=None):
    rules, settings = allow and [allow], sampling._asdict()
    return generate(model, None, [ids], new, stop, allow=rules, **settings)[0]


def drain(e):
    while e.busy:
        e.step()


@pytest.mark.parametrize('fixed', [False, True])
@pytest.mark.parametrize('arch', ARCHS)
def test_a_request_gets_what_it_gets_alone(arch, fixed):
    model, rng = model_of(arch), random.Random(0)
    e, todo, live = Engine(model, slots=5, fixed=fixed), list(draw(rng, 40)), []
    heard = {}
    while todo or e.busy:
        for _ in range(min(len(todo), rng.choice((0, 0, 0, 1, 3)))):
            a = todo.pop()
            live.append((e.submit(*a), a))
        for r, s in e.step():
            heard.setdefault(r, []).append(s.id)
    assert len(live) == 40 and sum(r.reused for r, _ in live) > 100
    for r, a in live:
        assert r.generated == heard[r] == alone(model, *a)
        assert r.done == ('stop' if r.generated[-1] in r.stop else 'length')


def test_dice_belong_to_the_row_of_the_call():
    "Chunks, their order and their size decide nothing; many samples of a prompt are many."
    model, p, hot = model_of(), [5, 6, 7], dict(temperature=1.0, stop=frozenset())
    many = generate(model, None, [p] * 128, 8, **hot)
    assert len({tuple(o) for o in many}) == 128
    assert generate(model, None, [p] * 128, 8, batch_size=1, **hot) == many
    assert generate(model, None, [p] * 3, 8, rows=[0, 100, 127], **hot) == [
        many[i] for i in (0, 100, 127)
    ]
    beside = generate(model, None, [[*p, 8], p, [9]], 8, batch_size=2, **hot)  # shorter ones first
    assert beside[0] == generate(model, None, [[*p, 8]], 8, **hot)[0] and beside[1] == many[1]
    e = Engine(model, slots=3)
    rs = [e.submit(p, 8, Sampling(1.0, seed=n)) for n in range(5)]
    drain(e)
    assert [r.generated for r in rs] == [
        generate(model, None, [p], 8, seed=n, **hot)[0] for n in range(5)
    ]
    assert len({tuple(r.generated) for r in rs}) == 5


def test_second_turn_reads_only_what_is_new():
    e = Engine(model_of(), slots=3)
    others = [e.submit([9, 8, n], 5) for n in range(4)]
    first = e.submit(list(range(40)), 6)
    drain(e)
    before = e.prefilled
    second = e.submit([*first.tokens, 1, 2, 3], 6)
    drain(e)
    assert e.prefilled - before == 4 and second.reused == 45  # the last token said had not been fed
    assert second.generated == alone(e.model, second.ids, 6)
    before = e.prefilled
    again = e.submit(first.ids, 6)  # 'say it again': all but the last token is known
    drain(e)
    assert e.prefilled - before == 1 and again.generated == first.generated
    third = e.submit([*second.tokens, 5], 3)  # and the longer conversation was not lost by it
    drain(e)
    assert third.reused == len(second.tokens) - 1 and all(len(r.generated) == 5 for r in others)


def test_a_shared_beginning_is_copied_from_a_running_row():
    e, system = Engine(model_of(), slots=4), list(range(50))
    rs = [e.submit([*system, 200 + n, n], 9) for n in range(4)]
    e.step()
    assert [r.reused for r in rs] == [0, 50, 50, 50] and e.prefilled == 52 + 3 * 2
    drain(e)
    for r in rs:
        assert r.generated == alone(e.model, r.ids, 9)


def test_cancel():
    e = Engine(model_of(), slots=2)
    a, b, c = (e.submit([n, n + 1], 20) for n in (1, 5, 9))
    e.step()
    e.cancel(a)
    e.cancel(c)
    assert (a.done, c.done, len(a.generated), c.generated) == ('cancelled', 'cancelled', 1, [])
    drain(e)
    assert len(a.generated) == 1 and b.done == 'length' and b.generated == alone(e.model, b.ids, 20)
    e.cancel(b)
    assert b.done == 'length' and len({a, b, c}) == 3


def test_bad_requests():
    e = Engine(model_of(), slots=2, max_tokens=32)
    bad = {
        'empty prompt': ([], 3),
        'max_new_tokens': ([1], 0),
        'temperature': ([1], 3, Sampling(temperature=-1.0)),
        '30 tokens and 3 new ones exceed the 32 tokens of a slot': ([1] * 30, 3),
    }
    for problem, args in bad.items():
        with pytest.raises(UserError, match=problem):
            e.submit(*args)
    assert not e.busy and e.step() == []
    r = e.submit([1] * 30, 2)
    drain(e)
    assert len(r.generated) == 2
    with pytest.raises(UserError, match='max_tokens 97'):
        Engine(e.model, max_tokens=97)


def test_memory_is_allocated_once():
    e = Engine(model_of(), slots=3)
    before = e.slots.cache.k.data_ptr(), e.slots.cache.v.data_ptr(), e.slots.cache.k.shape
    for a in draw(random.Random(2), 12):
        e.submit(*a)
    drain(e)
    assert before == (e.slots.cache.k.data_ptr(), e.slots.cache.v.data_ptr(), e.slots.cache.k.shape)


def test_a_row_that_fails_harms_no_other_request():
    "A rule, a draw or a prompt that fails ends its own request; dice of the others go on."

    class Bad:
        def mask(self, ids, left):
            if left == 3:
                raise ValueError('rule')

    e, warm = Engine(model_of(), slots=4), Sampling(temperature=1.0, seed=7)
    fine = [e.submit([1, 2, 3], 8), e.submit([1, 2, 9], 8, warm), e.submit([1, 8], 8, warm)]
    rule = e.submit([4, 5], 6, allow=Bad())
    prompt = e.submit([4, 10**6], 6)
    seen = [(r, s) for _ in range(20) for r, s in e.step()]
    assert len(rule.generated) == 3 and str(rule.error) == 'rule' and rule.done == 'failed'
    assert prompt.done == 'failed' and prompt.generated == []
    assert [r for r, s in seen if s is None] == [rule, prompt] and not e.busy
    for x in fine:
        assert x.generated == alone(e.model, x.ids, 8, x.sampling)
    again = e.submit([4, 5, 6], 6)  # in a slot that one of them left
    drain(e)
    assert again.generated == alone(e.model, again.ids, 6)


def test_threads():
    e, jobs, out = Engine(model_of(), slots=4), list(draw(random.Random(3), 24)), {}
    stopped = threading.Event()

    def ask(part):
        for i in part:
            out[i] = e.submit(*jobs[i])

    def serve():
        while not stopped.is_set() or e.busy:
            e.step()

    server, askers = (
        threading.Thread(target=serve),
        [threading.Thread(target=ask, args=(range(k, 24, 3),)) for k in range(3)],
    )
    for t in (server, *askers):
        t.start()
    for t in askers:
        t.join(20)
    stopped.set()
    server.join(60)
    assert not server.is_alive()
    for i, r in out.items():
        assert r.generated == alone(e.model, *jobs[i])


@pytest.mark.parametrize('B', [1, 2, 5, 11, 12, 20])
@pytest.mark.parametrize('arch', ['llama', 'grouped', 'untied'])
def test_columns_equal_the_model(arch, B):
    "Packed prompts of unequal length, then a token at a time, against the whole text at once."
    model = model_of() if arch == 'untied' else model_of(arch)
    if arch == 'untied':
        model = model_of(tie_weights=False)
    rng = random.Random(B)
    texts = [[rng.randrange(320) for _ in range(rng.randint(1, 40) + 6)] for _ in range(B)]
    cache, one = KVCache(model.cfg, B, 46), Columns.of(model)
    with torch.inference_mode():
        for k in range(6, 0, -1):
            starts = [0] * B if k == 6 else [len(t) - k for t in texts]
            new = [t[s : len(t) - k + 1] for t, s in zip(texts, starts, strict=True)]
            h = feed(model, cache, new, starts, one)
            for b, t in enumerate(texts):
                torch.testing.assert_close(
                    h[b],
                    model.hidden(torch.tensor([t[: len(t) - k + 1]]))[0, -1],
                    atol=1e-4,
                    rtol=1e-4,
                )


def test_columns_know_whom_they_can_replace():
    for m in (
        model_of('learned'),
        model_of(bias=True),
        model_of(norm_type='layernorm'),
        model_of().double(),
    ):
        assert Columns.of(m) is None
    model = model_of()
    before = generate(model, None, [[1, 2, 3]], 6, frozenset())
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.flip(-1) if p.dim() > 1 else p)  # trained on in place
    assert generate(model, None, [[1, 2, 3]], 6, frozenset()) != before
    q = model.model.layers[0].self_attn.q_proj  # or moved, as `.to` does
    q.weight.data = q.weight.clone()
    ids = [1, 2, 3]
    for _ in range(6):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert generate(model, None, [[1, 2, 3]], 6, frozenset())[0] == ids[3:]


@pytest.mark.parametrize('seed', range(6))
def test_shortlist_finds_the_best(seed):
    g = torch.Generator().manual_seed(seed)
    W = torch.randn(9000, 48, generator=g) * torch.rand(9000, 1, generator=g) ** 4
    W[5] = 0
    h = torch.randn(7, 48, generator=g) * 10.0 ** torch.arange(-3, 4)[:, None]
    h[3, 0] *= 500  # one large number spoils the 7 bits of all others
    W[17] = W[4000] = h[6] / 9  # a tie
    best, logp = Shortlist(W)(h)
    assert Shortlist(W)(h, probs=False)[0].equal(best)
    exact = h.double() @ W.double().T
    top = exact.gather(1, best[:, None])[:, 0]
    assert (top >= exact.amax(1) - 1e-5 * exact.abs().amax(1)).all()
    assert (logp - exact.log_softmax(1).amax(1)).abs().max() < 0.2


def test_shortlist_of_flat_scores_and_none():
    W = torch.full((9000, 16), 0.1)
    W[77] += 1e-5
    assert Shortlist(W)(torch.ones(2, 16))[0].tolist() == [77, 77]
    assert Shortlist(W)(torch.zeros(1, 16))[1].exp().item() == pytest.approx(1 / 9000, rel=0.01)


def test_head_follows_the_weights():
    model = model_of(V=9000)
    one = cpu_head(model)
    assert one is cpu_head(model) and one.shortlist and cpu_head(model_of()).shortlist is None
    before = generate(model, None, [[1, 2]], 8, frozenset())[0]
    with torch.no_grad():
        model.head.mul_(-1)
    assert cpu_head(model) is not one
    ids = [1, 2]
    for _ in range(8):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert generate(model, None, [[1, 2]], 8, frozenset())[0] == ids[2:] != before
    one = cpu_head(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    torch.optim.AdamW(model.parameters(), fused=True).step()  # changes no version
    assert cpu_head(model) is not one


@pytest.mark.parametrize('slow', ['shortlist', 'whole'])
def test_the_head_takes_the_faster_way(slow, monkeypatch):
    head, h = Head(torch.randn(9000, 16)), torch.randn(3, 16)
    best = (h @ head.W.T).argmax(1)
    shortlist, scores = head.shortlist, head.scores

    def wait(f):
        return lambda *a: f(*a) if sum(range(10**6)) else None  # thirty milliseconds

    if slow == 'shortlist':
        head.shortlist = wait(shortlist)
    else:
        head.scores = wait(scores)
    assert head(h)[0].equal(best)
    assert set(head.chosen.values()) == {'whole' if slow == 'shortlist' else 'shortlist'}
    monkeypatch.setattr(mypt.inference.cpu, 'fastest', None)  # measured once
    assert head(h)[0].equal(best)
    again = Head(head.W, chosen=head.chosen)  # of other weights
    assert again(h)[0].equal(best)
    assert ('shortlist' in vars(again)) == (slow == 'whole')  # not made where it loses


@pytest.mark.parametrize('arch', ['llama', 'grouped'])
def test_float16_weights_are_one_model_everywhere(arch):
    "Prompt, columns and halves use the same rounded weights: greedy text equals the model's own."
    model = for_inference(model_of(arch, V=9000), 'float16')
    assert all(p.equal(p.half().float()) for p in model.parameters())
    prompts, e = [[1, 2, 3], [7] * 20, [5]], Engine(model, slots=3)
    rs = [e.submit(p, 12) for p in prompts]
    drain(e)
    for ids, r in zip(prompts, rs, strict=True):
        text = list(ids)
        for _ in range(12):
            text.append(int(model(torch.tensor([text]))[0, -1].argmax()))
        assert generate(model, None, [ids], 12, frozenset())[0] == text[len(ids) :] == r.generated
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.01)
    assert type(cpu_decoder(model)) is Columns  # copies of other weights are not used


def test_precision_of_inference(monkeypatch, capsys):
    with pytest.raises(UserError, match='choose auto, float32'):
        for_inference(model_of(), 'half')
    with pytest.raises(UserError, match='--dtype float32'):
        for_inference(model_of('learned'), 'float16')
    low = for_inference(model_of(), 'bfloat16')
    assert low.head.dtype == torch.bfloat16
    assert len(generate(low, None, [[1, 2, 3], [4]], 9, frozenset())[1]) == 9
    assert for_inference(model_of(), 'auto').head.dtype == torch.float32  # small
    monkeypatch.setattr(mypt.inference.cpu, 'SMALL', 0)
    for seconds, gets in (
        (dict(float32=1.0, float16=0.8), 'float32'),
        (dict(float32=1.0, float16=0.5, bfloat16=0.7), 'float16'),
        (dict(float32=1.0, float16=0.5, bfloat16=0.2), 'bfloat16'),
    ):
        monkeypatch.setattr(mypt.inference.cpu, '_dtype_seconds', lambda model, s=seconds: s)
        model = for_inference(model_of(), 'auto')
        rounded = all(p.equal(p.half().float()) for p in model.parameters())
        found = 'float16' if rounded and model.head.dtype == torch.float32 else 'float32'
        assert gets == ('bfloat16' if model.head.dtype == torch.bfloat16 else found)
        assert ('float32 is exact' in capsys.readouterr().err) == (gets != 'float32')


def test_slots_change_places_by_what_they_know(monkeypatch):
    moved = []
    for name in ('swap', 'clone'):
        move = getattr(KVCache, name)
        monkeypatch.setattr(
            KVCache, name, lambda self, a, b, n, f=move: moved.append(n) or f(self, a, b, n)
        )
    e, rng = Engine(model_of(block_size=4096), slots=4), random.Random(5)
    rs = [e.submit([7] * 9 + [n] * rng.randint(1, 9), rng.randint(1, 9)) for n in range(40)]
    drain(e)
    for r in rs:
        assert r.generated == alone(e.model, r.ids, r.max_new_tokens)
    longest = max(len(r.tokens) for r in rs)
    assert len(moved) > 40 and max(moved) < longest < 30  # of 4,096 slots


def test_a_compiled_model_generates():
    "As the callback `Samples` does in training on a GPU; without a compilation."
    model, prompts = model_of(), [[1, 2, 3], [4, 5, 6, 7, 8]]
    before = generate(model, None, prompts, 20, frozenset())
    torch._dynamo.reset()
    counters.clear()
    compile_blocks(model, backend='aot_eager')
    monkey = pytest.MonkeyPatch()
    for walk in ('cpu', 'plain', 'fixed'):
        if walk != 'cpu':
            monkey.setattr(mypt.inference.generate, 'cpu_decoder', lambda model: None)
        if walk == 'fixed':
            monkey.setattr(mypt.inference.generate, '_Decode', Fixed)
        assert generate(model, None, prompts, 20, frozenset()) == before
    monkey.undo()
    assert counters['stats']['unique_graphs'] == 0


class Fixed(mypt.inference.generate._Decode):
    "What generation takes on CUDA."

    def __init__(self, model, cache):
        super().__init__(model, cache)
        self.fixed = FixedShapes(model, cache, least=4)


@pytest.mark.parametrize('arch', ARCHS)
def test_generation_in_fixed_shapes(arch, monkeypatch):
    model, rng = model_of(arch), random.Random(7)
    prompts = [[rng.randrange(320) for _ in range(rng.randint(1, 40))] for _ in range(9)]
    stop, how = frozenset(range(0, 320, 20)), dict(temperature=0.8, seed=3)
    before = generate(model, None, prompts, 40, stop, **how)
    assert len({len(o) for o in before}) > 3  # rows leave one after another
    monkeypatch.setattr(mypt.inference.generate, '_Decode', Fixed)
    assert generate(model, None, prompts, 40, stop, **how) == before


class FakeGraph:
    "Replays by running what was captured once more."

    def replay(self):
        self.captured()


def test_what_a_graph_records(monkeypatch):
    "The rules of capture, walked without a GPU."
    modes, streams = [], []
    decode = FixedDecode(model_of(), KVCache(model_of().cfg, 2, 32), 16)

    @contextmanager
    def capture(graph, capture_error_mode='global'):
        modes.append(capture_error_mode)
        run = decode.run
        graph.captured = lambda: decode.out.copy_(run())
        yield

    class Stream:
        def wait_stream(self, other):
            streams.append(other)

    for name, fake in dict(
        CUDAGraph=FakeGraph,
        graph=capture,
        Stream=Stream,
        current_stream=Stream,
        stream=lambda s: nullcontext(),
    ).items():
        monkeypatch.setattr(torch.cuda, name, fake)
    with torch.inference_mode():
        decode.record()
        tables = decode.tables[0].data_ptr()
        rope_tables.cache_clear()  # eight other models came by
        first = decode([[3], [4]], [[0], [0]]).clone()
        second = decode([[5], [6]], [[1], [1]])
        for b, ids in enumerate(([3, 5], [4, 6])):
            whole = decode.model.hidden(torch.tensor([ids]))[0]
            torch.testing.assert_close(first[b], whole[0], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(second[b], whole[1], atol=1e-5, rtol=1e-5)
    assert modes == ['thread_local'] and len(streams) == 2
    assert decode.tables[0].data_ptr() == tables and second.data_ptr() == decode.out.data_ptr()


def test_shapes_see_what_is_used():
    shapes = FixedShapes(model_of(), KVCache(model_of().cfg, 6, 1000))
    assert [shapes.shape(n, top) for n, top in ((1, 30), (3, 129), (5, 600))] == [
        (1, 128),
        (4, 256),
        (6, 1000),
    ]
