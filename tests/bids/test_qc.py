"""Verdicts about registrations, from their records."""

import math

import pytest

from nio_pydra.bids.qc import ENOUGH, MEASURES, judge
from nio_pydra.bids.records import Result
from nio_pydra.profiles import BRAIN

GOOD = {
    "engine": "nio_m",
    "preset": "fast",
    "similarity": {"before": 0.3, "after": 0.6},
    "mask_overlap": 0.97,
    "contrast_correlation": 0.5,
    "mask_empty_percent": 0.1,
    "jacobian_p1": 0.4,
    "jacobian_p99": 2.2,
    "fold_percent": 0.0,
    "before_unfolding": {"fold_percent": 0.1},
    "affine": {"scales": [0.85, 0.92, 0.98], "turn_degrees": 5.0},
}


def changed(place, value):
    """Return the good record with another value at a place."""
    if not place:
        return value
    container = list(GOOD_AT[place[:-1]]) if isinstance(GOOD_AT[place[:-1]], list) else dict(GOOD_AT[place[:-1]])
    container[place[-1]] = value
    return changed(place[:-1], container)


GOOD_AT = {(): GOOD, ("similarity",): GOOD["similarity"], ("affine",): GOOD["affine"],
           ("affine", "scales"): GOOD["affine"]["scales"], ("before_unfolding",): GOOD["before_unfolding"]}  # fmt: skip


def results(*records, space="MNI"):
    found = []
    for number, record in enumerate(records):
        entities = {"sub": f"{number:02}", "space": space, "desc": "nio"}
        found.append(Result(f"sub-{number:02}_space-{space}_desc-nio", entities, record))
    return found


def last(*records):
    return list(judge(results(*records)).values())[-1]


def test_a_good_scan_passes_alone_and_beside_others():
    assert last(GOOD).status == "pass"
    assert {verdict.status for verdict in judge(results(*[GOOD] * 20)).values()} == {"pass"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name, limits in sorted(BRAIN.limits.items())
        for kind in ("look", "fail")
        if any(map(math.isfinite, getattr(limits, kind)))
    ],
)
def test_a_value_beyond_a_fixed_limit_is_flagged_with_its_name(name, kind):
    measure = next(measure for measure in MEASURES if measure.name == name)
    limits = getattr(BRAIN.limits[name], kind)
    beyond = [limit + step for limit, step in zip(limits, (-0.01, 0.01), strict=True) if math.isfinite(limit)]
    for value in beyond:
        verdict = last(changed(measure.place, value))
        assert verdict.status == kind
        assert any(reason.startswith(f"{name} ") and "expected" in reason for reason in verdict.reasons)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_a_value_far_from_the_other_scans_must_be_looked_at(measure):
    usual = GOOD
    for key in measure.place:
        usual = usual[key]
    steps = {"low": (-1,), "high": (1,), "both": (-1, 1)}[measure.bad]
    for step in steps:
        odd = changed(measure.place, usual + 1.01 * step * measure.least)
        assert last(*[GOOD] * ENOUGH, odd).status != "pass"
        assert last(*[GOOD] * ENOUGH, changed(measure.place, usual + 0.9 * step * measure.least)).status == "pass"
        if measure.name not in BRAIN.limits:
            assert last(*[GOOD] * (ENOUGH - 1), odd).status == "pass", "too few scans to compare with"
            assert "beside the other scans" in last(*[GOOD] * ENOUGH, odd).reasons[0]


def test_scans_that_differ_among_themselves_have_wider_limits():
    spread = [changed(("similarity", "after"), 0.6 + 0.02 * (number % 7 - 3)) for number in range(20)]
    odd = changed(("similarity", "after"), 0.48)
    assert last(*[GOOD] * 20, odd).status == "look"
    assert last(*spread, odd).status == "pass"


def test_only_scans_with_the_same_atlas_engine_and_preset_are_compared():
    others = [{**GOOD, "preset": "paper"}] * ENOUGH
    odd = changed(("similarity", "after"), 0.3)
    assert last(*others, odd).status == "pass"
    together = [*results(*[GOOD] * ENOUGH, space="Other"), *results(odd)]
    assert list(judge(together).values())[-1].status == "pass"


def test_a_failed_scan_fails_with_its_reason_and_does_not_count_for_the_others():
    failed = Result("sub-x_space-MNI_desc-nio", {"sub": "x", "space": "MNI", "desc": "nio"},
                    {"engine": "nio_m", "reason": "no\nbrain"}, failed=True)  # fmt: skip
    verdicts = judge([failed, *results(*[GOOD] * ENOUGH)])
    assert (verdicts[failed.name].status, verdicts[failed.name].reasons) == ("fail", ("no brain",))
    assert [verdict.status for verdict in verdicts.values()][1:] == ["pass"] * ENOUGH


def test_records_of_older_versions_without_some_measures_are_judged_by_the_rest():
    old = {key: GOOD[key] for key in ("engine", "preset", "similarity", "fold_percent")}
    assert last(old).status == "pass"
    assert last(*[GOOD] * ENOUGH, old | {"similarity": {"before": 0.01, "after": 0.02}}).status == "look"
