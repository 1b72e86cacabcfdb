//! Checks a [`QuotaStore`] against the reference, [`MemoryStore`].
//!
//! The same operations are done on both, and every answer has to be the same. Nothing is cleaned up in between: each
//! script has calls and departments of its own, so that a store can be kept for all of them.
//!
//! ```
//! use llm_layers::{quota::MemoryStore, testing::{ManualClock, StoreCheck}};
//! use std::time::SystemTime;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let clock = ManualClock::new(SystemTime::UNIX_EPOCH);
//! let store = MemoryStore::new().with_clock(clock.clone());
//! StoreCheck::new(store).with_clock(clock).with_length(4).check().await;
//! # }
//! ```

use super::ManualClock;
use crate::{
    CallId,
    clock::{Clock, SystemClock},
    price::NanoUsd,
    quota::{
        Adjustment, Amount, Applied, Baseline, Calendar, Day, Days, Decision, Delta, Department, Departments,
        Limits, MemoryStore, QuotaStore, Reservation, Settlement, Standing, StoreError, WindowName,
    },
};
use fastrand::Rng;
use std::{fmt, pin::Pin, sync::Arc, time::Duration};

/// Checks a store. See the [module docs](self).
pub struct StoreCheck {
    store: Arc<dyn QuotaStore>,
    clock: StoreClock,
    length: usize,
    scripts: u64,
    callers: usize,
}

enum StoreClock {
    /// Goes its own way.
    Own,
    /// The same as the reference reads.
    Shared(ManualClock),
    /// Goes on by itself, and can be moved besides.
    Movable(Advance),
}

type Advance = Box<dyn Fn(Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// What is done to a store.
#[derive(Debug, Clone, Default)]
pub struct Script {
    /// Who is charged: names, and limits.
    pub departments: Vec<(String, Limits)>,
    /// The calls that the steps are about.
    pub calls: Vec<Call>,
    /// What is done, in this order.
    pub steps: Vec<Op>,
}

/// What a call reserves.
#[derive(Debug, Clone)]
pub struct Call {
    /// Which of the departments.
    pub departments: Vec<usize>,
    /// How much.
    pub amount: Amount,
    /// What is charged on expiry.
    pub on_expiry: Amount,
    /// For how long.
    pub lease: Duration,
    /// Whether unknown departments have to be seeded first.
    pub needs_seed: bool,
}

/// One step. Calls and departments are meant by their places in the [`Script`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Reserves for a call.
    Reserve(usize),
    /// Extends the lease of a call.
    Extend(usize, Duration),
    /// Settles a call.
    Settle(usize, Amount),
    /// Releases a call.
    Release(usize),
    /// Seeds a department: so much in the day, and in the month.
    Seed(usize, Amount, Amount),
    /// Corrects what a department has used up in the day (or the month: `true`). The number is the correction's.
    Adjust(usize, usize, bool, Delta),
    /// Compares what a department has reserved in the day (or the month: `true`) with its leases, and corrects it where the
    /// last one says so.
    Recount(usize, bool, bool),
    /// Asks what a department has used up.
    Usage(usize),
    /// Lets time pass. Left out if the store's clock cannot be moved.
    Advance(Duration),
}

/// Where a store and the reference have parted.
#[derive(Debug)]
pub struct Mismatch {
    script: Script,
    step: usize,
    expected: Answer,
    found: Answer,
}

#[derive(Debug, PartialEq)]
enum Answer {
    Decision(Decision),
    Applied(Applied),
    Flag(bool),
    Done,
    Standing(Standing),
    /// What is counted, what is held, and by how many; `None` if that cannot be told.
    Recount(Option<(Amount, Amount, Amount, usize)>),
    Unseeded(Vec<Arc<str>>),
    OffCalendar,
    Failed(String),
}

/// The calls of one run of a script, under ids and names of their own.
struct Run<'a> {
    script: &'a Script,
    departments: Vec<Department>,
    calls: Vec<(CallId, Departments)>,
    corrections: Vec<CallId>,
    days: Days,
    day: Day,
}

impl StoreCheck {
    /// Checks `store`, without moving its clock.
    pub fn new(store: impl QuotaStore) -> Self {
        Self { store: Arc::new(store), clock: StoreClock::Own, length: 6, scripts: 300, callers: 200 }
    }

    /// The store reads this clock, and so will the reference: windows are compared too.
    #[must_use]
    pub fn with_clock(mut self, clock: ManualClock) -> Self {
        self.clock = StoreClock::Shared(clock);
        self
    }

    /// The store has a clock of its own, which `advance` moves forward. Steps are of an hour and more, so that what
    /// passes besides does not matter.
    #[must_use]
    pub fn with_advance<F>(mut self, advance: impl Fn(Duration) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.clock = StoreClock::Movable(Box::new(move |by| Box::pin(advance(by))));
        self
    }

    /// How long the sequences are of which all are tried; 6 unless told.
    #[must_use]
    pub const fn with_length(mut self, length: usize) -> Self {
        self.length = length;
        self
    }

    /// How many random scripts are tried; 300 unless told.
    #[must_use]
    pub const fn with_scripts(mut self, scripts: u64) -> Self {
        self.scripts = scripts;
        self
    }

    /// How many callers there are at once; 200 unless told.
    #[must_use]
    pub const fn with_callers(mut self, callers: usize) -> Self {
        self.callers = callers;
        self
    }

    /// Runs all checks.
    ///
    /// # Panics
    ///
    /// If one fails.
    pub async fn check(&self) {
        self.check_sequences().await;
        self.check_scripts().await;
        self.check_edges().await;
        self.check_callers().await;
    }

    /// Every sequence of up to [this](Self::with_length) many steps of reserve, settle, release, extend and expire of one
    /// call, duplicates included.
    ///
    /// # Panics
    ///
    /// If the store and the reference part.
    pub async fn check_sequences(&self) {
        let steps = [
            Op::Reserve(0),
            Op::Settle(0, amount(70)),
            Op::Release(0),
            Op::Advance(HOUR),
            Op::Extend(0, 2 * HOUR),
        ];
        // A clock that stands has nothing to wait for; extending matters only where it does not.
        let steps = if self.can_move() { &steps[..] } else { &steps[..3] };
        for length in 1..=self.length {
            for number in 0..steps.len().pow(length as u32) {
                let digit = |place: usize| number / steps.len().pow(place as u32) % steps.len();
                let mut script = Script::one_call(Limits::new().with_day_tokens(1000), amount(100));
                script.steps = (0..length).map(|place| steps[digit(place)]).collect();
                script.steps.push(Op::Usage(0));
                self.expect(&script).await;
            }
        }
    }

    /// Random scripts of several calls, departments and limits.
    ///
    /// # Panics
    ///
    /// If the store and the reference part.
    pub async fn check_scripts(&self) {
        for seed in 0..self.scripts {
            self.expect(&Script::random(seed, 40)).await;
        }
    }

    /// Amounts at the edges of what numbers can hold, and names that nobody expects.
    ///
    /// # Panics
    ///
    /// If the store and the reference part.
    pub async fn check_edges(&self) {
        const TWO_53: u64 = 1 << 53;
        let most = Amount::MOST.tokens;
        for edge in [TWO_53, 100_000_000_000_000, most, 1, 1 << 31, 1 << 32, 1 << 62, i64::MAX as u64] {
            for size in [edge - 1, edge, edge.saturating_add(1)] {
                for limit in [size - size.min(1), size, size + 1, size.saturating_mul(2)] {
                    self.expect(&Script::at_edge(size, limit)).await;
                }
            }
        }
        let names = NAMES.iter().map(|&name| name.to_owned()).chain([
            "long".repeat(1000),
            "\u{1f980}".repeat(64),
            "with\nlines\r\n".to_owned(),
        ]);
        for name in names {
            let mut script = Script::random(7, 30);
            script.departments[0].0.clone_from(&name);
            self.expect(&script).await;
        }
        // More than a counter holds.
        let mut script = Script::one_call(Limits::new(), Amount::ZERO);
        script.calls = vec![script.calls[0].clone(); 6];
        script.steps = (0..6).flat_map(|call| [Op::Reserve(call), Op::Settle(call, Amount::MOST)]).collect();
        script.steps.push(Op::Usage(0));
        self.expect(&script).await;
        // As much as a counter holds, in flight.
        let mut script = Script::one_call(Limits::new(), Amount::MOST);
        script.calls = vec![script.calls[0].clone(); 6];
        script.steps = (0..6).map(Op::Reserve).collect();
        script.steps.extend([Op::Recount(0, false, true), Op::Recount(0, true, true), Op::Usage(0)]);
        self.expect(&script).await;
        let mut script = Script::one_call(Limits::new(), amount(10));
        // A lease for ever.
        script.calls[0].lease = Duration::MAX;
        script.steps =
            vec![Op::Reserve(0), Op::Advance(2 * HOUR), Op::Extend(0, Duration::MAX), Op::Usage(0)];
        script.steps.extend([Op::Settle(0, amount(3)), Op::Usage(0)]);
        self.expect(&script).await;
        let mut script = Script::one_call(Limits::new().with_day_requests(1), amount(10));
        script.departments =
            (0..64).map(|n| (format!("of many {n}"), Limits::new().with_day_requests(1))).collect();
        script.calls[0].departments = (0..64).collect();
        script.calls.push(Call { departments: vec![63], ..script.calls[0].clone() });
        script.calls.push(Call { departments: (0..64).collect(), ..script.calls[0].clone() });
        // One of 64 is full: none of them is charged.
        script.steps = vec![Op::Reserve(1), Op::Reserve(2), Op::Usage(0), Op::Release(1), Op::Reserve(2)];
        script.steps.extend([Op::Settle(2, amount(3)), Op::Reserve(0)]);
        script.steps.extend((0..64).map(Op::Usage));
        self.expect(&script).await;
    }

    /// Many callers at once, each with several calls of random truths, under one limit: never over it, nor further
    /// below it than what is in flight, and nothing is left reserved.
    ///
    /// # Panics
    ///
    /// If it is not so.
    pub async fn check_callers(&self) {
        const CALLS: usize = 10;
        const LARGEST: u64 = 100;
        let limit = self.callers as u64 * CALLS as u64 * LARGEST / 8;
        let limits = Limits::new().with_day_tokens(limit).with_month_requests(u64::MAX);
        let name: Arc<str> = format!("callers {}", CallId::mint(SystemClock.now())).into();
        let departments = Departments::new([
            Department::new(Arc::clone(&name), limits),
            Department::new(format!("{name}, all"), Limits::new()),
        ]);
        let (_, days) = self.today();
        let mut tasks = Vec::new();
        for caller in 0..self.callers {
            let (store, departments, days) = (Arc::clone(&self.store), departments.clone(), days.clone());
            tasks.push(tokio::spawn(async move {
                let mut random = Rng::with_seed(caller as u64);
                let (mut used, mut denied) = (0, 0);
                for _ in 0..CALLS {
                    let id = CallId::mint(SystemClock.now());
                    let reservation =
                        Reservation::new(id, departments.clone(), amount(LARGEST), HOUR, days.clone());
                    match store.reserve(&reservation).await.expect("a reservation is answered") {
                        Decision::Granted(_) => {}
                        Decision::Denied(_) => {
                            denied += 1;
                            continue;
                        }
                        Decision::Ended => panic!("a lease that is new has ended"),
                    }
                    tokio::task::yield_now().await;
                    let truth = random.u64(0..=LARGEST);
                    let settlement = Settlement::new(id, departments.clone(), amount(truth));
                    for expected in [Applied::First, Applied::Duplicate] {
                        let applied = store.settle(&settlement).await.expect("a settlement is answered");
                        assert_eq!(applied, expected);
                    }
                    used += truth;
                }
                (used, denied)
            }));
        }
        let (mut used, mut denied) = (0, 0);
        for task in tasks {
            let (by_one, denied_to_one) = task.await.expect("a caller does not panic");
            used += by_one;
            denied += denied_to_one;
        }
        for department in departments.iter() {
            let standing = self.store.usage(&department.id, &days).await.expect("usage is answered");
            assert_eq!(standing.in_day.settled.tokens, used, "what was settled");
            assert_eq!(standing.in_day.reserved, Amount::ZERO, "what is left reserved");
            assert_eq!(standing.in_day, standing.in_month);
        }
        assert!(used <= limit, "{used} of {limit}");
        assert!(denied > 0, "the limit was never reached");
        assert!(used + self.callers as u64 * LARGEST >= limit, "only {used} of {limit}");
    }

    /// Runs one script.
    ///
    /// # Errors
    ///
    /// Where the store and the reference part.
    pub async fn run(&self, script: &Script) -> Result<(), Mismatch> {
        let (day, days) = self.today();
        let clock = match &self.clock {
            StoreClock::Shared(clock) => clock.clone(),
            _ => ManualClock::new(SystemClock.now()),
        };
        let reference = MemoryStore::new().with_clock(clock.clone());
        let run = Run::new(script, day, days);
        for (step, op) in script.steps.iter().enumerate() {
            if let Op::Advance(by) = op {
                match &self.clock {
                    StoreClock::Own => continue,
                    StoreClock::Shared(clock) => clock.advance(*by),
                    StoreClock::Movable(advance) => {
                        clock.advance(*by);
                        advance(*by).await;
                    }
                }
                continue;
            }
            let mut expected = run.ask(&reference, *op).await;
            let mut found = run.ask(&self.store, *op).await;
            if !matches!(self.clock, StoreClock::Shared(_)) {
                expected.forget_time();
                found.forget_time();
            }
            if expected != found && found != Answer::Recount(None) {
                return Err(Mismatch { script: script.clone(), step, expected, found });
            }
        }
        Ok(())
    }

    async fn expect(&self, script: &Script) {
        if let Err(mismatch) = self.run(script).await {
            panic!("{mismatch}");
        }
    }

    const fn can_move(&self) -> bool {
        !matches!(self.clock, StoreClock::Own)
    }

    /// What to reserve in: with a clock of its own, always the same windows.
    fn today(&self) -> (Day, Days) {
        match &self.clock {
            StoreClock::Shared(clock) => {
                let days = (0..40).map(|day| Calendar::utc().day(clock.now() + 24 * HOUR * day));
                (Calendar::utc().day(clock.now()), Days::new(days))
            }
            _ => {
                let day = Calendar::utc().day(SystemClock.now());
                let days = Days::only(day);
                (days[0], days)
            }
        }
    }
}

impl Answer {
    /// Clocks that are not the same do not tell the same time.
    fn forget_time(&mut self) {
        match self {
            Self::Decision(Decision::Denied(denial)) => denial.resets_in = Duration::ZERO,
            Self::Decision(Decision::Granted(grant)) => {
                grant.tightest.iter_mut().for_each(|tightest| tightest.resets_in = Duration::ZERO);
            }
            _ => {}
        }
    }
}

impl Run<'_> {
    fn new(script: &Script, day: Day, days: Days) -> Run<'_> {
        let run = CallId::mint(SystemClock.now());
        let departments: Vec<_> = script
            .departments
            .iter()
            .enumerate()
            .map(|(at, (name, limits))| Department::new(format!("{name}{at}{run}"), *limits))
            .collect();
        let calls = script.calls.iter().map(|call| {
            let departments = call.departments.iter().map(|&at| departments[at].clone());
            (CallId::mint(SystemClock.now()), Departments::new(departments))
        });
        let calls = calls.collect();
        let corrections = (0..8).map(|_| CallId::mint(SystemClock.now())).collect();
        Run { script, departments, calls, corrections, days, day }
    }

    const fn window(&self, is_month: bool) -> WindowName {
        match is_month {
            true => WindowName::Month(self.day.month),
            false => WindowName::Day(self.day.date),
        }
    }

    async fn ask(&self, store: &dyn QuotaStore, op: Op) -> Answer {
        let answer = match op {
            Op::Reserve(call) => {
                let ((id, departments), call) = (&self.calls[call], &self.script.calls[call]);
                let reservation =
                    Reservation::new(*id, departments.clone(), call.amount, call.lease, self.days.clone())
                        .with_on_expiry(call.on_expiry)
                        .with_needs_seed(call.needs_seed);
                store.reserve(&reservation).await.map(Answer::Decision)
            }
            Op::Extend(call, by) => {
                let (id, departments) = &self.calls[call];
                store.extend(*id, departments, by).await.map(Answer::Flag)
            }
            Op::Settle(call, amount) => {
                let (id, departments) = &self.calls[call];
                let settlement = Settlement::new(*id, departments.clone(), amount);
                // Both say the same of all together.
                match amount.tokens % 2 {
                    0 => store.settle(&settlement).await.map(Answer::Applied),
                    _ => store.settle_each(&settlement).await.map(|each| {
                        match each.len() == departments.len() {
                            true => Answer::Applied(each.into_iter().fold(Applied::Duplicate, Applied::and)),
                            false => Answer::Failed(format!("{} answers", each.len())),
                        }
                    }),
                }
            }
            Op::Release(call) => {
                let (id, departments) = &self.calls[call];
                store.release(*id, departments).await.map(|()| Answer::Done)
            }
            Op::Seed(department, in_day, in_month) => {
                let baseline = Baseline::new(self.day, in_day, in_month);
                store.seed(&self.departments[department].id, &baseline).await.map(Answer::Flag)
            }
            Op::Adjust(correction, department, is_month, by) => {
                let window = self.window(is_month);
                let id = self.corrections[correction];
                let department = Arc::clone(&self.departments[department].id);
                store.adjust(&Adjustment::new(id, department, window, by)).await.map(Answer::Flag)
            }
            Op::Recount(department, is_month, correct) => {
                let department = &self.departments[department].id;
                let recount = store.recount(department, self.window(is_month), correct).await;
                recount.map(|recount| {
                    Answer::Recount(recount.map(|it| (it.counted, it.held, it.charged, it.leases.len())))
                })
            }
            Op::Usage(department) => {
                store.usage(&self.departments[department].id, &self.days).await.map(Answer::Standing)
            }
            Op::Advance(_) => Ok(Answer::Done),
        };
        answer.unwrap_or_else(|error| match error {
            StoreError::OffCalendar { .. } => Answer::OffCalendar,
            StoreError::Unseeded { departments, .. } => Answer::Unseeded(departments),
            error => Answer::Failed(format!("{error}: {:?}", std::error::Error::source(&error))),
        })
    }
}

impl Script {
    /// One department and one call, of an hour less a minute, and nothing to do yet.
    pub fn one_call(limits: Limits, amount: Amount) -> Self {
        let on_expiry = Amount::new(1, amount.tokens / 2, NanoUsd::new(amount.cost.nanos() / 2));
        let lease = HOUR - Duration::from_secs(60);
        let call = Call { departments: vec![0], amount, on_expiry, lease, needs_seed: false };
        Self { departments: vec![("one ".into(), limits)], calls: vec![call], steps: Vec::new() }
    }

    /// So many steps by chance; the same for the same seed.
    pub fn random(seed: u64, steps: usize) -> Self {
        let mut random = Rng::with_seed(seed);
        let limits = |random: &mut Rng| {
            let mut limits = Limits::new();
            limits.day_requests = random.bool().then(|| random.u64(1..6));
            limits.month_requests = random.bool().then(|| random.u64(1..12));
            limits.day_tokens = random.bool().then(|| random.u64(50..400));
            limits.month_tokens = random.bool().then(|| random.u64(100..900));
            limits.day_cost = random.bool().then(|| NanoUsd::new(random.i64(500..4000)));
            limits.month_cost = random.bool().then(|| NanoUsd::new(random.i64(1000..9000)));
            limits
        };
        let departments: Vec<_> =
            (0..random.usize(1..4)).map(|at| (format!("d{at} "), limits(&mut random))).collect();
        let needs_seed = random.u8(..4) == 0;
        let calls: Vec<_> = (0..random.usize(1..12))
            .map(|_| Call {
                departments: (0..departments.len()).filter(|_| random.u8(..3) > 0).collect(),
                amount: amount(random.u64(0..120)),
                on_expiry: amount(random.u64(0..60)),
                // At once, or never close to a step of the clock.
                lease: [Duration::ZERO, HOUR / 2, HOUR * 3 / 2, HOUR * 7 / 2][random.usize(..4)],
                needs_seed,
            })
            .collect();
        let op = |random: &mut Rng| {
            let (call, department) = (random.usize(..calls.len()), random.usize(..departments.len()));
            match random.u8(..17) {
                0..6 => Op::Reserve(call),
                6..9 => Op::Settle(call, amount(random.u64(0..200))),
                9 => Op::Release(call),
                10 => Op::Extend(call, HOUR * random.u32(0..4) + HOUR / 2),
                11 => Op::Seed(department, amount(random.u64(0..50)), amount(random.u64(50..90))),
                12 => {
                    let by = Delta {
                        requests: random.i64(-2..3),
                        tokens: random.i64(-90..90),
                        cost: NanoUsd::new(random.i64(-900..900)),
                    };
                    Op::Adjust(random.usize(..8), department, random.bool(), by)
                }
                13 => Op::Usage(department),
                14 => Op::Recount(department, random.bool(), random.bool()),
                _ => Op::Advance(HOUR * if random.u8(..6) == 0 { 25 } else { 1 }),
            }
        };
        let mut steps: Vec<_> = (0..steps).map(|_| op(&mut random)).collect();
        steps.extend((0..departments.len()).map(Op::Usage));
        Self { departments, calls, steps }
    }

    /// A call of `size` under a limit close to it, and another.
    fn at_edge(size: u64, limit: u64) -> Self {
        let money = |nanos: u64| NanoUsd::new(i64::try_from(nanos).unwrap_or(i64::MAX));
        let whole = Amount::new(1, size, money(size));
        let limits = Limits::new().with_day_tokens(limit).with_month_cost(money(limit));
        let mut script = Self::one_call(limits, whole);
        script.calls[0].on_expiry = whole;
        script.calls.push(Call { amount: Amount::new(1, 1, NanoUsd::new(1)), ..script.calls[0].clone() });
        script.steps = vec![
            Op::Reserve(0),
            Op::Usage(0),
            Op::Reserve(1),
            Op::Recount(0, true, true),
            Op::Settle(0, Amount::new(1, size.saturating_sub(1), money(size.saturating_sub(1)))),
            Op::Usage(0),
            Op::Reserve(1),
            Op::Usage(0),
            Op::Settle(1, whole),
            Op::Usage(0),
        ];
        script
    }
}

fn amount(tokens: u64) -> Amount {
    Amount::new(1, tokens, NanoUsd::new(tokens as i64 * 10))
}

const HOUR: Duration = Duration::from_secs(3600);

const NAMES: &[&str] = &[
    "",
    " ",
    "{}",
    "{a}b{c}",
    "}{",
    "a:b:c",
    "quota:{x}",
    "*",
    "a?b[c]",
    "%00%s%d",
    "'; DROP TABLE counters; --",
    "\"quoted\"",
    "\\",
    "a\0b",
    "Abteilung f\u{fc}r \u{d6}l",
    "\u{65e5}\u{672c}",
    "\u{202e}right to left",
    "1e14",
    "-0",
];

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "step {}, {:?}:", self.step, self.script.steps[self.step])?;
        writeln!(f, "expected {:?}", self.expected)?;
        writeln!(f, "found    {:?}", self.found)?;
        writeln!(f, "of {:#?}", self.script.calls)?;
        writeln!(f, "by {:#?}", self.script.departments)?;
        write!(f, "after {:#?}", &self.script.steps[..self.step])
    }
}

impl std::error::Error for Mismatch {}

impl fmt::Debug for StoreCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreCheck")
            .field("length", &self.length)
            .field("scripts", &self.scripts)
            .field("callers", &self.callers)
            .finish_non_exhaustive()
    }
}
