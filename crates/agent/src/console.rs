//! What the agent says on the console or in the journal: lines that begin with
//! `rackswarm: ` and are short sentences.

use std::fmt;
use std::io;

use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Sends what is said from now on to standard error. Calling it twice is harmless.
pub fn open() {
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::INFO)
        .with_ansi(false)
        .with_writer(io::stderr)
        .event_format(Lines)
        .finish();
    // An error means that there is one already, which serves as well.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// One event, one line. No time stamps: the kernel's console and the journal
/// have their own.
struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        to.write_str("rackswarm: ")?;
        if *event.metadata().level() <= Level::WARN {
            to.write_str("warning: ")?;
        }
        context.field_format().format_fields(to.by_ref(), event)?;
        to.write_char('\n')
    }
}
