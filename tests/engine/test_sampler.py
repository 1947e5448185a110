"""Schedules, the UniPC solver, guidance and noise against golden figures and an independent implementation."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InvalidInput
from engine.sampler import (
    DistilledSde,
    Guidance,
    UniPc,
    combine,
    flow_unipc_schedule,
    framework_noise,
    request_seeds,
)

# Integer timesteps of the reference framework's scheduler, one row for each (steps, shift).
GOLDEN_TIMESTEPS = {
    (4, 5.0): '999 937 833 624',
    (10, 3.0): '999 963 922 874 817 749 666 562 428 249',
    (20, 12.0): '999 995 990 985 979 972 965 956 947 936 922 907 888 865 837 799 749 678 571 386',
    (30, 10.0): '999 996 992 988 984 980 975 970 964 958 952 945 937 928 919 908 897 884 869 852 833 810 784 752 714 '
    '666 605 526 416 256',
    (30, 5.0): '999 992 985 978 969 961 952 942 931 920 908 895 882 867 850 833 813 792 768 742 713 681 644 603 555 '
    '499 434 356 262 146',
    (35, 10.0): '999 996 993 990 987 983 979 975 971 966 961 956 950 944 937 930 922 913 904 893 882 869 855 838 820 '
    '799 775 747 714 673 624 563 483 377 227',
    (50, 3.0): '999 992 985 978 971 963 956 948 939 931 922 913 904 894 884 874 864 853 841 829 817 805 792 778 764 '
    '749 734 718 701 684 666 647 627 606 585 562 538 512 486 458 428 396 363 327 290 249 206 160 111 57',
}


@pytest.mark.parametrize(('steps', 'shift'), GOLDEN_TIMESTEPS)
def test_a_schedule_has_the_timesteps_of_the_reference_framework(steps: int, shift: float):
    expected = tuple(int(t) for t in GOLDEN_TIMESTEPS[steps, shift].split())
    assert flow_unipc_schedule(steps, shift).timesteps == expected


def test_the_policys_noise_levels_are_the_published_ones():
    schedule = flow_unipc_schedule(4, 5.0)
    assert schedule.sigmas.dtype == np.float32
    np.testing.assert_allclose(schedule.sigmas, [0.9997998, 0.9372655, 0.8330554, 0.6246874, 0.0], atol=1e-7)
    np.testing.assert_allclose(flow_unipc_schedule(10, 3.0).sigmas[0], 0.9996665, atol=1e-7)


def test_an_even_schedule_truncates_where_the_float32_start_decides():
    timesteps = flow_unipc_schedule(30, 1.0).timesteps
    assert (timesteps[10], timesteps[20]) == (666, 333)


@given(steps=st.integers(1, 200), shift=st.floats(0.01, 100.0))
def test_noise_levels_descend_from_below_one_to_zero(steps: int, shift: float):
    schedule = flow_unipc_schedule(steps, shift)
    assert len(schedule) == steps == len(schedule.sigmas) - 1
    assert schedule.sigmas[0] < 1.0
    assert schedule.sigmas[-1] == 0.0
    assert (np.diff(schedule.sigmas) < 0).all()


def test_a_bad_schedule_reports_every_fault():
    with pytest.raises(InvalidInput) as error:
        flow_unipc_schedule(0, float('nan'))
    assert [problem.where for problem in error.value.problems] == ['steps', 'shift']


def test_a_schedule_cannot_be_altered_by_its_users():
    with pytest.raises(ValueError, match='read-only'):
        flow_unipc_schedule(4, 5.0).sigmas[0] = 0.0


def run(steps: int, shift: float, velocity: Any, start: torch.Tensor) -> list[torch.Tensor]:
    schedule = flow_unipc_schedule(steps, shift)
    solver = UniPc(schedule)
    sample, visited = start, []
    for k, timestep in enumerate(schedule.timesteps):
        sample = solver.step(k, velocity(sample, timestep), sample)
        visited.append(sample)
    return visited


@pytest.mark.parametrize(
    ('steps', 'shift', 'velocity', 'golden'),
    [
        (4, 5.0, lambda x, t: x, [0.93746561, 0.842016178, 0.68020947, 0.255291203]),
        (4, 5.0, lambda x, t: x * t / 1000, [0.937528144, 0.850308592, 0.727033139, 0.443632043]),
        (10, 3.0, lambda x, t: torch.cos(3 * x) + t / 1000, [1.264787772, 1.401025124]),
    ],
    ids=['proportional', 'proportional in time', 'nonlinear'],
)
def test_a_toy_trajectory_visits_the_golden_points(steps: int, shift: float, velocity: Any, golden: list[float]):
    visited = [x.item() for x in run(steps, shift, velocity, torch.ones(1))]
    np.testing.assert_allclose(visited[-len(golden) :], golden, atol=5e-7)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    recipe=st.sampled_from([(1, 5.0), (2, 5.0), (3, 5.0), (4, 5.0), (10, 3.0), (20, 12.0), (30, 10.0), (35, 10.0)]),
)
def test_trajectories_agree_with_diffusers_solver(seed: int, recipe: tuple[int, float]):
    steps, shift = recipe
    scheduler = diffusers_scheduler(steps, shift)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(1, 3, 4, generator=generator)
    mix = torch.randn(4, 4, generator=generator) / 2

    def velocity(x: torch.Tensor, t: int) -> torch.Tensor:
        return torch.tanh(x @ mix) + x * t / 2000

    expected = start
    for ours, t in zip(run(steps, shift, velocity, start), scheduler.timesteps.tolist(), strict=True):
        expected = scheduler.step(velocity(expected, t), t, expected).prev_sample
        # Of 35 steps in float32 either side is off by up to 2e-6, and both together have been seen 3.1e-6 apart.
        torch.testing.assert_close(ours, expected, rtol=0, atol=6e-6)


def diffusers_scheduler(steps: int, shift: float) -> Any:
    diffusers = pytest.importorskip('diffusers')
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type='flow_prediction', use_flow_sigmas=True, flow_shift=shift, solver_order=2, solver_type='bh2'
    )
    scheduler.set_timesteps(sigmas=np.linspace(0.999, 0.0, steps + 1)[:-1])
    assert tuple(scheduler.timesteps.tolist()) == flow_unipc_schedule(steps, shift).timesteps
    return scheduler


def basis_run(steps: int, shift: float) -> torch.Tensor:
    """Each row: the sample after a step, in coordinates (start, velocity of step 0, of step 1, ...)."""
    basis = torch.eye(steps + 1)
    velocities = iter(basis[1:])
    return torch.stack(run(steps, shift, lambda x, t: next(velocities), basis[0]))


def test_the_policys_four_steps_are_one_constant_linear_map():
    expected = [
        [1, -0.062534, 0, 0, 0],
        [1, -0.026651, -0.140094, 0, 0],
        [1, -0.027461, 0.004177, -0.351828, 0],
        [1, -0.027461, 0.004177, -0.351828, -0.624687],
    ]
    np.testing.assert_allclose(basis_run(4, 5.0), expected, atol=2e-6)
    np.testing.assert_allclose(basis_run(2, 5.0), [[1, -0.166744, 0], [1, -0.166744, -0.833055]], atol=2e-6)


def test_any_run_ends_at_the_constant_combination_of_its_velocities():
    generator = torch.Generator().manual_seed(3)
    start, *velocities = torch.randn(11, 5, generator=generator)
    feed = iter(velocities)
    final = run(10, 3.0, lambda x, t: next(feed), start)[-1]
    torch.testing.assert_close(final, basis_run(10, 3.0)[-1] @ torch.stack([start, *velocities]), rtol=0, atol=5e-6)


@pytest.mark.parametrize('steps', [1, 2, 3, 4, 5])
def test_short_and_long_runs_go_the_same_way(monkeypatch: pytest.MonkeyPatch, steps: int):
    """Sums of velocities for a few steps, three tensors for many: nothing changes at the seam."""
    start = torch.randn(1000, generator=torch.Generator().manual_seed(4))
    ways = []
    for short in (0, 10):
        monkeypatch.setattr('engine.sampler.SHORT', short)
        ways.append(run(steps, 5.0, lambda x, t: torch.sin(x) + t / 1000, start))
    torch.testing.assert_close(ways[0], ways[1], rtol=0, atol=2e-6)


@pytest.mark.parametrize(('steps', 'shift'), [(4, 5.0), (30, 10.0)])
def test_positions_without_velocity_keep_their_value_bit_for_bit(steps: int, shift: float):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(1000, generator=generator)
    moving = torch.arange(1000) % 2 == 0

    def velocity(x: torch.Tensor, t: int) -> torch.Tensor:
        return torch.where(moving, torch.sin(5 * x), 0.0)

    final = run(steps, shift, velocity, start)[-1]
    assert torch.equal(final[~moving], start[~moving])
    assert not torch.isclose(final[moving], start[moving]).all()


def test_the_last_step_returns_the_predicted_clean_sample_itself():
    schedule = flow_unipc_schedule(2, 5.0)
    solver = UniPc(schedule)
    velocity = torch.randn(7, generator=torch.Generator().manual_seed(1))
    sample = solver.step(0, velocity, torch.ones(7))
    predicted = sample - velocity * float(schedule.sigmas[1])
    torch.testing.assert_close(solver.step(1, velocity, sample), predicted, rtol=0, atol=2e-7)


def test_modalities_stepped_together_equal_modalities_stepped_alone():
    generator = torch.Generator().manual_seed(2)
    start = {'video': torch.randn(2, 3, generator=generator), 'action': torch.randn(5, generator=generator)}
    schedule = flow_unipc_schedule(4, 5.0)
    solver, sample = UniPc(schedule), dict(start)
    pair, ordered = UniPc(schedule), (start['video'], start['action'])
    for k in range(4):
        velocity = {name: torch.cos(x) for name, x in sample.items()}
        sample = solver.step(k, dict(reversed(velocity.items())), sample)
        ordered = pair.step(k, tuple(torch.cos(x) for x in ordered), ordered)
    for name, other in zip(start, ordered, strict=True):
        alone = run(4, 5.0, lambda x, t: torch.cos(x), start[name])[-1]
        assert torch.equal(sample[name], alone)
        assert torch.equal(other, alone)


def test_a_solver_serves_one_request_after_another():
    schedule = flow_unipc_schedule(4, 5.0)
    solver = UniPc(schedule)

    def request() -> torch.Tensor:
        sample = torch.linspace(-1, 1, 9)
        for k in range(4):
            sample = solver.step(k, torch.sin(sample), sample)
        return sample

    first = request()
    solver.step(0, torch.ones(3), torch.zeros(3))  # a request that was abandoned
    assert torch.equal(request(), first)


def test_inputs_are_left_as_they_were():
    sample, velocity = torch.ones(3), torch.ones(3)
    solver = UniPc(flow_unipc_schedule(4, 5.0))
    following = solver.step(0, velocity, sample)
    kept = following.clone()
    solver.step(1, velocity, following)
    assert torch.equal(sample, torch.ones(3))
    assert torch.equal(velocity, torch.ones(3))
    assert torch.equal(following, kept)


@pytest.mark.parametrize('steps', [1, 2, 4, 5])
def test_who_allows_results_in_place_gets_the_same_ones_and_keeps_its_first_sample(steps: int):
    """For runs that are short and long, with guidance, in the memory of samples and velocities."""
    schedule, start = flow_unipc_schedule(steps, 5.0), torch.randn(64, generator=torch.Generator().manual_seed(5))
    given, found = start.clone(), []
    for overwrite in (False, True):
        solver, sample = UniPc(schedule), start
        for k in range(steps):
            with_words, without = torch.sin(sample), torch.cos(sample)
            velocity = combine(with_words, without, 3.0, overwrite=overwrite)
            sample = solver.step(k, velocity, sample, overwrite=overwrite)
        found.append(sample)
    assert torch.equal(*found)
    assert torch.equal(start, given)


@pytest.mark.parametrize('k', [2, 4, -1])
def test_a_step_out_of_turn_is_refused(k: int):
    solver = UniPc(flow_unipc_schedule(4, 5.0))
    solver.step(0, torch.ones(1), torch.ones(1))
    with pytest.raises(ValueError, match='out of turn'):
        solver.step(k, torch.ones(1), torch.ones(1))


def test_a_sample_that_would_drift_is_refused():
    with pytest.raises(TypeError, match='bfloat16'):
        UniPc(flow_unipc_schedule(4, 5.0)).step(0, torch.ones(1), torch.ones(1, dtype=torch.bfloat16))


def test_a_network_may_answer_in_lower_precision():
    solver = UniPc(flow_unipc_schedule(4, 5.0))
    assert solver.step(0, torch.ones(4, dtype=torch.bfloat16), torch.ones(4)).dtype == torch.float32


def test_velocities_of_other_modalities_are_refused():
    with pytest.raises(ValueError, match='structure'):
        UniPc(flow_unipc_schedule(4, 5.0)).step(0, {'video': torch.ones(1)}, {'action': torch.ones(1)})


FOUR_STEPS = flow_unipc_schedule(4, 5.0)  # timesteps 999, 937, 833, 624


def test_guidance_of_scale_one_never_asks_for_the_unconditional_branch():
    for guidance in (Guidance(1.0), Guidance(1.0, (0, 1000)), Guidance(1.0, steps=(1, 2))):
        assert not any(guidance.mask(FOUR_STEPS))


def test_guidance_without_interval_acts_at_every_step():
    assert Guidance(3.0).mask(FOUR_STEPS) == (True, True, True, True)


def test_the_edge_policys_interval_selects_only_the_first_step():
    assert Guidance(3.0, (960, 1001)).mask(FOUR_STEPS) == (True, False, False, False)


def test_the_ends_of_an_interval_belong_to_it_only_when_it_is_not_strict():
    assert Guidance(3.0, (833, 999)).mask(FOUR_STEPS) == (False, True, False, False)
    assert Guidance(3.0, (833, 999), strict=False).mask(FOUR_STEPS) == (True, True, True, False)


@pytest.mark.parametrize(
    ('steps', 'mask'),
    [((3, 4), (False, False, True, True)), ((1,), (True, False, False, False)), ((), (False, False, False, False))],
)
def test_guidance_acts_in_the_steps_that_are_named(steps: tuple[int, ...], mask: tuple[bool, ...]):
    assert Guidance(3.0, steps=steps).mask(FOUR_STEPS) == mask


def test_steps_that_the_network_is_told_the_same_time_in_are_told_apart():
    schedule = flow_unipc_schedule(1000, 5.0)
    assert schedule.timesteps[0] == schedule.timesteps[1]
    assert sum(Guidance(3.0, steps=(2,)).mask(schedule)) == 1


def test_guidance_takes_an_interval_or_steps_and_not_both():
    with pytest.raises(InvalidInput, match='interval'):
        Guidance(3.0, (960, 1001), steps=(1,))


def test_guidance_extrapolates_from_the_unconditional_velocity():
    conditional, unconditional = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0])
    assert combine(conditional, unconditional, 3.0).tolist() == [4.0, -2.0]
    assert combine(conditional.bfloat16(), unconditional.bfloat16(), 3.0).dtype == torch.bfloat16


def test_normalised_guidance_never_exceeds_the_conditional_norm_over_all_modalities():
    conditional = {'video': torch.tensor([3.0, 0.0]), 'action': torch.tensor([4.0])}
    unconditional = {name: torch.zeros_like(x) for name, x in conditional.items()}
    guided = combine(conditional, unconditional, 3.0, normalize=True)
    for name, expected in conditional.items():
        torch.testing.assert_close(guided[name], expected)
    shorter = combine(conditional, unconditional, 0.5, normalize=True)
    assert shorter['action'].item() == 2.0


def test_noise_is_that_of_the_reference_framework():
    video = framework_noise(0, (1, 48, 9, 33, 40))
    assert torch.equal(video.flatten()[:4], torch.tensor([1.7640524, 0.4001572, 0.978738, 2.2408931]))
    assert video[0, 47, 8, 32, 39] == torch.tensor(0.79402685)
    action = framework_noise(0, (33, 64))
    assert torch.equal(action[1, :3], torch.tensor([0.17742614, -0.40178093, -1.6301984]))
    assert torch.equal(action.flatten(), video.flatten()[: action.numel()])


def test_request_seeds_are_those_of_the_robolab_server():
    assert list(islice(request_seeds(0), 4)) == [1826701615, 1367864807, 1097657232, 579362556]


def test_the_distilled_sampler_tells_the_network_untruncated_timesteps():
    assert DistilledSde(seed=0).timesteps == (1000.0, 937.5, 1000 * 0.8333333333333334, 625.0)


def test_a_distilled_step_adds_fresh_noise_of_its_own_seed():
    sampler = DistilledSde(seed=7)
    sample, velocity = torch.full((2, 3), 2.0), torch.full((2, 3), 0.5)
    noise = torch.randn(6, generator=torch.Generator().manual_seed(8)).view(2, 3)
    predicted = 2.0 - 0.9375 * 0.5
    expected = (1 - sampler.sigmas[2]) * predicted + sampler.sigmas[2] * noise
    torch.testing.assert_close(sampler.step(1, velocity, sample), expected)


def test_the_last_distilled_step_adds_no_noise():
    sampler = DistilledSde(seed=7)
    assert torch.equal(sampler.step(3, torch.ones(2), torch.ones(2)), torch.full((2,), 0.375))


def test_a_distilled_step_puts_conditioning_back():
    keep = torch.tensor([True, False])
    stepped = DistilledSde(seed=0).step(0, torch.ones(2), torch.ones(2), clean=torch.full((2,), 9.0), keep=keep)
    assert stepped[0] == 9.0
    assert stepped[1] != 9.0
