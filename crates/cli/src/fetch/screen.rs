//! A progress bar for a person at a terminal, and nothing for anybody else.

use std::io::{IsTerminal, stderr};
use std::ops::ControlFlow;

use indicatif::{ProgressBar, ProgressStyle};
use transport::bittorrent::Progress;

use crate::output;

/// Where progress is shown, if anywhere.
#[derive(Clone)]
pub(super) struct Screen {
    bar: Option<ProgressBar>,
}

impl Screen {
    pub(super) fn new() -> Self {
        // The bar goes to standard error; standard output has the result only.
        Self { bar: stderr().is_terminal().then(bar) }
    }

    pub(super) fn is_seen(&self) -> bool {
        self.bar.is_some()
    }

    pub(super) fn message(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(what.to_owned());
        }
    }

    pub(super) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// For a long operation on the disk.
    pub(super) fn follow(&self, what: &'static str) -> impl FnMut(u64, u64) -> ControlFlow<()> + use<> {
        let bar = self.bar.clone();
        if let Some(bar) = &bar {
            bar.set_message(what);
        }
        move |done, total| {
            if let Some(bar) = &bar {
                bar.set_length(total);
                bar.set_position(done);
            }
            ControlFlow::Continue(())
        }
    }

    pub(super) fn progress(&self, progress: &Progress) {
        let Some(bar) = &self.bar else { return };
        bar.set_length(progress.bytes_to_move);
        bar.set_position(progress.bytes_done);
        bar.set_message(format!(
            "in {} MB/s, out {} MB/s, {}",
            tenths(progress.down_bytes_per_second),
            tenths(progress.up_bytes_per_second),
            output::count(progress.peers, "peer")
        ));
    }
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {bytes}/{total_bytes} {eta} {msg}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn tenths(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}
