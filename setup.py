"""Packaging: everything that can be said in `settings.ini` is said there; this file only hands it
to setuptools.
"""

from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

root = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(root / 'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=(root / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    author_email=cfg['author_email'],
    url=cfg['git_url'],
    keywords=cfg['keywords'],
    license={'apache2': 'Apache-2.0'}[cfg['license']],
    classifiers=[
        'Development Status :: 3 - Alpha',
        f'Intended Audience :: {cfg["audience"]}',
        f'Natural Language :: {cfg["language"]}',
        'Programming Language :: Python :: 3',
    ],
    python_requires=f'>={cfg["min_python"]}',
    packages=find_packages(include=['mypt*']),
    package_data={'mypt': ['py.typed', 'configs/*.json', 'assets/**', '**/*.js', '**/*.css']},
    install_requires=cfg['requirements'].split(),
    extras_require={
        k.removesuffix('_requirements'): v.split()
        for k, v in cfg.items()
        if k.endswith('_requirements')
    },
    entry_points={
        'console_scripts': cfg['console_scripts'].split(),
        'nbdev': ['mypt=mypt._modidx:d'],
    },
    zip_safe=False,
)
