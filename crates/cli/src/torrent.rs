//! `rackswarm torrent`: makes the .torrent of a file, and nothing else.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::output::{check_file, say};
use crate::swarming::create::{self, Form};

/// Of what, and how.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The file or block device
    file: PathBuf,
    /// The .torrent to write
    #[arg(long, value_name = "OUT")]
    out: PathBuf,
    /// Address of a tracker; may be given again
    #[arg(long = "announce", value_name = "URL", value_parser = create::tracker_url)]
    announce: Vec<String>,
    #[command(flatten)]
    form: Form,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    check_file(&arguments.out)?;
    let metainfo = arguments.form.make(&arguments.file, arguments.announce.clone())?;
    create::write(&arguments.out, &metainfo)?;
    let mut lines = arguments.form.describe(&arguments.file, &metainfo);
    lines.push(format!("torrent     {}", arguments.out.display()));
    lines.push(format!("magnet      {}", create::magnet(&metainfo)));
    say(lines.join("\n"))?;
    Ok(ExitCode::SUCCESS)
}
