"""`cosmos3 serve`: a real process that a real client asks, and that ends when it is told to."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from openpi_client.websocket_client_policy import WebsocketClientPolicy

import engine
from cosmos3_ros.cli import _parser, main
from cosmos3_ros.cli_serve import _options
from engine.checkpoint import open_checkpoint
from engine.serving.client import RemotePolicy
from engine.serving.options import ServerOptions
from engine.serving.terms import identity_said

KEY = 'COSMOS3_TEST_KEY'


@pytest.mark.slow
def test_a_served_checkpoint_answers_openpis_client_and_ends_in_peace(tmp_path: Path) -> None:
    tiny = engine.make_tiny(tmp_path / 'tiny', sound=False)
    command = [sys.executable, '-m', 'cosmos3_ros.cli', 'serve', str(tiny), '--contract', 'demo_joint_pos']
    options = ['--port', '0', '--no-warm-up', '--preset', 'fast', '--api-key-variable', KEY]
    environment = {**os.environ, KEY: 'a-key', 'OMP_NUM_THREADS': '1'}
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            told = process.stdout.readline()
            url = re.match(r'(ws://127\.0\.0\.1:\d+): demo_joint_pos on torch, dialect auto', told)[1]
            with RemotePolicy(url, engine.load_contract('demo_joint_pos'), api_key='a-key') as remote:
                remote.connect()
                fingerprint = open_checkpoint(tiny).fingerprint
                told = {'checkpoint': fingerprint, 'preset': 'fast', 'dtype': 'float32'}
                assert told.items() <= identity_said(remote.said).items()
            client = WebsocketClientPolicy(url, api_key='a-key')
            views = ('wrist_image_left', 'exterior_image_1_left', 'exterior_image_2_left')
            answer = client.infer(
                {
                    **{f'observation/{view}': np.zeros((180, 320, 3), np.uint8) for view in views},
                    'observation/joint_position': np.zeros(7),
                    'observation/gripper_position': np.zeros(1),
                    'prompt': 'put the red cube in the bowl',
                }
            )
            assert answer['actions'].shape == (32, 8)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (['--port', '99999'], 'port: is out of range'),
        (['--dialect', 'grpc'], "dialect: is not known, got 'grpc'"),
        (['--queue', '-1'], 'queue: is out of range'),
        (['--fleet', '2', '--batch', '4'], '--batch: means nothing with --fleet'),
        (['--idle', 'nan'], 'idle_s: is out of range'),
        (['--preset', 'faster'], 'preset: is not known'),
        (['--contract', 'nosuch'], 'droid_joint_pos'),
        (['--api-key-variable', 'COSMOS3_NO_SUCH_KEY'], 'names a variable that is empty or not set'),
    ],
)
def test_faults_are_told_before_anything_is_loaded(
    changes: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(['serve', 'no checkpoint', '--contract', 'demo_joint_pos', *changes]) == 2
    assert words in capsys.readouterr().err


def test_the_document_lists_limits_with_their_names_and_defaults(repository: Path) -> None:
    text = (repository / 'docs/serving.md').read_text()
    rows = re.findall(r'^\| (`[a-z_`, ]+)(?: \(`(--[a-z]+)`\))? \| ([\d., ]+) \|', text, re.M)
    names = [
        (name.strip(' `'), value)
        for row in rows
        for name, value in zip(row[0].split(','), row[2].split(','), strict=True)
    ]
    assert len(names) == 9
    for name, value in names:
        assert float(value) == getattr(ServerOptions(), name), name
    offered = _parser().parse_args(['serve', 'here', '--contract', 'any'])
    for name, option, value in rows:
        if option:
            assert float(value) == getattr(offered, option[2:]), name


def test_the_command_line_has_the_defaults_of_the_server() -> None:
    assert _options(_parser().parse_args(['serve', 'here', '--contract', 'any'])) == ServerOptions()
