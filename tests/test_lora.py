"Adapters: the same model merged and apart, resumed bit for bit, and read by PEFT."

import json
import shutil
from importlib import import_module
import pytest
import torch
from test_bases import FAMILIES, base, ids_of
from test_strangers import put_tensor
from mypt.cli import main
from mypt.curriculum.format_lock import make_echo
from mypt.data.episodes import write_episodes
from mypt.data.prepare import prepare
from mypt.errors import UserError
from mypt.interop.import_model import import_model
from mypt.model.checkpoint import OF_SOME_SAVES, load_model
from mypt.train.loop import Callback
from mypt.train.train import train

SETS = ['lora_rank=4', 'max_iters=6', 'batch_size=4', 'eval_interval=3', 'block_size=256']


@pytest.fixture(scope='module', params=['qwen3', 'wide-heads'])
def place(request, tmp_path_factory):
    "An imported base, tied or not, and data for it."
    assert request.param in FAMILIES
    folder = tmp_path_factory.mktemp(request.param)
    base(folder / 'base', request.param)
    import_model(str(folder / 'base'), str(folder / 'mine'))
    write_episodes(folder / 'e.jsonl', make_echo(60))
    kind = f'hf:{folder / "mine"}'
    prepare(str(folder / 'e.jsonl'), str(folder / 'ds'), tokenization=kind)
    return folder


def run(folder, name, sets=(), init='mine', **kw):
    return train(
        str(folder / name),
        str(folder / 'ds'),
        'finetune',
        init_from_model=str(folder / init),
        sets=[*SETS, *sets],
        quiet=True,
        hint=False,
        **kw,
    )


@pytest.fixture(scope='module')
def trained(place):
    run(place, 'a', ['dropout=0.1', 'neftune_alpha=5', 'learning_rate=0.01'])
    return place


def differ(a, b, ids) -> float:
    "How far logits are apart, in double precision: the weights, not the order of sums."
    za, zb = (model.eval().double()(ids) for model in (a, b))
    return float((za - zb).abs().max() / max(1, za.abs().max()))


@torch.no_grad()
def test_merged_is_unmerged(trained):
    apart, tok, _ = load_model(trained / 'a', verify=True, merge=False)
    whole, *_ = load_model(trained / 'a')
    assert apart.adapter.rank == 4 and apart.adapter.first_row == tok.endoftext
    assert whole.adapter is None and not (trained / 'a/model.safetensors').exists()
    ids = torch.cat([ids_of(), torch.tensor([list(tok.tag_ids.values())[:19]] * 2)], 1)
    assert differ(apart, whole, ids) < 1e-6
    z = apart(ids)
    before, *_ = load_model(trained / 'mine')
    assert (z - before.eval()(ids)).abs().max() > 1e-3


@torch.no_grad()
def test_merge_writes_an_ordinary_checkpoint(trained, capsys):
    "The base is no longer needed, and the command says the same again."
    command = ['merge', str(trained / 'a'), '--output', str(trained / 'whole')]
    assert main(command) == 0 and main(command) == 0
    apart, *_ = load_model(trained / 'a', merge=False)
    whole, _, after = load_model(trained / 'whole', verify=True)
    ids = ids_of()
    assert differ(apart, whole, ids) < 1e-6
    assert (trained / 'whole/config.json').exists() and 'adapter' not in after
    assert after['lineage']['config']['lora_rank'] == 4
    assert main(['merge', str(trained / 'mine'), '--output', str(trained / 'x')]) == 2
    assert 'without adapters' in capsys.readouterr().err


def test_a_merge_onto_the_adapters_leaves_nothing_of_them(trained, tmp_path):
    "Or PEFT would apply them again, and a resumed run would begin from another model's step."
    shutil.copytree(trained / 'a', tmp_path / 'a')
    apart, *_ = load_model(tmp_path / 'a', merge=False)
    assert (tmp_path / 'a/training_state.json').exists()
    assert main(['merge', str(tmp_path / 'a'), '--output', str(tmp_path / 'a')]) == 0
    whole, *_ = load_model(tmp_path / 'a', verify=True)
    assert differ(apart, whole, ids_of()) < 1e-6
    left = {p.name for p in (tmp_path / 'a').iterdir()} & set(OF_SOME_SAVES)
    assert left == {'model.safetensors'}


def test_what_is_not_named_stays(trained):
    "Rows of old tokens, norms and base weights are the base's, to the bit."
    apart, tok, _ = load_model(trained / 'a', merge=False)
    before = load_model(trained / 'mine').model.state_dict()
    for name, w in apart.state_dict().items():
        if name in before:
            assert torch.equal(w, before[name][: len(w)]), name
    rows = apart.model.embed_tokens.rows
    assert not torch.equal(rows, before['model.embed_tokens.weight'][tok.endoftext :])


class Stop(Callback):
    def after_step(self, t):
        if t.step == 4:
            t.stop = 'killed'


def test_a_run_that_was_stopped_ends_the_same(trained):
    sets = ['dropout=0.1', 'neftune_alpha=5', 'learning_rate=0.01']
    run(trained, 'b', sets, cbs=[Stop()])
    run(trained, 'b', sets)
    a, b = (load_model(trained / n, merge=False).model.state_dict() for n in 'ab')
    assert all(torch.equal(w, b[name]) for name, w in a.items())


def test_adapters_on_adapters(trained):
    "A second phase starts from the first one merged, which is written beside it."
    run(trained, 'second', init='a')
    meta = json.loads((trained / 'second/mypt.json').read_text())
    assert meta['adapter']['base'] == str(trained / 'second/base')
    first, again = load_model(trained / 'a').model, load_model(trained / 'second/base').model
    assert all(torch.equal(w, again.state_dict()[n]) for n, w in first.state_dict().items())
    load_model(trained / 'second', verify=True)


def test_another_rank_and_a_lost_base_are_told(trained, tmp_path):
    with pytest.raises(UserError, match='lora_rank 4'):
        run(trained, 'a', ['lora_rank=8'])
    with pytest.raises(UserError, match='gate_proj'):
        run(trained, 'new', ['lora_targets=["wrong"]'])
    with pytest.raises(UserError, match='needs a base'):
        train('x', str(trained / 'ds'), 'tiny', sets=['lora_rank=2', 'n_layer=1'], quiet=True)
    mine = trained / 'mine'
    mine.rename(tmp_path / 'away')
    with pytest.raises(UserError, match='put it back'):
        load_model(trained / 'a')
    (tmp_path / 'away').rename(mine)


@torch.no_grad()
def test_adapters_of_another_model_are_refused_before_the_base_is_read(
    trained, tmp_path, monkeypatch
):
    folder = shutil.copytree(trained / 'a', tmp_path / 'a')
    put_tensor(folder / 'adapter_model.safetensors', 'junk', 2**20)
    checkpoint = import_module(load_model.__module__)
    monkeypatch.setattr(checkpoint, 'read_tensors', lambda *_: pytest.fail('was read'))
    with pytest.raises(UserError, match=r"'junk' is 1048576, its config says unknown"):
        load_model(folder, merge=False)


def test_peft_reads_it(trained):
    peft = pytest.importorskip('peft')
    from transformers import AutoModelForCausalLM

    apart, tok, _ = load_model(trained / 'a', merge=False)
    theirs = AutoModelForCausalLM.from_pretrained(trained / 'mine')
    theirs = peft.PeftModel.from_pretrained(theirs, str(trained / 'a')).eval()
    ids = torch.cat([ids_of(), torch.tensor([list(tok.tag_ids.values())] * 2)], 1)
    assert (apart.eval()(ids) - theirs(ids).logits).abs().max() < 1e-4


def test_bfloat16_products_have_the_corrections(trained):
    model = load_model(trained / 'a', merge=False).model.eval()
    ids = ids_of()
    exact = model(ids)
    with torch.autocast('cpu', torch.bfloat16):
        low = model(ids)
    whole = load_model(trained / 'a').model.eval()
    with torch.autocast('cpu', torch.bfloat16):
        plain = whole(ids)
    assert (low - exact).abs().max() < 2 * (plain - exact).abs().max() + 0.02
