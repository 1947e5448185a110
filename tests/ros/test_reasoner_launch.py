"""Promises of starting a reasoner: with the policy, or by itself where an endpoint answers."""

from __future__ import annotations

import signal

import pytest
import yaml

from cosmos3_ros.bringup import Options, processes
from cosmos3_ros.host import wanted
from cosmos3_ros.reasoner_node import PARAMETERS
from cosmos3_ros.runner import command
from engine.errors import InvalidInput
from tests.openai_server import OpenAIServer

ENDPOINT = {'reasoner': True, 'reasoner_url': 'http://localhost:8000/v1', 'reasoner_model': 'nano'}


def by_name(**options: object) -> dict:
    return {spec.name: spec for spec in processes(Options(**{'checkpoint': 'somewhere', **options}))}


def test_a_reasoner_on_the_weights_of_the_policy_shares_its_process():
    assert by_name(reasoner=True)['policy'].nodes == ('policy', 'reasoner')
    assert by_name(reasoner=True, dynamics=True)['policy'].nodes == ('policy', 'dynamics', 'reasoner')
    assert 'reasoner' not in by_name(reasoner=True)
    assert by_name(reasoner=True)['policy'].parameters['checkpoint'] == 'somewhere'


def test_a_reasoner_that_asks_an_endpoint_has_a_process_of_its_own_and_no_checkpoint():
    specs = by_name(**ENDPOINT)
    assert specs['policy'].nodes == ()
    spec = specs['reasoner']
    assert (spec.executable, spec.nodes) == ('host', ('reasoner',))
    assert spec.parameters['url'] == 'http://localhost:8000/v1'
    assert 'checkpoint' not in spec.parameters
    assert command(spec)[2:4] == ['cosmos3_ros.host', 'reasoner']
    assert wanted(['reasoner', '--ros-args']) == ['reasoner']


@pytest.mark.parametrize(
    ('options', 'where'),
    [
        ({**ENDPOINT, 'reasoner': False}, {'reasoner_url', 'reasoner_model'}),
        ({**ENDPOINT, 'reasoner_model': ''}, {'reasoner_model'}),
        ({**ENDPOINT, 'reasoner_url': ''}, {'reasoner_url'}),
    ],
)
def test_an_endpoint_is_named_completely_or_not_at_all(options, where):
    with pytest.raises(InvalidInput) as raised:
        by_name(**options)
    assert {problem.where for problem in raised.value.problems} == where


def test_the_shipped_parameter_file_has_the_defaults_of_the_code(repository):
    content = yaml.safe_load((repository / 'config/params/policy.yaml').read_text())
    defaults = {parameter.name: parameter.default for parameter in PARAMETERS}
    for name, value in content['/**/reasoner']['ros__parameters'].items():
        assert defaults[name] == (tuple(value) if isinstance(value, list) else value), name


def test_the_process_of_a_remote_reasoner_comes_up_and_ends_with_code_0(program):
    with OpenAIServer() as server:
        spec = by_name(**{**ENDPOINT, 'contract': 'demo_joint_pos', 'reasoner_url': server.url})['reasoner']
        running = program(*command(spec)[1:])
        running.wait_for('the reasoner answers', timeout=60.0)
        code, _ = running.end(signal.SIGINT)
    assert code == 0, running.output
