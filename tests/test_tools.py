"""Each check of tools/ on a small project of its own: silent on a good one, loud on each bad
example.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import connection
from pathlib import Path
import pytest
from browser import Browser
from nbdev import quarto
from tools import (
    book,
    cells,
    check,
    clean_outputs,
    docs,
    doclinks,
    import_cells,
    in_step,
    light_imports,
    plain_words,
    man,
    reading_order,
    readme,
    sidebar,
    signatures,
    suites,
    visible,
)
from tools.markdown import to_markdown
from tools.notebooks import read_notebook, read_notebooks


def code(source, *outputs, **raw):
    return (
        dict(
            cell_type='code',
            source=source,
            outputs=list(outputs),
            metadata={},
            execution_count=None,
        )
        | raw
    )


def md(source):
    return dict(cell_type='markdown', source=source, metadata={})


def stream(text, name='stdout'):
    return dict(output_type='stream', name=name, text=[text])


def shown(**data):  # text__html=… is {'text/html': …}
    return dict(
        output_type='display_data',
        metadata={},
        data={k.replace('__', '/'): [v] for k, v in data.items()},
    )


def title(name):
    return md(f'# {name}\n\n> What {name} is')


def write_nb(root, name, *cells):
    "A notebook in the folder nbs/ of `root`, as nbdev_clean leaves it."
    cells = [{**c, 'id': f'cell{i}'} for i, c in enumerate(cells)]
    meta = {'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}}
    nb = dict(cells=cells, metadata=meta, nbformat=4, nbformat_minor=5)
    path = root / 'nbs' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(nb, indent=1, sort_keys=True, ensure_ascii=False) + '\n')


def module(name, *cells):
    return title(name), code(f'#| default_exp {name}'), *cells


@pytest.fixture(scope='session')
def template(tmp_path_factory, root):
    "Two chapters and an index, in step; every check is silent on it."
    there = tmp_path_factory.mktemp('template') / 'mypt'
    (there / 'nbs').mkdir(parents=True)
    for f in ('settings.ini', 'setup.py', 'pyproject.toml', '_quarto.yml'):
        shutil.copy(root / f, there / f)
    settings = (there / '_quarto.yml').read_text()
    (there / '_quarto.yml').write_text(re.sub(r'(?<=    left:)(\n      - .*)+', ' []', settings))
    (there / 'nbs/_quarto.yml').symlink_to('../_quarto.yml')
    for f in ('favicon.svg', 'styles.css'):
        shutil.copy(root / 'nbs' / f, there / 'nbs' / f)
    write_nb(
        there, '00_low.ipynb', *module('low', code('#| export\ndef one()->int: "One."; return 1'))
    )
    two = code('#| export\ndef two()->int:\n    "Two, of `one`."\n    return one() + 1')
    write_nb(
        there,
        '08_high.ipynb',
        *module(
            'high', code('#| export\nfrom mypt.low import one'), two, md('See [low](00_low.ipynb).')
        ),
    )
    write_nb(there, 'index.ipynb', title('home'), md('[low](00_low.ipynb)'))
    (there / 'mypt').mkdir()
    assert in_step.nbdev('nbdev_export', there) == []
    for tool in (sidebar, readme):
        tool.write(there)
    return there


@pytest.fixture
def project(tmp_path, template):
    "A copy of `template` to spoil."
    return Path(shutil.copytree(template, tmp_path / 'mypt', symlinks=True))


def append(there, name, *cells):
    nb = json.loads((there / 'nbs' / name).read_text())
    old = [{k: v for k, v in c.items() if k != 'id'} for c in nb['cells']]
    write_nb(there, name, *old, *cells)


def said(problems, *words):
    "The one problem, and that it names what it should."
    assert len(problems) == 1, problems
    assert all(w in problems[0] for w in words), problems
    return True


def test_good_project_is_silent(project):
    for tool in (
        in_step,
        reading_order,
        cells,
        import_cells,
        clean_outputs,
        doclinks,
        sidebar,
        readme,
    ):
        assert tool.check(project) == []


# ---- export and clean


def test_edited_module(project):
    f = project / 'mypt/low.py'
    f.write_text(f.read_text().replace('return 1', 'return 2'))
    assert said(in_step.check(project), 'mypt/low.py', 'changes under export')


def test_notebook_not_exported(project):
    append(project, '00_low.ipynb', code('#| export\ndef three()->int: "Three."; return 3'))
    assert {p.split()[0] for p in in_step.check(project)} == {'mypt/low.py', 'mypt/_modidx.py'}


def test_module_without_notebook(project):
    shutil.copy(project / 'mypt/low.py', project / 'mypt/orphan.py')
    assert any('mypt/orphan.py has no notebook' in p for p in in_step.check(project))


def test_new_notebook_never_exported(project):
    write_nb(
        project, '01_new.ipynb', *module('new', code('#| export\ndef new()->int: "New."; return 1'))
    )
    assert any('mypt/new.py is missing' in p for p in in_step.check(project))


def test_unclean_notebook(project):
    append(project, '00_low.ipynb', code('1 + 1', execution_count=7))
    assert said(in_step.check(project), 'nbs/00_low.ipynb', 'changes under')


def test_checks_leave_the_tree_alone(project):
    before = in_step.snapshot(project)
    in_step.check(project)
    assert in_step.snapshot(project) == before


# ---- layers


def write_module(there, name, source):
    path = there / 'mypt' / f'{name}.py'
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / '__init__.py').touch()
    path.write_text(source)


@pytest.fixture
def packages(project, root):
    "A package with one module in each layer of the contract."
    text = (root / 'pyproject.toml').read_text()
    contract = re.search(r'^layers = \[\n(.*?)\]', text, re.M | re.S)[1]
    layers = re.findall(r'"(\w+)"', contract)
    assert {'errors', 'data', 'train', 'serve', 'curriculum', 'cli'} <= set(layers)
    shutil.rmtree(project / 'mypt')
    for layer in layers:
        flat = layer in ('errors', 'files', 'cli')
        write_module(project, layer if flat else f'{layer}/one', 'x = 1\n')
    return project


def lint(there):
    program = Path(sys.executable).with_name('lint-imports')
    env = os.environ | {'PYTHONPATH': str(there)}
    p = subprocess.run([program, '--no-cache'], cwd=there, env=env, text=True, capture_output=True)
    return p.returncode, p.stdout


@pytest.mark.parametrize(
    'name, source, words',
    [
        ('data/two', 'from ..train.one import x', 'mypt.data.two -> mypt.train.one'),
        ('errors', 'from .files import x', 'mypt.errors -> mypt.files'),
        ('eval/two', 'def f():\n    from mypt.serve.one import x\n', 'mypt.eval.two'),
        ('data/one', 'from .two import y\nx = 1', 'No cycles are allowed in mypt.data'),
        ('stray', 'x = 1', 'stray'),
    ],
)
def test_an_import_goes_up_or_round(packages, name, source, words):
    code, out = lint(packages)
    assert code == 0, out
    write_module(packages, 'data/two', 'from .one import x\ny = x')
    write_module(packages, name, source)
    code, out = lint(packages)
    assert code != 0 and words in out, out


# ---- light imports


@pytest.mark.parametrize(
    'source, words',
    [
        ('from .low import one', ("'.low'",)),
        ('from mypt.low import *', ('imports *',)),
        ('from importlib import import_module', ('by a string',)),
        ('import anywidget, os', ('anywidget', 'optional')),
    ],
)
def test_form_of_an_import(project, source, words):
    append(project, '08_high.ipynb', code(f'#| export\n{source}'))
    notebooks = read_notebooks(project)
    core = light_imports.required(project)[0]
    problems = light_imports.check_forms(notebooks) + light_imports.check_core(notebooks, core)
    assert said(problems, '08_high.ipynb cell 5', *words)


@pytest.mark.parametrize(
    'source', ['import transformers', '#| export\ndef f():\n    "F."\n    import deepl']
)
def test_an_optional_package_where_it_is_used(project, source):
    append(project, '08_high.ipynb', code(source))
    core = light_imports.required(project)[0]
    assert light_imports.check_core(read_notebooks(project), core) == []


def test_a_requirement_that_nothing_imports(project):
    append(project, '08_high.ipynb', code('#| export\nimport numpy'))
    problems = light_imports.check_used(read_notebooks(project), {'numpy', 'tqdm'})
    assert said(problems, 'requires tqdm')


def test_heavy_init(project):
    (project / 'mypt/__init__.py').write_text('import jsonschema\n')
    problems = light_imports.check_light(['mypt'], {'jsonschema'}, project)
    assert said(problems, '`import mypt` loads jsonschema')


def test_light_is_what_has_no_arrays_to_train():
    assert light_imports.is_light('mypt.data.masks') and light_imports.is_light('mypt.cli')
    assert not light_imports.is_light('mypt.data.batches')
    assert not light_imports.is_light('mypt.model.rope')


def test_optional_is_what_extras_say(root):
    core, extra = light_imports.required(root)
    optional = {'datasets', 'fastapi', 'deepl', 'llguidance', 'bm25s', 'jsonschema', 'transformers'}
    assert optional <= extra
    assert core == {
        'charset_normalizer',
        'matplotlib',
        'numpy',
        'safetensors',
        'selectolax',
        'tiktoken',
        'torch',
        'tqdm',
        'yaml',
    }


# ---- reading order


def test_a_chapter_that_leans_on_an_unread_module(project):
    write_nb(project, 'data/deep.ipynb', *module('data.deep', code('#| export\nx = 1')))
    append(project, '00_low.ipynb', code('#| export\nfrom mypt.data.deep import x'))
    assert said(reading_order.check(project), '00_low.ipynb', 'mypt.data.deep')
    append(project, '00_low.ipynb', md('It leans on [deep](data/deep.ipynb).'))
    assert reading_order.check(project) == []


def test_a_chapter_that_leans_on_a_later_one(project):
    append(project, '00_low.ipynb', code('#| export\nfrom mypt.high import two'))
    assert said(reading_order.check(project), '00_low.ipynb leans on mypt.high')


def test_a_module_that_no_notebook_exports(project):
    append(project, '08_high.ipynb', code('#| export\nfrom mypt.gone import x'))
    assert said(reading_order.check(project), 'mypt.gone', 'no notebook')


def test_same_number_twice(project):
    write_nb(project, '00_other.ipynb', *module('other'))
    assert said(reading_order.check(project), '00_other.ipynb', 'number')


# ---- cells


def lines(n):
    return '\n'.join(f'x{i} = {i}' for i in range(n))


@pytest.mark.parametrize(
    'cell, words',
    [
        (code(f'#| export\n{lines(46)}'), ('cell 3', 'exports 46 lines, 45 at most')),
        (md('long ' * 30_100), ('bytes',)),
    ],
)
def test_too_big(project, cell, words):
    append(project, '00_low.ipynb', cell)
    assert said(cells.check(project), 'nbs/00_low.ipynb', *words)


@pytest.mark.parametrize(
    'cell',
    [
        code(f'#| export\n{lines(45)}'),
        code('#| export\n' + '# why\n\n' * 60),
        code('#| export\n' + '\n'.join(f'import m{i}' for i in range(60))),
        code(lines(401)),
        md('long ' * 25),
    ],
)
def test_not_too_big(project, cell):
    append(project, '00_low.ipynb', cell)
    assert cells.check(project) == []


def test_many_large_cells(project):
    append(project, '00_low.ipynb', *(code(f'#| export\n{lines(26)}') for _ in range(2)))
    assert said(cells.check(project), '2 of 4 exported cells', '26 lines')


@pytest.mark.parametrize(
    'first, words',
    [
        ('Just text', ('not `# Title`',)),
        ('# Title alone', ('not `# Title`',)),
        ('# T\n\nText\n\n> late', ('not `# Title`',)),
        ('# T\n\n> Summary\n\nProse that the site would lose.', ('goes on',)),
    ],
)
def test_bad_opening(project, first, words):
    write_nb(project, '00_low.ipynb', md(first), code('#| default_exp low'))
    assert said(cells.check(project), *words)


# ---- plain words


@pytest.mark.parametrize(
    'cell',
    [
        md('What the row holds stands\nin its index, or was read anew.'),
        code('#| export\nbad = "a value that is no text"  # whoever wrote it'),
        code('#| export\ndef f(n):\n    "One line."\n    return f"{n}: whoever is no text"'),
    ],
)
def test_words_that_are_not_plain(project, cell):
    assert plain_words.check(project, ()) == []
    append(project, 'index.ipynb', cell)
    first, second = plain_words.check(project, ())
    assert first.startswith('nbs/index.ipynb cell') and 'write:' in second
    assert plain_words.check(project, ('index',)) == []  # a notebook still to be rewritten


NOT_PLAIN = """raises when it is none | dropped in silence | fails without a word | learned by heart
| what became of each row | the base and what came of it | the run goes on where it stopped
| no GPU was at hand | whatever comes | the kernel is told the length | a folder of one's own
| a conversation in the making | the file is a stranger's | kept, for it is small | stays as it was
| each source speaks of it | the report lies beside it | colours that people can tell apart"""


@pytest.mark.parametrize('text', NOT_PLAIN.replace('\n', ' ').split(' | '))
def test_each_phrase_that_is_not_plain(project, text):
    append(project, 'index.ipynb', md(text))
    assert len(plain_words.check(project, ())) == 1


@pytest.mark.parametrize(
    'text',
    [
        *('`is no text`', '```\nis no text\n```', 'It stands in for it.'),
        *('a line without a word of two letters', 'Unused where it is None.', 'a tool for it'),
        plain_words.DATA[0],
    ],
)
def test_plain_words(project, text):
    append(project, 'index.ipynb', md(text))
    append(project, 'index.ipynb', code('data = "whoever comes"'))  # not exported: an example
    assert plain_words.check(project, ()) == []


# ---- links from backticks


def test_a_link_to_what_the_notebook_does_not_use(project):
    assert doclinks.check(project) == []
    append(project, 'index.ipynb', md('See `two`.'))
    assert said(doclinks.check(project), 'nbs/index.ipynb', '`two`', 'mypt.high')
    append(project, 'index.ipynb', code('from mypt.high import two'))
    assert doclinks.check(project) == []


@pytest.mark.parametrize('text', ['`three`', '```\n`two`\n```', 'two', '`mypt.high`'])
def test_no_link(project, text):
    append(project, 'index.ipynb', md(text))
    assert doclinks.check(project) == []


def test_namesakes(project):
    write_nb(
        project, '09_other.ipynb', *module('other', code('#| export\ndef two(): "Also."; return 3'))
    )
    append(project, '09_other.ipynb', md('See `two`.'))
    assert in_step.nbdev('nbdev_export', project) == []
    assert said(doclinks.check(project), '`two` is defined in mypt.high and mypt.other')


# ---- suites


def test_a_suite_that_is_not_what_its_phase_makes(tmp_path, monkeypatch):
    monkeypatch.setattr(suites, 'render', lambda: {'suites/a.jsonl': 'one\n', 'b.jsonl': 'two\n'})
    (tmp_path / 'mypt/assets/suites').mkdir(parents=True)
    assert len(suites.check(tmp_path)) == 2
    suites.write(tmp_path)
    assert suites.check(tmp_path) == []
    (tmp_path / 'mypt/assets/b.jsonl').write_text('three\n')
    assert said(suites.check(tmp_path), 'mypt/assets/b.jsonl')


# ---- imports in cells of their own


@pytest.mark.parametrize(
    'source', ['import os\nx = 1', '#| export\nimport os\nx = 1', 'def f():\n    import os']
)
def test_mixed_cell(project, source):
    append(project, '00_low.ipynb', code(source))
    assert said(import_cells.check(project), '00_low.ipynb cell 3')


@pytest.mark.parametrize(
    'source',
    [
        'import os, sys\nfrom json import loads  # both',
        '#| export\ndef f():\n    import os\n    return os',
        'x = 1',
        '#| eval: false\nimport os\nx = 1',
        '%load_ext x\nimport os',
        '%%bash\nimport x\ny',
    ],
)
def test_unmixed_cell(project, source):
    append(project, '00_low.ipynb', code(source))
    assert import_cells.check(project) == []


# ---- outputs

PLACE = '/' + 'home/someone/file.txt'  # In two parts, for this file is checked too


@pytest.mark.parametrize(
    'output, word',
    [
        (stream(f'wrote {PLACE}'), 'machine path'),
        (shown(text__html=f'<b>{PLACE}</b>'), 'machine path'),
        (shown(text__plain='C:' + '\\Users\\me'), 'machine path'),
        (stream('careful', 'stderr'), 'stderr'),
        (dict(output_type='error', ename='E', evalue='', traceback=[]), 'error'),
        (shown(text__plain='<function f at 0x7f3a2b1c>'), 'address'),
        (stream('10 [00:01<00:09, 9.1it/s]'), 'progress bar'),
        (stream('Wall time: 3 s'), 'time'),
        (shown(image__svg_xml=f'<svg>{PLACE}</svg>'), 'machine path'),
    ],
)
def test_unfit_output(project, output, word):
    if 'data' in output:
        output['data'] = {k.replace('svg_xml', 'svg+xml'): v for k, v in output['data'].items()}
    append(project, '00_low.ipynb', code('1', output))
    problems = clean_outputs.check(project)
    assert (
        problems
        and all('00_low.ipynb cell 3' in p for p in problems)
        and any(word in p for p in problems)
    )


def test_execution_traces(project):
    append(
        project,
        '00_low.ipynb',
        code('1', execution_count=3, metadata={'execution': {'iopub.status.busy': 'then'}}),
    )
    assert len(clean_outputs.check(project)) == 2


# in pieces, so that this file itself holds no path of a machine
HOME, WORK, TMP = ('/' + name for name in ('home', 'work', 'tmp'))


@pytest.mark.parametrize(
    'text',
    [f'<{HOME}>', f'docs{HOME}/x', f'https://x.org{HOME}/x', f'~{WORK}/x', f'a{TMP}/b', '"data/x"'],
)
def test_fit_output(project, text):
    append(
        project, '00_low.ipynb', code('1', stream(text), shown(image__png='/' + 'tmp/' + 'a' * 40))
    )
    assert clean_outputs.check(project) == []


def test_machine_path_in_text(project):
    (project / 'notes.md').write_text(f'fine\nsee {PLACE}\n')
    subprocess.run('git init -q && git add -A', shell=True, cwd=project, check=True)
    assert said(clean_outputs.check(project), 'notes.md line 2', PLACE[:9])


# ---- sidebar, README


def test_sidebar_out_of_step(project):
    write_nb(project, '14_train.ipynb', *module('train'))
    assert said(sidebar.check(project), '_quarto.yml', 'out of step')
    sidebar.write(project)
    assert (
        sidebar.check(project) == []
        and 'section: Training' in (project / '_quarto.yml').read_text()
    )


def test_sidebar_lists_what_is_gone(project):
    (project / 'nbs/08_high.ipynb').unlink()
    assert said(sidebar.check(project), 'out of step')


def test_sidebar_link(project):
    (project / 'nbs/_quarto.yml').unlink()
    shutil.copy(project / '_quarto.yml', project / 'nbs/_quarto.yml')
    assert said(sidebar.check(project), 'not a link')


def test_readme_out_of_step(project):
    append(project, 'index.ipynb', md('More.'))
    assert said(readme.check(project), 'README.md')


def test_readme_pictures(project):
    svg = dict(
        output_type='display_data', metadata={}, data={'image/svg+xml': ['<?xml?><svg xmlns="x"/>']}
    )
    links = md('![p](images/p.svg) [up](../CONTRIBUTING.md) [web](https://x.org)')
    drawn = code('#| fig-alt: "One < two"\ndraw()', svg)
    append(project, 'index.ipynb', links, drawn)
    assert readme.check(project)
    readme.write(project)
    text = (project / 'README.md').read_text()
    assert readme.check(project) == []
    assert (project / 'index_files/figure-1.svg').read_text() == '<svg xmlns="x"/>\n'
    want = (
        '(nbs/images/p.svg)',
        '(CONTRIBUTING.md)',
        '(https://x.org)',
        'src="index_files/figure-1.svg" alt="One &lt; two"',
    )
    assert all(w in text for w in want)
    (project / 'index_files/figure-9.svg').write_text('<svg/>')
    assert said(readme.check(project), 'figure-9.svg')


def test_readme_code_that_scrolls(project):
    fits, long = 'x' * 85, 'y' * 86
    append(project, 'index.ipynb', md(f'```sh\n{fits}\n```'), code('p()', stream(long)))
    readme.write(project)
    assert readme.check(project) == []
    append(project, 'index.ipynb', md(f'```sh\n{long}\n```'))
    readme.write(project)
    assert said(readme.check(project), 'a line of 86', long)


def test_a_command_goes_on_in_the_next_line():
    call = 'mypt x --one ' + 'a' * 40 + ' --two ' + 'b' * 40 + ' --three c'
    first, second = man.in_lines(call).split(' \\\n')
    assert first == 'mypt x --one ' + 'a' * 40 and second == '    --two ' + 'b' * 40 + ' --three c'
    assert man.in_lines('mypt x --one a') == 'mypt x --one a'
    assert man.title_of('03_masks.ipynb') == 'Masks'


def test_the_way_from_page_to_page():
    entries = {'': [docs.Entry('a.html', 'A')], 'B': [docs.Entry('b/c.html', 'C')]}
    assert docs.neighbours(entries, 'a.html') == '<a rel="next" href="b/c.html">C →</a>'
    assert docs.neighbours(entries, 'b/c.html') == '<a rel="prev" href="../a.html">← A</a>'
    assert docs.neighbours(entries, '404.html') == ''
    assert '<details open><summary>B' in docs.sidebar_html(entries, 'b/c.html')
    assert '<details><summary>B' in docs.sidebar_html(entries, 'a.html')


def test_terms_of_the_glossary_have_anchors(root):
    term = '**[Block size](../a.ipynb)**: the longest row.\nTwo.'
    assert signatures.with_anchors(term) == f'<span id="term-block-size"></span>{term}'
    assert signatures.with_anchors('See **[a](b)**: it') == 'See **[a](b)**: it'


def test_code_of_explanations_is_folded(root, project):
    for nb in read_notebooks(root):
        if nb.name.startswith('explanations/'):
            assert '- code-fold: true' in nb.cells[0].source, nb.name
    write_nb(project, '09_f.ipynb', code('f()'))
    cells = read_notebook(project / 'nbs/09_f.ipynb', project / 'nbs').cells
    assert '<details class="code"><summary>Code' in to_markdown(cells, fold=True)
    assert '<details' not in to_markdown(cells)


def test_directives(project):
    cells = [
        code('#| hide\na'),
        code('#| echo: false\nb', stream('B')),
        code('#| output: false\nc', stream('C')),
        code('#| include: false\nd', stream('D')),
        code('#| code-fold: true\n#| code-summary: "More"\ne'),
        code('#| output: asis\nf', stream('**F**')),
        code('g', stream('no', 'stderr'), shown(text__plain='`` ``` ``')),
    ]
    write_nb(project, '09_d.ipynb', *cells)
    text = to_markdown(read_notebook(project / 'nbs/09_d.ipynb', project / 'nbs').cells)
    want = [
        '``` {.output tabindex=0}\nB\n```',
        '```python\nc\n```',
        '<details class="code"><summary>More</summary>',
        '```python\ne\n```',
        '</details>',
        '```python\nf\n```',
        '**F**',
        '```python\ng\n```',
        '```` {.output tabindex=0}\n`` ``` ``\n````',
    ]
    assert text == '\n\n'.join(want) + '\n'


# ---- pages


def test_pages(project):
    assert docs.check(project) == []
    high = (project / '_docs/high.html').read_text()
    assert all(
        w in high
        for w in ('href="low.html"', 'id="two"', '<summary>Data</summary>', 'What high is')
    )


@pytest.mark.parametrize(
    'text, words',
    [
        ('[gone](09_gone.ipynb)', ('gone.html', 'leads nowhere')),
        ('[there](00_low.ipynb#nowhere)', ('low.html#nowhere', 'no such anchor')),
        ('[here](#nowhere)', ('#nowhere', 'no such anchor')),
        ('![p](images/none.png)', ('images/none.png', 'leads nowhere')),
        (
            '[f](https://github.com/mypt-project/mypt/blob/main/none.py)',
            ('none.py', 'not in the repository'),
        ),
        ('<i id="a"></i> <b id="a"></b>', ('two things', "'a'")),
    ],
)
def test_broken_link(project, text, words):
    append(project, '08_high.ipynb', md(text))
    assert said(docs.check_links(docs.build(project), docs.site(project)), 'high.html', *words)


@pytest.mark.skipif(not docs.browser(), reason='no Chromium')
def test_ugly_pages(tmp_path):
    bodies = {
        'blank.html': '',
        'wide.html': '<main><p id="long" style="width:3000px">w</p></main>',
        'phone.html': '<main><p style="width:600px">w</p></main>',
        'fine.html': '<main><div tabindex="0" style="overflow-x:auto"><p style="width:999px">w</p>',
    }
    for name, body in bodies.items():
        (tmp_path / name).write_text(f'<!DOCTYPE html><title>t</title><body>{body}')
    found = docs.look(tmp_path, [tmp_path / name for name in bodies])
    seen = [' '.join(f.split(' pixels')[0].split()) for f in found]
    names = [s.split()[0].removesuffix('.html') for s in seen]
    assert names == ['blank', 'wide', 'blank', 'wide', 'phone']
    assert 'of 1400' in seen[1] and 'id="long"' in found[1] and 'of 390' in seen[4]


LINK = '[`x`](https://mypt-project.github.io/mypt/b.html#x)'
FAULTS = {  # what is put before </main>, or replaced: old → new; what is said
    'markdown': (f'<pre><code># A {LINK}</code></pre>', 'a link as Markdown'),
    'sideways': (
        f'<pre class="sh" style="white-space: pre">{"x" * 300}</pre>',
        'code that scrolls sideways',
    ),
    'wide': ('<div style="width: 1500px">w</div>', 'wider than its window: 1'),
    'faint': ('<p style="color: #999">f</p>', 'contrast of 2.8'),
    'faint_in_the_dark': ('<p style="color: #444">f</p>', 'contrast of 1.'),
    'unsaid': ('<img src="favicon.svg">', 'without alt text'),
    'card': ('<img class="figure" style="filter: none" alt="f" src="favicon.svg">', 'theme of'),
    'frame': ('<iframe title="f" style="color-scheme: light"></iframe>', 'theme of the page'),
    'unreached': (f'<table><tr>{"<td>wide" * 40}</table>', 'no keyboard reaches'),
    'late': (('<header>', '<header style="min-height: 700px">'), 'begins its text 7'),
    'dead': ('<a href="gone.html">g</a>', 'gone.html leads nowhere'),
}


@pytest.mark.skipif(not docs.browser(), reason='no Chromium')
def test_faults_of_pages_are_found(project):
    "Each fault on a page of its own; the page without any is in order."
    out = docs.build(project)
    good = (out / 'high.html').read_text()
    for name, (fault, _) in FAULTS.items():
        old, new = fault if isinstance(fault, tuple) else ('</main>', f'{fault}</main>')
        text = good.replace(old, new)
        assert text != good
        if name in ('unreached', 'sideways'):
            text = text.replace('tabIndex = 0', 'title = 0').replace('styles.css', 'favicon.svg')
        (out / f'{name}.html').write_text(text)
    found = docs.check_site(out, docs.site(project))
    for name, (_, word) in FAULTS.items():
        about = [f for f in found if f.startswith(f'{name}.html')]
        assert about and all(word in f for f in about), (name, about)
    assert {f.split('.html')[0] for f in found} == set(FAULTS)


@pytest.mark.skipif(not docs.browser(), reason='no Chromium')
def test_frames_and_pictures_follow_the_page(root, tmp_path):
    "Quarto tells the theme of a page by a class; what the page holds must not follow the system."
    dark = '@media (prefers-color-scheme:dark)'
    frame = f'<style>p{{color:red}}{dark}{{p{{color:lime}}}}</style><p>it</p>'
    tell = "parent.postMessage(getComputedStyle(document.querySelector('p')).color, '*')"
    script = f'<script>setInterval(() => {tell}, 50)'
    listen = "<script>addEventListener('message', e => { document.title = e.data })</script>"
    figure = '<p class="cell-output-display"><img alt="f"></p>'
    style = (root / 'nbs/styles.css').read_text()
    colours = {'light': 'rgb(255, 0, 0)', 'dark': 'rgb(0, 255, 0)'}
    for system in (False, True):
        with Browser(dark=system) as b:
            for theme, colour in colours.items():
                (tmp_path / 'p.html').write_text(
                    f'<!DOCTYPE html><style>{style}</style><body class="quarto-{theme}">{listen}'
                    f'{figure}'
                    f'<iframe sandbox="allow-scripts" srcdoc="{frame}{script}</script>"></iframe>'
                )
                b.open(tmp_path / 'p.html')
                b.wait(f'document.title === "{colour}"')
                turned = b.js("getComputedStyle(document.querySelector('img')).filter")
                assert turned.startswith('invert') == (theme == 'dark'), (system, theme)


def test_one_palette_for_masks(root):
    "A trained token is of one green: in the chapter, on the first page and in the inspector."
    palette = (root / 'mypt/assets/palette.css').read_text()
    inspector = (root / 'mypt/assets/inspector.css').read_text()
    assert '--trained: #16a34a' in palette and 'var(--trained) 24%' in inspector
    assert 'rgba(22,163,74,.24)' in (root / 'nbs/03_masks.ipynb').read_text()
    assert '#c7e9d4' in (root / 'nbs/index.ipynb').read_text()  # .24 of it on white


@pytest.mark.parametrize(
    'page, word',
    [
        ('<img src="a.png">', 'without alt'),
        ('<img src="a.png" alt="">', 'without alt'),
        ('<pre># A [`x`](https://mypt-project.github.io/mypt/b.html#x)</pre>', 'as Markdown'),
        (
            '<p><a href="b">[<code>x</code>](https://mypt-project.github.io/mypt/b.html#x)</a></p>',
            'as Markdown',
        ),
        ('<pre>print("[mypt](https://a.org/mypt)")</pre>', None),
        ('<img alt="A curve" src="a.png"><pre># A `x`</pre>', None),
    ],
)
def test_pages_are_read(tmp_path, page, word):
    (tmp_path / 'a.html').write_text(page)
    found = docs.check_pages(tmp_path, docs.site())
    assert said(found, 'a.html', word) if word else found == []


def test_exported_code_is_shown(project):
    visible.write(project)
    assert visible.check(project) == []
    append(
        project,
        '08_high.ipynb',
        code('#| export\nclass A:\n    def b(self): return 1'),
        code('#| export\nfrom mypt.low import one'),
        code('#| export\n# hidden: a long table\nTABLE = {}'),
        code('#| exports\ndef c(): return 2'),
    )
    assert said(visible.check(project), '08_high.ipynb', 'exported and not shown')
    before = (project / 'nbs/08_high.ipynb').read_text()
    visible.write(project)
    after = (project / 'nbs/08_high.ipynb').read_text()
    assert visible.check(project) == []
    assert after.count('#| exports') == before.count('#| exports') + 1


def test_no_links_in_signatures(root):
    linked = '[`x`](https://a.org/b.html#x)'
    text = f'See {linked}.\n\n```python\ndef f(\n    a:int, # Of {linked}\n):\n```\n\nAnd {linked}.'
    outputs = [dict(data={'text/markdown': [text]}), dict(text='')]
    cell = dict(cell_type='code', outputs=outputs)
    signatures.plain_signatures(cell)
    want = text.replace(f'# Of {linked}', '# Of `x`')
    assert cell['outputs'][0]['data']['text/markdown'] == want
    prose = dict(cell_type='markdown', source=f'[the {linked} here](b.ipynb) and {linked}')
    signatures.plain_signatures(prose)
    assert prose['source'] == f'[the `x` here](b.ipynb) and {linked}'
    assert 'procs = tools.signatures:plain_signatures' in (root / 'settings.ini').read_text()


def test_nbdev_docs_leaves_the_readme(root):
    ini = (root / 'settings.ini').read_text()
    name = re.search(r'^readme_nb = (.*)$', ini, re.M)[1]
    assert quarto._doc_mtime_not_older(root / 'gone.md', root / 'nbs' / name)  # never out of date


@pytest.mark.parametrize(
    'file, old, new, words',
    [
        (
            '_quarto.yml',
            'code-overflow: wrap',
            'code-overflow: scroll',
            ('code-overflow', 'scroll'),
        ),
        ('_quarto.yml', 'body-width: 900px', 'body-width: 800px', ('body-width',)),
        (
            '_quarto.yml',
            '  image: /images/card.png',
            '  image: images/card.png',
            ('website.image', 'from /'),
        ),
        (
            '_quarto.yml',
            'graph: {image: /images/card',
            'graph: {image: /x',
            ('open-graph', 'from /'),
        ),
        ('_quarto.yml', 'llms-txt: true', 'llms-txt: false', ('llms-txt',)),
        ('.github/workflows/deploy.yml', "QUARTO: '", "QUARTO: 'v", ('no fixed version',)),
        ('.github/workflows/deploy.yml', 'SHA256: ', 'SHA256: x', ('no fixed version and hash',)),
        ('nbs/404.md', None, None, ('404.md is missing',)),
        ('settings.ini', 'readme_nb = none', 'readme_nb = index', ('would write README.md',)),
    ],
)
def test_settings_of_the_site(root, tmp_path, file, old, new, words):
    for name in (
        '_quarto.yml',
        'settings.ini',
        'nbs/404.md',
        'nbs/index.ipynb',
        'nbs/images/card.png',
        '.github/workflows/deploy.yml',
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, tmp_path / name)
    assert docs.check_settings(tmp_path) == []
    broken = tmp_path / file
    text = broken.read_text()
    broken.write_text(text.replace(old, new)) if old else broken.unlink()
    assert said(docs.check_settings(tmp_path), *words)


def test_the_way_through_the_site(root):
    "Tutorials come first, in their order; links have a contrast of 4.5:1 in both themes."
    listed = sidebar.sections(read_notebooks(root))
    assert list(listed)[1:3] == ['Tutorials', 'How to']
    assert [Path(n).stem for n in listed['Tutorials']][:4] == list(sidebar.ORDER)
    for theme, paper in (('light', '#ffffff'), ('dark', '#222222')):
        ink = re.search(r'link-color: (#\w+)', (root / f'nbs/{theme}.scss').read_text())[1]
        assert contrast(ink, paper) >= 4.5


def contrast(one: str, other: str) -> float:
    def light(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    dark, bright = sorted((light(one), light(other)))
    return (bright + 0.05) / (dark + 0.05)


def test_page_that_cannot_be_built(project):
    append(project, '08_high.ipynb', code('import no_such_module'))
    cause, where, cell = docs.check(project)
    assert cause == "ModuleNotFoundError: No module named 'no_such_module'"
    assert (
        where.startswith('Exception: Error in notebook: high') and cell == 'import no_such_module'
    )


# ---- the runner


def job(kind, *args):
    return check.Job(kind, ' '.join(args[-1:]), (sys.executable, *args))


@pytest.mark.parametrize(
    'body, counts',
    [
        ('def test_a(): pass\ndef test_b(): assert 0\ndef test_c(): 1/0', (1, 2, 0)),
        ('def test_a(): pass', (1, 0, 0)),
        ('', (0, 1, 0)),
        ('import gone', (0, 1, 0)),
        ('import pytest\n@pytest.mark.skip(reason="no")\ndef test_a(): pass', (0, 0, 1)),
        ('import pytest\n@pytest.fixture\ndef f(): yield; 1/0\ndef test_a(f): pass', (1, 1, 0)),
        ('import os\ndef test_a(): os._exit(0)', (0, 1, 0)),
    ],
)
def test_counting_pytest(tmp_path, body, counts):
    (tmp_path / 'test_it.py').write_text(body)
    r = check.run(
        job('tests', '-m', 'pytest', '-q', '-p', 'no:cacheprovider', 'test_it.py'), tmp_path
    )
    assert (r.passed, r.failed, r.skipped) == counts, r.output


def test_counting_others(tmp_path):
    assert check.run(job('check', '-c', 'print(1)'), tmp_path).passed == 1
    r = check.run(job('check', '-c', 'print("why"); raise SystemExit(3)'), tmp_path)
    assert (r.passed, r.failed) == (0, 1) and 'why' in r.output


def test_hanging_job_is_ended(tmp_path):
    busy = 'import time; print("busy", flush=True); time.sleep(60)'
    (tmp_path / 'test_busy.py').write_text(
        f'def test_busy(capfd):\n    with capfd.disabled():\n        {busy}'
    )
    program = job('check', '-c', busy)
    fork = job('tests', '-m', 'pytest', 'test_busy.py')
    for hanging, limit in ((program, 1), (fork, 5)):
        r = check.run(hanging, tmp_path, limit=limit)
        assert r.failed == 1 and 'busy' in r.output and r.seconds < 20
        assert f'ended after {limit} s' in r.output


def test_a_notebook_is_run_in_a_fork(project):
    write_nb(project, '00_good.ipynb', title('good'), code('assert 1'))
    write_nb(project, '01_bad.ipynb', title('bad'), code('assert 1 == 2, "so not"'))
    names = 'nbs/00_good.ipynb', 'nbs/01_bad.ipynb'
    results = [check.run(job('notebook', '--path', name), project) for name in names]
    assert [(r.passed, r.failed) for r in results] == [(1, 0), (0, 1)]
    assert 'so not' in results[1].output


def test_forks_that_end_together_all_pass(tmp_path, monkeypatch):
    wait = connection.wait

    def slow(*args):
        ready = wait(*args)
        time.sleep(0.1)  # between seeing that a child has ended and reading how
        return ready

    monkeypatch.setattr(connection, 'wait', slow)
    (tmp_path / 'test_it.py').write_text('def test_a(): pass')
    fork = job('tests', '-m', 'pytest', 'test_it.py')
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: check.run(fork, tmp_path), range(6)))
    assert [(r.passed, r.failed) for r in results] == [(1, 0)] * 6


def test_closing_line(monkeypatch, capsys, tmp_path):
    codes = ('print("fine")', 'raise SystemExit("broken")', '0')
    monkeypatch.setattr(check, 'jobs', lambda root: [job('check', '-c', c) for c in codes])
    assert check.main(tmp_path) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == '2 passed, 1 failed' and '| broken' in out


def test_every_tool_is_called(root):
    tools = {p.stem for p in Path(root / 'tools').glob('*.py') if 'def check(' in p.read_text()}
    assert tools == set(check.CHECKS)


def test_the_list_of_chapters_is_read_from_them(project):
    write_nb(
        project,
        '09_sums.ipynb',
        *module('sums', md('![Two sticks make a row.](images/sums.svg)')),
        md('## The naive way\n\nIt writes each number down.'),
        code('1 + 1', dict(output_type='execute_result', data={'text/plain': ['11']}, metadata={})),
        md('Two of three sums are wrong. Nobody counts.'),
        md('## The real one'),
        md('The oracle is `sum`.'),
    )
    *_, last = book.chapters(read_notebooks(project))
    assert last.naive == 'Two of three sums are wrong. [11]'
    assert last.picture == 'images/sums.svg: Two sticks make a row.'
    assert last.oracle == 'The oracle is `sum`.' and not last.missing
    bare = book.chapters(read_notebooks(project))[0]
    assert bare.missing == ['naive', 'picture', 'oracle']


def test_every_chapter_has_its_failure_its_picture_and_its_oracle(root):
    found = book.chapters(read_notebooks(root))
    assert len(found) == 30 and not [c.name for c in found if c.missing]
    assert not [c.name for c in found if not book.NUMBER.search(c.naive)]
