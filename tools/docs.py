"""The site without Quarto: nbdev processes notebooks, pandoc makes a page of each, every link and
anchor is followed.

Where there is Chromium every page is looked at too, on a desk in the light and on a phone in the
dark: width, contrast, code that scrolls, one theme for all that it holds. What only Quarto does is
read off its settings.
`python -m tools.docs --highlight` colours the code, as `make docs` does; a check has no use for it.
"""

import html
import os
import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag
import pypandoc
import yaml
from tests.browser import Browser
from tools.markdown import to_markdown
from tools.notebooks import ROOT, Notebook, read_notebook, read_notebooks, report
from tools.sidebar import command_pages, sections

FORMAT = (
    'markdown-yaml_metadata_block-tex_math_single_backslash'
    '+autolink_bare_uris+lists_without_preceding_blankline'
)
TEMPLATE = Path(__file__).with_name('page.html')
ASSETS = ('.svg', '.png', '.css', '.js', '.ico', '.json', '.html')


def page_name(name: str) -> str:  # 'tutorials/01_first_run.ipynb' → 'tutorials/first_run.html'
    "Where nbdev and Quarto put a notebook's page."
    p = Path(name)
    return (
        p.with_name(re.sub(r'^\d+[a-zA-Z0-9]*_', '', p.name.lower()))
        .with_suffix('.html')
        .as_posix()
    )


@dataclass(frozen=True)
class Site:
    "What settings.ini says about the site."

    title: str
    url: str  # Of the published site; links to it become relative
    source: str  # Of files in the repository's main branch
    root: Path


def site(root: Path = ROOT) -> Site:
    "What settings.ini says about the site."
    ini = ConfigParser(delimiters=['='])
    ini.read(root / 'settings.ini', encoding='utf-8')
    d = ini['DEFAULT']
    return Site(
        d['title'],
        d['doc_host'] + d['doc_baseurl'] + '/',
        f'{d["git_url"]}/blob/{d["branch"]}/',
        root,
    )


def process(root: Path = ROOT) -> Path:  # The folder of processed notebooks
    """nbdev's own processing: `show_doc`, links from backticks, hidden cells. Cached by the time of
    change.
    """
    code = (
        'from nbdev.serve import proc_nbs\nif __name__ == "__main__": print(proc_nbs(n_workers=0))'
    )
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}
    p = subprocess.run(
        [sys.executable, '-c', code], cwd=root, env=env, text=True, capture_output=True
    )
    if p.returncode:
        raise RuntimeError(p.stderr.strip())
    return root / '_proc'


def why(trace: str) -> list[str]:  # What a chain of tracebacks says, without the way there
    "The errors of a chain, then the cell that the last one shows."
    lines = trace.splitlines()
    last = max(
        (i for i, line in enumerate(lines) if re.match(r'[\w.]*(Error|Exception)\b', line)),
        default=0,
    )
    return [*(line for line in lines[:last] if re.match(r'[\w.]*Error: ', line)), *lines[last:]]


@dataclass(frozen=True)
class Entry:
    "A link of the sidebar."

    page: str
    title: str  # as HTML


def sidebar(root: Path) -> dict[str, list[Entry]]:
    "Section → its pages; the titles are the notebooks' own. The index is behind the site's name."
    notebooks, commands = read_notebooks(root), command_pages(root)
    titles = {nb.name: title_of(nb) for nb in notebooks if nb.cells}
    for name in commands:
        titles[name] = front_matter((root / 'nbs' / name).read_text(encoding='utf-8'))['title']
    listed = sections(notebooks, commands).items()
    return {
        section: [Entry(page_name(n), html.escape(titles.get(n, n))) for n in names]
        for section, names in listed
    }


def title_of(nb: Notebook) -> str:
    "The first line of a notebook, without its `#`."
    return nb.cells[0].source.split('\n')[0].removeprefix('# ')


def sidebar_html(entries: dict[str, list[Entry]], here: str) -> str:
    "The sidebar as the page `here` shows it."
    up, parts = '../' * here.count('/'), []
    for section, links in entries.items():
        items = [
            f'<li{" class=here" * (e.page == here)}><a href="{up}{e.page}">{e.title}</a></li>'
            for e in links
            if e.page != 'index.html'
        ]
        listed = f'<ul>{"".join(items)}</ul>'
        if section:  # what stands alone has no heading
            opened = ' open' * any(e.page == here for e in links)
            listed = f'<details{opened}><summary>{section}</summary>{listed}</details>'
        parts.append(listed)
    return '\n'.join(parts)


def navbar_html(root: Path, here: str) -> str:
    "The links at the top of each page, as _quarto.yml lists them; the source comes last."
    settings = yaml.safe_load((root / '_quarto.yml').read_text(encoding='utf-8'))
    bar = value_at(settings, 'website.navbar') or {}
    up, links = '../' * here.count('/'), []
    for item in bar.get('left', []):
        links.append(f'<a href="{up}{page_name(item["href"])}">{html.escape(item["text"])}</a>')
    for item in bar.get('right', []):
        links.append(f'<a class="source" href="{item["href"]}">Source</a>')
    return ''.join(links)


def neighbours(entries: dict[str, list[Entry]], here: str) -> str:  # HTML
    "Links to the page before and the page after, in the order of the sidebar."
    pages = [e for links in entries.values() for e in links]
    at = next((i for i, e in enumerate(pages) if e.page == here), None)
    if at is None:
        return ''
    up, found = '../' * here.count('/'), []
    for i, word in ((at - 1, 'prev'), (at + 1, 'next')):
        if 0 <= i < len(pages):
            e = pages[i]
            title = f'← {e.title}' if word == 'prev' else f'{e.title} →'
            found.append(f'<a rel="{word}" href="{up}{e.page}">{title}</a>')
    return ''.join(found)


def relink(page: str, s: Site, here: str) -> str:
    "Links to notebooks and to the published site become links between pages."

    def point(m: re.Match) -> str:
        path, frag = urldefrag(m[2])
        if path.startswith(s.url):
            path = '../' * here.count('/') + path[len(s.url) :]
        elif path.endswith(('.ipynb', '.md')) and '://' not in path:
            path = page_name(path)
        return f'{m[1]}"{path}{"#" + frag if frag else ""}"'

    return re.sub(r'(\bhref=)"([^"]+)"', point, page)


def front_matter(text: str) -> dict[str, str]:
    "Title and description: what stands between the two `---`."
    return yaml.safe_load(text.split('---')[1]) if text.startswith('---') else {}


def build_page(
    proc: Path,
    root: Path,
    s: Site,
    sidebar: str,
    here: str,
    highlight: bool = True,  # Colour code: most of the time that a page takes
    around: str = '',  # Links to the pages before and after
    navbar: str = '',  # Links at the top
) -> str:
    "One page as HTML, from a processed notebook or from Markdown."
    if proc.suffix == '.md':
        head, text = (t := proc.read_text(encoding='utf-8')), t.split('---', 2)[2]
    else:
        cells = read_notebook(
            proc, proc.parent
        ).cells  # nbdev moves title and description into a raw cell
        head = next((c.source for c in cells if c.kind == 'raw'), '').strip()
        fold = bool(front_matter(head).get('code-fold'))
        text = to_markdown(cells, fold=fold)
    meta = front_matter(head)
    up = '../' * here.count('/')
    args = [
        '--standalone',
        f'--template={TEMPLATE}',
        '--toc',
        '--toc-depth=3',
        '--mathml',
        '--wrap=preserve',
        f'--metadata=title:{meta.get("title", here)}',
        f'--variable=site:{s.title}',
        f'--variable=up:{up}',
        f'--variable=summary:{html.escape(meta.get("description", ""))}',
        f'--variable=sidebar:{sidebar}',
        f'--variable=around:{around}',
        f'--variable=navbar:{navbar}',
        *(() if highlight else ('--syntax-highlighting=none',)),
    ]
    page = pypandoc.convert_text(text, 'html5', format=FORMAT, extra_args=args)
    return relink(page, s, here)


def build(root: Path = ROOT, out: Path | None = None, highlight: bool = True) -> Path:
    "All pages into `out` (default _docs/), afresh."
    out, s, proc = out or root / '_docs', site(root), process(root)
    shutil.rmtree(out, ignore_errors=True)
    entries = sidebar(root)
    names = [*(nb.name for nb in read_notebooks(root)), *command_pages(root)]
    for name in names + ['404.md'] * (root / 'nbs/404.md').exists():
        here = page_name(name)
        (out / here).parent.mkdir(parents=True, exist_ok=True)
        source = (root / 'nbs' if name.endswith('.md') else proc) / name
        (out / here).write_text(
            build_page(
                source,
                root,
                s,
                sidebar_html(entries, here),
                here,
                highlight,
                neighbours(entries, here),
                navbar_html(root, here),
            ),
            encoding='utf-8',
        )
    for f in (root / 'nbs').rglob('*'):
        if (
            f.is_file()
            and f.suffix in ASSETS
            and not any(o[0] in '._' for o in f.relative_to(root / 'nbs').parts)
        ):
            (out / f.relative_to(root / 'nbs')).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(f, out / f.relative_to(root / 'nbs'))
    return out


class _Links(HTMLParser):
    "Collects ids and links of one page."

    def __init__(self):
        super().__init__()
        self.ids, self.links = [], []

    def handle_starttag(self, tag, attrs):
        for k, v in attrs:
            if k == 'id' or (k == 'name' and tag == 'a'):
                self.ids.append(v)
            if k in ('href', 'src') and v and tag != 'base':
                self.links.append(v)


def follow(
    link: str, page: Path, pages: dict[Path, _Links], s: Site
) -> str | None:  # What is wrong with it
    "One link: the file must be there, and the anchor in it."
    if link.startswith(s.source):
        path = unquote(urldefrag(link)[0][len(s.source) :])
        return None if (s.root / path).exists() else f'{path} is not in the repository'
    if re.match(r'[a-z][a-z0-9+.-]*:|//', link):
        return None
    path, frag = urldefrag(link)
    target = (page.parent / unquote(path)).resolve() if path else page
    if not target.exists():
        return f'{link} leads nowhere'
    if frag and target in pages and unquote(frag) not in pages[target].ids:
        return (
            f'{link}: no such anchor; a page has those of its headings and of what it documents'
            ' with `show_doc`'
        )


def check_links(out: Path, s: Site) -> list[str]:
    "Every link of every page in `out`."
    pages = {}
    for f in sorted(out.resolve().rglob('*.html')):
        pages[f] = _Links()
        pages[f].feed(f.read_text(encoding='utf-8'))
    problems = []
    for f, p in pages.items():
        name = f.relative_to(out.resolve()).as_posix()
        problems += [
            f'{name}: two things have the id {i!r}'
            for i in sorted({i for i in p.ids if p.ids.count(i) > 1})
        ]
        problems += [
            f'{name}: {bad}'
            for line in dict.fromkeys(p.links)
            if (bad := follow(line, f, pages, s))
        ]
    return problems


def browser() -> str | None:  # Chromium's path, where there is one
    "To look at pages with."
    return next(
        filter(
            None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome', 'chrome'))
        ),
        None,
    )


VIEWS = ((1400, False), (390, True))  # of a desk in the light, of a phone in the dark
HEAD = 300  # pixels that the header and the list of pages take at most
LOOK = Path(__file__).with_name('look.js')


def look(out: Path, pages: list[Path]) -> list[str]:
    "What a browser shows of each page: on a desk in the light and on a phone in the dark."
    problems, script = [], LOOK.read_text(encoding='utf-8')
    for width, dark in VIEWS:
        with Browser(width, 900, dark=dark) as b:
            for page in pages:
                name = page.relative_to(out).as_posix()
                found = b.open(page).js(f'{script}({{width: {width}, head: {HEAD}}})')
                problems += [f'{name} {bad}' for bad in found]
    return problems


def pictures(page: str) -> list[str]:  # What is wrong with them
    "Images of one page that say nothing to who does not see them."
    images = re.findall(r'<img\b[^>]*>', page)
    return [
        f'an image without alt text: {i[:80]}' for i in images if not re.search(r'\balt="[^"]', i)
    ]


def raw_links(page: str, url: str) -> list[str]:  # What is wrong with it
    "Markdown of links into the site at `url`, which nbdev put into code or the text of a link."
    text = html.unescape(re.sub(r'<[^>]+>', '', page))
    found = re.findall(rf'\[`?[\w.]+`?\]\({re.escape(url)}[^)\s]*\)', text)
    return [f'a link as Markdown: {link}' for link in found]


def check_pages(out: Path, s: Site) -> list[str]:
    "What can be read off each page: alt texts, no Markdown."
    problems = []
    for f in sorted(out.rglob('*.html')):
        text, name = f.read_text(encoding='utf-8'), f.relative_to(out).as_posix()
        problems += [f'{name}: {bad}' for bad in pictures(text) + raw_links(text, s.url)]
    return problems


def value_at(settings: dict, path: str):
    "A value of nested settings, or None."
    for key in path.split('.'):
        settings = settings.get(key) if isinstance(settings, dict) else None
    return settings


WANTED = {  # in _quarto.yml
    'format.html.code-overflow': 'wrap',
    'format.html.grid.body-width': '900px',
    'format.html.respect-user-color-scheme': True,
    'website.llms-txt': True,
    'website.page-navigation': True,
    'website.sidebar.collapse-level': 1,
}
CARDS = ('website.image', 'website.twitter-card.image', 'website.open-graph.image')


def check_settings(root: Path) -> list[str]:
    "What only Quarto does and nothing here shows: the head of _quarto.yml, a 404, a pinned Quarto."
    settings = yaml.safe_load((root / '_quarto.yml').read_text(encoding='utf-8'))
    problems = [
        f'_quarto.yml: {path} is {value_at(settings, path)!r}, not {want!r}'
        for path, want in WANTED.items()
        if value_at(settings, path) != want
    ]
    for path in CARDS:
        image = value_at(settings, path) or ''
        if not image.startswith('/') or not (root / 'nbs' / image[1:]).is_file():
            problems.append(f'_quarto.yml: {path} is {image!r}, not the path of a picture from /')
    ini = ConfigParser(delimiters=['='])
    ini.read(root / 'settings.ini', encoding='utf-8')
    source = ini['DEFAULT'].get('readme_nb', 'index.ipynb')
    if (root / 'nbs' / source).exists():
        problems.append(f'settings.ini: `nbdev_docs` would write README.md from {source}')
    if not (root / 'nbs/404.md').is_file():
        problems.append('nbs/404.md is missing')
    workflow = root / '.github/workflows/deploy.yml'
    text = workflow.read_text(encoding='utf-8') if workflow.is_file() else ''
    if not re.search(r"QUARTO: '\d+\.\d+\.\d+'\n\s+SHA256: [0-9a-f]{64}\n", text):
        problems.append('.github/workflows/deploy.yml: Quarto has no fixed version and hash')
    return problems


def check(root: Path = ROOT, highlight: bool = False) -> list[str]:
    "Build all pages, follow their links, read and look at each."
    try:
        out = build(root, highlight=highlight)
    except RuntimeError as e:
        return why(str(e))
    return check_site(out, site(root))


def check_site(out: Path, s: Site) -> list[str]:
    "What is wrong with the pages in `out`."
    shown = look(out, sorted(out.rglob('*.html'))) if browser() else []
    return check_links(out, s) + check_pages(out, s) + shown


if __name__ == '__main__':
    problems = check_settings(ROOT) + check(highlight='--highlight' in sys.argv)
    if problems:
        report('pages', problems)
    n = len(list((ROOT / '_docs').rglob('*.html')))
    print(f'{n} pages in _docs/, every link and anchor followed; begin at _docs/index.html')
