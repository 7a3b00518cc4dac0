#![allow(clippy::unwrap_used)]

use super::*;
use crate::change::Change;
use crate::ids::Mac;
use crate::intake::intake;
use crate::node::Progress;

/// The drivers' table in short.
fn drivers(power: &str) -> Driver {
    let slow = power.starts_with("slow:");
    Driver {
        limit_seconds: if slow { 300 } else { 10 },
        network_boot: !power.starts_with("cloud:"),
        by_hand: power == "manual:",
    }
}

fn plan(snapshot: &Snapshot, policy: &Policy, now: Millis) -> Plan {
    super::plan(snapshot, policy, &drivers, now)
}

fn snapshot(stage: Stage, change: impl FnOnce(&mut Node)) -> Snapshot {
    let mut node = Node::new("n1".parse().unwrap(), vec![Mac([2; 6])], true, Millis(0));
    node.stage = stage;
    node.power = "fake:n1".into();
    node.tries = 1;
    change(&mut node);
    let mut snapshot = Snapshot::default();
    snapshot.apply(&Change::PutNode(Box::new(node)));
    snapshot
}

#[test]
fn only_a_node_to_be_powered_on_is_powered_on_and_not_before_its_time() {
    for stage in Stage::ALL {
        let plan = plan(&snapshot(stage, |_| {}), &Policy::default(), Millis(1));
        assert_eq!(plan.actions.len(), usize::from(stage == Stage::PoweringOn), "{stage}");
    }
    let waiting = snapshot(Stage::PoweringOn, |n| n.not_before = Some(Millis(5000)));
    let early = plan(&waiting, &Policy::default(), Millis(4999));
    assert_eq!((early.actions.len(), early.wake_at), (0, Some(Millis(5000))));
    assert_eq!(plan(&waiting, &Policy::default(), Millis(5000)).actions.len(), 1);
}

#[test]
fn every_stage_under_way_has_a_deadline_that_passes_with_a_sentence() {
    let policy = Policy::default();
    for stage in Stage::ALL {
        let state = snapshot(stage, |_| {});
        let late = plan(&state, &policy, Millis(u64::from(policy.manual_leasing_seconds) * 1000));
        assert_eq!(late.overdue.len(), usize::from(stage.is_under_way()), "{stage}");
        let at = deadline(&state, &policy, &drivers, state.nodes.values().next().unwrap());
        assert_eq!(at.is_some(), stage.is_under_way(), "{stage}");
        if let Some(at) = at {
            assert_eq!(plan(&state, &policy, Millis(at.0 - 1)).overdue.len(), 0, "{stage}");
            assert_eq!(plan(&state, &policy, at).overdue.len(), 1, "{stage}");
        }
    }
}

#[test]
fn a_power_job_has_its_drivers_own_time_from_the_moment_of_its_turn() {
    let policy = Policy::default();
    for (power, seconds) in [("fake:n1", 120), ("slow:n1", 602)] {
        let mut state = snapshot(Stage::PoweringOn, |n| n.power = power.into());
        assert!(plan(&state, &policy, Millis(80_000_000)).overdue.is_empty(), "it waits for its turn");
        let begun = Event::PowerBegun { node: "n1".parse().unwrap(), attempt: Attempt(0) };
        for change in intake(&state, &policy, Millis(1_000_000), &begun).unwrap() {
            state.apply(&change);
        }
        let at = Millis(1_000_000 + seconds * 1000);
        assert!(plan(&state, &policy, Millis(at.0 - 1)).overdue.is_empty(), "{power}");
        let late = plan(&state, &policy, at).overdue;
        assert!(
            matches!(&late[..], [Event::DeadlinePassed { reason, .. }] if reason.contains(&format!("{seconds} s")))
        );
        for change in intake(&state, &policy, at, &late[0]).unwrap() {
            state.apply(&change);
        }
        assert_eq!(state.live[&"n1".parse().unwrap()].switching, None, "the next attempt waits for a turn of its own");
    }
}

#[test]
fn what_cannot_boot_from_the_network_is_not_asked_to() {
    let state = snapshot(Stage::PoweringOn, |n| n.power = "cloud:i-1".into());
    let plan = plan(&state, &Policy::default(), Millis(1));
    assert!(plan.actions.is_empty());
    let [refusal @ Event::StageFailed { retry: false, .. }] = &plan.overdue[..] else { panic!("{plan:?}") };
    let changes = intake(&state, &Policy::default(), Millis(1), refusal).unwrap();
    assert!(changes.iter().any(|c| matches!(c, Change::PutNode(node) if node.stage == Stage::Failed)));
}

#[test]
fn a_person_has_a_day_to_press_the_button() {
    let state = snapshot(Stage::Leasing, |n| n.power = "manual:".into());
    assert!(plan(&state, &Policy::default(), Millis(86_399_999)).overdue.is_empty());
    assert_eq!(plan(&state, &Policy::default(), Millis(86_400_000)).overdue.len(), 1);
}

#[test]
fn a_fetch_is_kept_alive_by_words_and_by_pieces() {
    let policy = Policy::default();
    let mut state = snapshot(Stage::Fetching, |_| {});
    let live =
        |heard, advanced| Live { heard: Some(Millis(heard)), advanced: Some(Millis(advanced)), ..Live::default() };
    state.live.insert("n1".parse().unwrap(), live(290_000, 100_000));
    assert!(plan(&state, &policy, Millis(349_999)).overdue.is_empty());
    let silent = plan(&state, &policy, Millis(350_000)).overdue;
    assert!(matches!(&silent[..], [Event::DeadlinePassed { reason, .. }] if reason.contains("said nothing for 60 s")));
    state.live.insert("n1".parse().unwrap(), live(399_999, 100_000));
    let stalled = plan(&state, &policy, Millis(400_000)).overdue;
    assert!(matches!(&stalled[..], [Event::DeadlinePassed { reason, .. }] if reason.contains("no further piece")));
}

#[test]
fn nobody_is_called_silent_for_the_time_the_controller_was_away() {
    let mut state = snapshot(Stage::Fetching, |_| {});
    state.started_at = Millis(10_000_000);
    assert!(plan(&state, &Policy::default(), Millis(10_059_999)).overdue.is_empty());
    assert_eq!(plan(&state, &Policy::default(), Millis(10_060_000)).overdue.len(), 1);
}

#[test]
fn a_passed_deadline_leads_to_the_next_attempt_after_a_pause() {
    let policy = Policy::default();
    let mut state = snapshot(Stage::Leasing, |_| {});
    let now = Millis(600_000);
    for event in plan(&state, &policy, now).overdue {
        for change in intake(&state, &policy, now, &event).unwrap() {
            state.apply(&change);
        }
    }
    let node = state.nodes.values().next().unwrap();
    assert_eq!((node.stage, node.tries, node.attempt), (Stage::PoweringOn, 2, Attempt(1)));
    assert!(plan(&state, &policy, now).actions.is_empty());
    assert_eq!(plan(&state, &policy, node.not_before.unwrap()).actions.len(), 1);
}

#[test]
fn pauses_double_and_spread() {
    let policy = Policy::default();
    let pauses: Vec<u64> = (0..200).map(|i| policy.pause_milliseconds(&format!("n{i}").parse().unwrap(), 1)).collect();
    assert!(pauses.iter().all(|p| (5000..=7500).contains(p)));
    let distinct: std::collections::BTreeSet<_> = pauses.iter().collect();
    assert!(distinct.len() > 150, "{} distinct pauses of 200", distinct.len());
    assert!((10_000..=15_000).contains(&policy.pause_milliseconds(&"n1".parse().unwrap(), 2)));
    assert_eq!(Policy { pause_seconds: 0, ..policy }.pause_milliseconds(&"n1".parse().unwrap(), 3), 0);
}

#[test]
fn progress_of_the_same_bytes_is_no_progress() {
    let policy = Policy::default();
    let mut state = snapshot(Stage::Fetching, |n| n.attempt = Attempt(1));
    let mut at = |now, done_bytes| {
        let progress = Progress { done_bytes, ..Progress::default() };
        let event = Event::Progressed { node: "n1".parse().unwrap(), attempt: Attempt(1), progress };
        for change in intake(&state, &policy, Millis(now), &event).unwrap() {
            state.apply(&change);
        }
        state.live.values().next().unwrap().clone()
    };
    assert_eq!(at(1000, 5).advanced, Some(Millis(1000)));
    let same = at(2000, 5);
    assert_eq!((same.advanced, same.heard), (Some(Millis(1000)), Some(Millis(2000))));
    assert_eq!(at(3000, 6).advanced, Some(Millis(3000)));
}

#[test]
fn a_controller_that_was_away_or_whose_clock_has_jumped_calls_nobody_late() {
    let policy = Policy::default();
    let back = Millis(10 * 3_600_000);
    for stage in Stage::ALL {
        let before = snapshot(stage, |_| {});
        let usual = deadline(&before, &policy, &drivers, before.nodes.values().next().unwrap());
        let again = Snapshot { started_at: back, ..before };
        assert_eq!(plan(&again, &policy, back).overdue, [], "{stage}");
        let late = deadline(&again, &policy, &drivers, again.nodes.values().next().unwrap());
        assert_eq!(late, usual.map(|at| back.plus(at.0)), "{stage} has its whole time once more");
    }
}

#[test]
fn the_more_nodes_the_less_often_each_tells_but_never_too_seldom_to_be_believed_alive() {
    let policy = Policy::default();
    let paces = [0, 1, 1_000, 1_001, 10_000, 1_000_000].map(|nodes| policy.report_seconds(nodes));
    assert_eq!(paces, [1, 1, 1, 2, 10, 15]);
    let impatient = Policy { silence_seconds: 3, ..policy };
    assert_eq!(impatient.report_seconds(1_000_000), 1);
}
