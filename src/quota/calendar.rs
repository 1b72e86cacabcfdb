use crate::calendar;
use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// One day, and the month that it is in. Times are milliseconds since the beginning of 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Day {
    /// Its name among the counters: 20261123.
    pub date: u32,
    /// The name of its month: 202611.
    pub month: u32,
    /// Its first moment.
    pub from: u64,
    /// The first moment after it.
    pub until: u64,
    /// The first moment of its month.
    pub month_from: u64,
    /// The first moment after its month.
    pub month_until: u64,
}

/// Some days in a row, of which the *store's* clock picks one. Cloning costs one reference count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Days(Arc<[Day]>);

/// When days and months begin: at midnight in UTC, or in a time zone of your choice. All that share a store must have
/// the same.
///
/// With feature `time-zones`, a day begins at the first moment that has its date there, and may have 23 or 25 hours.
#[derive(Clone, Default)]
pub struct Calendar {
    zone: Zone,
}

#[derive(Clone, Default)]
enum Zone {
    #[default]
    Utc,
    #[cfg(feature = "time-zones")]
    Named(jiff::tz::TimeZone),
}

/// What a number of any language holds exactly.
const LAST: u64 = (1 << 53) - 1;

/// There is no such time zone.
#[cfg(feature = "time-zones")]
#[derive(Debug)]
pub struct UnknownZone {
    name: Box<str>,
    source: jiff::Error,
}

// ===== impl Day =====

impl Day {
    /// When it is over.
    pub fn ends_at(&self) -> SystemTime {
        system_time(self.until)
    }

    /// When its month is over.
    pub fn month_ends_at(&self) -> SystemTime {
        system_time(self.month_until)
    }

    /// Whether this moment is in it.
    pub const fn contains(&self, millis: u64) -> bool {
        self.from <= millis && millis < self.until
    }
}

// ===== impl Days =====

impl Days {
    /// These days, from first to last; what overlaps or is out of order is left out.
    pub fn new(days: impl IntoIterator<Item = Day>) -> Self {
        let mut until = 0;
        let days = days.into_iter().filter(|day| {
            let follows = day.from >= until && day.until > day.from;
            if follows {
                until = day.until;
            }
            follows
        });
        Self(days.collect())
    }

    /// This day whatever a clock says: to ask for what was used on another one.
    pub fn only(day: Day) -> Self {
        Self(Arc::new([Day { from: 0, until: LAST, ..day }]))
    }

    /// The day that this moment is in.
    pub fn at(&self, millis: u64) -> Option<&Day> {
        self.0.iter().find(|day| day.contains(millis))
    }
}

impl std::ops::Deref for Days {
    type Target = [Day];

    fn deref(&self) -> &[Day] {
        &self.0
    }
}

// ===== impl Calendar =====

impl Calendar {
    /// Days and months of UTC.
    pub const fn utc() -> Self {
        Self { zone: Zone::Utc }
    }

    /// Days and months of a time zone, by its name in the IANA database: `Europe/Berlin`.
    ///
    /// # Errors
    ///
    /// There is none of this name.
    #[cfg(feature = "time-zones")]
    pub fn in_zone(name: &str) -> Result<Self, UnknownZone> {
        match jiff::tz::TimeZone::get(name) {
            Ok(zone) => Ok(Self { zone: Zone::Named(zone) }),
            Err(source) => Err(UnknownZone { name: name.into(), source }),
        }
    }

    /// The day of `time`, with those before and after it: a store's clock may be off by a day.
    pub fn days_around(&self, time: SystemTime) -> Days {
        let time = time.max(UNIX_EPOCH);
        match &self.zone {
            Zone::Utc => {
                let today = calendar::day_of(calendar::nanos(time));
                Days::new((today - 1..=today + 1).map(utc_day))
            }
            #[cfg(feature = "time-zones")]
            Zone::Named(zone) => Days::new(zoned::days_around(zone, time)),
        }
    }

    /// The day of `time`.
    pub fn day(&self, time: SystemTime) -> Day {
        let days = self.days_around(time);
        let day = days.at(unix_millis(time)).or_else(|| days.first());
        *day.expect("there are days around any time")
    }
}

impl fmt::Debug for Calendar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.zone {
            Zone::Utc => f.write_str("Calendar(UTC)"),
            #[cfg(feature = "time-zones")]
            Zone::Named(zone) => write!(f, "Calendar({})", zone.iana_name().unwrap_or("unnamed")),
        }
    }
}

fn utc_day(number: i64) -> Day {
    let (year, month, date) = calendar::civil(number);
    let (next_year, next_month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
    let millis = |day: i64| u64::try_from(day).unwrap_or(0) * 86_400_000;
    Day {
        date: (year * 10_000 + month * 100 + date) as u32,
        month: (year * 100 + month) as u32,
        from: millis(number),
        until: millis(number + 1),
        month_from: millis(calendar::day_number(year, month, 1)),
        month_until: millis(calendar::day_number(next_year, next_month, 1)),
    }
}

/// Milliseconds since the beginning of 1970; none before.
pub(crate) fn unix_millis(time: SystemTime) -> u64 {
    millis(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// Whole milliseconds.
pub(super) fn millis(time: Duration) -> u64 {
    // In 64 bits: a division of 128 takes as long as a look-up.
    time.as_secs().saturating_mul(1000).saturating_add(u64::from(time.subsec_millis()))
}

pub(crate) fn system_time(millis: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or(UNIX_EPOCH)
}

#[cfg(feature = "time-zones")]
mod zoned {
    use super::{Day, UnknownZone};
    use jiff::{Span, Timestamp, civil::Date, tz::TimeZone};
    use std::{error, fmt, time::SystemTime};

    pub(super) fn days_around(zone: &TimeZone, time: SystemTime) -> Vec<Day> {
        let now = Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH);
        let today = zone.to_datetime(now).date();
        // One of them may have been left out of the calendar.
        (-2..=2).filter_map(|offset| day(zone, today.checked_add(Span::new().days(offset)).ok()?)).collect()
    }

    fn day(zone: &TimeZone, date: Date) -> Option<Day> {
        let first = date.first_of_month();
        let next_month = first.checked_add(Span::new().months(1)).ok()?;
        Some(Day {
            date: date.year() as u32 * 10_000 + date.month() as u32 * 100 + date.day() as u32,
            month: date.year() as u32 * 100 + date.month() as u32,
            from: starts(zone, date)?,
            until: starts(zone, date.tomorrow().ok()?)?,
            month_from: starts(zone, first)?,
            month_until: starts(zone, next_month)?,
        })
    }

    /// The first moment that has this date there; of a date that was left out, that of the next.
    fn starts(zone: &TimeZone, date: Date) -> Option<u64> {
        let midnight = date.to_zoned(zone.clone()).ok()?;
        let first = midnight.start_of_day().unwrap_or(midnight);
        Some(u64::try_from(first.timestamp().as_millisecond()).unwrap_or(0))
    }

    impl fmt::Display for UnknownZone {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "there is no time zone {:?}", self.name)
        }
    }

    impl error::Error for UnknownZone {
        fn source(&self) -> Option<&(dyn error::Error + 'static)> {
            Some(&self.source)
        }
    }
}
