//! What the agent says on the console or in the journal: lines that begin with
//! `rackswarm: ` and are short sentences.

use std::fmt;
use std::io;

use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;

/// Sends what is said from now on to standard error. Calling it twice is harmless.
pub fn open() {
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(io::stderr).event_format(Lines);
    // Other crates speak to a server's log; only their warnings are sentences for a console.
    let ours = Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target("agent", LevelFilter::INFO)
        .with_target("rackswarm_agent", LevelFilter::INFO);
    // An error means that there is one already, which serves as well.
    let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(lines).with(ours));
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
        match *event.metadata().level() {
            Level::ERROR => to.write_str("error: ")?,
            Level::WARN => to.write_str("warning: ")?,
            _ => {}
        }
        context.field_format().format_fields(to.by_ref(), event)?;
        to.write_char('\n')
    }
}
