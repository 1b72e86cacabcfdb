use super::{
    Account, RedisQuotaStore, all,
    steps::{self, Answer, Begin, Ending, Outcome, State, Told},
    unexpected,
};
use crate::{
    clock::{Clock as _, SystemClock},
    quota::{
        Amount, Day, Days, Decision, Grant, LeaseId, Reservation, StoreError, Verdict,
        calendar::{system_time, unix_millis},
    },
};
use futures_util::future::join_all;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// How long a slot waits for what became of a reservation in the others.
const PENDING: Duration = Duration::from_secs(2);

/// What the slots said about a reservation.
enum Said {
    /// All yes; these groups have to be confirmed.
    Granted(Grant, Vec<usize>),
    Not(Decision),
    /// Their clocks are on two sides of midnight. It is to be this day.
    OtherDays(Day),
}

impl RedisQuotaStore {
    pub(super) async fn reserve_everywhere(&self, reservation: &Reservation) -> Result<Decision, StoreError> {
        if reservation.departments.is_empty() {
            return nobodys(reservation);
        }
        let accounts = self.accounts(&reservation.departments);
        let groups = self.groups(&accounts);
        let until = self.deadline();
        let mut only = None;
        loop {
            let days = only.map_or_else(|| reservation.days.clone(), Days::only);
            let (told, error) = self.reserve_in_each(reservation, &accounts, &groups, &days, until).await;
            let said = match error {
                None => decide(reservation, &groups, &told, only),
                Some(error) => Err(error),
            };
            let refused = match said {
                Ok(Said::Granted(grant, pending)) => {
                    let pending = pending.into_iter().map(|group| &groups[group]);
                    self.confirm(reservation, &accounts, pending, until).await?;
                    return Ok(Decision::Granted(grant));
                }
                Ok(Said::Not(decision)) => Ok(Some(decision)),
                Ok(Said::OtherDays(day)) => {
                    only = Some(day);
                    Ok(None)
                }
                Err(error) => Err(error),
            };
            if groups.len() > 1 {
                let granted = groups.iter().zip(&told).filter(|(_, told)| is_granted(told.as_ref()));
                self.cancel(reservation.id, &accounts, granted.map(|(group, _)| group), until).await;
            }
            if let Some(decision) = refused? {
                return Ok(decision);
            }
        }
    }

    /// What each group says, if it says something; and what kept others from it.
    async fn reserve_in_each(
        &self,
        reservation: &Reservation,
        accounts: &[Account],
        groups: &[Vec<usize>],
        days: &Days,
        until: Instant,
    ) -> (Vec<Option<Answer>>, Option<StoreError>) {
        // Alone it is all of it, and done.
        let begin = if groups.len() == 1 { Begin::Reserved } else { Begin::Pending(PENDING) };
        let runs: Vec<_> = groups
            .iter()
            .map(|group| {
                let departments = group.iter().map(|at| &reservation.departments[*at]);
                let accounts: Vec<_> = group.iter().map(|at| &accounts[*at]).collect();
                steps::reserve(&accounts, self.offset(), reservation, departments, days, begin)
            })
            .collect();
        let mut told = Vec::with_capacity(groups.len());
        let mut errors = Vec::new();
        for result in join_all(runs.iter().map(|run| self.run(run, until))).await {
            match result.and_then(|value| steps::answer(&value).ok_or_else(unexpected)) {
                Ok(answer) => told.push(Some(answer)),
                Err(error) => {
                    told.push(None);
                    errors.push(Err::<(), _>(error));
                }
            }
        }
        (told, all(errors).err())
    }

    async fn confirm(
        &self,
        reservation: &Reservation,
        accounts: &[Account],
        groups: impl Iterator<Item = &Vec<usize>>,
        until: Instant,
    ) -> Result<(), StoreError> {
        let runs: Vec<_> = groups
            .map(|group| {
                let accounts: Vec<_> = group.iter().map(|at| &accounts[*at]).collect();
                steps::confirm(&accounts, self.offset(), reservation.id, reservation.lease)
            })
            .collect();
        for result in join_all(runs.iter().map(|run| self.run(run, until))).await {
            match result.and_then(|value| steps::flag(&value).ok_or_else(unexpected)) {
                Ok(true) => {}
                Ok(false) => return Err(StoreError::ambiguous("it ended before it was confirmed")),
                // Others may have been.
                Err(StoreError::Definite(cause) | StoreError::Damaged(cause)) => {
                    return Err(StoreError::Ambiguous(cause));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes back what is pending, for those who come next. What cannot be reached expires.
    async fn cancel(
        &self,
        id: LeaseId,
        accounts: &[Account],
        groups: impl Iterator<Item = &Vec<usize>>,
        until: Instant,
    ) {
        let until = until.max(Instant::now() + self.deadline / 4);
        let runs: Vec<_> = groups
            .map(|group| {
                let accounts: Vec<_> = group.iter().map(|at| &accounts[*at]).collect();
                steps::finish(&accounts, self.offset(), Ending::Cancel, id, &Amount::ZERO)
            })
            .collect();
        join_all(runs.iter().map(|run| self.run(run, until))).await;
    }
}

fn is_granted(answer: Option<&Answer>) -> bool {
    matches!(answer, Some(Answer::Told(told)) if told.outcome == Outcome::Granted)
}

fn decide(
    reservation: &Reservation,
    groups: &[Vec<usize>],
    answers: &[Option<Answer>],
    only: Option<Day>,
) -> Result<Said, StoreError> {
    let mut told = Vec::with_capacity(answers.len());
    for answer in answers {
        match answer {
            Some(Answer::Told(answer)) => told.push(answer),
            Some(Answer::Off { now }) => return Err(StoreError::OffCalendar { now: system_time(*now) }),
            None => return Err(unexpected()),
        }
    }
    let Some(Told { row, now, .. }) = told.first() else { return Err(unexpected()) };
    let day = match &only {
        Some(day) => day,
        None => reservation.days.get(*row).ok_or_else(unexpected)?,
    };
    if told.iter().any(|answer| answer.row != *row) {
        return Ok(Said::OtherDays(*day));
    }
    let has = |outcome: Outcome| told.iter().any(|answer| answer.outcome == outcome);
    if has(Outcome::Ended) {
        return Ok(Said::Not(Decision::Ended));
    }
    let mut found = vec![None; reservation.departments.len()];
    for (group, answer) in groups.iter().zip(&told) {
        for (at, one) in group.iter().zip(&answer.found) {
            found[*at] = Some(*one);
        }
    }
    let found = found.into_iter().collect::<Option<Vec<_>>>().ok_or_else(unexpected)?;
    let departments = reservation.departments.iter().zip(&found);
    if has(Outcome::Unseeded) {
        let unknown = departments.filter(|(_, found)| !found.is_known);
        let departments = unknown.map(|(department, _)| Arc::clone(&department.id)).collect();
        return Err(StoreError::Unseeded { departments, day: *day });
    }
    let mut verdict = Verdict::new(reservation, day, *now);
    for (department, found) in departments {
        if found.lease.is_none() {
            verdict.consider(department, &found.in_day, &found.in_month);
        }
    }
    if verdict.fits() == has(Outcome::Denied) {
        return Err(unexpected());
    }
    let is_confirmed = |group: &Vec<usize>| {
        groups.len() == 1 || group.iter().all(|at| found[*at].lease == Some(State::Reserved))
    };
    let pending = (0..groups.len()).filter(|group| !is_confirmed(&groups[*group])).collect();
    Ok(match verdict.decision() {
        Decision::Granted(grant) => Said::Granted(grant, pending),
        other => Said::Not(other),
    })
}

/// Nobody is charged, so nobody is asked.
fn nobodys(reservation: &Reservation) -> Result<Decision, StoreError> {
    let now = SystemClock.now();
    match reservation.days.at(unix_millis(now)) {
        Some(day) => Ok(Decision::Granted(Grant::new(reservation.id, *day))),
        None => Err(StoreError::OffCalendar { now }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        CallId,
        quota::{Calendar, Department, Departments, Limits, WindowUsage, redis::steps::Found},
    };
    use std::time::{SystemTime, UNIX_EPOCH};

    const GROUPS: usize = 2;

    fn midnight() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(86_400 * 20_000)
    }

    fn reservation() -> Reservation {
        let departments: Departments =
            ["a", "b"].map(|id| Department::new(id, Limits::new())).into_iter().collect();
        let days = Calendar::utc().days_around(midnight());
        Reservation::new(CallId::mint(midnight()), departments, Amount::ZERO, PENDING, days)
    }

    fn groups() -> Vec<Vec<usize>> {
        (0..GROUPS).map(|at| vec![at]).collect()
    }

    fn told(outcome: Outcome, row: usize, lease: Option<State>) -> Option<Answer> {
        let nothing = WindowUsage::default();
        let found =
            Found { in_day: nothing, in_month: nothing, is_known: outcome != Outcome::Unseeded, lease };
        Some(Answer::Told(Told { outcome, now: unix_millis(midnight()), row, found: vec![found] }))
    }

    #[test]
    fn slots_on_two_sides_of_midnight_are_asked_again_about_one_day() {
        let reservation = reservation();
        let split = [told(Outcome::Granted, 0, None), told(Outcome::Granted, 1, None)];
        let said = decide(&reservation, &groups(), &split, None).unwrap();
        let Said::OtherDays(day) = said else { panic!("granted in two days") };
        assert_eq!(day, reservation.days[0]);
        // Asked about that day alone, whatever their clocks say; the grant is of the day as it is.
        let agreed = [told(Outcome::Granted, 0, None), told(Outcome::Granted, 0, None)];
        let said = decide(&reservation, &groups(), &agreed, Some(day)).unwrap();
        let Said::Granted(grant, pending) = said else { panic!("not granted") };
        assert_eq!((grant.day, pending), (day, vec![0, 1]));
    }

    #[test]
    fn only_what_is_pending_has_to_be_confirmed() {
        let answers = [
            told(Outcome::Granted, 1, Some(State::Reserved)),
            told(Outcome::Granted, 1, Some(State::Pending)),
        ];
        let said = decide(&reservation(), &groups(), &answers, None).unwrap();
        assert!(matches!(said, Said::Granted(_, pending) if pending == [1]));
    }

    #[test]
    fn what_has_ended_in_one_slot_has_ended_also_where_another_is_unknown() {
        let answers = [told(Outcome::Unseeded, 1, None), told(Outcome::Ended, 1, Some(State::Over))];
        assert!(matches!(decide(&reservation(), &groups(), &answers, None), Ok(Said::Not(Decision::Ended))));
        let answers = [told(Outcome::Unseeded, 1, None), told(Outcome::Denied, 1, None)];
        let Err(StoreError::Unseeded { departments, .. }) = decide(&reservation(), &groups(), &answers, None)
        else {
            panic!("not unseeded")
        };
        assert_eq!(departments, [Arc::from("a")]);
    }

    #[test]
    fn a_script_that_denies_what_fits_is_not_believed() {
        let answers = [told(Outcome::Granted, 1, None), told(Outcome::Denied, 1, None)];
        assert!(matches!(decide(&reservation(), &groups(), &answers, None), Err(StoreError::Ambiguous(_))));
    }
}
