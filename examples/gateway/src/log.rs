//! The log, each line with the trace that it belongs to.

use jiff::Timestamp;
use llm_layers::{
    clock::{Clock as _, SystemClock},
    config::Log,
};
use opentelemetry::{Context, trace::TraceContextExt};
use std::{
    cell::RefCell,
    ffi::OsStr,
    fmt,
    io::{self, Write},
    mem,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, UNIX_EPOCH},
};
use tracing::{Event, Subscriber};
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        FmtContext, FormatEvent, FormatFields, MakeWriter,
        format::{Format, JsonFields, Writer},
        time::FormatTime,
    },
    registry::LookupSpan,
};

/// How many bytes of lines wait for whoever reads the log.
const MOST: usize = 1 << 20;

/// How long lines are gathered before they are written: so long no request has to wake the thread that writes.
const GATHER: Duration = Duration::from_millis(20);

/// How often nothing has to come before that thread goes to sleep.
const QUIET: u32 = 50;

/// How long the last lines are waited for.
const CLOSE: Duration = Duration::from_secs(1);

/// The variable that says what of the log is written.
const FILTER: &str = "RUST_LOG";

static LINES: OnceLock<Arc<Lines>> = OnceLock::new();

/// How many lines were left out, because nobody read those before them.
pub(crate) fn lost() -> u64 {
    LINES.get().map_or(0, |lines| lines.lost.load(Ordering::Relaxed))
}

/// Writes the log to standard error, on a thread of its own: whoever is slow to read it holds no request back. What he does
/// not read in time is left out. The last lines are written when what this gives back is dropped.
pub(crate) fn init(log: Log) -> io::Result<Closing> {
    let lines = Arc::clone(LINES.get_or_init(Arc::default));
    let writer = Arc::clone(&lines);
    thread::Builder::new().name("log".into()).spawn(move || writer.run(io::stderr()))?;
    let json = log == Log::Json;
    let (filter, problem) = filter(std::env::var_os(FILTER).as_deref());
    // What it says may quote what a provider said.
    let filter = filter.add_directive("genai=off".parse().expect("a directive"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Queue(Arc::clone(&lines)));
    let builder = builder.with_ansi(false);
    if json {
        let lines = Format::default().with_timer(Clock).json().flatten_event(true);
        builder.fmt_fields(JsonFields::new()).event_format(Traced { lines, json }).init();
    } else {
        let lines = Format::default().with_timer(Clock).with_ansi(false);
        builder.event_format(Traced { lines, json }).init();
    }
    if let Some(error) = problem {
        tracing::warn!(%error, "{FILTER} cannot be read: the log is as without it");
    }
    Ok(Closing(lines))
}

/// What of the log is written; and why it is not what was asked for.
fn filter(asked: Option<&OsStr>) -> (EnvFilter, Option<String>) {
    let unless_told = || EnvFilter::new("info,opentelemetry=warn,opentelemetry_sdk=warn");
    let asked = match asked.unwrap_or_default().to_str().map(str::trim) {
        Some("") => return (unless_told(), None),
        Some(asked) => EnvFilter::try_new(asked).map_err(|error| error.to_string()),
        None => Err("not a text of UTF-8".to_owned()),
    };
    asked.map_or_else(|error| (unless_told(), Some(error)), |filter| (filter, None))
}

/// Lines that wait for the thread that writes them. A channel would have each request wake it.
#[derive(Default)]
struct Lines {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    lost: AtomicU64,
}

#[derive(Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// The thread waits until it is woken.
    is_asleep: bool,
    is_closing: bool,
    /// The thread has written all, and ended.
    is_over: bool,
}

/// Writes what is left, and waits for it a while.
pub(crate) struct Closing(Arc<Lines>);

impl Lines {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut waiting = self.lock();
        if waiting.bytes.len() + line.len() > MOST {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.bytes.extend_from_slice(line);
        let must_wake = waiting.is_asleep;
        drop(waiting);
        if must_wake {
            self.changed.notify_all();
        }
    }

    /// Exchanges `taken`, which is empty, for what there is; `false` if it is over.
    fn take(&self, taken: &mut Vec<u8>) -> bool {
        let mut waiting = self.lock();
        for _ in 0..QUIET {
            let gathered = self.changed.wait_timeout_while(waiting, GATHER, |waiting| !waiting.is_closing);
            waiting = gathered.unwrap_or_else(PoisonError::into_inner).0;
            if !waiting.bytes.is_empty() || waiting.is_closing {
                break;
            }
        }
        waiting.is_asleep = true;
        let is_idle = |waiting: &mut Waiting| waiting.bytes.is_empty() && !waiting.is_closing;
        waiting = self.changed.wait_while(waiting, is_idle).unwrap_or_else(PoisonError::into_inner);
        waiting.is_asleep = false;
        mem::swap(&mut waiting.bytes, taken);
        !taken.is_empty()
    }

    fn run(&self, mut out: impl Write) {
        let mut taken = Vec::new();
        while self.take(&mut taken) {
            let left = write(&mut out, &taken);
            let lost = left.iter().filter(|byte| **byte == b'\n').count();
            self.lost.fetch_add(lost as u64, Ordering::Relaxed);
            taken.clear();
            // What has piled up behind a slow reader need not be kept room for.
            taken.shrink_to(MOST / 16);
        }
        self.lock().is_over = true;
        self.changed.notify_all();
    }
}

/// What could not be written.
fn write<'a>(out: &mut impl Write, mut bytes: &'a [u8]) -> &'a [u8] {
    while !bytes.is_empty() {
        match out.write(bytes) {
            Ok(0) => break,
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Somebody who has the same pipe has made it so.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(GATHER),
            Err(_) => break,
        }
    }
    bytes
}

impl Drop for Closing {
    fn drop(&mut self) {
        let mut waiting = self.0.lock();
        waiting.is_closing = true;
        self.0.changed.notify_all();
        drop(self.0.changed.wait_timeout_while(waiting, CLOSE, |waiting| !waiting.is_over));
    }
}

struct Queue(Arc<Lines>);

/// Takes one line.
struct Line<'a>(&'a Lines);

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0)
    }
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The time of a line. Its seconds are put into words once for all lines of a second: that is a fifth of what a line costs.
struct Clock;

impl FormatTime for Clock {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write_time(SystemClock.now().duration_since(UNIX_EPOCH).unwrap_or_default(), writer)
    }
}

fn write_time(now: Duration, writer: &mut impl fmt::Write) -> fmt::Result {
    thread_local! {
        static SECOND: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
    }
    SECOND.with_borrow_mut(|(second, text)| {
        if *second != now.as_secs() {
            let shown = i64::try_from(now.as_secs()).ok().and_then(|now| Timestamp::from_second(now).ok());
            *text = shown.unwrap_or(Timestamp::MAX).strftime("%FT%T").to_string();
            *second = now.as_secs();
        }
        write!(writer, "{text}.{:06}Z", now.subsec_micros())
    })
}

/// Adds `trace_id` and `span_id` of what is current.
struct Traced<F> {
    lines: F,
    json: bool,
}

impl<S, N, F> FormatEvent<S, N> for Traced<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let current = Context::map_current(|current| {
            let span = current.span().span_context().clone();
            span.is_valid().then_some(span)
        });
        let Some(span) = current else { return self.lines.format_event(context, writer, event) };
        let mut line = String::new();
        self.lines.format_event(context, Writer::new(&mut line), event)?;
        let (trace, span) = (span.trace_id(), span.span_id());
        match (self.json, line.strip_prefix('{')) {
            (true, Some(rest)) => write!(writer, r#"{{"trace_id":"{trace}","span_id":"{span}",{rest}"#),
            _ => writeln!(writer, "{} trace_id={trace} span_id={span}", line.trim_end()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Takes a byte at a time, and only if it is let.
    struct Slow(mpsc::Receiver<()>, Arc<Mutex<Vec<u8>>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.0.recv() {
                Ok(()) => {
                    self.1.lock().unwrap().push(bytes[0]);
                    Ok(1)
                }
                Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Setup {
        lines: Arc<Lines>,
        letting: mpsc::Sender<()>,
        written: Arc<Mutex<Vec<u8>>>,
        thread: thread::JoinHandle<()>,
    }

    #[test]
    fn lines_of_a_second_share_its_words_and_no_other_second_does() {
        let shown = |micros| {
            let mut text = String::new();
            write_time(Duration::from_micros(micros), &mut text).unwrap();
            text
        };
        assert_eq!(shown(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(shown(999_999), "1970-01-01T00:00:00.999999Z");
        assert_eq!(shown(1_000_000), "1970-01-01T00:00:01.000000Z");
        assert_eq!(shown(951_782_399_000_001), "2000-02-28T23:59:59.000001Z");
        assert_eq!(shown(951_782_400_000_000), "2000-02-29T00:00:00.000000Z");
        assert_eq!(shown(1_000_001), "1970-01-01T00:00:01.000001Z");
        assert!(shown(u64::MAX).starts_with("9999-12-30T"));
    }

    fn slow() -> Setup {
        let (lines, written) = (Arc::<Lines>::default(), Arc::default());
        let (letting, let_through) = mpsc::channel();
        let out = Slow(let_through, Arc::clone(&written));
        let writer = Arc::clone(&lines);
        Setup { lines, letting, written, thread: thread::spawn(move || writer.run(out)) }
    }

    #[test]
    fn lines_are_written_in_their_order_also_the_last_ones() {
        let Setup { lines, letting, written, thread } = slow();
        (0..100).for_each(|_| letting.send(()).unwrap());
        for line in ["one\n", "two\n", "three\n"] {
            write!(Queue(Arc::clone(&lines)).make_writer(), "{line}").unwrap();
        }
        drop(Closing(Arc::clone(&lines)));
        thread.join().unwrap();
        assert_eq!(*written.lock().unwrap(), b"one\ntwo\nthree\n");
        assert_eq!(lines.lost.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_a_slow_reader_has_no_room_for_is_left_out_and_counted() {
        let Setup { lines, letting, written, thread } = slow();
        let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
        // What the thread has taken is not waiting any more.
        let (total, rooms) = (4 * MOST / line.len(), MOST / line.len());
        (0..total).for_each(|_| lines.push(&line));
        let lost = lines.lost.load(Ordering::Relaxed) as usize;
        assert!((total - 2 * rooms..=total - rooms).contains(&lost), "{lost} of {total}");
        // Nobody will ever read the rest.
        drop(letting);
        drop(Closing(Arc::clone(&lines)));
        thread.join().unwrap();
        assert!(written.lock().unwrap().is_empty());
        assert_eq!(lines.lost.load(Ordering::Relaxed) as usize, total);
    }
}
