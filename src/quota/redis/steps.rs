//! The scripts, what they are told and what they answer.

use super::Account;
use crate::{
    price::NanoUsd,
    quota::{
        Adjustment, Amount, Applied, Baseline, Day, Days, Delta, Department, ENDED_KEPT, EXPIRED_KEPT,
        LeaseId, Recount, Reservation, SWEEP, WindowName, WindowUsage,
        amount::{KINDS, PERIODS},
    },
    store::redis::{Run, Script},
};
use redis::Value;
use std::{sync::LazyLock, time::Duration};

macro_rules! scripts {
    ($($name:ident = $flags:literal, $file:literal;)*) => {$(
        static $name: LazyLock<Script> = LazyLock::new(|| {
            Script::new(concat!("#!lua", $flags, "\n", include_str!("lua/common.lua"), include_str!($file)))
        });
    )*};
}

// A server without memory takes no further reservations, and still lets go of those that it has.
scripts! {
    RESERVE = "", "lua/reserve.lua";
    CONFIRM = " flags=allow-oom", "lua/confirm.lua";
    FINISH = " flags=allow-oom", "lua/finish.lua";
    EXTEND = " flags=allow-oom", "lua/extend.lua";
    USAGE = " flags=allow-oom", "lua/usage.lua";
    SEED = " flags=allow-oom", "lua/seed.lua";
    ADJUST = " flags=allow-oom", "lua/adjust.lua";
    RECOUNT = " flags=allow-oom", "lua/recount.lua";
}

/// What a reservation begins as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    Reserved,
    /// Until it is confirmed, or taken back, or its time is up.
    Pending(Duration),
}

/// How a lease ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Settle,
    Release,
    /// Only if it is pending.
    Cancel,
}

/// What became of a reservation in the departments of one script, or how they stand.
#[derive(Debug)]
pub(super) enum Answer {
    Off { now: u64 },
    Told(Told),
}

#[derive(Debug)]
pub(super) struct Told {
    pub(super) outcome: Outcome,
    pub(super) now: u64,
    /// Which of the days.
    pub(super) row: usize,
    /// For each department, what was there before.
    pub(super) found: Vec<Found>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Granted,
    Denied,
    Ended,
    Unseeded,
    /// Nothing was asked for.
    Found,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) in_day: WindowUsage,
    pub(super) in_month: WindowUsage,
    pub(super) is_known: bool,
    pub(super) lease: Option<State>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Reserved,
    Pending,
    Over,
}

/// The most that is added to a time: Lua counts milliseconds up to 2⁵³.
const LONGEST: u64 = 1 << 52;
const LAST: u64 = (1 << 53) - 1;

// ===== what they are told =====

fn begin(script: &'static Script, accounts: &[&Account], offset: u64) -> Run<'static> {
    let keys: Vec<&str> = accounts.iter().flat_map(|account| account.keys()).collect();
    script.run(&keys).arg(offset).arg(SWEEP).arg(millis(ENDED_KEPT)).arg(millis(EXPIRED_KEPT))
}

pub(super) fn reserve<'a>(
    accounts: &[&Account],
    offset: u64,
    reservation: &Reservation,
    departments: impl Iterator<Item = &'a Department>,
    days: &Days,
    state: Begin,
) -> Run<'static> {
    let (letter, hold) = match state {
        Begin::Reserved => ("r", reservation.lease),
        Begin::Pending(hold) => ("p", hold),
    };
    let mut run =
        begin(&RESERVE, accounts, offset).arg(reservation.id.to_string()).arg(letter).arg(millis(hold));
    push_amount(&mut run, &reservation.amount);
    push_amount(&mut run, &reservation.on_expiry);
    run.push(u8::from(reservation.needs_seed));
    push_days(&mut run, days);
    for department in departments {
        for period in PERIODS {
            for kind in KINDS {
                run.push(department.limits.ceiling(period, kind));
            }
        }
    }
    run
}

pub(super) fn confirm(accounts: &[&Account], offset: u64, id: LeaseId, lease: Duration) -> Run<'static> {
    begin(&CONFIRM, accounts, offset).arg(id.to_string()).arg(millis(lease))
}

pub(super) fn finish(
    accounts: &[&Account],
    offset: u64,
    how: Ending,
    id: LeaseId,
    truth: &Amount,
) -> Run<'static> {
    let how = match how {
        Ending::Settle => "settle",
        Ending::Release => "release",
        Ending::Cancel => "cancel",
    };
    let mut run = begin(&FINISH, accounts, offset).arg(how).arg(id.to_string());
    push_amount(&mut run, truth);
    run
}

pub(super) fn extend(accounts: &[&Account], offset: u64, id: LeaseId, by: Duration) -> Run<'static> {
    begin(&EXTEND, accounts, offset).arg(id.to_string()).arg(millis(by))
}

pub(super) fn usage(account: &Account, offset: u64, days: &Days) -> Run<'static> {
    let mut run = begin(&USAGE, &[account], offset);
    push_days(&mut run, days);
    run
}

pub(super) fn seed(account: &Account, offset: u64, baseline: &Baseline) -> Run<'static> {
    let mut run = begin(&SEED, &[account], offset).arg(baseline.day.date).arg(baseline.day.month);
    push_delta(&mut run, baseline.day_settled.since(&Amount::ZERO));
    push_delta(&mut run, baseline.month_settled.since(&Amount::ZERO));
    run
}

pub(super) fn adjust(account: &Account, offset: u64, adjustment: &Adjustment) -> Run<'static> {
    let id = adjustment.id.to_string();
    let mut run = begin(&ADJUST, &[account], offset).arg(id).arg(name(adjustment.window));
    push_delta(&mut run, adjustment.by);
    run
}

pub(super) fn recount(account: &Account, offset: u64, window: WindowName, correct: bool) -> Run<'static> {
    begin(&RECOUNT, &[account], offset).arg(name(window)).arg(u8::from(correct))
}

fn name(window: WindowName) -> String {
    match window {
        WindowName::Day(date) => format!("d{date}"),
        WindowName::Month(month) => format!("m{month}"),
    }
}

fn push_amount(run: &mut Run<'_>, amount: &Amount) {
    for kind in KINDS {
        run.push(amount.get(kind));
    }
}

/// Of each what is added and what is taken away: scripts know no signs.
fn push_delta(run: &mut Run<'_>, by: Delta) {
    for by in [by.requests, by.tokens, by.cost.nanos()] {
        let (plus, minus) = if by < 0 { (0, by.unsigned_abs()) } else { (by.unsigned_abs(), 0) };
        run.push(plus);
        run.push(minus);
    }
}

fn push_days(run: &mut Run<'_>, days: &Days) {
    run.push(days.len());
    for Day { date, month, from, until, .. } in days.iter() {
        run.push(*from.min(&LAST));
        run.push(*until.min(&LAST));
        run.push(date);
        run.push(month);
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).min(LONGEST)
}

// ===== what they answer =====

/// None if it is nothing that a script of ours says.
pub(super) fn answer(value: &Value) -> Option<Answer> {
    let Value::Array(values) = value else { return None };
    let [outcome, Value::Int(now), rest @ ..] = values.as_slice() else { return None };
    let now = u64::try_from(*now).ok()?;
    let outcome = match text(outcome)? {
        "off" => return Some(Answer::Off { now }),
        "granted" => Outcome::Granted,
        "denied" => Outcome::Denied,
        "ended" => Outcome::Ended,
        "unseeded" => Outcome::Unseeded,
        "found" => Outcome::Found,
        _ => return None,
    };
    let [Value::Int(row), accounts @ ..] = rest else { return None };
    let row = usize::try_from(*row).ok()?.checked_sub(1)?;
    let found = accounts.iter().map(found).collect::<Option<_>>()?;
    Some(Answer::Told(Told { outcome, now, row, found }))
}

fn found(value: &Value) -> Option<Found> {
    let Value::Array(values) = value else { return None };
    let (counts, [known, rest @ ..]) = values.split_at_checked(12)? else { return None };
    let counts = counts.iter().map(count).collect::<Option<Vec<_>>>()?;
    let amount = |at: usize| {
        Some(Amount::new(counts[at], counts[at + 2], NanoUsd::new(i64::try_from(counts[at + 4]).ok()?)))
    };
    let used = |at: usize| Some(WindowUsage { settled: amount(at)?, reserved: amount(at + 1)? });
    let lease = match rest.get(1).and_then(text) {
        None => None,
        Some("r") => Some(State::Reserved),
        Some("p") => Some(State::Pending),
        Some(_) => Some(State::Over),
    };
    Some(Found { in_day: used(0)?, in_month: used(6)?, is_known: *known != Value::Nil, lease })
}

pub(super) fn recounted(value: &Value) -> Option<Recount> {
    let Value::Array(values) = value else { return None };
    let [counted, held, charged, Value::Array(ids)] = &values[..] else { return None };
    let amount = |value: &Value| {
        let Value::Array(counts) = value else { return None };
        let counts = counts.iter().map(count).collect::<Option<Vec<_>>>()?;
        let [requests, tokens, cost] = counts[..] else { return None };
        Some(Amount::new(requests, tokens, NanoUsd::new(i64::try_from(cost).ok()?)))
    };
    let id = |value| Some(LeaseId::from_bytes(u128::from_str_radix(text(value)?, 16).ok()?.to_be_bytes()));
    let ids = ids.iter().map(id).collect::<Option<_>>()?;
    Some(Recount::new(amount(counted)?, amount(held)?, ids).with_charged(amount(charged)?))
}

fn count(value: &Value) -> Option<u64> {
    match value {
        Value::Nil => Some(0),
        value => text(value)?.parse().ok(),
    }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(text) => std::str::from_utf8(text).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

/// What became of a lease in each department.
pub(super) fn finished(value: &Value) -> Option<Vec<Applied>> {
    let Value::Array(values) = value else { return None };
    let each = values.iter().map(|value| match text(value)? {
        "first" => Some(Applied::First),
        "true-up" => Some(Applied::TrueUp),
        "none" => Some(Applied::Duplicate),
        _ => None,
    });
    each.collect()
}

pub(super) fn flag(value: &Value) -> Option<bool> {
    match value {
        Value::Int(0) => Some(false),
        Value::Int(1) => Some(true),
        _ => None,
    }
}
