"""What the documents say is what the code does: links, tables, commands and examples."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
NODES = ROOT / 'docs/nodes.md'
# What every node has from the base class, explained once.
COMMON_PARAMETERS = {'autostart': 'node_base', 'diagnostic_updater.period': 'diagnostics'}
PROGRAMS = ('cosmos3', '.venv/bin/cosmos3')
STARTERS = ('ros2 launch cosmos3_ros policy.launch.py', '.venv/bin/python -m cosmos3_ros.runner')


@dataclass(frozen=True)
class Block:
    """A fenced block of code: where it is, its language, its text."""

    document: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f'{self.document.relative_to(ROOT)}:{self.line}'


def blocks(language: str) -> list[Block]:
    found = []
    for document in DOCUMENTS:
        text = document.read_text()
        for match in re.finditer(r'^```(\w*)\n(.*?)^```$', text, re.M | re.S):
            line = text[: match.start()].count('\n') + 1
            found.append(Block(document, line, match[1], match[2]))
    return [block for block in found if block.language == language]


def commands() -> Iterator[tuple[Block, list[str]]]:
    """Every command of every shell block, split into words; comments dropped, continued lines joined."""
    for block in blocks('bash'):
        for line in block.text.replace('\\\n', ' ').splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield block, words


def prose(document: Path) -> str:
    """The text of a document without its blocks of code."""
    return re.sub(r'^```.*?^```$', '', document.read_text(), flags=re.M | re.S)


def section(document: Path, heading: str) -> str:
    """The text under a heading of the second level, up to the next one."""
    match = re.search(rf'^## {re.escape(heading)}$\n(.*?)(?=^## |\Z)', document.read_text(), re.M | re.S)
    assert match, f'{document.name} has no section {heading!r}'
    return match[1]


def rows(text: str) -> set[tuple[str, ...]]:
    """Cells of all rows of all tables in a text."""
    lines = [line for line in text.splitlines() if line.startswith('|')]
    return {tuple(cell.strip() for cell in line.strip('|').split('|')) for line in lines}


# Links


def anchors(document: Path) -> set[str]:
    """Anchors as GitHub makes them of headings."""
    headings = re.findall(r'^#+ (.+)$', prose(document), re.M)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document):
    broken = []
    for target in re.findall(r'\]\(([^)\s]+)\)', prose(document)):
        path, _, anchor = target.partition('#')
        place = (document.parent / path).resolve() if path else document
        if path.startswith(('http://', 'https://')):
            continue
        if not place.exists() or (anchor and anchor not in anchors(place)):
            broken.append(target)
    assert broken == []


def test_every_document_can_be_reached_from_the_readme():
    linked = set(re.findall(r'\]\(([^)#\s]+)', (ROOT / 'README.md').read_text()))
    assert {str(path.relative_to(ROOT)) for path in DOCUMENTS[1:]} - linked == set()


@pytest.mark.parametrize('picture', sorted((ROOT / 'docs/images').glob('*.svg')), ids=lambda path: path.name)
def test_drawings_are_well_formed_and_say_what_they_show(picture):
    root = ElementTree.parse(picture).getroot()
    assert len(root.findtext('{*}title')) > 20


# Tables


def argument_row(argument) -> tuple[str, str, str]:
    default = f'`{argument.default}`' if argument.default else 'empty'
    choices = f' One of {", ".join(f"`{choice}`" for choice in argument.choices)}.' if argument.choices else ''
    return f'`{argument.name}`', default, argument.description + choices


def test_the_readme_lists_the_launch_arguments_as_they_are():
    from cosmos3_ros.bringup import LAUNCH_ARGUMENTS

    listed = {row for row in rows(section(ROOT / 'README.md', 'ROS 2')) if len(row) == 3}
    wanted = {argument_row(argument) for argument in LAUNCH_ARGUMENTS}
    assert wanted - listed == set()
    known = {argument.name for argument in LAUNCH_ARGUMENTS}
    assert {name for name, *_ in listed if name.strip('`') in known and not name.startswith('~')} == {
        f'`{name}`' for name in known
    }


def test_the_guards_document_lists_every_reason_with_its_number_and_a_remedy():
    from cosmos3_ros.guard.reasons import Reason

    listed = {row[:3]: row[3] for row in rows(section(ROOT / 'docs/guard.md', 'Reasons')) if row[0].isdigit()}
    wanted = {(str(int(reason)), f'`{reason.name}`', reason.sentence) for reason in Reason}
    assert set(listed) == wanted
    assert [row for row, remedy in listed.items() if len(remedy) < 10] == []


def node_modules() -> list[str]:
    """Modules that declare the parameters of a node; read without importing, which needs ROS."""
    found = []
    for path in sorted((ROOT / 'cosmos3_ros').glob('*.py')):
        targets = [t for n in ast.parse(path.read_text()).body if isinstance(n, ast.Assign) for t in n.targets]
        if any(isinstance(target, ast.Name) and target.id == 'PARAMETERS' for target in targets):
            found.append(path.stem)
    return found


def node_name(module: str) -> str:
    """Name of the node that a module makes, as its constructor says."""
    text = (ROOT / f'cosmos3_ros/{module}.py').read_text()
    match = re.search(r"def __init__\(self, name: str = '(\w+)'|super\(\).__init__\('(\w+)'\)", text)
    assert match, f'{module} does not say what its node is called'
    return match[1] or match[2]


def parameters_of(module: str) -> tuple:
    pytest.importorskip('rclpy', reason='ROS 2 is not installed')
    return importlib.import_module(f'cosmos3_ros.{module}').PARAMETERS


def parameter_row(parameter) -> tuple[str, ...]:
    from cosmos3_ros.parameters import Required

    default = parameter.default
    if isinstance(default, Required):
        text = 'required'
    elif isinstance(default, tuple):
        text = ', '.join(f'`{value}`' for value in default) or 'empty'
    else:
        text = f'`{str(default).lower() if isinstance(default, bool) else default}`' if default != '' else 'empty'
    change = 'no' if parameter.read_only else 'yes'
    return f'`{parameter.name}`', text, parameter.allowed, change, parameter.description


@pytest.mark.parametrize('module', node_modules())
def test_the_parameters_of_every_node_are_listed_as_they_are(module):
    wanted = {parameter_row(parameter) for parameter in parameters_of(module)}
    listed = {row for row in rows(section(NODES, node_name(module))) if len(row) == 5 and row[0].startswith('`')}
    assert listed == wanted


def test_the_parameters_that_all_nodes_have_are_listed_as_they_are():
    pytest.importorskip('rclpy', reason='ROS 2 is not installed')
    from cosmos3_ros import diagnostics, node_base

    wanted = {parameter_row(diagnostics._PERIOD), parameter_row(node_base._AUTOSTART)}
    assert {row for row in rows(section(NODES, 'What all nodes share')) if len(row) == 5} >= wanted


def spoken_names(module: str) -> set[str]:
    """Fixed text of every topic, service and action name that a node's source opens."""
    opening = ('advertise', 'subscribe', 'create_service', 'create_subscription', 'ActionServer', 'ActionClient')
    names = set()
    for node in ast.walk(ast.parse((ROOT / f'cosmos3_ros/{module}.py').read_text())):
        called = isinstance(node, ast.Call) and getattr(node.func, 'attr', getattr(node.func, 'id', ''))
        if called in opening:
            for argument in node.args:
                parts = argument.values if isinstance(argument, ast.JoinedStr) else [argument]
                names |= {
                    p.value.strip('/~') for p in parts if isinstance(p, ast.Constant) and isinstance(p.value, str)
                }
    return {name for name in names if name}


@pytest.mark.parametrize('module', node_modules())
def test_the_topics_services_and_actions_of_every_node_are_named(module):
    text = section(NODES, node_name(module))
    assert {name for name in spoken_names(module) if name not in text} == set()


def test_every_interface_is_explained_where_nodes_are():
    interfaces = {
        path.stem for path in (ROOT / 'cosmos3_msgs').glob('*/*') if path.suffix in ('.msg', '.srv', '.action')
    }
    assert {name for name in interfaces if f'`{name}`' not in NODES.read_text()} == set()


# Contracts


def keys(tree: object, prefix: str = '') -> Iterator[str]:
    """Dotted names of all leaves; names of views and arms, which are the user's, as NAME."""
    if not isinstance(tree, dict):
        yield prefix
        return
    for name, value in tree.items():
        by_arm = prefix == 'state.end_effector' and isinstance(value, dict)
        own = 'NAME' if by_arm or prefix in ('views.streams', 'robot.arms') else name
        yield from keys(value, f'{prefix}.{own}' if prefix else own)


@pytest.mark.parametrize('contract', sorted((ROOT / 'config/contracts').glob('*.yaml')), ids=lambda path: path.stem)
def test_every_key_of_a_shipped_contract_is_explained(contract):
    text = (ROOT / 'docs/contract.md').read_text()
    written = set(keys(yaml.safe_load(contract.read_text())))
    # `end_effector: null` in one contract, a mapping in another: either is explained by the mapping's keys.
    assert {key for key in written if f'`{key}`' not in text and f'`{key}.' not in text} == set()


def test_every_key_that_is_explained_exists(tmp_path):
    from engine.contract import load_contract
    from engine.errors import ContractError

    explained = {row[0].strip('`') for row in rows((ROOT / 'docs/contract.md').read_text()) if row[0].startswith('`')}
    written = {
        key for path in (ROOT / 'config/contracts').glob('*.yaml') for key in keys(yaml.safe_load(path.read_text()))
    }
    assert {key for key in explained if '.' in key} - written == set()
    # And the reader knows no others: an unknown key is refused with the list of those it knows.
    tree = yaml.safe_load((ROOT / 'config/contracts/droid_joint_pos.yaml').read_text())
    for name in [name for name, part in tree.items() if isinstance(part, dict)]:
        tree[name]['unheard_of'] = 1
    path = tmp_path / 'contract.yaml'
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(ContractError) as raised:
        load_contract(path)
    known = {
        f'{problem.where.rpartition(".")[0]}.{name}'
        for problem in raised.value.problems
        if problem.where.endswith('.unheard_of')
        for name in problem.allowed.split(', ')
    }
    assert known
    assert {key for key in known if not any(e == key or e.startswith(f'{key}.') for e in explained)} == set()


# Commands and examples


def test_every_make_target_in_the_documents_exists():
    targets = set(re.findall(r'^([a-z]+):', (ROOT / 'Makefile').read_text(), re.M))
    used = {word for _, words in commands() if words[0] == 'make' for word in words[1:] if re.fullmatch('[a-z]+', word)}
    assert used
    assert used - targets == set()


def test_the_command_line_understands_every_command_in_the_documents():
    from cosmos3_ros.cli import _parser

    used = [(block, words[1:]) for block, words in commands() if words[0] in PROGRAMS]
    used += [(b, words[4:]) for b, words in commands() if words[:4] == ['ros2', 'run', 'cosmos3_ros', 'cosmos3']]
    used += [
        (b, ['demo', *shlex.split(words[2][5:])])
        for b, words in commands()
        if words[:2] == ['make', 'demo'] and words[2:]
    ]
    assert used
    for block, words in used:
        try:
            _parser().parse_args(words)
        except SystemExit:
            pytest.fail(f'{block}: cosmos3 {" ".join(words)}')


def test_every_start_in_the_documents_gives_arguments_that_exist():
    from cosmos3_ros.bringup import options_from_text

    used = 0
    for block, words in commands():
        starter = next((s.split() for s in STARTERS if words[: len(s.split())] == s.split()), None)
        if starter is None or '--show-args' in words:
            continue
        used += 1
        given = [word.partition(':=') for word in words[len(starter) :]]
        assert all(sign for _, sign, _ in given), f'{block}: {words}'
        options_from_text({name: value for name, _, value in given})
    assert used


def test_every_xml_example_is_well_formed_and_includes_the_launch_file_as_it_is():
    from cosmos3_ros.bringup import options_from_text

    found = blocks('xml')
    assert found
    for block in found:
        include = ElementTree.fromstring(block.text).find('.//include')
        assert include.get('file').endswith('launch/policy.launch.py'), str(block)
        options_from_text({argument.get('name'): argument.get('value') for argument in include.findall('arg')})


def test_every_yaml_example_can_be_read_and_sets_parameters_that_exist():
    known = {}
    for module in node_modules():
        known[f'/**/{node_name(module)}'] = {parameter.name: parameter for parameter in parameters_of(module)}
    for block in blocks('yaml'):
        for key, content in yaml.safe_load(block.text).items():
            for name, value in content['ros__parameters'].items() if key in known else ():
                assert name in known[key], f'{block}: {key} {name}'
                assert known[key][name].problem(value) is None, f'{block}: {key} {name}'


def test_every_python_example_compiles():
    found = blocks('python')
    assert found
    for block in found:
        compile(block.text, str(block), 'exec')


@pytest.mark.slow
def test_the_first_python_example_of_the_readme_runs(tmp_path, monkeypatch):
    example = next(block for block in blocks('python') if block.document.name == 'README.md')
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(example.text, str(example), 'exec'), names)
    assert names['chunk'].actions.shape == (16, 8)
