//! The days and months of UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(crate) const DAY_NANOS: i64 = 86_400_000_000_000;

/// A time from which on, and one until which, by the calendar of UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Window {
    /// Its first moment.
    pub from: SystemTime,
    /// The first moment after it.
    pub until: SystemTime,
}

impl Window {
    /// The day of `time`, from 00:00 UTC.
    pub fn day(time: SystemTime) -> Self {
        let day = day_of(nanos(time));
        Self { from: midnight(day), until: midnight(day + 1) }
    }

    /// The month of `time`, from 00:00 UTC of its first day.
    pub fn month(time: SystemTime) -> Self {
        let (year, month, _) = civil(day_of(nanos(time)));
        let (next_year, next_month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
        Self {
            from: midnight(day_number(year, month, 1)),
            until: midnight(day_number(next_year, next_month, 1)),
        }
    }

    /// Whether `time` is in it.
    pub fn contains(&self, time: SystemTime) -> bool {
        self.from <= time && time < self.until
    }
}

/// Nanoseconds since the beginning of 1970, at most those of the year 2262.
pub(crate) fn nanos(time: SystemTime) -> i64 {
    let whole = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => whole(since),
        Err(before) => -whole(before.duration()),
    }
}

pub(crate) const fn day_of(nanos: i64) -> i64 {
    nanos.div_euclid(DAY_NANOS)
}

/// `2026-11-22`.
pub(crate) fn day_name(day: i64) -> String {
    let (year, month, day) = civil(day);
    format!("{year:04}-{month:02}-{day:02}")
}

pub(crate) fn midnight(day: i64) -> SystemTime {
    let length = Duration::from_secs(day.unsigned_abs() * 86_400);
    if day < 0 { UNIX_EPOCH - length } else { UNIX_EPOCH + length }
}

/// Year, month and day of a day since the beginning of 1970: Howard Hinnant's `civil_from_days`, in which a year
/// begins in March, so that the odd day is its last.
pub(crate) const fn civil(day: i64) -> (i64, i64, i64) {
    let day = day + 719_468;
    let (era, day_of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (year + era * 400 + next, month, day)
}

/// The reverse of [`civil`].
pub(crate) const fn day_number(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counted day by day, by the rule that everybody knows.
    #[test]
    fn every_day_of_eight_centuries_has_the_date_of_a_calendar() {
        let (mut year, mut month, mut day) = (1600, 1, 1);
        let first = day_number(1600, 1, 1);
        assert_eq!(first, -135_140);
        for number in first..day_number(2400, 1, 1) {
            assert_eq!(civil(number), (year, month, day));
            assert_eq!(day_number(year, month, day), number);
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 if leap => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > length {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
        assert_eq!((year, month, day), (2400, 1, 1));
        assert_eq!(civil(0), (1970, 1, 1));
    }

    proptest::proptest! {
        #[test]
        fn every_moment_is_in_its_day_and_its_month_and_in_no_other(at in -9_000_000_000_000_000_000_i64..9_000_000_000_000_000_000) {
            let nanos = Duration::from_nanos(at.unsigned_abs());
            let time = if at < 0 { UNIX_EPOCH - nanos } else { UNIX_EPOCH + nanos };
            let (day, month) = (Window::day(time), Window::month(time));
            assert!(day.contains(time) && month.contains(time));
            assert!(month.from <= day.from && day.until <= month.until);
            assert_eq!(day.until.duration_since(day.from).unwrap(), Duration::from_secs(86_400));
            assert_eq!(Window::day(day.until).from, day.until);
            assert_eq!(Window::month(month.until).from, month.until);
            let before = month.from - Duration::from_nanos(1);
            assert_eq!(Window::month(before).until, month.from);
            assert!(day_name(day_of(super::nanos(month.from))).ends_with("-01"));
        }
    }
}
